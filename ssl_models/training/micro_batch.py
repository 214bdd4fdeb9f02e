"""How a global batch is cut into what is computed at once, and how many rows of it fit into memory.

The micro-batch is where a result is computed and not what it is: sums over micro-batches are divided once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor, autograd, nn
from torch.autograd.graph import saved_tensors_hooks

from ssl_models.objectives import Batch
from ssl_models.training.parallel import World

ACTIVATIONS = 2 * 2**30
"""Bytes that a micro-batch's saved activations may take on the CPU, unless that is over an eighth of the memory."""
MARGIN = 1 / 20
"""Part of a GPU's memory that no micro-batch is tried in: for buckets of gradients, and for fragments."""


def cut(batch: Batch, rows: int, world: World, micro_batch: int, pieces: int) -> list[tuple[int, Batch]]:
    """This process's slice `batch` of a global batch of `rows`, in even parts: (global number of the first row, rows).

    Every `pieces` of them have at most `micro_batch` rows, and every process makes as many.
    """
    start, end = world.slice(rows).start, world.slice(rows).stop
    most = math.ceil(rows / world.size)
    at_once = micro_batch if most <= micro_batch else micro_batch // pieces * pieces
    parts = math.ceil(most / at_once) * pieces
    edges = [(end - start) * part // parts for part in range(parts + 1)]
    return [
        (start + a, {name: value[a:b] for name, value in batch.items()}) for a, b in itertools.pairwise(edges) if b > a
    ]


def fit_cpu(model: nn.Module, trial: Callable[[Batch], Tensor], batch: Batch, most: int) -> int:
    """The largest micro-batch, at most `most` rows, by the bytes that two rows of `batch` save for the backward pass of
    their `trial`: the same on every run, unlike the memory that is free."""
    rows = min(2, most)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return value

    with saved_tensors_hooks(pack, lambda value: value):
        held = trial({name: value[:rows] for name, value in batch.items()})
    per_row = max(1, sum(saved.values()) // rows)
    del held
    import psutil  # needed here alone

    return max(1, min(most, min(ACTIVATIONS, psutil.virtual_memory().total // 8) // per_row))


def fit_gpu(model: nn.Module, trial: Callable[[Batch], Tensor], batch: Batch, most: int, device: torch.device) -> int:
    """The largest micro-batch, at most `most` rows, by trying, beside as much memory as the optimizer will take, and
    halving when it runs out."""
    spare = int(torch.cuda.get_device_properties(device).total_memory * MARGIN)
    reserve = [torch.empty(spare, dtype=torch.uint8, device=device)]
    reserve += [torch.empty_like(p) for p in model.parameters() for _ in range(2)]
    fitting = most
    while not _fits(model, trial, {name: value[:fitting] for name, value in batch.items()}):
        if fitting == 1:
            break  # the first step will say so, unless the reserve was all that it lacked
        fitting = math.ceil(fitting / 2)
    del reserve
    torch.cuda.empty_cache()
    return fitting


def _fits(model: nn.Module, trial: Callable[[Batch], Tensor], batch: Batch) -> bool:
    """Whether there is memory for the gradient of `batch`; nothing of it is left afterwards."""
    fits = True
    try:
        autograd.backward(trial(batch))
    except torch.OutOfMemoryError:
        fits = False  # the error holds on to tensors until this block is left
    model.zero_grad(set_to_none=True)
    torch.cuda.empty_cache()
    return fits
