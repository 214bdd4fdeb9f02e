"""Where Prefect keeps its things, settled before Prefect is imported, and which environment stages are started with.

Nothing leaks into the user's home: without a configuration of the user's own, Prefect's is `.prefect/` in the project.
A server that `make schedule` has started there is found and used; without one, a flow brings its own for as long as it
runs. Databases are SQLite files, or PostgreSQL where the tools' own variables name one:

    PREFECT_API_DATABASE_CONNECTION_URL=postgresql+asyncpg://USER:PASSWORD@HOST/prefect
    MLFLOW_TRACKING_URI=postgresql://USER:PASSWORD@HOST/mlflow
"""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

HOME = Path(".prefect")
WEBHOOK = "PRETEXT_WEBHOOK"
_SERVER = "server"
EPHEMERAL_PATIENCE = "120"
"""Seconds for the server that a flow brings along: a busy machine, or new tables in a far database, take a while."""


def prepare() -> None:
    """Set what Prefect reads when it is imported; what the user has set stays."""
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", EPHEMERAL_PATIENCE)
    own = "PREFECT_API_URL" in os.environ or (Path.home() / HOME / "profiles.toml").exists()
    if not own:
        os.environ.setdefault("PREFECT_HOME", str(HOME.absolute()))
        if (address := running_server()) is not None:
            os.environ["PREFECT_API_URL"] = address


def home() -> Path:
    """Prefect's folder."""
    return Path(os.environ.get("PREFECT_HOME", HOME))


def remember_server(address: str) -> None:
    """Let flows that are started by hand find the server at `address`."""
    home().mkdir(parents=True, exist_ok=True)
    (home() / _SERVER).write_text(address, encoding="utf-8")


def forget_server() -> None:
    """The remembered server is gone."""
    (home() / _SERVER).unlink(missing_ok=True)


def running_server() -> str | None:
    """The API of the remembered server, if something listens there."""
    with contextlib.suppress(OSError, ValueError):
        address = (home() / _SERVER).read_text(encoding="utf-8").strip()
        place = urlsplit(address)
        with socket.create_connection((place.hostname or "", place.port or 0), timeout=1):
            return address
    return None
