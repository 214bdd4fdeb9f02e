"""What the outcomes of micro-batches, processes and global batches add up to."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ssl_models.objectives import Outcome
from ssl_models.training.parallel import World


@dataclass(frozen=True)
class Means:
    """`loss` per predicted item, and the objective's further metrics, over one or more global batches; which of the
    flags that went along any process had set; and the sums of the objective's `statistics`, on the device."""

    loss: float
    metrics: dict[str, float]
    flags: tuple[bool, ...] = ()
    statistics: dict[str, Tensor] = field(default_factory=dict)
    finite: bool = True
    """Whether the loss and all statistics are."""


class Totals:
    """Running sums of outcomes; one exchange and one transfer from the device when they are read."""

    def __init__(self, device: torch.device) -> None:
        self.loss = torch.zeros((), device=device, dtype=torch.float64)
        self.count = torch.zeros((), device=device, dtype=torch.float64)
        self.sums: dict[str, tuple[Tensor, Tensor]] = {}
        self.statistics: dict[str, Tensor] = {}

    def add(self, outcome: Outcome, share: float = 1.0) -> None:
        """Add `share` of an outcome; a process adds 1/size of what every process computed alike."""
        self.loss += outcome.loss.detach() * share
        for name, (numerator, denominator) in outcome.sums.items():
            before = self.sums.get(name, (torch.zeros_like(self.loss), torch.zeros_like(self.loss)))
            self.sums[name] = (before[0] + numerator * share, before[1] + denominator * share)
        for name, value in outcome.statistics.items():
            self.statistics[name] = value.double() * share + self.statistics.get(name, 0.0)

    def means(self, world: World, *flags: bool) -> Means:
        """Summed over the processes and divided; `count` is already global."""
        names, vectors = sorted(self.sums), sorted(self.statistics)
        numbers = [
            *(torch.full_like(self.loss, flag) for flag in flags),
            self.loss,
            *(value for name in names for value in self.sums[name]),
        ]
        flat = torch.cat([torch.stack(numbers), *(self.statistics[name].flatten() for name in vectors)])
        scalars, tail = torch.split(world.sum(flat), [len(numbers), len(flat) - len(numbers)])
        read = torch.cat([scalars, torch.stack([torch.isfinite(tail).all().double(), self.count])]).tolist()
        loss, *rest, finite, count = read[len(flags) :]
        pairs = zip(rest[::2], rest[1::2], strict=True)
        metrics = {name: n / d if d else math.nan for name, (n, d) in zip(names, pairs, strict=True)}
        parts = torch.split(tail, [self.statistics[name].numel() for name in vectors]) if vectors else ()
        return Means(
            loss / max(count, 1.0),
            metrics,
            tuple(flag > 0 for flag in read[: len(flags)]),
            {name: part.view_as(self.statistics[name]).float() for name, part in zip(vectors, parts, strict=True)},
            bool(finite) and math.isfinite(loss),
        )
