import os
import signal
import subprocess
import sys
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


@pytest.mark.parametrize(("code", "status"), [("raise SystemExit(2)", 2), ("import os; os.kill(os.getpid(), 9)", 137)])
def test_the_exit_status_is_the_jobs(code: str, status: int) -> None:
    running = Running([sys.executable, "-c", code], dict(os.environ), Lease())
    running.follow()
    assert running.wait() == status


def test_cancelling_ends_the_whole_group_even_where_it_will_not_listen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(local, "GRACE", 0.5)
    code = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"child = subprocess.Popen([sys.executable, '-c', {SLEEPER!r}])\n"
        f"open({str(tmp_path / 'ready')!r}, 'w').write(str(child.pid)); time.sleep(60)"
    )
    running = Running([sys.executable, "-c", code], dict(os.environ), Lease())
    end = time.monotonic() + 60
    while not ((tmp_path / "ready").exists() and (tmp_path / "ready").read_text()):
        assert time.monotonic() < end
        time.sleep(0.02)
    running.cancel()
    assert running.wait() == 128 + signal.SIGKILL
    assert gone(int((tmp_path / "ready").read_text()))


def test_a_job_dies_with_a_stage_that_is_killed() -> None:
    code = (
        "import os, sys; from stages.dispatch.local import Lease, Running\n"
        f"job = Running([sys.executable, '-c', {SLEEPER!r}], dict(os.environ), Lease())\n"
        "print(job._process.pid, flush=True); job.follow()"
    )
    stage = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert stage.stdout is not None
    job = int(stage.stdout.readline())
    assert alive(job)
    stage.kill()
    stage.wait(20)
    assert gone(job)
