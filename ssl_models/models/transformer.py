"""One transformer: decoder-only, encoder-only and encoder-decoder from one block, told apart by an `Architecture`.

A `Stack` maps continuous inputs `[batch, tokens, width]` to outputs of the same shape; a `Transformer` adds token
embeddings, positions and a language-model head. Pictures use `Stack` alone. Nothing here knows of processes or losses.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ssl_models.cpu.linear import Linear, linear
from ssl_models.models.attention import (
    Attention,
    AttentionMask,
    Cache,
    LayerCache,
    RelativeBias,
    Rope,
    attention_mask,
    flexible,
    rope,
)
from ssl_models.models.presets import Architecture


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


def norm(architecture: Architecture, width: int = 0) -> nn.Module:
    """The architecture's norm over `width` (default: the stream's)."""
    width = width or architecture.width
    if architecture.norm == "rms":
        return nn.RMSNorm(width, eps=architecture.norm_eps)
    return nn.LayerNorm(width, eps=architecture.norm_eps, bias=architecture.biases)


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
        self.up = Linear(a.width, *[a.mlp_width] * (2 if a.gated else 1), bias=a.biases)
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


class Residual(nn.Module):
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
        self.attention_residual = Residual(architecture)
        if cross:
            self.cross_attention = Attention(architecture, cross=True)
            self.cross_residual = Residual(architecture)
        self.mlp = MLP(architecture)
        self.mlp_residual = Residual(architecture)

    def forward(
        self,
        x: Tensor,
        mask: AttentionMask,
        rope: Rope | None = None,
        memory: Tensor | None = None,
        memory_mask: AttentionMask | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """`x` `[batch, tokens, width]` to the same shape."""
        x = self.attention_residual(x, lambda y: self.attention(y, mask, rope, cache))
        if memory is not None:
            unmasked = memory_mask or AttentionMask()
            x = self.cross_residual(x, lambda y: self.cross_attention.cross(y, memory, unmasked, cache))
        out: Tensor = self.mlp_residual(x, self.mlp)
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
            attention_mask,
            tokens,
            past + tokens,
            causal=self.causal,
            device=x.device,
            padding=padding,
            documents=documents,
        )
        flex = flexible(x, a) and not (a.dropout and self.training)
        mask = shared(bias=self.bias(tokens, past + tokens) if self.bias else None, flex=flex and biases is None)
        rotary = None
        if a.positions == "rotary":
            positions = torch.arange(past, past + tokens, device=x.device)[None]
            rotary = rope(positions if documents is None else document_positions(documents), a.head_width, a.rope_theta)
        memory_mask = None
        if memory is not None:
            memory_mask = attention_mask(tokens, memory.shape[1], causal=False, device=x.device, padding=memory_padding)
        for index, block in enumerate(self.blocks):
            if trace is not None:
                trace.append(x)
            own = mask if biases is None else shared(bias=biases[index])
            x = block(x, own, rotary, memory, memory_mask, cache.layers[index] if cache is not None else None)
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
