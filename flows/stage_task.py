"""One DVC stage as one child process: `dvc repro --single-item`, and an end to everything it started.

DVC's repository lock gives up after three seconds while another process hashes, and overlapping paths fail at once as
"busy": both are waited out here, since independent stages run at the same time. The child leads a process group of its
own; whatever ends the caller (cancellation, Ctrl-C, an error) ends the group: SIGTERM first, so that a training job
checkpoints and closes its MLflow run, then SIGKILL.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable

import psutil

from ssl_models.lifetime import die_with_parent

GRACE_SECONDS = 10.0
LOCK_PATIENCE_SECONDS = 600.0
BUSY = ("Unable to acquire lock", "is busy, it is being blocked by", "Failed to acquire lock")
TAIL_LINES = 15


class StageError(Exception):
    """A stage ended with a non-zero status: its last lines."""


class Children:
    """The process groups that are alive now, so that one call ends them all from whatever thread."""

    def __init__(self) -> None:
        self._alive: dict[int, subprocess.Popen[str]] = {}
        self._lock = threading.Lock()
        self.ending = threading.Event()

    def start(self, command: list[str]) -> subprocess.Popen[str]:
        """Start `command` as the leader of a group; it dies with this process even on SIGKILL."""
        with self._lock:
            if self.ending.is_set():
                raise StageError("the run is being cancelled")
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                process_group=0,
                preexec_fn=lambda: die_with_parent(signal.SIGTERM),
            )
            self._alive[child.pid] = child
        return child

    def forget(self, child: subprocess.Popen[str]) -> None:
        """`child` has been waited for."""
        with self._lock:
            self._alive.pop(child.pid, None)

    def end(self, grace: float = GRACE_SECONDS) -> None:
        """SIGTERM to every group, SIGKILL to what is left after `grace` seconds. Nothing can be started any more."""
        self.ending.set()
        with self._lock:
            children = list(self._alive.values())
        for child in children:
            _signal_group(child, signal.SIGTERM)
        deadline = time.monotonic() + grace
        while time.monotonic() < deadline and any(_group_alive(child) for child in children):
            time.sleep(0.05)
        for child in children:
            _signal_group(child, signal.SIGKILL)


def _signal_group(child: subprocess.Popen[str], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, number)


def _group_alive(child: subprocess.Popen[str]) -> bool:
    """Whether a process of the group still runs; a zombie that nobody reaps does not."""
    child.poll()
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getpgid(process.pid) == child.pid and process.status() != psutil.STATUS_ZOMBIE:
                return True
    return False


def repro(name: str, children: Children, log: Callable[[str], None], *, force: bool = False) -> None:
    """Run the stage `name` and nothing else, passing each line of its output to `log`; StageError where it fails."""
    command = [sys.executable, "-m", "dvc", "repro", "--single-item", *(["--force"] if force else []), name]
    deadline = time.monotonic() + LOCK_PATIENCE_SECONDS
    pause = 0.2
    while True:
        child = children.start(command)
        tail: deque[str] = deque(maxlen=TAIL_LINES)
        assert child.stdout is not None
        for line in child.stdout:
            tail.append(line.rstrip())
            log(line.rstrip())
        status = child.wait()
        children.forget(child)
        if status == 0:
            return
        busy = any(sign in line for line in tail for sign in BUSY)
        if not busy or time.monotonic() > deadline:
            raise StageError(f"{name} ended with status {status}:\n" + "\n".join(tail))
        if children.ending.wait(pause):
            raise StageError("the run is being cancelled")
        pause = min(2 * pause, 5.0)
