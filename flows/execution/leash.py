"""One command, and an end to everything it starts: `python -m flows.execution.leash PARENT GRACE CORES COMMAND ...`.

A stage is DVC, a shell, Python, and perhaps several training processes with loaders, in process groups of their own: a
signal to one process or one group does not reach them all. The leash adopts what is orphaned below it, and it ends
when it is told to, or when the process PARENT is gone, even by `kill -9`. The command's group gets SIGTERM, so that a
training job checkpoints and closes its MLflow run; whatever is alive after GRACE seconds gets SIGKILL. CORES are those
that all of them may use (`0,1,2`, or `all`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence

import psutil

from ssl_models.training.lifetime import adopt_orphans, die_with_parent

_STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_WATCHED = {*_STOP, signal.SIGCHLD}
ALL = "all"
_AFTER_KILL_SECONDS = 0.1
"""Between looks at what SIGKILL has not ended yet."""


def command(program: list[str], grace: float, cores: Sequence[int] = ()) -> list[str]:
    """The command line that runs `program` on a leash held by this process, on some cores (all, if empty)."""
    share = ",".join(map(str, cores)) or ALL
    return [sys.executable, "-m", "flows.execution.leash", str(os.getpid()), str(grace), share, *program]


def _reap(child: int) -> int | None:
    """Wait for whatever has ended; the exit status of `child` if it is among them."""
    status = None
    with contextlib.suppress(ChildProcessError):
        while True:
            process, code = os.waitpid(-1, os.WNOHANG)
            if not process:
                break
            if process == child:
                status = os.waitstatus_to_exitcode(code)
    return status


def _alive() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def run(program: list[str], grace: float) -> int:
    """Run `program` to its end, or to this process's; returns its exit status, 128 + n where signal n ended it."""
    adopt_orphans()
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    child = os.posix_spawnp(program[0], program, os.environ, setpgroup=0, setsigmask=())
    status: int | None = None
    deadline: float | None = None
    while True:
        ended = _reap(child)
        status = ended if ended is not None else status
        alive = _alive() if status is not None or deadline is not None else []
        if status is not None and not alive:
            return status if status >= 0 else 128 - status
        now = time.monotonic()
        if status is not None and deadline is None:  # it has left something behind
            deadline = now + grace
            _terminate(alive)
        if deadline is not None and now >= deadline:
            _kill(alive)
            deadline = now + _AFTER_KILL_SECONDS
        got = signal.sigtimedwait(_WATCHED, 3600.0 if deadline is None else deadline - now)
        if got is not None and got.si_signo in _STOP and deadline is None:
            deadline = time.monotonic() + grace
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGTERM)


def _terminate(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()


def main() -> None:
    """The command line."""
    parent, grace, cores, *program = sys.argv[1:]
    die_with_parent(signal.SIGTERM, parent=int(parent))
    if cores != ALL:
        os.sched_setaffinity(0, map(int, cores.split(",")))
    sys.exit(run(program, float(grace)))


if __name__ == "__main__":
    main()
