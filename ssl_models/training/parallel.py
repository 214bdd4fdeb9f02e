"""Several processes that compute what one process would: the gradient of the same global batch.

Every process holds the whole model and a slice of the batch. Gradients are summed explicitly, in large buckets, after
the last micro-batch, instead of through DistributedDataParallel: a sum over predicted items needs no average over
processes, slices may be uneven, whole-batch objectives need two passes, and one exchange per *global* batch is small
beside the micro-batches before it. NCCL on GPUs, gloo on the CPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

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


class _Sum(torch.autograd.Function):
    """The sum over the processes; its gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        distributed.all_reduce(total)
        return total


_summed: Callable[[Tensor], Tensor] = _Sum.apply


class GlobalBatchNorm(_BatchNorm):
    """Batch normalisation over the rows of all processes, on any device (`nn.SyncBatchNorm` knows GPUs only)."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        """`[rows, channels, ...]` to the same shape."""
        if not self.training:
            inferred: Tensor = super().forward(input)
            return inferred
        others = [axis for axis in range(input.ndim) if axis != 1]
        count = input.new_tensor([input.numel() / input.shape[1]])
        totals = _summed(torch.cat([input.sum(others), count]))
        mean = totals[:-1] / totals[-1]
        shape = [1, -1] + [1] * (input.ndim - 2)
        centred = input - mean.view(shape)
        variance = _summed((centred * centred).sum(others)) / totals[-1]
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            with torch.no_grad():
                self.num_batches_tracked += 1
                share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
                unbiased = variance * (totals[-1] / (totals[-1] - 1).clamp_min(1))
                self.running_mean.lerp_(mean, share)
                self.running_var.lerp_(unbiased, share)
        out: Tensor = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out


def has_batch_norm(model: nn.Module) -> bool:
    """Whether rows of a batch see each other through batch normalisation."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def synchronise(model: nn.Module, world: World) -> None:
    """Make the batch normalisation of `model` see the rows of every process; parameters and their names stay."""
    if world.size == 1:
        return
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm) and not isinstance(child, nn.SyncBatchNorm | GlobalBatchNorm):
                setattr(parent, name, _synchronised(child, world.device))


def _synchronised(norm: _BatchNorm, device: torch.device) -> nn.Module:
    if device.type == "cuda":
        convert: Callable[[nn.Module], nn.Module] = nn.SyncBatchNorm.convert_sync_batchnorm
        return convert(norm)
    twin = GlobalBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    twin.weight, twin.bias = norm.weight, norm.bias
    twin.running_mean, twin.running_var = norm.running_mean, norm.running_var
    twin.num_batches_tracked = norm.num_batches_tracked
    twin.train(norm.training)
    return twin
