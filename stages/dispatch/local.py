"""Training on this machine: one process, or several, one per GPU.

The job is a process group of its own that dies with the stage, even by `kill -9`. Its processes find each other through
a file and talk through the loopback interface: torchrun's store would listen on every address of the machine. GPUs are
leased through file locks that the kernel frees when their holder ends, so two stages never share one, whoever started
them, and who came first is served first.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import signal
import stat
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

LOCKS = Path("/tmp/pretext-gpus")
"""Shared by every user of the machine, so not in a folder that TMPDIR names."""
TICKET = ".ticket"
LARGEST_TICKET = 100_000
"""Characters that are read of another user's."""
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
        file = _lock_file(f"{gpu}.lock")
        if not _locked(file):
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


def _locked(file: IO[str]) -> bool:
    """Lock `file`; False where another process has locked it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock_file(name: str) -> IO[str]:
    """Open the file `name` among the locks, made where it is missing; UserError where it cannot be a lock.

    Any user may have put anything there. So no link is followed, nothing is written into what was there before, and
    only a file that this call has made is opened to everybody: another could be a hard link to a file of the user's.
    """
    try:
        with contextlib.suppress(FileExistsError):
            LOCKS.mkdir(mode=0o1777)
        folder = LOCKS.lstat()
        if not stat.S_ISDIR(folder.st_mode):
            raise UserError(f"{LOCKS}: holds the locks of the GPUs and must be a folder: remove what is there")
        if folder.st_uid == os.geteuid() and stat.S_IMODE(folder.st_mode) != 0o1777:
            LOCKS.chmod(0o1777)  # whatever the umask: everyone makes files here, and removes only their own
        descriptor = _opened(LOCKS / name)
    except OSError as error:
        raise UserError(f"{error.filename}: the lock of a GPU cannot be opened ({error.strerror}): remove it") from None
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        os.close(descriptor)
        raise UserError(f"{LOCKS / name}: a lock of a GPU must be a file of its own: remove it")
    return os.fdopen(descriptor, "r" if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY else "r+")


def _opened(path: Path) -> int:
    """A descriptor of the file at `path`, made for everybody where it is missing."""
    flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    while True:
        try:
            # Without O_CREAT: Linux refuses that on another user's file in such a folder (fs.protected_regular).
            return os.open(path, os.O_RDWR | flags)
        except PermissionError:  # another user has just made it, or an older version has: to read is enough for a lock
            return os.open(path, os.O_RDONLY | flags)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):  # another process may be faster
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | flags, 0o644)
                os.fchmod(descriptor, 0o666)
                return descriptor


class Ticket:
    """A place in the queue for GPUs, kept until the stage has its GPUs or ends, even by `kill -9`.

    A stage collects its GPUs, keeping those it has, once no stage before it in the queue wants one of the same. So a
    large job is not overtaken for ever by small ones, and two that hold a part of what they want never wait for each
    other. Numbers are given, and looked at, under one lock that is held for a moment.
    """

    def __init__(self, available: list[str]) -> None:
        self._available = set(available)
        with self._counter():
            self._number = max((number for number, _ in self._tickets()), default=0) + 1
            self._path = LOCKS / f"{self._number}{TICKET}"
            self._file = _lock_file(self._path.name)
            fcntl.flock(self._file, fcntl.LOCK_EX)
            self._file.write("\n".join(available))
            self._file.flush()

    def is_next(self) -> bool:
        """Whether no living stage before this one wants any of the same GPUs."""
        with self._counter():
            before = [path for number, path in self._tickets() if number < self._number]
            return not any(self._wanted(path) & self._available for path in before)

    def free(self) -> None:
        """Leave the queue."""
        self._path.unlink(missing_ok=True)
        self._file.close()

    @staticmethod
    def _counter() -> IO[str]:
        file = _lock_file("queue.lock")
        fcntl.flock(file, fcntl.LOCK_EX)
        return file  # a context manager whose end closes it, and so unlocks

    @staticmethod
    def _tickets() -> list[tuple[int, Path]]:
        found = [path for path in LOCKS.glob(f"*{TICKET}") if path.name.removesuffix(TICKET).isdecimal()]
        return [(int(path.name.removesuffix(TICKET)), path) for path in found]

    @staticmethod
    def _wanted(path: Path) -> set[str]:
        """GPUs that a ticket's owner waits for; none, and the ticket removed if it may be, where it has ended."""
        with _lock_file(path.name) as file:
            if not _locked(file):
                return set(file.read(LARGEST_TICKET).split("\n"))
        with contextlib.suppress(PermissionError):  # of another user
            path.unlink()
        return set()


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
    """`count` of the GPUs, waiting in a queue until so many are free."""
    taken, said = Lease(), False
    ticket = Ticket(available)
    try:
        while True:
            if ticket.is_next():
                for gpu in available:
                    if len(taken.gpus) < count and gpu not in taken.gpus:
                        taken.take(gpu)
                if len(taken.gpus) == count:
                    taken.gpus.sort(key=available.index)
                    return taken
            if not said:
                print(f"waiting for {count} of {len(available)} GPUs: other stages hold them", flush=True)
                said = True
            time.sleep(POLL)
    except BaseException:
        taken.free()
        raise
    finally:
        ticket.free()


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
