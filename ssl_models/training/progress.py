"""How far a long piece of work has come: a bar on a terminal, a plain line now and then in a log.

Every line holds `done/total`, which a flow reads from the log to show the same on its page.
"""

from __future__ import annotations

import sys
import time
from typing import TextIO

INTERVAL = 10.0
"""Seconds between lines in a log."""
REFRESH = 0.2
"""Seconds between redraws of the bar."""
WIDTH = 24
"""Characters of the bar."""


class Progress:
    """`with Progress("ingest python", total=12) as progress: ... progress.advance()`. Work shorter than an interval is
    silent in a log. `done`: what an earlier run has done of it; `unit`: what is counted."""

    def __init__(self, label: str, total: int, *, done: int = 0, unit: str = "", stream: TextIO | None = None) -> None:
        self._label = f"{label}: {unit} " if unit else f"{label}: "
        self._total, self._first, self._done = total, done, done
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._start = self._last = time.monotonic()
        if self._terminal and total:
            self._draw(self._line("", 0.0))

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._terminal and self._total and self._done < self._total:  # the bar of what failed stays
            print(file=self._stream, flush=True)

    def advance(self, note: str = "") -> None:
        """One more is done; `note` says how it went."""
        self._done += 1
        now = time.monotonic()
        whole = self._done == self._total
        if now - self._last < (REFRESH if self._terminal else INTERVAL) and not (whole and self._terminal):
            return
        self._last = now
        line = self._line(note, now - self._start)
        if self._terminal:
            self._draw(line, end="\n" if whole else "")
        else:
            print(line, file=self._stream, flush=True)

    def say(self, line: str) -> None:
        """One line of its own."""
        print(f"\r\033[K{line}" if self._terminal else line, file=self._stream, flush=True)

    def _line(self, note: str, elapsed: float) -> str:
        fresh = self._done - self._first
        left = [f"{elapsed / fresh * (self._total - self._done):.0f} s left"] if fresh else []
        return ", ".join([f"{self._label}{self._done}/{self._total}", *([note] if note else []), *left])

    def _draw(self, line: str, end: str = "") -> None:
        filled = WIDTH * self._done // max(self._total, 1)
        print(f"\r[{'#' * filled}{'.' * (WIDTH - filled)}] {line}\033[K", end=end, file=self._stream, flush=True)
