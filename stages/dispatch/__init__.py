"""Launchers, one module each, found by the name that `compute.yaml` gives (`launcher`).

A module defines

    def submit(job: Path, compute: Compute) -> Submitted

which starts `python -m ssl_models.train JOB` somewhere, or finds it running there already. The stage is a blocking
command for DVC: `run` follows the job's log, passes on its exit status, and cancels it when the stage is told to stop.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Protocol

from stages.params import COMPUTE, Compute, find


class Submitted(Protocol):
    """A training job, wherever it runs."""

    def follow(self) -> None:
        """Show the job's log as it grows, until the job has ended."""

    def wait(self) -> int:
        """The job's exit status: 0 done, 2 something the user can mend (it said what), else a failure."""

    def cancel(self) -> None:
        """End the job within seconds, whatever it is doing; a job that has ended stays as it is."""


class Stop(BaseException):
    """A signal asked the stage to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM and SIGINT raise Stop, once: a second one does not disturb the cancelling."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        for again in (signal.SIGTERM, signal.SIGINT):
            signal.signal(again, signal.SIG_IGN)
        raise Stop(number)

    before: dict[signal.Signals, Any] = {n: signal.signal(n, stop) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(job: Path, compute: Compute) -> int:
    """Submit the job file to the launcher of `compute`, follow it to its end, and return its exit status."""
    launcher = find(__name__, compute.launcher, "launcher", COMPUTE)
    submitted: Submitted | None = None
    with _stoppable():
        try:
            submitted = launcher.submit(job, compute)
            submitted.follow()
            return submitted.wait()
        except Stop as stop:
            if submitted is not None:
                submitted.cancel()
            return 128 + stop.number
        except BaseException:
            if submitted is not None:
                submitted.cancel()
            raise
