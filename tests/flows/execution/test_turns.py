"""Runs take turns: one of a deployment, one in a project; whoever is killed has given its turn back."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from flows.execution.turns import TurnCancelled, TurnTaken, turn

NEVER = threading.Event()


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def silent(text: str) -> None:
    raise AssertionError(f"did not have to wait: {text}")


def test_a_run_that_is_due_while_the_last_of_its_deployment_works_is_left_out_and_the_next_is_not() -> None:
    with (
        turn("nightly", "first", silent, NEVER),
        pytest.raises(TurnTaken, match=r"^left out: the run first \(since .*\) of nightly is still at work$"),
        turn("nightly", "second", silent, NEVER),
    ):
        pass
    with turn("nightly", "third", silent, NEVER):
        pass


def test_a_run_of_another_deployment_waits_says_for_whom_and_then_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.execution.turns.POLL_SECONDS", 0.01)
    said, waits, ended = list[str](), threading.Event(), list[str]()

    def weekly() -> None:
        with turn("weekly", "other", lambda text: (said.append(text), waits.set())[0], NEVER):
            ended.append("weekly")

    with turn("nightly", "first", silent, NEVER):
        thread = threading.Thread(target=weekly)
        thread.start()
        assert waits.wait(10) and not ended
    thread.join(10)
    assert ended == ["weekly"]
    assert len(said) == 1 and said[0].startswith("waiting until the run first of nightly (since ")


def test_a_run_that_is_cancelled_while_it_waits_gives_its_place_up() -> None:
    cancelled = threading.Event()
    with turn("nightly", "first", silent, NEVER):
        with pytest.raises(TurnCancelled), turn("weekly", "other", lambda text: cancelled.set(), cancelled):
            pass
        with pytest.raises(TurnCancelled), turn("weekly", "other", lambda text: None, cancelled):
            pass


def test_kill_9_gives_the_turn_back() -> None:
    read, write = os.pipe()
    child = os.fork()
    if not child:
        with turn("nightly", "first", silent, NEVER):
            os.write(write, b"x")
            signal.pause()
    assert os.read(read, 1) == b"x"
    with pytest.raises(TurnTaken), turn("nightly", "second", silent, NEVER):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with turn("nightly", "third", silent, NEVER):
        pass
