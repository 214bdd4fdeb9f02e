"""The gradient of a global batch, whatever micro-batches and processes it is computed in.

Losses are sums over predicted items, so micro-batches and processes add up, and the sum is divided by the global count
once. An objective that couples the whole batch (NT-Xent, CLIP) takes two passes, after Gao et al. 2021 (arXiv
2101.06983): embed every micro-batch without a graph, gather all embeddings, take the loss's gradient with respect to
them, then embed again and push that gradient through. Every process computes the full loss, so no gradient needs to be
gathered.

On a CPU two micro-batches are computed side by side where their order cannot matter, and their gradients are added in
order.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, autograd
from torch.autograd.graph import saved_tensors_hooks

from ssl_models.config import Train
from ssl_models.cpu.threads import leaves_no_trace, side_by_side, sides
from ssl_models.objectives import Batch, Objective, Outcome, Rows
from ssl_models.training.parallel import World, has_batch_norm

ACTIVATIONS = 2 * 2**30
"""Bytes that a micro-batch's saved activations may take on the CPU, unless that is over an eighth of the memory."""
MARGIN = 1 / 20
"""Part of a GPU's memory that no micro-batch is tried in: for buckets of gradients, and for fragments."""
EVALUATION_STEP = 0xFFFFFFFF
"""The step whose keys corrupt validation rows: no training step reaches it."""


@dataclass(frozen=True)
class Means:
    """`loss` per predicted item, and the objective's further metrics, over one or more global batches; and which of
    the flags that went along any process had set."""

    loss: float
    metrics: dict[str, float]
    flags: tuple[bool, ...] = ()


Result = TypeVar("Result")
Rooted = tuple[Result, Tensor, Tensor | None]
"""A result, a tensor, and the loss's gradient with respect to that; None: the tensor is the loss."""


class Totals:
    """Running sums of outcomes; one transfer from the device when they are read."""

    def __init__(self, device: torch.device) -> None:
        self.loss = torch.zeros((), device=device, dtype=torch.float64)
        self.count = torch.zeros((), device=device, dtype=torch.float64)
        self.sums: dict[str, tuple[Tensor, Tensor]] = {}

    def add(self, outcome: Outcome, share: float = 1.0) -> None:
        """Add `share` of an outcome; a process adds 1/size of what every process computed alike."""
        self.loss += outcome.loss.detach() * share
        for name, (numerator, denominator) in outcome.sums.items():
            before = self.sums.get(name, (torch.zeros_like(self.loss), torch.zeros_like(self.loss)))
            self.sums[name] = (before[0] + numerator * share, before[1] + denominator * share)

    def means(self, world: World, *flags: bool) -> Means:
        """Summed over the processes and divided; `count` is already global."""
        names = sorted(self.sums)
        flat = torch.stack(
            [
                *(torch.full_like(self.loss, flag) for flag in flags),
                self.loss,
                *(value for name in names for value in self.sums[name]),
            ]
        )
        found = torch.cat([world.sum(flat), self.count.view(1)]).tolist()
        loss, *rest, count = found[len(flags) :]
        pairs = zip(rest[::2], rest[1::2], strict=True)
        metrics = {name: n / d if d else math.nan for name, (n, d) in zip(names, pairs, strict=True)}
        return Means(loss / max(count, 1.0), metrics, tuple(flag > 0 for flag in found[: len(flags)]))


class Learner:
    """An objective on its device, and how its global batches are cut and computed."""

    def __init__(self, objective: Objective, world: World, train: Train, bfloat16: bool, compiled: bool) -> None:
        self.objective, self.world, self.train = objective, world, train
        self._bfloat16 = bfloat16
        self._forward: Callable[[Batch], Outcome] = torch.compile(objective.forward) if compiled else objective
        self._embed: Callable[[Batch], Tensor] = torch.compile(objective.embed) if compiled else objective.embed
        self._compiled = compiled
        self._parameters = [p for p in objective.parameters() if p.requires_grad]
        self.micro_batch = train.batch
        """Rows computed at once."""
        self.sides = 1
        """Micro-batches that these are cut into: at most `micro_batch`."""

    def autocast(self) -> AbstractContextManager[object]:
        """bfloat16 where it is wanted. Casts of weights are kept for all threads, until the first of them is done: two
        do without."""
        alone = self.sides == 1
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=self._bfloat16, cache_enabled=alone)

    @torch.no_grad()
    def prepare(self, rows: Rows, keys: Tensor) -> Batch:
        """The objective's batch of this process's rows."""
        return self.objective.prepare(rows, keys)

    def micro_batches(self, batch: Batch, rows: int) -> list[tuple[int, Batch]]:
        """This process's slice of a global batch of `rows`, cut evenly: (global number of its first row, rows)."""
        start, end = self.world.slice(rows).start, self.world.slice(rows).stop
        most = math.ceil(
            rows / self.world.size
        )  # every process makes as many, as batch normalisation exchanges in each
        together = self.micro_batch if most <= self.micro_batch else self.micro_batch // self.sides * self.sides
        pieces = math.ceil(most / together) * self.sides
        edges = [(end - start) * piece // pieces for piece in range(pieces + 1)]
        return [
            (start + a, {name: value[a:b] for name, value in batch.items()})
            for a, b in itertools.pairwise(edges)
            if b > a
        ]

    def gradient(self, step: int, batch: Batch, count: Tensor, rows: int) -> Totals:
        """Add the gradient of the mean loss over the global batch to the parameters' `grad`, summed over processes.

        `batch` is this process's slice; `count` is the number of predicted items in the whole.
        """
        totals = Totals(self.world.device)
        totals.count = count.double()
        if self.objective.whole_batch:
            self._coupled(step, batch, totals, rows)
        else:
            micros = self.micro_batches(batch, rows)

            def loss(number: int) -> tuple[Outcome, Tensor, None]:
                first, micro = micros[number]
                self._seed(step, first)
                with self.autocast():
                    outcome = self._forward(micro)
                return Outcome(outcome.loss.detach(), outcome.sums), outcome.loss / count.clamp_min(1), None

            for outcome in self._backward(loss, len(micros)):
                totals.add(outcome)
        self.world.sum_gradients(self.objective.parameters())
        return totals

    def _backward(self, work: Callable[[int], Rooted[Result]], count: int) -> list[Result]:
        """Add the gradients of what `work` makes of each number below `count` to the parameters' `grad`; the results,
        in order."""
        if self.sides == 1:
            results = []
            for number in range(count):
                result, value, upstream = work(number)
                if upstream is None or value.requires_grad:
                    autograd.backward(value, upstream)
                results.append(result)
            return results
        dealt = [range(first, count, self.sides) for first in range(min(self.sides, count))]
        found = side_by_side(functools.partial(self._side, work), dealt)
        for parameter in reversed(self._parameters):
            parameter.grad = summed(parameter, [parameter.grad, *(gradients.pop() for _, gradients in found)])
        return [found[number % len(found)][0][number // len(found)] for number in range(count)]

    def _side(self, work: Callable[[int], Rooted[Result]], numbers: range) -> tuple[list[Result], list[Tensor | None]]:
        """The results of `numbers`, and the sum of their gradients by parameter."""
        results: list[Result] = []
        total: list[Tensor | None] = []
        for number in numbers:
            result, value, upstream = work(number)
            results.append(result)
            if upstream is None or value.requires_grad:
                found: list[Tensor | None] = list(autograd.grad(value, self._parameters, upstream, allow_unused=True))
                if total:  # each is freed once it is added
                    found = [summed(p, [total.pop(), found.pop()]) for p in reversed(self._parameters)][::-1]
                total = found
        return results, total or [None] * len(self._parameters)

    def _coupled(self, step: int, batch: Batch, totals: Totals, rows: int) -> None:
        micros = self.micro_batches(batch, rows)
        once = len(micros) <= self.sides

        def embed(micro: tuple[int, Batch], graph: bool) -> Tensor:
            first, part = micro
            self._seed(step, first)
            with torch.set_grad_enabled(graph), self.autocast():
                return self._embed(part)

        with kept_buffers(self.objective, keep=not once):
            embedded = side_by_side(functools.partial(embed, graph=once), micros, self.sides)
        everyone = self.world.gather(torch.cat([part.detach().float() for part in embedded]), rows).requires_grad_()
        outcome = self.objective.couple(everyone)
        # Every process computes this loss: parameters of `couple` get 1/size of its gradient from each.
        autograd.backward(outcome.loss / (totals.count.clamp_min(1) * self.world.size))
        totals.add(outcome, 1 / self.world.size)
        if everyone.grad is None:
            return
        upstream = everyone.grad * self.world.size

        def again(number: int) -> tuple[None, Tensor, Tensor]:
            first = micros[number][0]
            part = embedded[number] if once else embed(micros[number], graph=True)
            return None, part, upstream[first : first + len(part)].to(part.dtype)

        self._backward(again, len(micros))

    @torch.no_grad()
    def evaluate(self, batch: Batch, rows: int, totals: Totals) -> None:
        """Add the outcome of one global batch of validation `rows` to `totals`, of which this process has a slice."""
        micros = self.micro_batches(batch, rows)
        count = self.objective.count(batch).double() if micros else torch.zeros_like(totals.count)
        totals.count += self.world.sum(count)
        if self.objective.whole_batch:
            embedded = torch.cat([part.float() for part in self._inferred(self._embed, micros)])
            totals.add(self.objective.couple(self.world.gather(embedded, rows)), 1 / self.world.size)
            return
        for outcome in self._inferred(self._forward, micros):
            totals.add(outcome)

    def _inferred(self, function: Callable[[Batch], Result], micros: list[tuple[int, Batch]]) -> list[Result]:
        def one(micro: tuple[int, Batch]) -> Result:
            with torch.no_grad(), self.autocast():
                return function(micro[1])

        return side_by_side(one, micros, self.sides)

    def _seed(self, step: int, row: int) -> None:
        """Dropout and the like: torch's own generators depend on (seed, step, first row) and on nothing before."""
        torch.manual_seed(((self.train.seed * 1_000_003 + step) * 1_000_003 + row) & (2**63 - 1))

    def pair(self, batch: Batch) -> None:
        """Compute two micro-batches at once from now on, if this is a CPU with several threads, and a forward pass of
        `batch` neither leaves a trace in the objective nor changes what it is given, so that order is nothing to it."""
        together = sides(self.world.device)
        if together == 1 or self._compiled or has_batch_norm(self.objective):
            return
        two = {name: value[:2] for name, value in batch.items()}
        versions = [value._version for value in two.values()]
        self._seed(0, 0)
        with kept_buffers(self.objective):
            alike = leaves_no_trace(self.objective, lambda: self._trial(two))
        if alike and versions == [value._version for value in two.values()]:
            self.sides = min(together, self.micro_batch)

    def fit(self, batch: Batch, rows: int) -> int:
        """The largest micro-batch whose activations fit, at most this process's slice. Leaves nothing behind."""
        most = math.ceil(rows / self.world.size)
        find = self._fit_gpu if self.world.device.type == "cuda" else self._fit_cpu
        with kept_buffers(self.objective):
            fitting = find(batch, most)
        self.objective.zero_grad(set_to_none=True)
        return self.world.least(fitting)

    def _fit_cpu(self, batch: Batch, most: int) -> int:
        """By the bytes two rows save for the backward pass: the same on every run, unlike the memory that is free."""
        two = {name: value[:2] for name, value in batch.items()}
        own = {p.untyped_storage().data_ptr() for p in self.objective.parameters()}
        saved: dict[int, int] = {}

        def pack(value: Tensor) -> Tensor:
            storage = value.untyped_storage()
            if storage.data_ptr() not in own:
                saved[storage.data_ptr()] = storage.nbytes()
            return value

        self._seed(0, 0)
        with saved_tensors_hooks(pack, lambda value: value):
            held = self._trial(two)
        per_row = max(1, sum(saved.values()) // len(next(iter(two.values()))))
        del held
        import psutil  # needed here alone

        return max(1, min(most, min(ACTIVATIONS, psutil.virtual_memory().total // 8) // per_row))

    def _fit_gpu(self, batch: Batch, most: int) -> int:
        """By trying, beside as much memory as the optimizer will take, and halving when it runs out."""
        device = self.world.device
        spare = int(torch.cuda.get_device_properties(device).total_memory * MARGIN)
        reserve = [torch.empty(spare, dtype=torch.uint8, device=device)]
        reserve += [torch.empty_like(p) for p in self.objective.parameters() for _ in range(2)]
        fitting = most
        while not self._fits({name: value[:fitting] for name, value in batch.items()}):
            if fitting == 1:
                break  # the first step will say so, unless the reserve was all that it lacked
            fitting = math.ceil(fitting / 2)
        del reserve
        torch.cuda.empty_cache()
        return fitting

    def _fits(self, batch: Batch) -> bool:
        """Whether there is memory for the gradient of `batch`; nothing of it is left afterwards."""
        fits = True
        try:
            autograd.backward(self._trial(batch))
        except torch.OutOfMemoryError:
            fits = False  # the error holds on to tensors until this block is left
        self.objective.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        return fits

    def _trial(self, batch: Batch) -> Tensor:
        with self.autocast():
            if self.objective.whole_batch:
                return self.objective.embed(batch).float().sum()
            outcome: Outcome = self.objective(batch)
            return outcome.loss


def summed(parameter: Tensor, gradients: Sequence[Tensor | None]) -> Tensor | None:
    """The sum of gradients of `parameter`, a new tensor laid out like it; None where all are None."""
    found = [gradient for gradient in gradients if gradient is not None]
    if not found:
        return None
    total = torch.empty_like(parameter)
    if len(found) == 1:
        return total.copy_(found[0])
    torch.add(found[0], found[1], out=total)
    for gradient in found[2:]:
        total.add_(gradient)
    return total


@contextmanager
def kept_buffers(objective: Objective, keep: bool = True) -> Iterator[None]:
    """Buffers (running statistics of batch normalisation) are afterwards what they were before."""
    before = [(buffer, buffer.clone()) for buffer in objective.buffers()] if keep else []
    yield
    for buffer, value in before:
        buffer.copy_(value)
