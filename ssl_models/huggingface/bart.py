"""BART: `BartForConditionalGeneration`. Its position tables begin with two rows that nothing uses."""

from __future__ import annotations

from typing import Any

import torch

from ssl_models.data.encoding import Encoding
from ssl_models.huggingface.gpt2 import ACTIVATIONS
from ssl_models.huggingface.mapping import Config, Correspondence, State, Table, allow, name_of, one_of
from ssl_models.models.presets import Architecture

BEGIN = 2
"""`decoder_start_token_id` where a configuration has none."""
_UNUSED = 2
"""Rows before the position table's first."""
_POSITIONS = ("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight")
_EMBEDDINGS = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
"""Copies of `model.shared`, but for a model trained without tying them."""
_BIAS = "final_logits_bias"


def _side(side: str) -> Table:
    ours, theirs = side + ".blocks.{}", f"model.{side}.layers.{{}}"
    return {
        f"{side}_positions.table": f"model.{side}.embed_positions",
        f"{side}_positions.norm": f"model.{side}.layernorm_embedding",
        f"{ours}.attention.qkv": tuple(f"{theirs}.self_attn.{part}_proj" for part in "qkv"),
        f"{ours}.attention.out": f"{theirs}.self_attn.out_proj",
        f"{ours}.attention_residual.norm": f"{theirs}.self_attn_layer_norm",
        f"{ours}.mlp.up": f"{theirs}.fc1",
        f"{ours}.mlp.down": f"{theirs}.fc2",
        f"{ours}.mlp_residual.norm": f"{theirs}.final_layer_norm",
    }


TABLE: Table = {
    "tokens": "model.shared",
    **_side("encoder"),
    **_side("decoder"),
    "decoder.blocks.{}.cross_attention.q": "model.decoder.layers.{}.encoder_attn.q_proj",
    "decoder.blocks.{}.cross_attention.kv": (
        "model.decoder.layers.{}.encoder_attn.k_proj",
        "model.decoder.layers.{}.encoder_attn.v_proj",
    ),
    "decoder.blocks.{}.cross_attention.out": "model.decoder.layers.{}.encoder_attn.out_proj",
    "decoder.blocks.{}.cross_residual.norm": "model.decoder.layers.{}.encoder_attn_layer_norm",
    "head": "lm_head",
}


def config(a: Architecture, encoding: Encoding) -> Config:
    """`config.json` but for what every architecture has. The decoder starts with `eos`, as in fairseq."""
    return {
        "vocab_size": a.vocabulary,
        "max_position_embeddings": a.context,
        "d_model": a.width,
        "encoder_layers": a.layers,
        "decoder_layers": a.decoder_layers,
        "encoder_attention_heads": a.heads,
        "decoder_attention_heads": a.heads,
        "encoder_ffn_dim": a.mlp_width,
        "decoder_ffn_dim": a.mlp_width,
        "activation_function": name_of(a.mlp, ACTIVATIONS),
        "scale_embedding": False,
        "dropout": a.dropout,
        "attention_dropout": a.dropout,
        "init_std": a.init_std,
        "is_encoder_decoder": True,
        "decoder_start_token_id": encoding.eos,
        "forced_eos_token_id": None,
    }


def fields(config: Config) -> dict[str, Any]:
    """The fields of the architecture in which a BART differs from the preset."""
    allow(
        config,
        scale_embedding=False,
        normalize_before=False,
        normalize_embedding=True,
        add_final_layer_norm=False,
        static_position_embeddings=False,
    )
    for size, usual in (("attention_heads", 16), ("ffn_dim", 4096)):
        here, there = (config.get(f"{side}_{size}", usual) for side in ("encoder", "decoder"))
        if here != there:
            raise ValueError(f"decoder_{size}: {there} is not supported here, only the encoder's {here}")
    return {
        "vocabulary": config.get("vocab_size", 50265),
        "context": config.get("max_position_embeddings", 1024),
        "width": config.get("d_model", 1024),
        "layers": config.get("encoder_layers", 12),
        "decoder_layers": config.get("decoder_layers", 12),
        "heads": config.get("encoder_attention_heads", 16),
        "mlp_width": config.get("encoder_ffn_dim", 4096),
        "mlp": one_of(config, "activation_function", "gelu", ACTIVATIONS),
    }


def adopt(state: State, architecture: Architecture) -> State:
    """Positions without the unused rows; ValueError where the head has a bias, or a side its own embedding: ours have
    not."""
    adopted = {name: value[_UNUSED:] if name in _POSITIONS else value for name, value in state.items()}
    bias = adopted.pop(_BIAS, None)
    if bias is not None and bias.any():
        raise ValueError(f"{_BIAS} is not zero, which is not supported here")
    for name in _EMBEDDINGS:
        own = adopted.pop(name, None)
        if own is not None and not torch.equal(own, adopted["model.shared.weight"]):
            raise ValueError(f"{name} is not model.shared.weight, which is not supported here")
    return adopted


def release(state: State, architecture: Architecture) -> State:
    """The inverse."""
    unused = torch.zeros(_UNUSED, architecture.width)
    released = {
        name: torch.cat([unused.to(value), value]) if name in _POSITIONS else value for name, value in state.items()
    }
    return {**released, _BIAS: torch.zeros(1, architecture.vocabulary)}


CORRESPONDENCE = Correspondence(
    model_type="bart",
    model_class="BartForConditionalGeneration",
    prefix="model.",
    embedding="model.shared.weight",
    head="lm_head.weight",
    tied=True,
    config=config,
    fields=fields,
    table=lambda a: TABLE,
    adopt=adopt,
    release=release,
)
