"""A leash ends everything its command has started, however it is told to, and whatever the command does about it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from flows.execution import leash
from tests.flows.conftest import ROOT, wait_for

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"


def held(program: list[str], grace: float = 1.0) -> subprocess.Popen[str]:
    return subprocess.Popen(leash.command(program, grace), stdout=subprocess.PIPE, text=True, cwd=ROOT)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def gone(*pids: int) -> bool:
    return not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids)


@pytest.mark.parametrize("status", [0, 3, 255])
def test_the_exit_status_is_the_commands(status: int) -> None:
    assert held(python(f"raise SystemExit({status})")).wait(20) == status


def test_a_command_ended_by_a_signal_ends_as_in_a_shell() -> None:
    assert held(python("import os; os.kill(os.getpid(), 9)")).wait(20) == 137


def test_sigterm_reaches_the_command_first_so_that_it_can_tidy_up() -> None:
    code = (
        "import signal, sys, time; signal.signal(15, lambda *a: (print('tidied'), sys.exit(7)));"
        "print('up', flush=True); time.sleep(60)"
    )
    process = held(python(code), grace=20)
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 7
    assert process.stdout.read() == "tidied\n"


@pytest.mark.parametrize("session", [False, True], ids=["same session", "a session of its own"])
def test_a_grandchild_that_ignores_sigterm_is_killed_after_the_grace(session: bool) -> None:
    code = (
        "import subprocess, sys, time;"
        f"p = subprocess.Popen([sys.executable, '-c', {STUBBORN!r}],"
        f"    start_new_session={session}, stdout=subprocess.PIPE);"
        "p.stdout.readline(); print(p.pid, flush=True); time.sleep(60)"
    )
    process = held(python(code))
    assert process.stdout is not None
    grandchild = int(process.stdout.readline())
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143
    assert gone(grandchild)
    assert time.monotonic() - began > 0.9


def test_what_a_command_leaves_behind_is_ended_with_it() -> None:
    code = "import subprocess; print(subprocess.Popen(['sleep', '60'], start_new_session=True).pid, flush=True)"
    process = held(python(code))
    assert process.stdout is not None
    orphan = int(process.stdout.readline())
    assert process.wait(20) == 0
    assert gone(orphan)


def test_kill_9_of_the_holder_ends_everything(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys; from flows.execution import leash;"
        "p = subprocess.Popen(leash.command(['sh', '-c', 'sleep 61 & echo $!; sleep 62; true'], 1.0));"
        "print(p.pid, flush=True); p.wait()"
    )
    holder = subprocess.Popen(python(code), stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert holder.stdout is not None
    pids = [int(holder.stdout.readline()) for _ in range(2)]
    wait_for(lambda: len(psutil.Process(holder.pid).children(recursive=True)) >= 4, 10, "all have started")
    pids += [process.pid for process in psutil.Process(holder.pid).children(recursive=True)]
    holder.kill()
    holder.wait(10)
    wait_for(lambda: gone(*pids), 10, "everything has ended")
