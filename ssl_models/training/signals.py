"""What the outside asks of a running job: SIGTERM and SIGINT to stop after the step, SIGUSR1 (a warning before
preemption) to write a checkpoint and go on."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Signals:
    """Remembers what was asked until the training loop looks."""

    def __init__(self) -> None:
        self.stop: int | None = None
        """The signal that asked to stop."""
        self.asked = threading.Event()
        """Set with `stop`, for those who look from another thread while a step takes its time."""
        self.checkpoint = False
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        signal.signal(signal.SIGUSR1, self._warn)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stop = number
        self.asked.set()

    def _warn(self, number: int, frame: FrameType | None) -> None:
        self.checkpoint = True
