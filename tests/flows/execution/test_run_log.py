"""What is left of runs in files, and what `make failures` shows of them, without a server."""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path

import pytest

from flows import last_failure
from flows.execution import run_log
from flows.execution.run_log import Ending, RunLog


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["last_failure"])


def run(name: str, ending: Ending | None, *lines: str, at: str = "") -> RunLog:
    """A run that has logged lines and ended."""
    log = RunLog(name)
    if at:
        log.path = run_log.FOLDER / f"{at}-{name}.log"
    with log.written():
        for line in lines:
            logging.getLogger("prefect.pretext").warning(line, extra={"task_run_name": "pretrain@m"})
        if ending is not None:
            log.end(ending)
    return log


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    last_failure.main()
    return capsys.readouterr().out


FAILED = Ending(
    "otter", "nightly", "Failed", "long", {"pretrain@m": "pretrain@m failed with status 3:\nno space"}, "http://page"
)
GOOD = Ending("later", "nightly", "Completed", "2 stages ran")


def test_the_last_failure_is_shown_with_stage_sentence_log_and_what_came_after(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run("older", Ending("older", "", "Failed", "an older failure"), at="20260101-010000")
    run("otter", FAILED, *(f"line {number}" for number in range(50)), at="20260102-020000")
    run("later", GOOD, at="20260103-020000")
    run("left", Ending("left", "nightly", "Skipped", "left out"), at="20260104-020000")
    said = shown(capsys).splitlines()
    assert said[0] == "Failed: the run otter of nightly, begun 2026-01-02 02:00:00 UTC"
    assert said[1] == "since then, 1 run has come to a good end"
    assert said[3:5] == ["pretrain@m failed with status 3:", "no space"]
    assert said[-2].endswith("WARNING pretrain@m: line 49") and said[-1] == "page: http://page"
    assert f"the last {last_failure.LINES} lines of .prefect/logs/20260102-020000-otter.log:" in said


def test_where_nothing_failed_that_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys) == "no run has failed; 0 have left a log in .prefect/logs\n"
    run("later", GOOD)
    assert shown(capsys) == "no run has failed; 1 has left a log in .prefect/logs\n"


def test_a_run_that_was_killed_is_told_from_one_that_works(capsys: pytest.CaptureFixture[str]) -> None:
    read, write = os.pipe()
    child = os.fork()
    if not child:
        with RunLog("otter").written():
            os.write(write, b"x")
            signal.pause()
    assert os.read(read, 1) == b"x"
    assert "no run has failed" in shown(capsys)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    said = shown(capsys)
    assert said.startswith("Crashed: the run otter, begun") and "was killed before it could say why" in said


def test_logs_do_not_grow_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_log, "KEPT_RUNS", 3)
    monkeypatch.setattr(run_log, "MOST_BYTES", 1000)
    for number in range(6):
        run(f"r{number}", GOOD, *["x" * 100] * 40, at=f"2026010{number + 1}-000000")
    assert [ending.run for _, ending in run_log.endings()] == ["later"] * 3
    left = {path.name for path in run_log.FOLDER.iterdir()}
    assert len(left) == 9 and "20260103-000000-r2.log" not in left
    assert all(path.stat().st_size <= 1000 for path in run_log.FOLDER.iterdir())

    service = run_log.service("worker")
    with service.open("ab") as writer:  # as a child process does
        writer.write(b"y" * 1001)
        writer.flush()
        run_log.rotate("worker")
        writer.write(b"new")
    assert service.read_bytes() == b"new" and service.with_suffix(".log.1").stat().st_size == 1001
