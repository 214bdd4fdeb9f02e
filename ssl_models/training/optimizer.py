"""AdamW and Muon behind one face, with learning rates that are a pure function of the step.

AdamW (Loshchilov and Hutter 2019) is torch's fused one; weights of two or more dimensions decay, gains and biases do
not. `muon` gives the matrices of repeated blocks to Muon (Jordan et al. 2024), those of fused layers (queries, keys and
values; gate and values) one by one, and everything else - embeddings, heads, norms, convolutions - to AdamW. Schedules
hold no state, so a resumed run needs none.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ssl_models.config import Train
from ssl_models.cpu.side_by_side import side_by_side

AT_ONCE = 2**26
"""Most values of the matrices that Muon orthogonalises at once: what fills a GPU, and little beside its memory."""


def schedule(train: Train, step: int) -> float:
    """The learning rate of step `step` (from 0) as a fraction of the peak: linear warm-up, then `cosine` down to
    `final`, or `wsd`: stable at the peak until the last fraction `decay` of the steps, then linear to `final`, or
    `constant`: at the peak to the end."""
    warmup = train.warmup_steps
    if step < warmup:
        return (step + 1) / warmup
    last = max(train.steps - 1, 1)
    start = warmup if train.schedule == "cosine" else train.stable_steps
    if step < start:
        return 1.0
    progress = min(1.0, (step - start) / max(last - start, 1))
    shape = 0.5 * (1 + math.cos(math.pi * progress)) if train.schedule == "cosine" else 1 - progress
    return train.final + (1 - train.final) * shape


def hidden_matrices(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names of the parameters Muon is made for, weights of linear layers inside repeated blocks (`nn.ModuleList`), and
    the rows of each matrix in them: a layer whose `parts` are several is as many layers fused into one."""
    blocks = {
        f"{name}.{child}." for name, module in model.named_modules() if isinstance(module, nn.ModuleList)
        for child, _ in module.named_children()
    }  # fmt: skip
    return {
        f"{name}.weight": getattr(module, "parts", (module.out_features,)) for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and any(f"{name}.".startswith(block) for block in blocks)
    }  # fmt: skip


def orthogonal(matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Each of `matrices` `[count, rows, columns]` with its singular values near 1, in bfloat16: the quintic
    Newton-Schulz iteration of Muon."""
    a, b, c = coefficients
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.bfloat16().mT.contiguous() if tall else matrices.bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


@dataclass(frozen=True)
class Matrix:
    """One matrix that Muon updates, `[rows, columns]` each: its values, their gradient and momentum."""

    values: Tensor
    gradient: Tensor
    momentum: Tensor


class Muon(torch.optim.Muon):
    """torch's Muon, which takes one matrix at a time, on all matrices of one shape at once. `parts` has the rows of the
    matrices that stand one below the other in a parameter, where it is not one matrix."""

    def __init__(self, parameters: Iterable[nn.Parameter], parts: dict[Tensor, tuple[int, ...]], **settings: Any):
        super().__init__(parameters, **settings)
        self._parts = parts

    def _matrices(self, parameter: nn.Parameter) -> list[Matrix]:
        assert parameter.grad is not None
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        rows = self._parts.get(parameter, (len(parameter),))
        three = (parameter.data, parameter.grad, state["momentum_buffer"])
        return [Matrix(*parts) for parts in zip(*(tensor.split(rows) for tensor in three), strict=True)]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # as nobody passes it
        """Update the parameters that have a gradient."""
        for group in self.param_groups:
            used = [m for p in group["params"] if p.grad is not None for m in self._matrices(p)]
            batches = []
            for shape in dict.fromkeys(m.values.shape for m in used):
                alike = [m for m in used if m.values.shape == shape]
                count = max(1, AT_ONCE // shape.numel())
                batches += [alike[first : first + count] for first in range(0, len(alike), count)]
            if batches:
                side_by_side(functools.partial(self._update, group), batches, used[0].values.device)

    def _update(self, group: dict[str, Any], matrices: list[Matrix]) -> None:
        rows, columns = matrices[0].values.shape
        momentum, rate = group["momentum"], group["lr"] * math.sqrt(max(1.0, rows / columns))
        values, gradients = [m.values for m in matrices], [m.gradient for m in matrices]
        buffers = [m.momentum for m in matrices]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        nesterov = torch.stack(torch._foreach_lerp(gradients, buffers, momentum))
        updates = orthogonal(nesterov, group["ns_coefficients"], group["ns_steps"], group["eps"])
        torch._foreach_mul_(values, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(values, updates.to(values[0].dtype).unbind(), alpha=-rate)


def decaying(parameters: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Groups of `parameters` for torch: weights of two or more dimensions decay."""
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


class Optimizer:
    """The optimizers of one model; its state is a flat dictionary of tensors, keyed by the parameters' names."""

    def __init__(self, model: nn.Module, train: Train) -> None:
        self._train = train
        self._names = {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}
        muon = hidden_matrices(model) if train.optimizer == "muon" else {}
        matrices = [p for p, name in self._names.items() if name in muon]
        others = [p for p, name in self._names.items() if name not in muon]
        self._all: list[torch.optim.Optimizer] = []
        if others:
            groups = decaying(others, train.weight_decay)
            betas = (train.beta1, train.beta2)
            self._all.append(torch.optim.AdamW(groups, lr=train.learning_rate, betas=betas, fused=True))
        self._peaks = [train.learning_rate] * len(self._all)
        if matrices:
            parts: dict[Tensor, tuple[int, ...]] = {p: muon[self._names[p]] for p in matrices}
            settings = {"lr": train.muon_learning_rate, "weight_decay": train.weight_decay, "momentum": 0.95}
            self._all.append(Muon(matrices, parts, **settings))
            self._peaks.append(train.muon_learning_rate)

    def step(self, number: int) -> float:
        """Update the parameters as step `number` (from 0); returns AdamW's learning rate."""
        fraction = schedule(self._train, number)
        for optimizer, peak in zip(self._all, self._peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * fraction
            optimizer.step()
        return self._train.learning_rate * fraction

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for optimizer in self._all:
            optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """`parameter/name-of-state` to tensor: the very tensors, not copies."""
        return {
            f"{name}/{kind}": value
            for parameter, name in self._names.items()
            for optimizer in self._all
            if parameter in optimizer.state
            for kind, value in optimizer.state[parameter].items()
        }

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over the state that `state` gave; KeyError where it is of another model or optimizer."""
        parameters = {name: parameter for parameter, name in self._names.items()}
        owners = {p: optimizer for optimizer in self._all for group in optimizer.param_groups for p in group["params"]}
        for key, value in state.items():
            name, kind = key.rsplit("/", 1)
            parameter = parameters[name]
            owners[parameter].state[parameter][kind] = value.to(parameter.device, copy=True)
