"""Runs of deployments take turns in a project, by file locks that the kernel frees when their holder ends, however.

A slot that Prefect's server counts (a `concurrency_limit`, or that of a work pool) is kept by a run whose worker was
killed, and with it every later run is left out. Here a run that falls due while another of its own deployment works is
left out; one of another deployment waits for its turn.
"""

from __future__ import annotations

import fcntl
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

FOLDER = Path(".prefect/turns")
"""In the project, whatever Prefect's home is: the working tree is what they take turns in."""
POLL_SECONDS = 1.0
_EVERYONE = "project"


class TurnTaken(Exception):  # noqa: N818 - no error: the work is being done
    """Another run of the same deployment is at work: one sentence."""


class TurnCancelled(Exception):  # noqa: N818
    """The run was cancelled while it waited for its turn."""


@contextmanager
def turn(deployment: str, run: str, say: Callable[[str], None], cancelled: threading.Event) -> Iterator[None]:
    """Hold the project for the run `run` of `deployment`. TurnTaken, TurnCancelled where it is not to be had."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        own = held.enter_context(_file(f"deployment-{deployment}"))
        if not _locked(own):
            raise TurnTaken(f"left out: {_holder(own)} of {deployment} is still at work")
        _sign(own, run)
        everyones = held.enter_context(_file(_EVERYONE))
        waiting = False
        while not _locked(everyones):
            if not waiting:
                say(f"waiting until {_holder(everyones)} has ended")
                waiting = True
            if cancelled.wait(POLL_SECONDS):
                raise TurnCancelled
        _sign(everyones, f"{run} of {deployment}")
        yield


def _file(name: str) -> IO[str]:
    """The lock file of a name; never removed, or two runs could hold different files of one name."""
    return (FOLDER / f"{re.sub(r'[^A-Za-z0-9_-]', '_', name)}.lock").open("a+", encoding="utf-8")


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sign(file: IO[str], run: str) -> None:
    file.truncate(0)
    file.write(f"the run {run} (since {time.strftime('%Y-%m-%d %H:%M:%S %Z')})")
    file.flush()


def _holder(file: IO[str]) -> str:
    file.seek(0)
    return file.read() or "a run"
