"""Batch normalisation whose numbers are those of `train.normalisation_batch`, on any number of processes.

The global batch consists of normalisation groups of so many consecutive rows, and a micro-batch of one such group, or
of this process's part of it: then the processes that share the group exchange sums. What the processes' groups added to
the running statistics is put together after each step, as if one process had seen the groups in their order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_models.training.parallel import World


def has_batch_norm(model: nn.Module) -> bool:
    """Whether rows of a batch see each other through batch normalisation."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def layout(batch: int, group: int, processes: int) -> tuple[int, int]:
    """(most rows of a normalisation group that one process holds, processes that share a group) for groups of `group`
    of `batch` rows; ValueError, one sentence, where they cannot be laid over that many processes."""
    if group == batch:
        return -(-batch // processes), processes
    share = batch // processes
    if batch % processes == 0 and share % group == 0:
        return group, 1
    if batch % processes == 0 and group % share == 0:
        return share, group // share
    raise ValueError(
        f"normalisation_batch: groups of {group} of {batch} rows cannot be laid over {processes} processes; make it a "
        f"multiple or a divisor of {share} that divides the batch, or change the number of processes"
    )


class _Sum(torch.autograd.Function):
    """The sum over the processes of a group; its gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = values.clone()
        distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].clone()
        distributed.all_reduce(total, group=ctx.group)
        return total, None


_summed: Callable[[Tensor, Any], Tensor] = _Sum.apply


class GlobalBatchNorm(_BatchNorm):
    """Batch normalisation over the rows of several processes, on any device (`nn.SyncBatchNorm` knows GPUs only)."""

    group: Any = None
    """The processes; None: all."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        """`[rows, channels, ...]` to the same shape."""
        if not self.training:
            inferred: Tensor = super().forward(input)
            return inferred
        others = [axis for axis in range(input.ndim) if axis != 1]
        count = input.new_tensor([input.numel() / input.shape[1]])
        totals = _summed(torch.cat([input.sum(others), count]), self.group)
        mean = totals[:-1] / totals[-1]
        shape = [1, -1] + [1] * (input.ndim - 2)
        centred = input - mean.view(shape)
        variance = _summed((centred * centred).sum(others), self.group) / totals[-1]
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


def synchronise(model: nn.Module, world: World, sharing: int) -> None:
    """Make the batch normalisation of `model` see the rows of the `sharing` processes that hold one group; parameters
    and their names stay."""
    if sharing == 1:
        return
    group = None
    for first in range(0, world.size, sharing) if sharing < world.size else ():  # every process makes every group
        ranks = range(first, first + sharing)
        made = distributed.new_group(list(ranks))
        group = made if world.rank in ranks else group
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm) and not isinstance(child, nn.SyncBatchNorm | GlobalBatchNorm):
                setattr(parent, name, _synchronised(child, world.device, group))


def _synchronised(norm: _BatchNorm, device: torch.device, group: Any) -> nn.Module:
    if device.type == "cuda":
        convert: Callable[[nn.Module, Any], nn.Module] = nn.SyncBatchNorm.convert_sync_batchnorm
        return convert(norm, group)
    twin = GlobalBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    twin.weight, twin.bias = norm.weight, norm.bias
    twin.running_mean, twin.running_var = norm.running_mean, norm.running_var
    twin.num_batches_tracked = norm.num_batches_tracked
    twin.group = group
    twin.train(norm.training)
    return twin


@torch.no_grad()
def merge(model: nn.Module, before: dict[str, Tensor], world: World, sharing: int) -> None:
    """Make the running statistics of `model` what they were `before` a step, by their names, and then saw the groups
    of all processes in their order: with momentum m and n updates, r becomes (1 - m)^n r + a, and the a of the process
    at place p of P counts (1 - m)^(n (P - 1 - p)) times. Needs a momentum that is a number."""
    blocks = world.size // sharing
    if blocks == 1:
        return
    sums: list[tuple[Tensor, Tensor]] = []
    for name, norm in model.named_modules():
        if not isinstance(norm, _BatchNorm) or norm.num_batches_tracked is None:
            continue
        prefix = f"{name}." if name else ""
        updates = int(norm.num_batches_tracked - before[f"{prefix}num_batches_tracked"])
        norm.num_batches_tracked += updates * (blocks - 1)
        kept = (1 - (norm.momentum or 0.0)) ** updates
        weight = kept ** (blocks - 1 - world.rank // sharing) / sharing
        for running in ("running_mean", "running_var"):
            buffer: Tensor = getattr(norm, running)
            old = before[f"{prefix}{running}"]
            sums.append((buffer, (buffer - kept * old) * weight))
            buffer.copy_(old * kept**blocks)
    if sums:
        added = world.sum(torch.cat([part for _, part in sums]))
        for (buffer, _), part in zip(sums, torch.split(added, [len(part) for _, part in sums]), strict=True):
            buffer.add_(part)
