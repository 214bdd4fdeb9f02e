import os
import signal
import subprocess
import sys
import tempfile
import time
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
