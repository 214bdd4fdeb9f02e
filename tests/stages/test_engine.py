"""Mapping over partitions: order, errors, and workers that end with their stage."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stages import engine
from stages.params import UserError

pytestmark = pytest.mark.slow


def late_first(item: int) -> tuple[int, int]:
    time.sleep(0.05 if item % 4 == 0 else 0)
    return item, os.getpid()


def die_at_three(item: int) -> int:
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def refuse(item: int) -> int:
    raise UserError(f"item {item} is no good")


def fail(item: int) -> int:
    raise ZeroDivisionError(item)


def test_results_come_in_order_from_several_processes() -> None:
    found = list(engine.map(late_first, range(30), label="x", count=2))
    assert [item for item, _ in found] == list(range(30))
    assert len({process for _, process in found} - {os.getpid()}) == 2


def test_one_worker_runs_in_this_process() -> None:
    assert {process for _, process in engine.map(late_first, range(3), label="x", count=1)} == {os.getpid()}


def test_nothing_to_map_is_nothing() -> None:
    assert list(engine.map(late_first, [], label="x", count=2)) == []


def test_a_killed_worker_is_one_sentence() -> None:
    with pytest.raises(UserError, match="killed by SIGKILL; most likely memory ran out"):
        list(engine.map(die_at_three, range(9), label="x", count=2))


def test_errors_of_workers_arrive_as_they_are() -> None:
    with pytest.raises(UserError, match="is no good"):
        list(engine.map(refuse, range(9), label="x", count=2))
    with pytest.raises(ZeroDivisionError) as caught:
        list(engine.map(fail, range(9), label="x", count=2))
    assert "in fail" in caught.value.__notes__[0]


@pytest.mark.parametrize("value", ["0", "-1", "many", "", "1.5"])
def test_a_wrong_number_of_workers_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(engine.WORKERS, value)
    with pytest.raises(UserError, match="must be a whole number"):
        engine.workers()


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, pathlib, time\nfrom stages import engine\n"
        "def work(item):\n    pathlib.Path(f'pid{item}').write_text(str(os.getpid()))\n    time.sleep(60)\n"
        "if __name__ == '__main__':\n    list(engine.map(work, range(2), label='x', count=2))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(engine.__file__).parents[1])}
    parent = subprocess.Popen([sys.executable, script.name], cwd=tmp_path, env=environment)
    try:
        wait_for(lambda: all((tmp_path / f"pid{item}").exists() for item in range(2)))
        time.sleep(0.2)
        children = [int((tmp_path / f"pid{item}").read_text()) for item in range(2)]
    finally:
        parent.kill()
        parent.wait(10)
    wait_for(lambda: not any(Path(f"/proc/{child}/cmdline").exists() for child in children))


def wait_for(condition: object, seconds: float = 20) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
