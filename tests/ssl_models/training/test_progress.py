"""Progress: a bar on a terminal, now and then a line in a log, and `done/total` in each of them."""

from __future__ import annotations

import io
import re

import pytest

from ssl_models.training import progress
from ssl_models.training.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """`time` for the module: a second passes from one look to the next."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 1.0
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_a_log_has_a_line_in_every_interval_with_what_is_done_and_left(clock: Clock) -> None:
    log = io.StringIO()
    with Progress("gpt", 40, done=10, unit="step", stream=log) as shown:
        for _ in range(30):
            shown.advance("loss 1.5")
    assert log.getvalue().splitlines() == [
        "gpt: step 20/40, loss 1.5, 20 s left",
        "gpt: step 30/40, loss 1.5, 10 s left",
        "gpt: step 40/40, loss 1.5, 0 s left",
    ]


def test_short_work_is_silent_in_a_log() -> None:
    log = io.StringIO()
    with Progress("ingest python", 3, stream=log) as shown:
        shown.advance()
    assert log.getvalue() == ""


def test_a_terminal_has_a_bar_that_ends_full(clock: Clock) -> None:
    terminal = Terminal()
    with Progress("ingest python", 2, stream=terminal) as shown:
        shown.advance()
        shown.say("a word")
        shown.advance()
    drawn = re.split("[\r\n]", terminal.getvalue().replace("\033[K", ""))
    assert drawn[1] == "[........................] ingest python: 0/2"
    assert drawn[2] == "[############............] ingest python: 1/2, 1 s left"
    assert drawn[3:] == ["a word", "", "[########################] ingest python: 2/2, 0 s left", ""]


def test_a_bar_that_failed_is_left_on_its_line() -> None:
    terminal = Terminal()
    with pytest.raises(RuntimeError), Progress("ingest python", 2, stream=terminal):
        raise RuntimeError
    assert terminal.getvalue().endswith("\n")
