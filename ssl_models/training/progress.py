"""How far training has come: a bar on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import sys
import time

INTERVAL = 10.0
"""Seconds between lines in a log."""
REFRESH = 0.2
"""Seconds between redraws of the bar."""
WIDTH = 24


class Progress:
    """Prints the state of one run of `total` steps."""

    def __init__(self, name: str, total: int, done: int, unit: str) -> None:
        self._name, self._total, self._first, self._unit = name, total, done, unit
        self._terminal = sys.stdout.isatty()
        self._start = time.monotonic()
        self._last = 0.0

    def step(self, done: int, loss: float, rate: float) -> None:
        """`done` steps are completed; `rate` is samples or tokens a second."""
        now = time.monotonic()
        if now - self._last < (REFRESH if self._terminal else INTERVAL) and done != self._total:
            return
        self._last = now
        left = (now - self._start) / max(done - self._first, 1) * (self._total - done)
        line = (
            f"{self._name}: step {done}/{self._total}, loss {loss:.4f}, {rate:,.0f} {self._unit}/s, {left:.0f} s left"
        )
        if not self._terminal:
            print(line, flush=True)
            return
        filled = WIDTH * done // self._total
        end = "\n" if done == self._total else ""
        print(f"\r[{'#' * filled}{'.' * (WIDTH - filled)}] {line}\033[K", end=end, flush=True)

    def say(self, line: str) -> None:
        """One line of its own."""
        print(f"\r\033[K{line}" if self._terminal else line, flush=True)
