import os
import queue
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stages.dispatch import local
from stages.dispatch.local import Lease, Running
from stages.params import Local, UserError

SLEEPER = "import time; print('up', flush=True); time.sleep(60)"


@pytest.fixture(autouse=True)
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "LOCKS", tmp_path / "locks")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[-1].split()[0] != "Z"
    except OSError:
        return False


def gone(pid: int, timeout: float = 20) -> bool:
    end = time.monotonic() + timeout
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not alive(pid)


def test_two_stages_never_share_a_gpu() -> None:
    first, second = Lease(), Lease()
    assert first.take("gpu-a")
    assert not second.take("gpu-a")
    assert second.take("gpu-b")
    first.free()
    assert second.take("gpu-a")


def test_a_lease_ends_with_the_process_that_holds_it(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from stages.dispatch import local\n"
        f"local.LOCKS = Path({str(local.LOCKS)!r}); lease = local.Lease()\n"
        "print(lease.take('gpu-a'), flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "True\n"
    assert not Lease().take("gpu-a")
    holder.kill()
    holder.wait(20)
    assert Lease().take("gpu-a")


def as_another_user(function: Callable[[], bool]) -> bool:
    """What `function` returns in a process of another Unix user (of this one, where tests do not run as root)."""
    child = os.fork()
    if not child:
        try:
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            os._exit(0 if function() else 1)
        except BaseException:
            os._exit(2)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 1)
    return status == 0


@pytest.fixture
def everyones(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of locks that other users reach, made by a user with a strict umask."""
    before = os.umask(0o077)
    with tempfile.TemporaryDirectory(prefix="pretext-test-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        monkeypatch.setattr(local, "LOCKS", Path(folder) / "locks")
        yield local.LOCKS
    os.umask(before)


def test_another_user_waits_for_a_gpu_and_takes_it_when_it_is_free(everyones: Path) -> None:
    lease = local.lease(["gpu-a"], 1)
    assert not as_another_user(lambda: Lease().take("gpu-a"))
    lease.free()
    assert as_another_user(lambda: local.lease(["gpu-a", "gpu-b"], 2).gpus == ["gpu-a", "gpu-b"])
    assert local.lease(["gpu-b"], 1).gpus == ["gpu-b"]
    assert stat.S_IMODE(everyones.stat().st_mode) == 0o1777
    assert {stat.S_IMODE(path.stat().st_mode) for path in everyones.iterdir()} == {0o666}


def test_a_lock_that_an_older_version_left_behind_is_taken_by_another_user(everyones: Path) -> None:
    everyones.mkdir()
    everyones.chmod(0o777)
    (everyones / "gpu-a.lock").touch(0o644)
    (everyones / "gpu-a.lock").chmod(0o644)
    assert as_another_user(lambda: Lease().take("gpu-a"))
    assert Lease().take("gpu-a")
    assert stat.S_IMODE(everyones.stat().st_mode) == 0o1777


@pytest.mark.parametrize("trap", ["symlink", "hardlink", "folder"])
def test_what_another_user_puts_in_a_locks_place_is_neither_followed_nor_opened_to_all(
    trap: str, tmp_path: Path
) -> None:
    local.LOCKS.mkdir()
    secret, place = tmp_path / "secret", local.LOCKS / "gpu-a.lock"
    secret.write_text("mine")
    secret.chmod(0o600)
    if trap == "symlink":
        place.symlink_to(secret)
    elif trap == "hardlink":
        place.hardlink_to(secret)
    else:
        place.mkdir()
    with pytest.raises(UserError, match=r"gpu-a.lock: .* remove it"):
        Lease().take("gpu-a")
    assert secret.read_text() == "mine" and stat.S_IMODE(secret.stat().st_mode) == 0o600


def test_a_folder_of_locks_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    local.LOCKS.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="must be a folder"):
        Lease().take("gpu-a")


def test_a_large_job_is_not_overtaken_by_small_ones_that_come_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small jobs take one of two GPUs in turn, without a gap: the large one would never find both free at once."""
    ended: queue.SimpleQueue[str] = queue.SimpleQueue()
    monkeypatch.setattr(local, "POLL", 0.01)
    small = Lease()
    assert small.take("gpu-a")

    def large() -> None:
        held = local.lease(["gpu-a", "gpu-b"], 2)
        ended.put("large")
        held.free()

    def late() -> None:
        held = local.lease(["gpu-a", "gpu-b"], 1)
        ended.put("late")
        held.free()

    threads = [threading.Thread(target=large), threading.Thread(target=late)]
    for thread in threads:
        thread.start()
        number = len(list(local.LOCKS.glob("*.ticket")))
        while number < 1 + threads.index(thread):
            number = len(list(local.LOCKS.glob("*.ticket")))
            time.sleep(0.01)
    assert local.lease(["gpu-c"], 1).gpus == ["gpu-c"]  # nobody else wants it
    time.sleep(0.1)
    assert ended.empty()  # though one GPU is free, the late one waits for its turn
    small.free()
    for thread in threads:
        thread.join(20)
    assert [ended.get(timeout=1), ended.get(timeout=1)] == ["large", "late"]


def test_a_ticket_whose_owner_was_killed_holds_nobody_up() -> None:
    child = os.fork()
    if not child:
        local.Ticket(["gpu-a"])
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert len(list(local.LOCKS.glob("*.ticket"))) == 1
    assert local.lease(["gpu-a"], 1).gpus == ["gpu-a"]
    assert not list(local.LOCKS.glob("*.ticket"))


def test_a_lease_holds_all_that_was_asked_for_or_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    other = Lease()
    other.take("gpu-a")
    monkeypatch.setattr(local.time, "sleep", lambda seconds: other.free())
    assert local.lease(["gpu-a", "gpu-b"], 2).gpus == ["gpu-a", "gpu-b"]


def test_one_process_per_gpu_or_one_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert local.plan(Local(), 0) == (1, 8, False)
    assert local.plan(Local(), 4) == (4, 2, True)
    assert local.plan(Local(processes=2, threads=3), 0) == (2, 3, False)
    with pytest.raises(UserError, match=r"local.processes: 5 is more than the 4 GPUs"):
        local.plan(Local(processes=5), 4)


TOGETHER = """
import os, signal, subprocess, sys, time
from pathlib import Path
rank, up = os.environ["RANK"], Path(sys.argv[1])
def deaf():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
def ready(pid):
    (up / str(pid)).touch()
    while len(list(up.iterdir())) < int(os.environ["WORLD_SIZE"]):
        time.sleep(0.01)
"""
"""What the processes of a job begin with here: `ready` leaves a process id in a folder, and waits for the others."""


@pytest.fixture(name="up")
def _up(tmp_path: Path) -> Path:
    (tmp_path / "up").mkdir()
    return tmp_path / "up"


def program(up: Path, code: str) -> list[str]:
    return [sys.executable, "-c", TOGETHER + code, str(up)]


def pids(up: Path, count: int) -> list[int]:
    end = time.monotonic() + 60
    while len(found := list(up.iterdir())) < count:
        assert time.monotonic() < end
        time.sleep(0.02)
    return [int(path.name) for path in found]


@pytest.mark.parametrize(("code", "status"), [("raise SystemExit(2)", 2), ("import os; os.kill(os.getpid(), 9)", 137)])
def test_the_exit_status_is_the_jobs(code: str, status: int, capfd: pytest.CaptureFixture[str]) -> None:
    running = Running([sys.executable, "-c", code], dict(os.environ), 1, Lease())
    running.follow()
    assert running.wait() == status
    assert capfd.readouterr().err == ("error: signal 9 (Killed) ended the training\n" if status == 137 else "")


@pytest.mark.parametrize(("failure", "status"), [("sys.exit(2)", 2), ("os.kill(os.getpid(), 9)", 137)])
@pytest.mark.parametrize("waiting", ["time.sleep(60)", "deaf(); time.sleep(60)", "sys.exit(0)"])
def test_a_process_that_fails_ends_the_others_and_its_status_is_the_jobs(
    failure: str, status: int, waiting: str, monkeypatch: pytest.MonkeyPatch, up: Path
) -> None:
    if "deaf" in waiting:
        monkeypatch.setattr(local, "GRACE", 0.5)
    code = f"ready(os.getpid())\nif rank == '0':\n    {waiting}\ntime.sleep(0.2)\n{failure}"
    running = Running(program(up, code), dict(os.environ), 3, Lease())
    began = time.monotonic()
    assert running.wait() == status
    assert time.monotonic() - began < 5
    assert not any(alive(pid) for pid in pids(up, 3))


def test_cancelling_ends_the_whole_group_even_where_it_will_not_listen(
    monkeypatch: pytest.MonkeyPatch, up: Path
) -> None:
    monkeypatch.setattr(local, "GRACE", 0.5)
    code = (
        f"deaf(); child = subprocess.Popen([sys.executable, '-c', {SLEEPER!r}])\n"
        "ready(child.pid); ready(os.getpid()); time.sleep(60)"
    )
    running = Running(program(up, code), dict(os.environ), 2, Lease())
    found = pids(up, 4)
    running.cancel()
    assert running.wait() == 128 + signal.SIGKILL
    assert all(gone(pid) for pid in found)


def test_a_job_dies_with_a_stage_that_is_killed(up: Path) -> None:
    command = program(up, "deaf(); ready(os.getpid()); time.sleep(60)")
    code = (
        "import os; from stages.dispatch.local import Lease, Running\n"
        f"Running({command!r}, dict(os.environ), 2, Lease()).follow()"
    )
    stage = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(up.parent)})
    found = pids(up, 2)
    assert all(alive(pid) for pid in found)
    stage.kill()
    stage.wait(20)
    assert all(gone(pid) for pid in found)


def test_no_two_jobs_meet_in_one_file(up: Path) -> None:
    code = "(up / Path(os.environ['PRETEXT_STORE']).parent.name).touch()"
    for _ in range(2):
        assert Running(program(up, code), dict(os.environ), 2, Lease()).wait() == 0
    folders = [path.name for path in up.iterdir()]
    assert len(folders) == 2
    assert not any((Path(tempfile.gettempdir()) / folder).exists() for folder in folders)
