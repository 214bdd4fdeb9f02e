"""What would differ if the same work were done again: seconds, rates, memory, the MLflow run.

It lies outside git and DVC, in a file of its own for each stage, so that the tracked results of two runs are equal byte
for byte. A record names the result it belongs to by a checksum: what DVC restored from its cache, or what came with a
clone, is credited to no other run.
"""

from __future__ import annotations

import resource
import time
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from ssl_models.config import Strict
from ssl_models.files import checksum, write_text

METRICS, REPORT = "metrics.json", "report.json"
"""A stage's headline numbers, which `dvc metrics` shows, and everything it has to say: the same in every run."""
WEIGHTS = "model/model.safetensors"
KILOBYTES_IN_MB = 1000


class Execution(Strict):
    """One execution of a stage. `started` is UTC in ISO 8601; `peak_memory_mb` is the largest process's."""

    result: str
    started: str
    seconds: float
    peak_memory_mb: float
    peak_gpu_memory_mb: float | None = None
    samples_per_second: float | None = None
    run_id: str | None = None
    experiment_id: str | None = None
    tracking_uri: str | None = None

    def save(self, path: Path) -> None:
        """Write the record."""
        write_text(path, self.model_dump_json(indent=1, exclude_none=True) + "\n")

    @classmethod
    def load(cls, path: Path) -> Execution | None:
        """The record in a file; None where there is none."""
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValidationError):
            return None

    @classmethod
    def of(cls, folder: Path, path: Path) -> Execution | None:
        """The record in `path` where it belongs to what lies in a stage's output `folder`, else None."""
        record = cls.load(path)
        return record if record is not None and record.result == result(folder) else None


class Stopwatch:
    """Runs from when it is made."""

    def __init__(self) -> None:
        self.started = datetime.now(UTC).isoformat(timespec="seconds")
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return round(time.monotonic() - self._start, 3)


def result(folder: Path) -> str | None:
    """The checksum of what identifies a stage's result in its `folder`: the weights, where it has written a model, else
    its numbers. None where there is nothing."""
    try:
        return checksum(next(path for path in (folder / WEIGHTS, folder / METRICS) if path.exists()))
    except (StopIteration, OSError):
        return None


def peak_memory_mb() -> float:
    """Of this process, or of the largest child that has ended and was waited for."""
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return round(max(resource.getrusage(who).ru_maxrss for who in whose) / KILOBYTES_IN_MB, 1)
