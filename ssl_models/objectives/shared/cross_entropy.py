"""Cross-entropy of a linear head whose logits are never held whole.

A vocabulary of 50,257 makes the logits the largest tensor of a language model by far. So the loss is computed over
chunks of positions, and each chunk's gradient in the same pass, while its logits are at hand (as in Liger, Hsu et al.
2024, arXiv:2410.10989): two matrices of gradients remain, and the backward pass only scales them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ssl_models.cpu.linear import linear, product, transposed_product
from ssl_models.objectives.shared import accuracy

IGNORE = -100
"""A target that is not predicted."""
CHUNK = {"cpu": 2**21, "cuda": 2**29}
"""Most logits computed at once: on a CPU so few that caches hold them, on a GPU so many that its matrix units are
filled."""


def chunk_rows(vocabulary: int, device: torch.device) -> int:
    """Positions per chunk: a power of two, which batches are multiples of, so that no chunk is a small remainder."""
    most = max(64, CHUNK.get(device.type, CHUNK["cuda"]) // vocabulary)
    return 1 << (most.bit_length() - 1)


def _chunks(hidden: Tensor, targets: Tensor, weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Slices of positions, with their targets."""
    rows = chunk_rows(len(weight), hidden.device)
    for start in range(0, len(hidden), rows):
        chunk = slice(start, start + rows)
        yield chunk, targets[chunk]


class _ChunkedLoss(torch.autograd.Function):
    """Summed loss; gradients are made chunk by chunk in the forward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        """Float32 scalar from hidden `[positions, width]`, weight `[vocabulary, width]`, targets `[positions]`."""
        matrix = weight.to(hidden.dtype)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        toward_hidden = torch.empty_like(hidden)
        toward_weight: Tensor | None = None
        toward_bias = None if bias is None else torch.zeros_like(bias)
        for chunk, wanted in _chunks(hidden, targets, weight):
            logits = product(hidden[chunk], matrix)
            if bias is not None:
                logits = logits.float().add_(bias)
            counted = (wanted != IGNORE)[:, None]
            index = wanted.clamp(min=0)[:, None]
            likelihoods = logits.log_softmax(1, dtype=torch.float32)
            likelihood = likelihoods.gather(1, index)
            total -= (likelihood * counted).sum()
            # softmax - one-hot; the target's own is set, not subtracted, so that rounding takes nothing from it
            gradient = likelihoods.exp_().to(hidden.dtype)
            gradient.scatter_(1, index, likelihood.expm1().to(hidden.dtype))
            # What is not counted is left out of the narrow matrices, as the gradient is wide.
            toward_hidden[chunk] = product(gradient, matrix.T).mul_(counted)
            part = transposed_product(gradient, hidden[chunk] * counted)
            toward_weight = part.to(weight.dtype) if toward_weight is None else toward_weight.add_(part)
            if toward_bias is not None:
                toward_bias += counted.to(gradient.dtype).T[0] @ gradient
        ctx.save_for_backward(toward_hidden, toward_weight, toward_bias)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of the forward pass, times `upstream`, whose one dimension keeps it from being rounded."""
        factor = upstream.view(1)
        scaled = (None if made is None else (made * factor).to(made.dtype) for made in ctx.saved_tensors)
        return (*scaled, None)


def linear_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """Sum over positions of the cross-entropy of `hidden @ weight.T + bias`: a float32 scalar.

    `hidden` `[..., width]`, `weight` `[vocabulary, width]`, `bias` `[vocabulary]`, `targets` int64 `[...]`, where
    `IGNORE` is not predicted. Equal to `F.cross_entropy(..., reduction="sum")`, which it calls where all logits are
    one chunk.
    """
    hidden, targets = hidden.flatten(0, -2), targets.flatten()
    if len(hidden) <= chunk_rows(len(weight), hidden.device):
        logits = linear(hidden, weight, bias).float()
        return F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
    if torch.is_grad_enabled():
        if torch.is_autocast_enabled(hidden.device.type):
            hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
        with torch.autocast(hidden.device.type, enabled=False):
            loss: Tensor = _ChunkedLoss.apply(hidden, weight, bias, targets)  # type: ignore[no-untyped-call]
        return loss
    return evaluate(hidden, weight, bias, targets)[0]


@torch.no_grad()
def evaluate(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of `linear_cross_entropy`, and how many targets are the likeliest (`accuracy.correct`): two float32
    scalars, no gradient."""
    hidden, targets = hidden.flatten(0, -2), targets.flatten()
    loss = torch.zeros((), device=hidden.device)
    correct = torch.zeros((), device=hidden.device)
    for chunk, wanted in _chunks(hidden, targets, weight):
        logits = linear(hidden[chunk], weight, bias).float()
        loss += F.cross_entropy(logits, wanted, ignore_index=IGNORE, reduction="sum")
        correct += accuracy.correct(logits, wanted)
    return loss, correct
