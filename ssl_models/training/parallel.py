"""Several processes that compute what one process would: the gradient of the same global batch.

Every process holds the whole model and a slice of the batch. Gradients are summed explicitly, in large buckets, after
the last micro-batch, instead of through DistributedDataParallel: a sum over predicted items needs no average over
processes, slices may be uneven, whole-batch objectives need two passes, and one exchange per *global* batch is small
beside the micro-batches before it. NCCL on GPUs, gloo on the CPU.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor, distributed, nn

from ssl_models.cpu import allocator
from ssl_models.training.job import STORE, JobError

BUCKET = 25 * 2**20
"""Bytes of gradients in one exchange, as in DistributedDataParallel."""
TIMEOUT = timedelta(minutes=30)
CPU = torch.device("cpu")


def bounds(rows: int, rank: int, size: int) -> tuple[int, int]:
    """First and one past the last row of `rank`'s slice of a global batch; slices differ by one row at most."""
    return rows * rank // size, rows * (rank + 1) // size


def first_to_fail() -> bool:
    """Whether this process, which fails, is the first of its job: the one that says why. The others fail in the same
    way, or because that one is gone."""
    if (store := os.environ.get(STORE)) is None:
        return True
    try:
        Path(f"{store}.failed").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


@dataclass(frozen=True)
class World:
    """The processes of one job, seen from one of them."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @classmethod
    def start(cls) -> World:
        """Join the RANK and WORLD_SIZE of the environment, alone without them: through the file `STORE` on one machine,
        else as torchrun and PyTorch's `env://` have it. JobError without enough GPUs."""
        rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        local = int(os.environ.get("LOCAL_RANK", "0"))
        allocator.keep_freed()
        device = CPU
        if torch.cuda.is_available():
            if local >= torch.cuda.device_count():
                raise JobError(
                    f"this machine's {torch.cuda.device_count()} GPUs are too few for its process number {local + 1}; "
                    "lower local.processes in compute.yaml"
                )
            device = torch.device("cuda", local)
            torch.cuda.set_device(device)
        if size > 1 and not distributed.is_initialized():
            backend = "nccl" if device.type == "cuda" else "gloo"
            store = None
            if (path := os.environ.get(STORE)) is not None:
                store = distributed.FileStore(path, size)  # type: ignore[attr-defined]  # documented, yet not exported
                store.set_timeout(TIMEOUT)
            distributed.init_process_group(
                backend,
                timeout=TIMEOUT,
                store=store,
                rank=rank,
                world_size=size,
                device_id=device if backend == "nccl" else None,
            )
        return cls(rank, size, device)

    def close(self) -> None:
        """Leave the group."""
        if self.size > 1:
            distributed.destroy_process_group()

    def slice(self, rows: int) -> slice:
        """This process's part of `rows` global rows."""
        return slice(*bounds(rows, self.rank, self.size))

    def sum(self, values: Tensor) -> Tensor:
        """`values` summed over the processes, in place."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values

    def least(self, value: int) -> int:
        """The smallest `value` of all processes."""
        if self.size == 1:
            return value
        held = torch.tensor(value, device=self.device)
        distributed.all_reduce(held, distributed.ReduceOp.MIN)
        return int(held)

    def gather(self, local: Tensor, rows: int) -> Tensor:
        """`[rows, ...]` in global order from each process's slice of them. No gradient flows through."""
        if self.size == 1:
            return local
        widest = max(end - start for start, end in (bounds(rows, rank, self.size) for rank in range(self.size)))
        padded = local.new_zeros(widest, *local.shape[1:])
        padded[: len(local)] = local
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        distributed.all_gather(parts, padded)
        sizes = (end - start for start, end in (bounds(rows, rank, self.size) for rank in range(self.size)))
        return torch.cat([part[:length] for part, length in zip(parts, sizes, strict=True)])

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum `grad` over the processes. A parameter that no process used keeps None, so that it does not decay."""
        if self.size == 1:
            return
        every = list(parameters)
        used = self.sum(torch.tensor([float(p.grad is not None) for p in every], device=self.device))
        shared = [p for p, count in zip(every, used.tolist(), strict=True) if count]
        for bucket in _buckets(shared):
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
            flat = self.sum(torch.cat([gradient.reshape(-1) for gradient in gradients]))
            pieces = torch.split(flat, [gradient.numel() for gradient in gradients])
            for parameter, piece in zip(bucket, pieces, strict=True):
                parameter.grad = piece.view_as(parameter)


def _buckets(parameters: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Parameters of one dtype, `BUCKET` bytes or one parameter at a time."""
    bucket: list[nn.Parameter] = []
    held = 0
    for parameter in parameters:
        size = parameter.numel() * parameter.element_size()
        if bucket and (held + size > BUCKET or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket, held = [], 0
        bucket.append(parameter)
        held += size
    if bucket:
        yield bucket
