"""Attention: who sees whom, where they stand, and the heads that look.

It runs through `scaled_dot_product_attention`: without a mask where causality alone decides, else with one mask built
once for all layers; packed documents on a GPU go through `flex_attention`, which skips what no document sees.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from ssl_models.cpu.linear import Linear
from ssl_models.models import compiler
from ssl_models.models.presets import Architecture

Rope = tuple[Tensor, Tensor]
"""Cosines and sines `[batch or 1, 1, tokens, head width / 2]` of rotary positions."""


def rope(positions: Tensor, head_width: int, theta: float) -> Rope:
    """Rotary positions (Su et al. 2021) of `positions` `[batch or 1, tokens]`."""
    half = torch.arange(0, head_width, 2, device=positions.device).float() / head_width
    angle = (positions[..., None].float() * theta**-half)[:, None]
    return angle.cos(), angle.sin()


def apply_rope(x: Tensor, rope: Rope) -> Tensor:
    """Turn the pairs (i, i + half) of `x` `[batch, heads, tokens, head width]`: the half-split convention of LLaMA's
    Hugging Face weights, not the interleaved one of Meta's."""
    cosine, sine = rope[0].to(x.dtype), rope[1].to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


class RelativeBias(nn.Module):
    """T5's bias by bucketed distance, one table for all layers of a stack (Raffel et al. 2019, section 2.1)."""

    def __init__(self, architecture: Architecture, *, causal: bool) -> None:
        super().__init__()
        self.causal, self.furthest = causal, architecture.relative_distance
        self.table = nn.Embedding(architecture.relative_buckets, architecture.heads)

    def buckets(self, distance: Tensor) -> Tensor:
        """Bucket of `distance` (key position - query position): near ones singly, far ones on a log scale."""
        count = self.table.num_embeddings
        if self.causal:
            start, away = torch.zeros_like(distance), (-distance).clamp(min=0)
        else:
            count //= 2
            start, away = (distance > 0) * count, distance.abs()
        single = count // 2
        scale = (count - single) / math.log(self.furthest / single)
        far = single + (torch.log(away.clamp(min=1).float() / single) * scale).long()
        return start + torch.where(away < single, away, far.clamp(max=count - 1))

    def forward(self, queries: int, keys: int) -> Tensor:
        """The bias `[1, heads, queries, keys]`, where the queries are the last of the keys' positions."""
        position = torch.arange(keys, device=self.table.weight.device)
        distance = position[None, :] - position[keys - queries :, None]
        bias: Tensor = self.table(self.buckets(distance)).permute(2, 0, 1)[None]
        return bias


@dataclass(frozen=True)
class AttentionMask:
    """Which keys each query sees. At most one of the three is set; none: every query sees every key."""

    causal: bool = False
    mask: Tensor | None = None
    """Boolean (True: seen) or an additive bias, broadcastable to `[batch, heads, queries, keys]`."""
    blocks: BlockMask | None = None


def _document_blocks(documents: Tensor, *, causal: bool) -> BlockMask:
    """Block-sparse mask of `documents` for `flex_attention`."""
    rows, length = documents.shape

    def seen(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same = documents[row, query] == documents[row, key]
        return same & (query >= key) if causal else same

    return create_block_mask(seen, rows, None, length, length, device=documents.device)


def attention_mask(
    queries: int,
    keys: int,
    *,
    causal: bool,
    device: torch.device,
    padding: Tensor | None = None,
    documents: Tensor | None = None,
    bias: Tensor | None = None,
    flex: bool = False,
) -> AttentionMask:
    """What `queries` positions, the last of `keys`, may see.

    `padding` bool `[batch, keys]` hides keys; `documents` int `[batch, keys]` hides other documents (queries = keys);
    `bias` float `[batch or 1, heads, queries, keys]` is added to the scores; `flex` allows `flex_attention`. A query
    that sees nothing attends to nothing: its output is zero.
    """
    causal = causal and queries > 1
    if padding is None and documents is None and bias is None and (queries == keys or not causal):
        return AttentionMask(causal=causal)
    if flex and documents is not None and padding is None and bias is None:
        return AttentionMask(blocks=_document_blocks(documents, causal=causal))
    seen: list[Tensor] = []
    if causal:
        seen.append(torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries))
    if documents is not None:
        seen.append(documents[:, None, :, None] == documents[:, None, None, :])
    if padding is not None:
        seen.append(~padding[:, None, None, :])
    if not seen:
        return AttentionMask(mask=bias)
    visible = functools.reduce(torch.logical_and, seen)
    return AttentionMask(mask=visible if bias is None else bias.masked_fill(~visible, -torch.inf))


class LayerCache:
    """Keys and values `[batch, kv heads, tokens, head width]` of one layer, in buffers of the full capacity."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.memory: tuple[Tensor, Tensor] | None = None
        """Cross-attention's keys and values, computed once."""

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Everything so far, the new `keys` and `values` included."""
        if self.keys is None or self.values is None:
            rows, heads, _, width = keys.shape
            self.keys = keys.new_empty(rows, heads, self.capacity, width)
            self.values = torch.empty_like(self.keys)
        end = self.length + keys.shape[2]
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class Cache:
    """What a stack remembers between steps of generation: at most `capacity` tokens."""

    def __init__(self, layers: int, capacity: int) -> None:
        self.layers = [LayerCache(capacity) for _ in range(layers)]

    @property
    def length(self) -> int:
        """Tokens seen so far."""
        return self.layers[0].length


_FLEX_WIDTH = 16
"""The narrowest heads that `flex_attention` takes."""


def flexible(x: Tensor, architecture: Architecture) -> bool:
    """Whether `flex_attention` can work on `x`, but for dropout: it is fast, and lean, only when compiled."""
    if not x.is_cuda or architecture.head_width < _FLEX_WIDTH:
        return False
    return torch.compiler.is_compiling() or compiler.lacking() is None


@functools.cache
def _compiled_flex() -> Callable[..., Tensor]:
    return torch.compile(flex_attention)


class Attention(nn.Module):
    """Multi-head attention with grouped queries; on itself, or with `cross` on a memory."""

    def __init__(self, architecture: Architecture, *, cross: bool = False) -> None:
        super().__init__()
        a = architecture
        self.heads, self.kv_heads, self.head_width = a.heads, a.kv_heads, a.head_width
        self.scale = a.head_width**-0.5 if a.scaled_attention else 1.0
        self.dropout = a.dropout
        queries, keys = a.heads * a.head_width, a.kv_heads * a.head_width
        if cross:
            self.q = Linear(a.width, queries, bias=a.biases)
            self.kv = Linear(a.width, keys, keys, bias=a.biases)
        else:
            self.qkv = Linear(a.width, queries, keys, keys, bias=a.biases)
        self.out = Linear(queries, a.width, bias=a.biases)
        self.q_norm = nn.RMSNorm(a.head_width, eps=a.norm_eps) if a.qk_norm else None
        self.k_norm = nn.RMSNorm(a.head_width, eps=a.norm_eps) if a.qk_norm else None

    def _split(self, projected: Tensor, *heads: int) -> list[Tensor]:
        """`[batch, tokens, (sum of heads) x head width]` to a `[batch, heads, tokens, head width]` per entry."""
        rows, tokens, _ = projected.shape
        by_head = projected.view(rows, tokens, -1, self.head_width).transpose(1, 2)
        return list(torch.split(by_head, list(heads), dim=1))

    def _normalise(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        if self.q_norm is None or self.k_norm is None:
            return q, k
        return self.q_norm(q), self.k_norm(k)

    def forward(self, x: Tensor, mask: AttentionMask, rope: Rope | None, cache: LayerCache | None) -> Tensor:
        """Attention of `x` `[batch, tokens, width]` on itself and on what `cache` holds: the same shape."""
        q, k, v = self._split(self.qkv(x), self.heads, self.kv_heads, self.kv_heads)
        q, k = self._normalise(q, k)
        if rope is not None:
            q, k = apply_rope(q, rope), apply_rope(k, rope)
        if cache is not None:
            k, v = cache.append(k, v)
        return self._attend(q, k, v, mask)

    def cross(self, x: Tensor, memory: Tensor, mask: AttentionMask, cache: LayerCache | None) -> Tensor:
        """Attention of `x` `[batch, tokens, width]` on `memory` `[batch, memory tokens, width]` (`cross` only)."""
        (q,) = self._split(self.q(x), self.heads)
        if cache is None or cache.memory is None:
            k, v = self._split(self.kv(memory), self.kv_heads, self.kv_heads)
            q, k = self._normalise(q, k)
            if cache is not None:
                cache.memory = (k, v)
        else:
            k, v = cache.memory
            q, _ = self._normalise(q, k)
        return self._attend(q, k, v, mask)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask) -> Tensor:
        grouped = self.kv_heads != self.heads
        dropout = self.dropout if self.training else 0.0
        if mask.blocks is not None:
            flex: Any = flex_attention if torch.compiler.is_compiling() else _compiled_flex()
            # autocast leaves `flex_attention` alone, but CUDA's has made float32 of normalised queries and keys
            q, k = q.to(v.dtype), k.to(v.dtype)
            mixed = flex(q, k, v, block_mask=mask.blocks, scale=self.scale, enable_gqa=grouped)
        else:
            scores = mask.mask if mask.mask is None or mask.mask.dtype == torch.bool else mask.mask.to(q.dtype)
            mixed = functional.scaled_dot_product_attention(
                q, k, v, scores, dropout, is_causal=mask.causal, scale=self.scale, enable_gqa=grouped
            )
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out
