"""One transformer: decoder-only, encoder-only and encoder-decoder from one block, told apart by an `Architecture`.

A `Stack` maps continuous inputs `[batch, tokens, width]` to outputs of the same shape; a `Transformer` adds token
embeddings, positions and a language-model head. Pictures use `Stack` alone. Nothing here knows of processes or losses.

Attention runs through `scaled_dot_product_attention`: without a mask where causality alone decides, else with one mask
built once for all layers; packed documents on a GPU go through `flex_attention`, which skips what no document sees.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from ssl_models import compiler
from ssl_models.linear import Linear, linear
from ssl_models.presets import Architecture
from ssl_models.rms_norm import RMSNorm

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines `[batch or 1, 1, tokens, head width / 2]` of rotary positions."""


def document_positions(documents: Tensor) -> Tensor:
    """Positions that restart with every document of packed rows, whose numbers `documents` `[batch, tokens]` tell them
    apart: int64 of the same shape."""
    index = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    starts = torch.zeros_like(documents)
    starts[:, 1:] = index[:, 1:] * (documents[:, 1:] != documents[:, :-1])
    return index - starts.cummax(1).values


def sine_cosine(positions: Tensor, width: int) -> Tensor:
    """Fixed positions of Vaswani et al. 2017 in one dimension: float `[..., width]`, sines first."""
    frequency = 10_000.0 ** -(torch.arange(width // 2, device=positions.device) / (width // 2))
    angle = positions[..., None].float() * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def rotation(positions: Tensor, head_width: int, theta: float) -> Rotation:
    """Rotary positions (Su et al. 2021) of `positions` `[batch or 1, tokens]`."""
    half = torch.arange(0, head_width, 2, device=positions.device).float() / head_width
    angle = (positions[..., None].float() * theta**-half)[:, None]
    return angle.cos(), angle.sin()


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """Turn the pairs (i, i + half) of `x` `[batch, heads, tokens, head width]`: the half-split convention of LLaMA's
    Hugging Face weights, not the interleaved one of Meta's."""
    cosine, sine = by[0].to(x.dtype), by[1].to(x.dtype)
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
class View:
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


def view(
    queries: int,
    keys: int,
    *,
    causal: bool,
    device: torch.device,
    padding: Tensor | None = None,
    documents: Tensor | None = None,
    bias: Tensor | None = None,
    flex: bool = False,
) -> View:
    """What `queries` positions, the last of `keys`, may see.

    `padding` bool `[batch, keys]` hides keys; `documents` int `[batch, keys]` hides other documents (queries = keys);
    `bias` float `[batch or 1, heads, queries, keys]` is added to the scores; `flex` allows `flex_attention`. A query
    that sees nothing attends to nothing: its output is zero.
    """
    causal = causal and queries > 1
    if padding is None and documents is None and bias is None and (queries == keys or not causal):
        return View(causal=causal)
    if flex and documents is not None and padding is None and bias is None:
        return View(blocks=_document_blocks(documents, causal=causal))
    seen: list[Tensor] = []
    if causal:
        seen.append(torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries))
    if documents is not None:
        seen.append(documents[:, None, :, None] == documents[:, None, None, :])
    if padding is not None:
        seen.append(~padding[:, None, None, :])
    if not seen:
        return View(mask=bias)
    together = functools.reduce(torch.logical_and, seen)
    return View(mask=together if bias is None else bias.masked_fill(~together, -torch.inf))


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


def norm(architecture: Architecture, width: int = 0) -> nn.Module:
    """The architecture's norm over `width` (default: the stream's)."""
    width = width or architecture.width
    if architecture.norm == "rms":
        return RMSNorm(width, eps=architecture.norm_eps)
    return nn.LayerNorm(width, eps=architecture.norm_eps, bias=architecture.biases)


_FLEX_WIDTH = 16
"""The narrowest heads that `flex_attention` takes."""


def _flexible(x: Tensor, architecture: Architecture) -> bool:
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
            self.kv = Linear(a.width, 2 * keys, bias=a.biases)
        else:
            self.qkv = Linear(a.width, queries + 2 * keys, bias=a.biases)
        self.out = Linear(queries, a.width, bias=a.biases)
        self.q_norm = RMSNorm(a.head_width, eps=a.norm_eps) if a.qk_norm else None
        self.k_norm = RMSNorm(a.head_width, eps=a.norm_eps) if a.qk_norm else None

    def _split(self, projected: Tensor, *heads: int) -> list[Tensor]:
        """`[batch, tokens, (sum of heads) x head width]` to a `[batch, heads, tokens, head width]` per entry."""
        rows, tokens, _ = projected.shape
        by_head = projected.view(rows, tokens, -1, self.head_width).transpose(1, 2)
        return list(torch.split(by_head, list(heads), dim=1))

    def _normalise(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        if self.q_norm is None or self.k_norm is None:
            return q, k
        return self.q_norm(q), self.k_norm(k)

    def forward(self, x: Tensor, view: View, rotation: Rotation | None, cache: LayerCache | None) -> Tensor:
        """Attention of `x` `[batch, tokens, width]` on itself and on what `cache` holds: the same shape."""
        q, k, v = self._split(self.qkv(x), self.heads, self.kv_heads, self.kv_heads)
        q, k = self._normalise(q, k)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        if cache is not None:
            k, v = cache.append(k, v)
        return self._attend(q, k, v, view)

    def look(self, x: Tensor, memory: Tensor, view: View, cache: LayerCache | None) -> Tensor:
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
        return self._attend(q, k, v, view)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, view: View) -> Tensor:
        grouped = self.kv_heads != self.heads
        dropout = self.dropout if self.training else 0.0
        if view.blocks is not None:
            flex: Any = flex_attention if torch.compiler.is_compiling() else _compiled_flex()
            # autocast leaves `flex_attention` alone, but CUDA's has made float32 of normalised queries and keys
            q, k = q.to(v.dtype), k.to(v.dtype)
            mixed = flex(q, k, v, block_mask=view.blocks, scale=self.scale, enable_gqa=grouped)
        else:
            mask = view.mask if view.mask is None or view.mask.dtype == torch.bool else view.mask.to(q.dtype)
            mixed = functional.scaled_dot_product_attention(
                q, k, v, mask, dropout, is_causal=view.causal, scale=self.scale, enable_gqa=grouped
            )
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_tanh": functools.partial(functional.gelu, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": functional.relu,
    "relu2": lambda x: functional.relu(x).square(),
    "swiglu": functional.silu,
    "geglu": functools.partial(functional.gelu, approximate="tanh"),
}


class MLP(nn.Module):
    """Two linear layers around an activation; with a gate, `up` holds the gate's rows first and then the values'."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a = architecture
        self.gated, self.activation = a.gated, ACTIVATIONS[a.mlp]
        self.up = Linear(a.width, a.mlp_width * (2 if a.gated else 1), bias=a.biases)
        self.down = Linear(a.mlp_width, a.width, bias=a.biases)

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, tokens, width]` to the same shape."""
        x = self.up(x)
        if self.gated:
            gate, value = x.chunk(2, dim=-1)
            x = self.activation(gate) * value
        else:
            x = self.activation(x)
        out: Tensor = self.down(x)
        return out


class LayerScale(nn.Module):
    """A learned factor per channel on a residual branch (Touvron et al. 2021, arXiv:2103.17239)."""

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.full((width,), start))

    def forward(self, x: Tensor) -> Tensor:
        """`x` `[..., width]`, scaled."""
        return x * self.factor


class Branch(nn.Module):
    """What every residual branch shares: its norm before or after, dropout, and LayerScale."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a = architecture
        self.norm = norm(a)
        self.pre = a.norm_place == "pre"
        self.dropout = nn.Dropout(a.dropout)
        self.scale = LayerScale(a.width, a.layer_scale) if a.layer_scale else nn.Identity()

    def forward(self, x: Tensor, layer: Callable[[Tensor], Tensor]) -> Tensor:
        """The stream `x` `[batch, tokens, width]` with `layer`'s contribution added."""
        if self.pre:
            added: Tensor = x + self.scale(self.dropout(layer(self.norm(x))))
        else:
            added = self.norm(x + self.scale(self.dropout(layer(x))))
        return added


class Block(nn.Module):
    """Self-attention, cross-attention where there is a memory, and MLP, each on a residual branch."""

    def __init__(self, architecture: Architecture, *, cross: bool) -> None:
        super().__init__()
        self.attention = Attention(architecture)
        self.attention_branch = Branch(architecture)
        if cross:
            self.cross = Attention(architecture, cross=True)
            self.cross_branch = Branch(architecture)
        self.mlp = MLP(architecture)
        self.mlp_branch = Branch(architecture)

    def forward(
        self,
        x: Tensor,
        view: View,
        rotation: Rotation | None = None,
        memory: Tensor | None = None,
        memory_view: View | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """`x` `[batch, tokens, width]` to the same shape."""
        x = self.attention_branch(x, lambda y: self.attention(y, view, rotation, cache))
        if memory is not None:
            seen = memory_view or View()
            x = self.cross_branch(x, lambda y: self.cross.look(y, memory, seen, cache))
        out: Tensor = self.mlp_branch(x, self.mlp)
        return out


class Stack(nn.Module):
    """Blocks, and what they share: rotary positions or T5's relative bias, the mask, the last norm.

    Takes any `[batch, tokens, width]`: text's embeddings, or patches with their positions added.
    """

    def __init__(
        self, architecture: Architecture, *, layers: int = 0, causal: bool = False, cross: bool = False
    ) -> None:
        """`layers`: default the architecture's. `cross`: also attend to a memory."""
        super().__init__()
        a = architecture
        self.architecture, self.causal = a, causal
        self.blocks = nn.ModuleList(Block(a, cross=cross) for _ in range(layers or a.layers))
        text = a.positions == "relative" and not a.patch
        self.bias = RelativeBias(a, causal=causal) if text else None
        self.norm = norm(a) if a.norm_place == "pre" else nn.Identity()
        initialise(self, a, len(self.blocks))

    def forward(
        self,
        x: Tensor,
        *,
        padding: Tensor | None = None,
        documents: Tensor | None = None,
        biases: Sequence[Tensor] | None = None,
        memory: Tensor | None = None,
        memory_padding: Tensor | None = None,
        cache: Cache | None = None,
        trace: list[Tensor] | None = None,
    ) -> Tensor:
        """`x` `[batch, tokens, width]` to the same shape, normed where the architecture norms first.

        `padding` bool `[batch, tokens]`: True where a token is padding. `documents` int `[batch, tokens]` keeps packed
        documents apart. `biases`: one `[batch or 1, heads, tokens, tokens]` per block, added to its scores (BEiT).
        `memory` `[batch, memory tokens, width]` is what cross-attention reads. With a `cache`, `x` continues it. To
        `trace` are appended the stack's input and every block's output, the last one normed.
        """
        a, tokens = self.architecture, x.shape[1]
        past = cache.length if cache is not None else 0
        shared = functools.partial(
            view, tokens, past + tokens, causal=self.causal, device=x.device, padding=padding, documents=documents
        )
        flex = _flexible(x, a) and not (a.dropout and self.training)
        seen = shared(bias=self.bias(tokens, past + tokens) if self.bias else None, flex=flex and biases is None)
        turned = None
        if a.positions == "rotary":
            positions = torch.arange(past, past + tokens, device=x.device)[None]
            turned = rotation(
                positions if documents is None else document_positions(documents), a.head_width, a.rope_theta
            )
        memory_view = None
        if memory is not None:
            memory_view = view(tokens, memory.shape[1], causal=False, device=x.device, padding=memory_padding)
        for index, block in enumerate(self.blocks):
            if trace is not None:
                trace.append(x)
            own = seen if biases is None else shared(bias=biases[index])
            x = block(x, own, turned, memory, memory_view, cache.layers[index] if cache is not None else None)
        x = self.norm(x)
        if trace is not None:
            trace.append(x)
        return x


class Positions(nn.Module):
    """What is added to token vectors before a stack: absolute positions, a norm, dropout."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a = architecture
        self.kind, self.context, self.width = a.positions, a.context, a.width
        if a.positions == "learned":
            self.table = nn.Embedding(a.context, a.width)
            nn.init.normal_(self.table.weight, std=a.embedding_std)
        self.norm = norm(a) if a.embedding_norm else nn.Identity()
        self.dropout = nn.Dropout(a.dropout)

    def forward(self, x: Tensor, documents: Tensor | None, past: int) -> Tensor:
        """Token vectors `[batch, tokens, width]` to the stack's input; `past`: tokens before them."""
        if self.kind in ("learned", "sincos"):
            end = past + x.shape[1]
            if self.kind == "learned" and end > self.context:
                raise ValueError(f"context: {end} tokens do not fit into {self.context} learned positions")
            index = torch.arange(past, end, device=x.device) if documents is None else document_positions(documents)
            added = self.table(index) if self.kind == "learned" else sine_cosine(index, self.width).to(x.dtype)
            x = x + added
        out: Tensor = self.dropout(self.norm(x))
        return out


class HeadTransform(nn.Module):
    """BERT's dense layer, activation and norm between the encoder and the head."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.dense = Linear(architecture.width, architecture.width, bias=architecture.biases)
        self.norm = norm(architecture)
        self.activation = ACTIVATIONS[architecture.mlp]
        nn.init.normal_(self.dense.weight, std=architecture.init_std)
        if self.dense.bias is not None:
            nn.init.zeros_(self.dense.bias)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., width]` to the same shape."""
        out: Tensor = self.norm(self.activation(self.dense(x)))
        return out


class Transformer(nn.Module):
    """A language model of any of the three structures. `encode` needs an encoder, `decode` a decoder."""

    def __init__(self, architecture: Architecture) -> None:
        """`architecture` must hold vocabulary and context: see `presets.resolve`."""
        super().__init__()
        a = self.architecture = architecture
        if not a.vocabulary or not a.context:
            raise ValueError("vocabulary: a language model needs vocabulary and context, see presets.resolve")
        self.tokens = nn.Embedding(a.vocabulary, a.width)
        nn.init.normal_(self.tokens.weight, std=a.embedding_std)
        if a.structure != "decoder":
            self.encoder_positions, self.encoder = Positions(a), Stack(a)
        if a.structure != "encoder":
            both = a.structure == "encoder-decoder"
            self.decoder_positions = Positions(a)
            self.decoder = Stack(a, layers=a.decoder_layers or a.layers, causal=True, cross=both)
        self.transform = HeadTransform(a) if a.head_transform else nn.Identity()
        if not a.tied:
            self.head = Linear(a.width, a.vocabulary, bias=False)
            nn.init.normal_(self.head.weight, std=1 / a.width)
        self.head_bias = nn.Parameter(torch.zeros(a.vocabulary)) if a.head_bias else None

    def encode(
        self,
        tokens: Tensor,
        *,
        padding: Tensor | None = None,
        documents: Tensor | None = None,
        trace: list[Tensor] | None = None,
    ) -> Tensor:
        """Hidden states `[batch, tokens, width]` of ids `[batch, tokens]`. Keyword arguments: see `Stack.forward`."""
        x = self.encoder_positions(self.tokens(tokens), documents, 0)
        hidden: Tensor = self.encoder(x, padding=padding, documents=documents, trace=trace)
        return hidden

    def decode(
        self,
        tokens: Tensor,
        *,
        padding: Tensor | None = None,
        documents: Tensor | None = None,
        memory: Tensor | None = None,
        memory_padding: Tensor | None = None,
        cache: Cache | None = None,
        trace: list[Tensor] | None = None,
    ) -> Tensor:
        """Hidden states `[batch, tokens, width]` of ids `[batch, tokens]`, each blind to what follows it. `memory` is
        `encode`'s result, for encoder-decoders. With a `cache`, `tokens` continue what it holds."""
        x = self.decoder_positions(self.tokens(tokens), documents, cache.length if cache is not None else 0)
        hidden: Tensor = self.decoder(
            x,
            padding=padding,
            documents=documents,
            memory=memory,
            memory_padding=memory_padding,
            cache=cache,
            trace=trace,
        )
        return hidden

    def cache(self, capacity: int) -> Cache:
        """An empty cache for `decode`, for `capacity` tokens."""
        return Cache(len(self.decoder.blocks), capacity)

    def readout(self, hidden: Tensor) -> Tensor:
        """What the head's matrix multiplies: `[..., width]` to the same shape. With `head_weight` and `head_bias`, a
        chunked loss needs never hold all logits."""
        x: Tensor = self.transform(hidden)
        return x * self.architecture.width**-0.5 if self.architecture.scale_logits else x

    @property
    def head_weight(self) -> Tensor:
        """The head's matrix `[vocabulary, width]`."""
        return self.tokens.weight if self.architecture.tied else self.head.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits `[..., vocabulary]` of hidden states `[..., width]`."""
        return linear(self.readout(hidden), self.head_weight, self.head_bias)

    def forward(self, tokens: Tensor, decoder_tokens: Tensor | None = None, padding: Tensor | None = None) -> Tensor:
        """Logits of ids `[batch, tokens]`; of `decoder_tokens` given `tokens`, for encoder-decoders."""
        if self.architecture.structure == "decoder":
            return self.logits(self.decode(tokens, padding=padding))
        hidden = self.encode(tokens, padding=padding)
        if decoder_tokens is not None:
            hidden = self.decode(decoder_tokens, memory=hidden, memory_padding=padding)
        return self.logits(hidden)


def initialise(module: nn.Module, architecture: Architecture, layers: int) -> None:
    """Initialise a stack's linear layers as the architecture's paper does; norms and biases are 1 and 0."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear):
            _initialise_linear(layer, name.rsplit(".", 1)[-1], architecture, layers)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, RelativeBias):
            nn.init.normal_(layer.table.weight, std=architecture.width**-0.5)


def _initialise_linear(layer: nn.Linear, role: str, a: Architecture, layers: int) -> None:
    residual = role in ("out", "down")
    fan_in = layer.in_features**-0.5
    if a.init == "xavier":
        nn.init.xavier_uniform_(layer.weight)
    elif a.init == "t5":
        # Mesh TensorFlow: fan-in, and since scores are not scaled, queries are shrunk by sqrt(head width) instead
        nn.init.normal_(layer.weight, std=fan_in)
        if role in ("q", "qkv"):
            with torch.no_grad():
                layer.weight[: a.heads * a.head_width] *= a.head_width**-0.5
    elif a.init == "clip":
        shrunk = (2 * layers) ** -0.5 if residual else 0.5**0.5 if role == "up" else 1.0
        width = a.width**-0.5
        nn.init.normal_(layer.weight, std=width * shrunk)
    else:
        nn.init.normal_(layer.weight, std=a.init_std * ((2 * layers) ** -0.5 if residual and a.depth_scaled else 1.0))
