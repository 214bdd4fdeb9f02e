"""What is left of each run in files, `.prefect/logs/`: its log, and how it ended. They can be read without a server.

A run's own file, rather than one of all, since two processes cannot rotate one file. The process holds a lock on its
file while it lives, so that a run which was killed and could not say so is told from one that works. The logs of the
newest runs are kept, each no longer than its last part.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

FOLDER = Path(".prefect/logs")
KEPT_RUNS = 100
MOST_BYTES = 10_000_000
"""Of a run's log, and as many again of what came before; of the server's and the worker's likewise."""
_LINE = "%(asctime)s %(levelname)-7s %(task_run_name)s: %(message)s"
_END = ".json"
SERVICES = ("server", "worker")
"""Whose output goes to a file of their own here."""


@dataclass(frozen=True)
class Ending:
    """How a run ended. `failures` are the sentences of the stages that failed, by their names."""

    run: str
    deployment: str
    state: str
    message: str = ""
    failures: Mapping[str, str] = field(default_factory=dict)
    page: str | None = None

    @property
    def is_bad(self) -> bool:
        """Whether somebody should look at it."""
        return self.state not in ("Completed", "Cancelled", "Skipped")


class RunLog:
    """The log of the run that this process carries out."""

    def __init__(self, run: str) -> None:
        safe = re.sub(r"[^A-Za-z0-9_-]", "_", run)
        self.path = FOLDER / f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{safe}.log"

    @contextmanager
    def written(self) -> Iterator[None]:
        """Meanwhile, whatever Prefect logs in this process goes to the file, too."""
        FOLDER.mkdir(parents=True, exist_ok=True)
        _forget(FOLDER)
        with self._holder().open("a") as alive:
            fcntl.flock(alive, fcntl.LOCK_EX)
            handler = RotatingFileHandler(self.path, maxBytes=MOST_BYTES, backupCount=1, encoding="utf-8", delay=False)
            handler.setFormatter(logging.Formatter(_LINE, defaults={"task_run_name": "flow"}))
            logger = logging.getLogger("prefect")
            logger.addHandler(handler)
            try:
                yield
            finally:
                logger.removeHandler(handler)
                handler.close()
                self._holder().unlink()

    def _holder(self) -> Path:
        return self.path.with_suffix(".lock")

    def end(self, ending: Ending) -> None:
        """Say how the run has ended."""
        self.path.with_suffix(_END).write_text(json.dumps(asdict(ending)), encoding="utf-8")


def endings() -> Iterator[tuple[Path, Ending]]:
    """The logs of runs that have ended, with their ends, the newest first; one that says nothing was killed."""
    for path in sorted(FOLDER.glob("*.log"), reverse=True):
        if path.stem in SERVICES:
            continue
        try:
            content: dict[str, Any] = json.loads(path.with_suffix(_END).read_text(encoding="utf-8"))
            yield path, Ending(**content)
        except (OSError, ValueError, TypeError):
            if not _is_alive(path.with_suffix(".lock")):
                run = path.stem.split("-", 2)[-1]
                yield path, Ending(run, "", "Crashed", "its process was killed before it could say why")


def _is_alive(holder: Path) -> bool:
    try:
        with holder.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def _forget(folder: Path) -> None:
    """Remove all but the newest runs' files, and leave room for one more."""
    stems = sorted({path.stem for path in folder.glob("*.log") if path.stem not in SERVICES}, reverse=True)
    for stem in stems[KEPT_RUNS - 1 :]:
        for path in folder.glob(f"{stem}.*"):
            path.unlink(missing_ok=True)


def service(name: str) -> Path:
    """The log of the server or the worker."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    return FOLDER / f"{name}.log"


def rotate(name: str) -> None:
    """Move what a service has written to another file, where it is long. It goes on writing at the file's new end."""
    path = service(name)
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > MOST_BYTES:
            shutil.copyfile(path, path.with_suffix(".log.1"))
            with path.open("r+b") as file:
                file.truncate(0)
