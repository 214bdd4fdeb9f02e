"""How far a long piece of work has come: a bar on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import sys
import time
from typing import TextIO

INTERVAL = 10.0
"""Seconds between lines in a log."""
WIDTH = 30
"""Characters of the bar."""


class Progress:
    """`with Progress("ingest python", total=12) as progress: ... progress.advance()`. Work shorter than an interval is
    silent in a log."""

    def __init__(self, label: str, total: int, stream: TextIO | None = None) -> None:
        self._label, self._total, self._done = label, total, 0
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._start = self._last = time.monotonic()

    def __enter__(self) -> Progress:
        self._show()
        return self

    def __exit__(self, *raised: object) -> None:
        if self._terminal:
            self._stream.write("\n" if self._total else "")
            self._stream.flush()

    def advance(self, count: int = 1) -> None:
        """`count` more are done."""
        self._done += count
        self._show()

    def _show(self) -> None:
        now = time.monotonic()
        elapsed = now - self._start
        left = f", {elapsed / self._done * (self._total - self._done):.0f} s left" if self._done else ""
        line = f"{self._label}: {self._done}/{self._total}, {elapsed:.0f} s{left}"
        if self._terminal:
            filled = WIDTH * self._done // max(self._total, 1)
            self._stream.write(f"\r[{'#' * filled}{'.' * (WIDTH - filled)}] {line}\033[K")
            self._stream.flush()
        elif now - self._last >= INTERVAL:
            self._last = now
            print(line, file=self._stream, flush=True)
