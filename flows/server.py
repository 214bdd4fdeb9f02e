"""Prefect's server as a leashed process: that of `make schedule`, or the one that a flow started by hand brings along.

Prefect would start such a server by itself, but it would outlive a flow ended by `kill -9`, and die of the very Ctrl-C
that the flow wants to record in it. Nothing here imports Prefect, so that a server starts while a flow imports it.
"""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from flows import environment
from flows.execution import leash, run_log

PATIENCE_SECONDS = 120.0
"""For a server to answer: a busy machine, or new tables in a far database, take a while."""
GRACE_SECONDS = 8.0
VERBOSE = "PRETEXT_VERBOSE"
"""Set, it lets the server and the worker talk."""
_APPLICATION = ("--factory", "prefect.server.api.server:create_app", "--log-level", "error")
_HOST = "127.0.0.1"


class ServerError(Exception):
    """There is no server: one sentence."""


def start(service: str, module: str, *arguments: str, **settings: str) -> subprocess.Popen[bytes]:
    """Start a Python module that ends with this process, out of a Ctrl-C's reach. Its output goes to the log `service`.

    The module gets no secret but through its environment: a command line can be read by everybody.
    """
    command = leash.command([sys.executable, "-m", module, *arguments], GRACE_SECONDS)
    with run_log.service(service).open("ab") as log:
        output = None if VERBOSE in os.environ else log
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            process_group=0,
            env={**os.environ, **settings},
        )


def end(process: subprocess.Popen[bytes]) -> None:
    """End what `start` has started, and all below it."""
    process.terminate()
    process.wait(GRACE_SECONDS + 5)


def wait(condition: Callable[[], Any], complaint: str, process: subprocess.Popen[bytes]) -> None:
    """Wait for `condition`; ServerError where `process` ends before, or it takes too long."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            raise ServerError(f"{complaint}; what it says is in {run_log.FOLDER}, or shown by {VERBOSE}=1")
        time.sleep(0.1)


def address(host: str, port: int) -> str:
    """The API of a server on `host`; ServerError where the port is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServerError(f"{host}:{port}: {error.strerror}; choose another with --port") from None
        return f"http://{_HOST if host == '0.0.0.0' else host}:{probe.getsockname()[1]}/api"


def bring() -> Callable[[], None]:
    """Start a server without pages that ends with this process, where no other is named; returns what waits for it.

    To be called before Prefect is imported: it sets what Prefect reads then. ServerError where a named one is away.
    """
    if (named := os.environ.get("PREFECT_API_URL")) is not None:
        return lambda: _check(named)
    if not environment.is_ours():
        return lambda: None
    found = address(_HOST, 0)
    environment.guard(found)
    port = found.removesuffix("/api").rpartition(":")[2]
    settings = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1"}
    process = start("server", "uvicorn", *_APPLICATION, "--host", _HOST, "--port", port, **settings)
    os.environ |= {"PREFECT_API_URL": found, "PREFECT_UI_URL": ""}
    atexit.register(end, process)  # after Prefect's own farewells: what is registered first is called last
    return lambda: wait(lambda: environment.answers(found), "Prefect's server has not started", process)


def _check(named: str) -> None:
    """ServerError where nobody listens at the API `named`: Prefect would try for a minute."""
    place = urlsplit(named)
    try:
        port = place.port or (443 if place.scheme == "https" else 80)
        socket.create_connection((place.hostname or "", port), timeout=10).close()
    except (OSError, ValueError) as error:
        raise ServerError(f"PREFECT_API_URL: no Prefect server answers at {place.hostname} ({error})") from None
