"""Two parts of the work at the same time, each in a Python thread with half of torch's threads.

The operations of a small model take less time than the threads that share one take to wake, and to wait for the last
of them; halves of a batch wait for each other once, at their end. Without it gpt's steps take 1.30 times as long and
1.14 times the processor time, without Muon's part alone 1.07 and 1.06 (benchmarks/cpu.py, Intel Xeon, 2 cores). And one
thread to a piece gives the same bytes on one core and on two, which threads that share an operation do not.

The work is cut into `PIECES` on every CPU, however many its cores, and each result is the same whether the pieces are
done at once or, with one thread, in turn. A pass through a module is watched once: where it draws from torch's
generator, changes a buffer, sets an attribute, or a hook looks on, the passes are done in turn. Threads are limited
through OpenMP, per thread. `torch.set_num_threads` also tells MKL, for the whole process and for good, to split even
the smallest product.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from threadpoolctl import ThreadpoolController
from torch import nn

PIECES = 2
"""Each more would want Python's lock as often, for less work."""

Piece = TypeVar("Piece")
Result = TypeVar("Result")


@functools.cache
def _openmp() -> ThreadpoolController:
    """What torch's threads come from; finding it takes milliseconds."""
    return ThreadpoolController().select(user_api="openmp")


def limited(threads: int) -> AbstractContextManager[object]:
    """Within, at most `threads` threads share an operation of this one."""
    limiter: AbstractContextManager[object] = _openmp().limit(limits=threads)
    return limiter


def side_by_side(work: Callable[[Piece], Result], pieces: Sequence[Piece], device: torch.device) -> list[Result]:
    """`work` of each of `pieces`, in their order: on a CPU with several threads `PIECES` at a time. Whether gradients
    are recorded is the caller's choice."""
    if len(pieces) < 2 or device.type != "cpu" or torch.get_num_threads() < 2:
        return in_turn(work, pieces, device)
    recording, inferring = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def one(piece: Piece) -> Result:
        with torch.inference_mode(inferring), torch.set_grad_enabled(recording):
            return work(piece)

    return list(_pool(torch.get_num_threads()).map(one, pieces))


def in_turn(work: Callable[[Piece], Result], pieces: Sequence[Piece], device: torch.device) -> list[Result]:
    """The same, one after the other, on a CPU with as many threads for each as it would have beside others."""
    with limited(_share(torch.get_num_threads())) if device.type == "cpu" else nullcontext():
        return [work(piece) for piece in pieces]


def _share(threads: int) -> int:
    return -(-threads // PIECES)


class Passes:
    """Passes through one module, side by side where nobody can tell."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._traceless: dict[tuple[str, bool, bool], bool] = {}

    def __call__(
        self, work: Callable[[Piece], Result], pieces: Iterable[Piece], device: torch.device
    ) -> Iterator[Result]:
        """`work`, a pass of rows through the module, of each of `pieces`, in their order."""
        kind = (work.__qualname__, self._module.training, torch.is_grad_enabled())
        remaining = iter(pieces)
        while some := list(itertools.islice(remaining, PIECES)):
            if self._traceless.get(kind):
                yield from side_by_side(work, some, device)
                continue
            if device.type == "cpu" and kind not in self._traceless:
                watching = functools.partial(watched, self._module, work)
                ((first, self._traceless[kind]),) = in_turn(watching, some[:1], device)
                yield first
                some = some[1:]
            yield from in_turn(work, some, device)


def watched(module: nn.Module, work: Callable[[Piece], Result], piece: Piece) -> tuple[Result, bool]:
    """`work` of `piece`, a pass of rows through `module`, and whether it left no trace there."""
    parts = list(module.modules())
    attributes = [dict(vars(part)) for part in parts]
    random, before = torch.get_rng_state(), [buffer.clone() for buffer in module.buffers()]
    result = work(piece)
    after = list(module.buffers())
    same = len(before) == len(after) and all(map(torch.equal, before, after))
    seeded = torch.Generator().manual_seed(torch.initial_seed()).get_state()  # by the work itself, perhaps
    same &= any(torch.equal(torch.get_rng_state(), undrawn) for undrawn in (random, seeded))
    for part, old in zip(parts, attributes, strict=True):
        new = vars(part)
        same &= new.keys() == old.keys() and all(new[name] is value for name, value in old.items())
        same &= not (part._forward_hooks or part._forward_pre_hooks)
    return result, same


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Waiting threads that share `threads` of torch's."""
    started = threading.Barrier(PIECES + 1)

    def start() -> None:
        torch.get_num_threads()  # a thread's first question to torch would undo the limit
        limited(_share(threads)).__enter__()  # for as long as the thread lives
        started.wait()

    pool = ThreadPoolExecutor(PIECES, "side")
    for _ in range(PIECES):
        pool.submit(start)
    started.wait()
    return pool
