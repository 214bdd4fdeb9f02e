"""One stage as a leashed process: its status, its last lines, its limits, and its end."""

from __future__ import annotations

import os
import sys
import threading
import time

import pytest

from flows.execution import stage_task
from flows.execution.stage_task import Children, Ended, Policy, StageError, command_status


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_lines_are_passed_on_as_they_come_and_the_last_ones_are_kept() -> None:
    lines: list[str] = []
    status, tail = Children().run(python("[print('line', n) for n in range(40)]; raise SystemExit(3)"), lines.append)
    assert status == 3 and len(lines) == 40
    assert tail == [f"line {n}" for n in range(25, 40)]


def test_a_stage_sees_its_share_of_the_cores_as_the_whole_machine() -> None:
    core = max(os.sched_getaffinity(0))
    code = "import os, subprocess; subprocess.run(['nproc']); print(os.sched_getaffinity(0))"
    _, tail = Children().run(python(code), lambda line: None, cores=[core])
    assert sorted(tail) == ["1", str({core})]
    _, tail = Children().run(python("import os; print(len(os.sched_getaffinity(0)))"), lambda line: None)
    assert tail == [str(len(os.sched_getaffinity(0)))]


def test_a_stage_is_not_told_prefects_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "pretext:do-not-tell")
    _, tail = Children().run(python("import os; print(os.environ)"), lambda line: None)
    assert "do-not-tell" not in "".join(tail)


def test_a_timeout_ends_the_stage_and_says_so() -> None:
    began = time.monotonic()
    with pytest.raises(Ended, match="its timeout of"):
        Children().run(python("import time; print('up'); time.sleep(60)"), lambda line: None, timeout=0.5)
    assert time.monotonic() - began < 20


def test_ending_ends_what_runs_and_lets_nothing_start() -> None:
    children, up = Children(), threading.Event()
    ended: list[Exception] = []

    def stage() -> None:
        try:
            children.run(python("import time; print('up', flush=True); time.sleep(60)"), lambda line: up.set())
        except Ended as error:
            ended.append(error)

    thread = threading.Thread(target=stage)
    thread.start()
    assert up.wait(30)
    children.end()
    thread.join(20)
    assert len(ended) == 1
    with pytest.raises(Ended):
        children.start(python("pass"))


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (["ERROR: failed to reproduce 'x': failed to run: python x, exited with 2"], 2),
        (["failed to run: x, exited with -9", "more"], -9),
        (["ERROR: unexpected error"], None),
    ],
)
def test_the_commands_status_is_read_from_dvcs_message(lines: list[str], status: int | None) -> None:
    assert command_status(lines) == status


def test_the_most_particular_timeout_counts_and_only_ingest_and_training_are_tried_again() -> None:
    policy = Policy({"pretrain@a": 1, "pretrain": 2, "all": 3}, retries=4)
    assert [policy.timeout(name) for name in ("pretrain@a", "pretrain@b", "shard@c")] == [1, 2, 3]
    assert Policy().timeout("shard@c") is None
    assert policy.attempts("pretrain@a") == policy.attempts("ingest@c") == 5
    assert policy.attempts("shard@c") == policy.attempts("linear-probe@a") == 1


def scripted(monkeypatch: pytest.MonkeyPatch, answers: list[tuple[int, list[str]]]) -> Children:
    children = Children()
    monkeypatch.setattr(children, "run", lambda program, log, timeout=None, cores=(): answers.pop(0))
    return children


def test_a_busy_dvc_is_waited_out(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = (255, ["ERROR: 'data/x' is busy, it is being blocked by:", "  (PID 7): dvc repro"])
    answers = [busy, busy, (0, ["done"])]
    assert stage_task.repro("shard@c", scripted(monkeypatch, answers), lambda line: None)
    assert answers == []


@pytest.mark.parametrize("stage", ["pretrain@a", "ingest@c"])
def test_what_may_pass_is_tried_again_but_not_after_a_mistake_of_the_user(
    stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Policy(retries=2, retry_delay=0.0)
    killed, mistake = (255, ["x, exited with -9"]), (255, ["x, exited with 2"])
    answers = [killed, killed, (0, [])]
    assert stage_task.repro(stage, scripted(monkeypatch, answers), lambda line: None, policy=policy)
    for name, answers in ((stage, [mistake]), (stage, [killed] * 3), ("shard@c", [killed])):
        with pytest.raises(StageError):
            stage_task.repro(name, scripted(monkeypatch, answers), lambda line: None, policy=policy)
        assert answers == []


def test_what_dvc_finds_unchanged_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [(0, ["Stage 'shard@c' didn't change, skipping"])]
    assert not stage_task.repro("shard@c", scripted(monkeypatch, answers), lambda line: None)
