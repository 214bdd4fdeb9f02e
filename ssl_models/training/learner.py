"""The gradient of a global batch, whatever micro-batches and processes it is computed in.

Losses are sums over predicted items, so micro-batches and processes add up, and the sum is divided by the global count
once. An objective that couples the whole batch (NT-Xent, CLIP) takes two passes, after Gao et al. 2021 (arXiv
2101.06983): embed every micro-batch without a graph, gather all embeddings, take the loss's gradient with respect to
them, then embed again and push that gradient through. Every process computes the full loss, so no gradient needs to be
gathered.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, autograd

from ssl_models.config import Train
from ssl_models.cpu.side_by_side import PIECES, Passes
from ssl_models.objectives import Batch, Embeddings, Objective, Outcome, Rows
from ssl_models.training import batch_norm, micro_batch
from ssl_models.training.parallel import World
from ssl_models.training.totals import Totals

EVALUATION_STEP = 0xFFFFFFFF
"""The step whose keys corrupt validation rows: no training step reaches it."""

Result = TypeVar("Result")
Graph = tuple[Result, list[Tensor], list[Tensor | None]]
"""A result, the roots of its graph, and the gradient of the loss with respect to each; None: it is the loss."""


class Learner:
    """An objective on its device, and how its global batches are cut and computed."""

    def __init__(self, objective: Objective, world: World, train: Train, bfloat16: bool, compiled: bool) -> None:
        self.objective, self.world, self.train = objective, world, train
        self._bfloat16 = bfloat16
        self._call: Callable[..., Outcome | Embeddings] = torch.compile(objective) if compiled else objective
        self._parameters = [p for p in objective.parameters() if p.requires_grad]
        self.normalised = batch_norm.has_batch_norm(objective)
        self.sharing = world.size
        """Processes that a normalisation group is spread over."""
        self.micro_batch = train.batch
        """Rows computed at once."""
        self.pieces = PIECES if world.device.type == "cpu" and not self.normalised else 1
        """Parts that these are cut into."""
        self._passes = Passes(objective)
        saved = objective.state_dict().keys()
        self._buffers = {name: buffer for name, buffer in objective.named_buffers() if name in saved}
        self._before = {name: buffer.clone() for name, buffer in self._buffers.items()}

    def autocast(self) -> AbstractContextManager[object]:
        """bfloat16 where it is wanted. Casts of weights are not kept: a pass reads each once."""
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=self._bfloat16, cache_enabled=False)

    @torch.no_grad()
    def prepare(self, rows: Rows, keys: Tensor) -> Batch:
        """The objective's batch of this process's rows, and their keys."""
        return {**self.objective.prepare(rows, keys), "keys": keys}

    def passes(self, work: Callable[[int], Result], count: int) -> list[Result]:
        """`work`, a pass of rows through the objective, of each number below `count`, in order."""
        if self.pieces == 1:
            return [work(number) for number in range(count)]
        return list(self._passes(work, range(count), self.world.device))

    def micro_batches(self, batch: Batch, rows: int) -> list[tuple[int, Batch]]:
        """This process's slice of a global batch of `rows`, cut evenly: (global number of its first row, rows)."""
        return micro_batch.cut(batch, rows, self.world, self.micro_batch, min(self.pieces, self.micro_batch))

    def gradient(self, step: int, batch: Batch, count: Tensor, rows: int) -> Totals:
        """Add the gradient of the mean loss over the global batch to the parameters' `grad`, summed over processes.

        `batch` is this process's slice; `count` is the number of predicted items in the whole.
        """
        for name, buffer in self._buffers.items():
            self._before[name].copy_(buffer)
        totals = Totals(self.world.device)
        totals.count = count.double()
        if self.objective.whole_batch:
            self._coupled(step, batch, totals, rows)
        else:
            micros = self.micro_batches(batch, rows)

            def loss(number: int) -> Graph[Outcome]:
                first, micro = micros[number]
                self._seed(step, first)
                with self.autocast():
                    outcome = self._outcome(micro)
                return replace(outcome, loss=outcome.loss.detach()), [outcome.loss / count.clamp_min(1)], [None]

            for outcome in self._backward(loss, len(micros)):
                totals.add(outcome)
        self.world.sum_gradients(self.objective.parameters())
        if self.normalised:
            batch_norm.merge(self.objective, self._before, self.world, self.sharing)
        return totals

    @torch.no_grad()
    def undo(self) -> None:
        """Make the buffers what they were before the last `gradient`, whose step is skipped."""
        for name, buffer in self._buffers.items():
            buffer.copy_(self._before[name])

    def _outcome(self, batch: Batch, part: str = "loss") -> Outcome:
        outcome = self._call(batch, part)
        assert isinstance(outcome, Outcome)
        return outcome

    def _embeddings(self, batch: Batch) -> Embeddings:
        with self.autocast():
            embeddings = self._call(batch, "embed")
        assert isinstance(embeddings, dict)
        return embeddings

    def _backward(self, work: Callable[[int], Graph[Result]], count: int) -> list[Result]:
        """Add the gradients of what `work` makes of each number below `count` to the parameters' `grad`; the results,
        in order."""
        if self.pieces == 1:
            results = []
            for number in range(count):
                result, roots, upstream = work(number)
                if roots:
                    autograd.backward(roots, upstream)
                results.append(result)
            return results
        lanes = min(self.pieces, count)

        def lane(first: int) -> tuple[list[Result], list[Tensor | None]]:
            """The results of every `pieces`-th number, and the sum of their gradients by parameter."""
            results: list[Result] = []
            total: list[Tensor | None] = []
            for number in range(first, count, self.pieces):
                result, roots, upstream = work(number)
                results.append(result)
                if roots:
                    added: list[Tensor | None] = [*autograd.grad(roots, self._parameters, upstream, allow_unused=True)]
                    if total:  # each is freed once it is added
                        added = [summed(p, [total.pop(), added.pop()]) for p in reversed(self._parameters)][::-1]
                    total = added
            return results, total or [None] * len(self._parameters)

        done = self.passes(lane, lanes)
        for parameter in reversed(self._parameters):
            parameter.grad = summed(parameter, [parameter.grad, *(gradients.pop() for _, gradients in done)])
        return [done[number % lanes][0][number // lanes] for number in range(count)]

    def _coupled(self, step: int, batch: Batch, totals: Totals, rows: int) -> None:
        micros = self.micro_batches(batch, rows)
        once = len(micros) <= self.pieces

        def embed(number: int) -> Embeddings:
            first, micro = micros[number]
            self._seed(step, first)
            return self._embeddings(micro)

        with torch.set_grad_enabled(once), kept_buffers(self.objective, keep=not once):
            embedded = self.passes(embed, len(micros))
        everyone = {name: value.requires_grad_() for name, value in self._gathered(embedded, rows).items()}
        outcome = self._outcome({**everyone, "keys": self.world.gather(batch["keys"], rows)}, "couple")
        # Every process computes this loss: parameters of `couple` get 1/size of its gradient from each.
        autograd.backward(outcome.loss / (totals.count.clamp_min(1) * self.world.size))
        totals.add(outcome, 1 / self.world.size)

        def again(number: int) -> Graph[None]:
            first = micros[number][0]
            part = embedded[number] if once else embed(number)
            roots, upstream = list[Tensor](), list[Tensor | None]()
            for name, value in part.items():
                gradient = everyone[name].grad
                if gradient is not None and value.requires_grad:
                    roots.append(value)
                    upstream.append(gradient[first : first + len(value)].to(value.dtype) * self.world.size)
            return None, roots, upstream

        self._backward(again, len(micros))

    def _gathered(self, embedded: list[Embeddings], rows: int) -> Embeddings:
        """The embeddings of all processes' micro-batches, in order, at least in float32 and without a graph."""
        joined = {name: torch.cat([part[name].detach() for part in embedded]) for name in embedded[0]}
        at_least = {name: value.to(torch.promote_types(value.dtype, torch.float32)) for name, value in joined.items()}
        return {name: self.world.gather(value, rows) for name, value in at_least.items()}

    @torch.no_grad()
    def evaluate(self, batch: Batch, rows: int, totals: Totals) -> None:
        """Add the outcome of one global batch of validation `rows` to `totals`, of which this process has a slice."""
        micros = self.micro_batches(batch, rows)
        count = self.objective.count(batch).double() if micros else torch.zeros_like(totals.count)
        totals.count += self.world.sum(count)
        if self.objective.whole_batch:

            def embed(number: int) -> Embeddings:
                return self._embeddings(micros[number][1])

            everyone = self._gathered(self.passes(embed, len(micros)), rows)
            keys = self.world.gather(batch["keys"], rows)
            totals.add(self._outcome({**everyone, "keys": keys}, "couple"), 1 / self.world.size)
            return

        def loss(number: int) -> Outcome:
            with self.autocast():
                return self._outcome(micros[number][1])

        for outcome in self.passes(loss, len(micros)):
            totals.add(outcome)

    def _seed(self, step: int, row: int) -> None:
        """Dropout and the like: torch's own generators depend on (seed, step, first row) and on nothing before."""
        torch.manual_seed(((self.train.seed * 1_000_003 + step) * 1_000_003 + row) & (2**63 - 1))

    def fit(self, batch: Batch, rows: int) -> int:
        """The largest micro-batch whose activations fit, at most this process's slice. Leaves nothing behind."""
        most = math.ceil(rows / self.world.size)
        self._seed(0, 0)
        with kept_buffers(self.objective):
            if self.world.device.type == "cuda":
                fitting = micro_batch.fit_gpu(self.objective, self._trial, batch, most, self.world.device)
            else:
                fitting = micro_batch.fit_cpu(self.objective, self._trial, batch, most)
        self.objective.zero_grad(set_to_none=True)
        return self.world.least(fitting)

    def _trial(self, batch: Batch) -> Tensor:
        with self.autocast():
            if not self.objective.whole_batch:
                loss: Tensor = self.objective(batch).loss
                return loss
            embedded: Embeddings = self.objective(batch, "embed")
        values = [value.float().sum() for value in embedded.values() if value.requires_grad]
        return functools.reduce(torch.add, values)


def summed(parameter: Tensor, gradients: Sequence[Tensor | None]) -> Tensor | None:
    """The sum of gradients of `parameter`, a new tensor laid out like it; None where all are None."""
    given = [gradient for gradient in gradients if gradient is not None]
    if not given:
        return None
    total = torch.empty_like(parameter)
    if len(given) == 1:
        return total.copy_(given[0])
    torch.add(given[0], given[1], out=total)
    for gradient in given[2:]:
        total.add_(gradient)
    return total


@contextmanager
def kept_buffers(objective: Objective, keep: bool = True) -> Iterator[None]:
    """Buffers (running statistics of batch normalisation) are afterwards what they were before."""
    before = [(buffer, buffer.clone()) for buffer in objective.buffers()] if keep else []
    yield
    for buffer, value in before:
        buffer.copy_(value)
