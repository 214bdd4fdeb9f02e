"""Map a function over partitions with processes of this machine; results come in the order of the partitions.

A worker holds one partition at a time, at most `AHEAD` results per worker wait for their turn, and a worker that is
killed ends the stage with one sentence. Workers are forked from a small server process rather than from this one (whose
threads would not survive a fork), and end with this one however it ends.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any, TypeVar

from ssl_models.training.progress import Progress
from stages.params import UserError, load_compute

Item = TypeVar("Item")
Result = TypeVar("Result")

WORKERS = "PRETEXT_WORKERS"
"""Environment variable that overrides `workers` of compute.yaml."""
AHEAD = 4
"""Finished results per worker that may wait for a slower one before them."""
LIBRARIES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS", "NUMBA_NUM_THREADS")
ONE_THREAD = dict.fromkeys(LIBRARIES, "1")
"""Set for every worker: its library threads would only compete with the other workers."""


def workers() -> int:
    """How many worker processes the data stages use on this machine."""
    override = os.environ.get(WORKERS)
    if override is not None:
        if not override.isascii() or not override.isdigit() or int(override) < 1:
            raise UserError(f"{WORKERS}={override}: must be a whole number of at least 1")
        return int(override)
    configured = load_compute().workers
    return len(os.sched_getaffinity(0)) if configured == "auto" else configured


def map(
    function: Callable[[Item], Result], items: Sequence[Item], *, label: str, count: int | None = None
) -> Iterator[Result]:
    """Yield `function(item)` for every item, in the items' order.

    `function` and items must pickle (a top-level function, or a `functools.partial` of one); `count` workers, default
    `workers()`; with one worker or one item all runs in this process. UserErrors raised by `function` arrive as they
    are; other exceptions arrive with the worker's traceback as a note.
    """
    count = min(count or workers(), len(items))
    with Progress(label, len(items)) as progress:
        results = _parallel(function, items, count) if count > 1 else (function(item) for item in items)
        for result in results:
            progress.advance()
            yield result


def _parallel(function: Callable[[Item], Result], items: Sequence[Item], count: int) -> Iterator[Result]:
    pool = [_Worker(function) for _ in range(count)]
    try:
        idle, busy = list(pool), dict[Connection, tuple[_Worker, int]]()
        finished: dict[int, Result] = {}
        given = due = 0
        while due < len(items):
            while idle and given < len(items) and given < due + AHEAD * count:
                worker = idle.pop()
                worker.give(items[given])
                busy[worker.connection] = worker, given
                given += 1
            ready = wait(list(busy))
            for connection in [connection for connection in busy if connection in ready]:
                worker, index = busy.pop(connection)
                finished[index] = worker.take()
                idle.append(worker)
            while due in finished:
                yield finished.pop(due)
                due += 1
    finally:
        for worker in pool:
            worker.end()


class _Worker:
    """One process, fed one item at a time through a pipe."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        context: ForkServerContext = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([name for name in sys.modules if name.startswith("stages.")])
        self.connection, far_end = context.Pipe()
        self.process: ForkServerProcess = context.Process(target=_serve, args=(far_end, function), daemon=True)
        with _environment(ONE_THREAD):
            self.process.start()
        far_end.close()

    def give(self, item: Any) -> None:
        try:
            self.connection.send(item)
        except (BrokenPipeError, ConnectionResetError):
            raise self._died() from None

    def take(self) -> Any:
        try:
            result, error, trace = self.connection.recv()
        except (EOFError, ConnectionResetError):
            raise self._died() from None
        if error is None:
            return result
        if not isinstance(error, UserError):
            error.add_note(f"in a worker process:\n{trace}")
        raise error

    def _died(self) -> UserError:
        self.process.join(5)
        status = self.process.exitcode
        if status is not None and status < 0:
            how = f"was killed by {signal.Signals(-status).name}"
        else:
            how = f"ended with status {status}"
        if status == -signal.SIGKILL:
            how += "; most likely memory ran out: set fewer `workers` in compute.yaml"
        return UserError(f"a worker process {how}")

    def end(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.join(5)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _end_with_parent() -> None:
    """Wait for the parent's end of its life line, then leave at once."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _serve(connection: Connection, function: Callable[[Any], Any]) -> None:
    """A worker's life: answer every item with (result, error, traceback)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; it ends the workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if "pyarrow" in sys.modules:
        sys.modules["pyarrow"].set_cpu_count(1)
    while True:
        try:
            item = connection.recv()
        except EOFError:
            return
        answer: tuple[Any, Exception | None, str]
        try:
            answer = function(item), None, ""
        except Exception as error:
            answer = None, _portable(error), traceback.format_exc()
        connection.send(answer)


def _portable(error: Exception) -> Exception:
    """The error itself where it survives a pipe, else what it says."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
