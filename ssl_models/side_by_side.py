"""Two parts of a CPU's work side by side, each in a Python thread with half of torch's threads.

The operations of a small model take less time than the threads that share one take to wake, and to wait for the last
of them. Two halves of a batch wait for each other once, at their end. Always two, however many the cores: each thread
more would want Python's lock as often, for less work.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

SIDES = 2

Part = TypeVar("Part")
Result = TypeVar("Result")


def sides(device: torch.device) -> int:
    """How many parts of the work on `device` are done at once."""
    return SIDES if device.type == "cpu" and torch.get_num_threads() > 1 else 1


def side_by_side(work: Callable[[Part], Result], parts: Sequence[Part], sides: int = SIDES) -> list[Result]:
    """`work` of each of `parts`, in their order: `SIDES` at a time, or with `sides` 1 one after the other. Gradient
    mode and autocast are a thread's own: `work` sets what it needs."""
    if min(len(parts), sides) <= 1:
        return [work(part) for part in parts]
    return list(_pool(torch.get_num_threads()).map(work, parts))


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Waiting threads that share `threads` of torch's."""
    started = threading.Barrier(SIDES + 1)

    def start() -> None:
        torch.get_num_threads()  # a thread's first question sets its number to what was last set anywhere
        torch.set_num_threads(-(-threads // SIDES))
        started.wait()

    pool = ThreadPoolExecutor(SIDES, "side")
    for _ in range(SIDES):
        pool.submit(start)
    started.wait()
    torch.set_num_threads(threads)  # here too, for MKL's number is not a thread's own
    return pool
