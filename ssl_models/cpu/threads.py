"""How the threads of a CPU share the work.

The operations of a small model take less time than the threads that share one take to wake, and to wait for the last
of them. So two parts of the work, such as halves of a batch, are done side by side, each in a Python thread with half
of torch's threads: they wait for each other once, at their end. Always two, however many the cores: each more would
want Python's lock as often, for less work.

Threads are limited through OpenMP, per thread. `torch.set_num_threads` also tells MKL, for the whole process and for
good, to split even the smallest product.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import TypeVar

import torch
from threadpoolctl import ThreadpoolController
from torch import nn

SIDES = 2

Part = TypeVar("Part")
Result = TypeVar("Result")


@functools.cache
def _openmp() -> ThreadpoolController:
    """What torch's threads come from; finding it takes milliseconds."""
    return ThreadpoolController().select(user_api="openmp")


def limited(threads: int) -> AbstractContextManager[object]:
    """Within, at most `threads` threads share an operation of this one."""
    limiter: AbstractContextManager[object] = _openmp().limit(limits=threads)
    return limiter


def sides(device: torch.device) -> int:
    """How many parts of the work on `device` are done at once."""
    return SIDES if device.type == "cpu" and torch.get_num_threads() > 1 else 1


def side_by_side(work: Callable[[Part], Result], parts: Sequence[Part], sides: int = SIDES) -> list[Result]:
    """`work` of each of `parts`, in their order: `SIDES` at a time, or with `sides` 1 one after the other. Gradient
    mode and autocast are a thread's own: `work` sets what it needs."""
    if min(len(parts), sides) <= 1:
        return [work(part) for part in parts]
    return list(_pool(torch.get_num_threads()).map(work, parts))


def leaves_no_trace(module: nn.Module, work: Callable[[], object]) -> bool:
    """Whether `work`, a pass of rows through `module`, may be done side by side with another: it draws nothing from
    torch's generator, changes no buffer, sets no attribute, and no hook looks on."""
    parts = list(module.modules())
    attributes = [dict(vars(part)) for part in parts]
    values = [torch.get_rng_state(), *(buffer.clone() for buffer in module.buffers())]
    work()
    after = [torch.get_rng_state(), *module.buffers()]
    same = len(values) == len(after) and all(map(torch.equal, values, after))
    for part, before in zip(parts, attributes, strict=True):
        now = vars(part)
        same &= now.keys() == before.keys() and all(now[name] is value for name, value in before.items())
        same &= not (part._forward_hooks or part._forward_pre_hooks)
    return same


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Waiting threads that share `threads` of torch's."""
    started = threading.Barrier(SIDES + 1)

    def start() -> None:
        torch.get_num_threads()  # a thread's first question to torch would undo the limit
        limited(-(-threads // SIDES)).__enter__()  # for as long as the thread lives
        started.wait()

    pool = ThreadPoolExecutor(SIDES, "side")
    for _ in range(SIDES):
        pool.submit(start)
    started.wait()
    return pool
