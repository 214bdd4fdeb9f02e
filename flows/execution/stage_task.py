"""One DVC stage as one child process: `dvc repro --single-item` on a leash, and an end to everything it started.

Independent stages run at the same time. DVC's repository lock is waited for (by default it gives up after three
seconds: a stage that had trained for a month would be lost to a neighbour's hashing); paths that another DVC process
holds, which fail at once as "busy", are tried again.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from flows.environment import PASSWORDS
from flows.execution import dvc_process, leash

MOST_PARALLEL = 32
GRACE_SECONDS = 10.0
"""For a stage that is being ended: its training job has so long to write a checkpoint."""
LOCK_PATIENCE_SECONDS = 6 * 3600.0
"""Longest wait for paths that another DVC process holds."""
BUSY = ("Unable to acquire lock", "is busy, it is being blocked by", "Failed to acquire lock")
UNCHANGED = "didn't change, skipping"
TAIL_LINES = 15
USER_ERROR = 2
"""Exit status of a stage that the user must mend: trying again would not help."""
RETRIED = ("ingest", "pretrain")
"""Stages that are tried again: an ingest may read from a network, and machines end a training, which resumes."""

Log = Callable[[str], None]


def default_parallel() -> int:
    """Half the cores: data stages use several processes, and GPUs are leased one stage at a time."""
    return max(2, min(MOST_PARALLEL, len(os.sched_getaffinity(0)) // 2))


class StageError(Exception):
    """A stage has not been reproduced: its last lines. `status` is that of its command, None where it did not end."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Ended(StageError):  # noqa: N818 - not an error where the user asked for it
    """The stage was ended, by a cancellation or by its timeout: there is no point in trying again."""


@dataclass(frozen=True)
class Policy:
    """How stages are run. `timeouts` are seconds by stage (`pretrain@gpt`), kind (`pretrain`) or `all`."""

    timeouts: Mapping[str, float] = field(default_factory=dict)
    retries: int = 2
    retry_delay: float = 30.0

    def timeout(self, name: str) -> float | None:
        """The limit of the stage `name`, the most particular one."""
        for key in (name, name.partition("@")[0], "all"):
            if key in self.timeouts:
                return self.timeouts[key]
        return None

    def attempts(self, name: str) -> int:
        """Only what ends for reasons that pass is tried again: see RETRIED."""
        return 1 + self.retries if name.partition("@")[0] in RETRIED else 1


class Children:
    """The leashed processes that are alive now, so that one call ends them all from whatever thread."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._environment = {**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})}
        for name in PASSWORDS:  # a stage asks nothing of Prefect, and may hand its environment to another machine
            self._environment.pop(name, None)
        self._alive: dict[int, subprocess.Popen[str]] = {}
        self._lock = threading.Lock()
        self.ending = threading.Event()

    def start(self, program: list[str], cores: Sequence[int] = ()) -> subprocess.Popen[str]:
        """Start `program` on some cores (all, if empty); it ends with this process, even where that is killed."""
        with self._lock:
            if self.ending.is_set():
                raise Ended("the run is being cancelled")
            child = subprocess.Popen(
                leash.command(program, GRACE_SECONDS, cores),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                process_group=0,
                env=self._environment,
            )
            self._alive[child.pid] = child
        return child

    def run(
        self, program: list[str], log: Log, timeout: float | None = None, cores: Sequence[int] = ()
    ) -> tuple[int, list[str]]:
        """Run `program` to its end, passing each line of its output to `log`; its exit status and last lines."""
        child = self.start(program, cores)
        late = _Timeout(child, timeout) if timeout is not None else None
        tail: deque[str] = deque(maxlen=TAIL_LINES)
        try:
            assert child.stdout is not None
            for line in child.stdout:
                if line.strip():
                    tail.append(line.rstrip())
                    log(line.rstrip())
            status = child.wait()
        finally:
            if late is not None:
                late.timer.cancel()
            with self._lock:
                self._alive.pop(child.pid, None)
        if self.ending.is_set():
            raise Ended("ended, because the run was cancelled")
        if late is not None and late.expired.is_set() and status:
            raise Ended("\n".join([f"ended by its timeout of {timeout:g} s:", *tail]))
        return status, list(tail)

    def end(self) -> None:
        """End everything, and return when it has ended. Nothing can be started any more."""
        self.ending.set()
        with self._lock:
            children = list(self._alive.values())
        for child in children:
            child.terminate()
        deadline = time.monotonic() + GRACE_SECONDS + 2
        for child in children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, deadline - time.monotonic()))


class _Timeout:
    """Ends `child` after `seconds`."""

    def __init__(self, child: subprocess.Popen[str], seconds: float) -> None:
        self._child = child
        self.expired = threading.Event()
        self.timer = threading.Timer(seconds, self._end)
        self.timer.daemon = True
        self.timer.start()

    def _end(self) -> None:
        self.expired.set()
        self._child.terminate()


def command_status(tail: list[str]) -> int | None:
    """The exit status of the stage's command, which DVC only tells in its message."""
    for line in reversed(tail):
        if found := re.search(r"exited with (-?\d+)", line):
            return int(found[1])
    return None


def repro(
    name: str,
    children: Children,
    log: Log,
    *,
    force: bool = False,
    policy: Policy | None = None,
    cores: Sequence[int] = (),
) -> bool:
    """Run the stage `name` and nothing else, on some cores (all, if empty); False where DVC found nothing to do.

    StageError where it fails.
    """
    policy = policy or Policy()
    flags = ["--single-item", *(["--force"] if force else [])]
    program = dvc_process.command("repro", *flags, name)
    attempts = policy.attempts(name)
    for attempt in range(1, attempts + 1):
        try:
            return patient(name, program, children, log, policy.timeout(name), cores)
        except Ended as error:
            raise Ended(f"{name}: {error}") from None
        except StageError as error:
            if error.status == USER_ERROR or attempt == attempts:
                raise
            log(f"{name} failed; attempt {attempt + 1} of {attempts} follows in {policy.retry_delay:g} s")
            if children.ending.wait(policy.retry_delay):
                raise Ended(f"{name}: ended, because the run was cancelled") from None
    raise AssertionError("there is at least one attempt")


def patient(
    name: str,
    program: list[str],
    children: Children,
    log: Log,
    timeout: float | None = None,
    cores: Sequence[int] = (),
) -> bool:
    """One attempt at `program`, a `dvc repro` of the stage `name`, begun anew as long as another DVC process holds what
    it needs; False where DVC found nothing to do."""
    deadline = time.monotonic() + LOCK_PATIENCE_SECONDS
    pause = 0.2
    while True:
        status, tail = children.run(program, log, timeout, cores)
        if status == 0:
            return not any(UNCHANGED in line for line in tail)
        busy = any(sign in line for line in tail for sign in BUSY)
        if not busy or time.monotonic() > deadline:
            found = command_status(tail)
            how = f"with status {found}" if found is not None else "in DVC"
            raise StageError(f"{name} failed {how}:\n" + "\n".join(tail), found)
        if children.ending.wait(pause):
            raise Ended("ended, because the run was cancelled")
        pause = min(2 * pause, 60.0)
