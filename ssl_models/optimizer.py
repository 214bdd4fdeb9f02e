"""AdamW and Muon behind one face, with learning rates that are a pure function of the step.

AdamW (Loshchilov and Hutter 2019) is torch's fused one; weights of two or more dimensions decay, gains and biases do
not. `muon` gives the matrices of repeated blocks to `torch.optim.Muon` (Jordan et al. 2024) and everything else -
embeddings, heads, norms, convolutions - to AdamW. Schedules hold no state, so a resumed run needs none.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ssl_models.config import Train


def schedule(train: Train, step: int) -> float:
    """The learning rate of step `step` (from 0) as a fraction of the peak: linear warm-up, then `cosine` down to
    `final`, or `wsd`: stable at the peak until the last fraction `decay` of the steps, then linear to `final`."""
    warmup = round(train.warmup * train.steps)
    if step < warmup:
        return (step + 1) / warmup
    last = max(train.steps - 1, 1)
    start = warmup if train.schedule == "cosine" else max(warmup, train.steps - round(train.decay * train.steps))
    if step < start:
        return 1.0
    progress = min(1.0, (step - start) / max(last - start, 1))
    shape = 0.5 * (1 + math.cos(math.pi * progress)) if train.schedule == "cosine" else 1 - progress
    return train.final + (1 - train.final) * shape


def hidden_matrices(model: nn.Module) -> set[str]:
    """Names of the parameters Muon is made for: weights of linear layers inside repeated blocks (`nn.ModuleList`)."""
    blocks = {
        f"{name}.{child}." for name, module in model.named_modules() if isinstance(module, nn.ModuleList)
        for child, _ in module.named_children()
    }  # fmt: skip
    return {
        f"{name}.weight" for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and any(f"{name}.".startswith(block) for block in blocks)
    }  # fmt: skip


class Optimizer:
    """The optimizers of one model; its state is a flat dictionary of tensors, keyed by the parameters' names."""

    def __init__(self, model: nn.Module, train: Train) -> None:
        self._train = train
        self._names = {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}
        muon = hidden_matrices(model) if train.optimizer == "muon" else set()
        matrices = [p for p, name in self._names.items() if name in muon]
        others = [p for p, name in self._names.items() if name not in muon]
        groups = [
            {"params": [p for p in others if p.ndim >= 2], "weight_decay": train.weight_decay},
            {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
        ]
        self._adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=train.learning_rate,
            betas=(train.beta1, train.beta2),
            fused=True,
        )
        self._all: list[torch.optim.Optimizer] = [self._adamw]
        self._peaks = [train.learning_rate]
        if matrices:
            self._all.append(
                torch.optim.Muon(matrices, lr=train.muon_learning_rate, weight_decay=train.weight_decay, momentum=0.95)
            )
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
