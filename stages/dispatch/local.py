"""Training on this machine: one process, or several, one per GPU.

The job is a process group of its own that dies with the stage, even by `kill -9`. Its processes find each other through
a file and talk through the loopback interface: torchrun's store would listen on every address of the machine. GPUs are
leased through file locks that the kernel frees when their holder ends, so two stages never share one, whoever started
them.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from ssl_models.training.job import STORE
from ssl_models.training.lifetime import die_with_parent
from stages.params import COMPUTE, Compute, Local, UserError

LOCKS = Path(tempfile.gettempdir()) / "pretext-gpus"
"""Shared by every user of the machine."""
GRACE = 10.0
"""Seconds a cancelled job has to finish its step and write a checkpoint."""
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
SOCKETS = {"GLOO_SOCKET_IFNAME": LOOPBACK, "NCCL_SOCKET_IFNAME": f"={LOOPBACK}"}
"""NCCL takes a prefix of names but for "=". An environment that names an interface keeps it."""
POLL = 1.0


@dataclass
class Lease:
    """GPUs that are this stage's until it ends."""

    gpus: list[str] = field(default_factory=list)
    _held: list[IO[str]] = field(default_factory=list)

    def take(self, gpu: str) -> bool:
        """Lock one GPU; False where another stage holds it."""
        LOCKS.mkdir(mode=0o777, exist_ok=True)
        with contextlib.suppress(PermissionError):
            LOCKS.chmod(0o777)
        descriptor = os.open(LOCKS / f"{gpu}.lock", os.O_RDWR | os.O_CREAT, 0o666)
        file = os.fdopen(descriptor, "r+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        self.gpus.append(gpu)
        self._held.append(file)
        return True

    def free(self) -> None:
        """Give every GPU back."""
        for file in self._held:
            file.close()
        self.gpus, self._held = [], []


def gpus() -> list[str]:
    """UUIDs of the GPUs this process may use, asked without torch."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    asked = subprocess.run(
        [program, "--query-gpu=index,uuid", "--format=csv,noheader"], capture_output=True, text=True, check=False
    )
    if asked.returncode:
        return []
    found = dict(line.split(", ", 1) for line in asked.stdout.splitlines() if ", " in line)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return list(found.values())
    names = [name.strip() for name in visible.split(",") if name.strip()]
    return [found.get(name, name) for name in names if name != "-1"]


def lease(available: list[str], count: int) -> Lease:
    """`count` of the GPUs, waiting until so many are free. All or none are held: two stages cannot block each other."""
    said = False
    while True:
        taken = Lease()
        for gpu in available:
            if len(taken.gpus) < count:
                taken.take(gpu)
        if len(taken.gpus) == count:
            return taken
        taken.free()
        if not said:
            print(f"waiting for {count} of {len(available)} GPUs: other stages hold them", flush=True)
            said = True
        time.sleep(POLL)


def plan(local: Local, available: int) -> tuple[int, int, bool]:
    """Processes, CPU threads of each, and whether they run on GPUs."""
    cores = len(os.sched_getaffinity(0))
    if local.processes == "auto":
        processes = max(1, available)
    else:
        processes = local.processes
        if available and processes > available:
            raise UserError(
                f"{COMPUTE}: local.processes: {processes} is more than the {available} GPUs of this machine"
            )
    given = os.environ.get("OMP_NUM_THREADS", "")
    usual = int(given) if given.isdigit() and int(given) else max(1, cores // processes)
    return processes, usual if local.threads == "auto" else local.threads, available > 0


class Running:
    """The job's processes, as one process group."""

    def __init__(self, command: list[str], environment: dict[str, str], processes: int, held: Lease) -> None:
        self._held = held
        self._folder = tempfile.TemporaryDirectory(prefix="pretext-train-")
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._group = 0  # of which the first process becomes the leader
        self._status = 0
        several = {"WORLD_SIZE": str(processes), STORE: f"{self._folder.name}/store"}
        for rank in map(str, range(processes)):
            process = subprocess.Popen(
                command,
                env={**SOCKETS, **environment, **several, "RANK": rank, "LOCAL_RANK": rank},
                process_group=self._group,
                preexec_fn=functools.partial(die_with_parent, parent=os.getpid()),
            )
            self._processes[process.pid] = process
            self._group = self._group or process.pid

    def follow(self) -> None:
        """The job writes to this process's own output; waiting for it is all there is to do."""
        self.wait()

    def wait(self) -> int:
        """The exit status of the process that failed first, which ends the others; -9 becomes 137, as in a shell."""
        while self._processes and not self._status:
            ended = os.waitid(os.P_PGID, self._group, os.WEXITED | os.WNOWAIT)
            assert ended is not None  # only WNOHANG gives None
            self._status = self._processes[ended.si_pid].wait()
            del self._processes[ended.si_pid]
            if self._status < 0:  # it could not say so itself
                name = signal.strsignal(-self._status)
                print(f"error: signal {-self._status} ({name}) ended the training", file=sys.stderr, flush=True)
        self.cancel()
        return self._status if self._status >= 0 else 128 - self._status

    def cancel(self) -> None:
        """SIGTERM to the group, and SIGKILL to what is left of it after `GRACE` seconds."""
        end = time.monotonic() + GRACE
        if self._processes:
            self._signal(signal.SIGTERM)
        for process in self._processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, end - time.monotonic()))
        self._signal(signal.SIGKILL)
        for process in self._processes.values():
            status = process.wait()
            self._status = self._status or status
        self._processes.clear()
        self._held.free()
        self._folder.cleanup()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._group, number)


def submit(job: Path, compute: Compute) -> Running:
    """Start the job here, on leased GPUs where the machine has any."""
    available = gpus()
    processes, threads, on_gpu = plan(compute.local, len(available))
    held = lease(available, processes) if on_gpu else Lease()
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    if on_gpu:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(held.gpus)
    try:
        return Running([sys.executable, "-m", "ssl_models.train", str(job)], environment, processes, held)
    except BaseException:
        held.free()
        raise
