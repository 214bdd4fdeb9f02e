"""Matrix products of float32 on a CPU through oneDNN, whose kernels use the vector units of every maker's processors.

torch's own product calls MKL, which leaves half of them idle on a processor that is not Intel's: 90 against 200 GFLOP/s
a core with AVX-512, at the same rounding error. On an Intel Xeon gpt's steps take 0.93 of the processor time without
it, and 1.06 without the copies of narrow transposes (benchmarks/cpu.py). The operator is the one that `torch.compile`
emits for CPUs. On a GPU, under autocast, in a compiled graph and where torch was built without oneDNN, torch's own
product does the work.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

_ONEDNN = hasattr(torch.ops.mkldnn, "_linear_pointwise")
_NARROW = 512
"""Columns of a matrix up to which its transpose is copied in less time than a wider one's is read."""


def _through_onednn(*tensors: Tensor) -> bool:
    return (
        _ONEDNN
        and all(tensor.is_cpu and tensor.dtype == torch.float32 and tensor.numel() for tensor in tensors)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x` and `weight` are contiguous, or transposes of what is: with other strides oneDNN is slow beyond measure."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
    return out


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        toward_x, toward_weight, toward_bias = ctx.needs_input_grad
        upstream = upstream.contiguous()
        flat = upstream.flatten(0, -2)
        return (
            _onednn(upstream, weight.T, None) if toward_x else None,
            transposed_product(flat, x.flatten(0, -2)) if toward_weight else None,
            flat.sum(0) if toward_bias else None,
        )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`functional.linear`: `x` `[..., in]`, `weight` `[out, in]` and `bias` `[out]` to `[..., out]`."""
    if x.ndim < 2 or not weight.is_contiguous() or not _through_onednn(x, weight):
        return functional.linear(x, weight, bias)
    out: Tensor = _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return out


def product(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b.T` of matrices `[n, k]` and `[m, k]`, of which either may be a transpose; without a gradient."""
    dense = all(matrix.is_contiguous() or matrix.T.is_contiguous() for matrix in (a, b))
    return _onednn(a, b, None) if dense and _through_onednn(a, b) else a @ b.T


def transposed_product(a: Tensor, b: Tensor) -> Tensor:
    """`a.T @ b` of matrices `[k, n]` and `[k, m]`, without a gradient. oneDNN gets a copy of the first factor's
    transpose, so the narrower matrix becomes the first, and the result may be a transpose."""
    if a.shape[1] > b.shape[1] <= _NARROW:
        return product(b.T, a.T).T
    return product(a.T, b.T)


class Linear(nn.Linear):
    """`nn.Linear` through `linear`. `parts`: the output widths of the layers that are fused into this one, whose
    matrices stand one below the other; default: one layer."""

    def __init__(self, in_features: int, *parts: int, bias: bool = True) -> None:
        super().__init__(in_features, sum(parts), bias=bias)
        self.parts = parts

    def forward(self, input: Tensor) -> Tensor:
        """`[..., in]` to `[..., out]`."""
        return linear(input, self.weight, self.bias)
