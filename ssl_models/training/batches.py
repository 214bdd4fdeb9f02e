"""The rows of each step and their keys, made ready one step ahead by a thread so that the device never waits for the
disk."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from ssl_models.config import Train
from ssl_models.data import keyed
from ssl_models.data.shards import Split, batch_indices
from ssl_models.objectives import Rows
from ssl_models.training.parallel import World


def on(world: World, rows: Rows) -> Rows:
    """Rows on this process's device."""
    return {name: value.to(world.device, non_blocking=True) for name, value in rows.items()}


class Batches:
    """This process's slices of the global batches, in the order of their steps."""

    def __init__(self, split: Split, train: Train, world: World) -> None:
        self._split, self._train, self._world = split, train, world
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._next: tuple[int, Future[tuple[Rows, Tensor]]] | None = None

    def take(self, step: int) -> tuple[Rows, Tensor]:
        """Rows of `step` and their keys, int64 `[rows]`, on the device; starts to fetch those of the step after."""
        ahead = (
            self._next[1] if self._next is not None and self._next[0] == step else self._pool.submit(self.read, step)
        )
        self._next = (step + 1, self._pool.submit(self.read, step + 1)) if step + 1 < self._train.steps else None
        rows, keys = ahead.result()
        return on(self._world, rows), keys.to(self._world.device, non_blocking=True)

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def read(self, step: int) -> tuple[Rows, Tensor]:
        """Rows of `step` and their keys, in memory that a GPU can copy from by itself."""
        train = self._train
        numbers = batch_indices(train.seed, step, train.batch, len(self._split))[self._world.slice(train.batch)]
        rows, keys = self._split.rows(numbers), keyed.keys(train.seed, step, torch.from_numpy(numbers))
        if self._world.device.type == "cuda":
            return {name: value.pin_memory() for name, value in rows.items()}, keys.pin_memory()
        return rows, keys
