"""What a module of this package says about one architecture on pictures, and what the encoders of all of them share.

Here a whole objective has a counterpart, not a bare transformer: an encoder of patches and, where the class of
`transformers` holds one, the head of its pretext task. Differences of layout are bridged exactly: a convolution over
patches is a linear layer on flattened ones, a bias of the keys changes no attention, and a convolution without a bias
leaves its place to the positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ssl_models.data.encoding import Encoding
from ssl_models.huggingface.gpt2 import ACTIVATIONS
from ssl_models.huggingface.mapping import Config, State, Table, allow, name_of, one_of
from ssl_models.models.presets import Architecture
from ssl_models.models.vision import PatchEncoder
from ssl_models.objectives import Objective

ABSOLUTE = ("learned", "sincos")
"""Positions that are one vector per place, whatever made it: a table on the other side."""


@dataclass(frozen=True)
class Described:
    """What `config.json` says, in our terms: the fields of the backbone, and the options of the architecture's own
    objective, where it has one."""

    height: int
    width: int
    channels: int
    backbone: dict[str, Any]
    task: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PictureCorrespondence:
    """One architecture on pictures in Hugging Face's terms."""

    model_type: str
    """Hugging Face's name of the architecture."""
    model_class: str
    """The class of `transformers` that opens the folder."""
    processor: str
    """The class that makes its pixels."""
    presets: tuple[str, ...]
    """Our presets that it can start; the first is what its configuration describes."""
    objective: str
    """Our objective that is the whole of it; empty: it is the encoder of any objective."""
    prefix: str
    """Of the weights of the encoder, which a folder of the headless model lacks."""
    patches: str
    """Their convolution over patches, without `.weight`."""
    framed: tuple[str, ...]
    """Their tensors with leading dimensions of 1."""
    positions: str
    """Their table of absolute positions; empty: they have none."""
    config: Callable[[Any, Encoding], Config]
    """Ours to theirs; ValueError, beginning with the key, for what has no equal there."""
    described: Callable[[Config], Described]
    """Theirs to ours; ValueError, beginning with the key, for what has no equal here."""
    table: Callable[[Any], Table]
    """Names, ours to theirs: the encoder's in any objective, all of them in its own."""
    scalars: tuple[str, ...] = ()
    """Their tensors without a dimension; ours have one."""
    keyless: bool = False
    """Whether the keys have no bias."""
    constants: Callable[[int], State] = lambda width: {}
    """Their tensors that hold nothing of ours, for an encoder of that width."""
    check: Callable[[Config, Any], None] = lambda config, objective: None
    """ValueError where the folder reads its input in another way than its own objective."""


def encoder_of(objective: Objective) -> tuple[str, PatchEncoder] | None:
    """Attribute and encoder of patches of an objective, if it has one that reads single pictures."""
    for name in ("encoder", "image"):
        found = getattr(objective, name, None)
        if isinstance(found, PatchEncoder) and isinstance(found.cls, Tensor):
            return name, found
    return None


def layers(ours: str, theirs: str) -> Table:
    """The blocks of a ViT under the names that ViT, ViT-MAE and BEiT share."""
    block, layer = f"{ours}.blocks.{{}}", f"{theirs}.layer.{{}}"
    return {
        f"{block}.attention_residual.norm": f"{layer}.layernorm_before",
        f"{block}.attention.qkv": tuple(f"{layer}.attention.attention.{part}" for part in ("query", "key", "value")),
        f"{block}.attention.out": f"{layer}.attention.output.dense",
        f"{block}.attention_residual.scale.factor": f"{layer}.lambda_1",
        f"{block}.mlp_residual.norm": f"{layer}.layernorm_after",
        f"{block}.mlp.up": f"{layer}.intermediate.dense",
        f"{block}.mlp.down": f"{layer}.output.dense",
        f"{block}.mlp_residual.scale.factor": f"{layer}.lambda_2",
    }


def encoder_table(objective: Objective, prefix: str, norm: str) -> Table:
    """The encoder of a ViT, ViT-MAE or BEiT, whose last norm is called `norm` there."""
    found = encoder_of(objective)
    assert found is not None
    ours = found[0]
    return {
        f"{ours}.cls": f"{prefix}embeddings.cls_token",
        f"{ours}.embedding": f"{prefix}embeddings.patch_embeddings.projection",
        f"{ours}.positions": f"{prefix}embeddings.position_embeddings",
        f"{ours}.fixed": f"{prefix}embeddings.position_embeddings",
        f"{ours}.stack.norm": norm,
        **layers(f"{ours}.stack", f"{prefix}encoder"),
    }


def encoder_config(encoder: PatchEncoder) -> Config:
    """The part of `config.json` that ViT, ViT-MAE and BEiT share."""
    a = encoder.architecture
    return {
        "hidden_size": a.width,
        "num_hidden_layers": a.layers,
        "num_attention_heads": a.heads,
        "intermediate_size": a.mlp_width,
        "hidden_act": name_of(a.mlp, ACTIVATIONS),
        "layer_norm_eps": a.norm_eps,
        "hidden_dropout_prob": a.dropout,
        "attention_probs_dropout_prob": a.dropout,
        "initializer_range": a.init_std,
        "image_size": square(encoder),
        "patch_size": a.patch,
        "num_channels": encoder.values // a.patch**2,
    }


def square(encoder: PatchEncoder) -> int:
    """The side of the pictures in pixels; ValueError where they are no squares."""
    if encoder.rows != encoder.columns:
        raise ValueError("height: Hugging Face has this architecture for square pictures only")
    return encoder.rows * encoder.patch


def side(config: Config, key: str, default: int) -> int:
    """A side of square pictures or patches in pixels, given as one number or two; ValueError otherwise."""
    value = config.get(key, default)
    sides = value if isinstance(value, list) else [value]
    if len(set(map(str, sides))) != 1 or not isinstance(sides[0], int) or sides[0] < 1:
        raise ValueError(f"{key}: {value!r} is not supported here, only squares")
    return int(sides[0])


def encoder_described(config: Config, **more: Any) -> Described:
    """The inverse of `encoder_config`; `more` are further fields of the backbone."""
    allow(config, qkv_bias=True)
    size = side(config, "image_size", 224)
    backbone = {
        "width": config.get("hidden_size", 768),
        "layers": config.get("num_hidden_layers", 12),
        "heads": config.get("num_attention_heads", 12),
        "mlp_width": config.get("intermediate_size", 3072),
        "mlp": one_of(config, "hidden_act", "gelu", ACTIVATIONS),
        "norm_eps": config.get("layer_norm_eps", 1e-12),
        "patch": side(config, "patch_size", 16),
        **more,
    }
    return Described(size, size, config.get("num_channels", 3), backbone)


def _linear(convolution: Tensor) -> Tensor:
    """Weights `[width, channels, side, side]` on patches flattened as `vision.patchify` does."""
    return convolution.permute(0, 2, 3, 1).flatten(1)


def _convolution(linear: Tensor, patch: int) -> Tensor:
    """The inverse of `_linear`."""
    return linear.reshape(len(linear), patch, patch, -1).permute(0, 3, 1, 2)


def _keys(state: State) -> list[str]:
    """Their names of the keys' biases that would stand beside the keys' weights."""
    return [name.removesuffix("weight") + "bias" for name in state if name.endswith("attention.key.weight")]


def adopt(state: State, c: PictureCorrespondence) -> State:
    """Their tensors, by their names, in our layout."""
    adopted = dict(state)
    weight = f"{c.patches}.weight"
    if weight in adopted and adopted[weight].ndim == 4:
        adopted[weight] = _linear(adopted[weight])
    for name in c.framed:
        if name in adopted and adopted[name].ndim == 3:
            adopted[name] = adopted[name][0] if adopted[name].shape[1] > 1 else adopted[name][0, 0]
    adopted |= {name: adopted[name].reshape(1) for name in c.scalars if name in adopted}
    if c.keyless:
        adopted |= {name: torch.zeros(len(adopted[name.removesuffix("bias") + "weight"])) for name in _keys(adopted)}
    return adopted


def release(state: State, c: PictureCorrespondence, architecture: Architecture) -> State:
    """The inverse of `adopt`. A bias of the keys adds the same to all scores of a query, so it is left out where they
    have none."""
    weight = f"{c.patches}.weight"
    released = {**state, weight: _convolution(state[weight], architecture.patch)}
    for name in c.framed:
        if name in released:
            released[name] = released[name].reshape(1, -1, released[name].shape[-1])
    released |= {name: released[name].reshape(()) for name in c.scalars if name in released}
    if c.keyless:
        for name in _keys(released):
            del released[name]
    return released
