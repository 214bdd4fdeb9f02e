"""LLaMA: `LlamaForCausalLM`. Rotary positions turn the pairs (i, i + half), here as there."""

from __future__ import annotations

from typing import Any

from ssl_models.data.encoding import Encoding
from ssl_models.huggingface.mapping import Config, Correspondence, Table, allow, name_of, one_of
from ssl_models.models.presets import Architecture

ACTIVATIONS = {"silu": "swiglu", "gelu_pytorch_tanh": "geglu", "gelu_new": "geglu"}

TABLE: Table = {
    "tokens": "model.embed_tokens",
    "decoder.blocks.{}.attention_residual.norm": "model.layers.{}.input_layernorm",
    "decoder.blocks.{}.attention.qkv": (
        "model.layers.{}.self_attn.q_proj",
        "model.layers.{}.self_attn.k_proj",
        "model.layers.{}.self_attn.v_proj",
    ),
    "decoder.blocks.{}.attention.out": "model.layers.{}.self_attn.o_proj",
    "decoder.blocks.{}.mlp_residual.norm": "model.layers.{}.post_attention_layernorm",
    "decoder.blocks.{}.mlp.up": ("model.layers.{}.mlp.gate_proj", "model.layers.{}.mlp.up_proj"),
    "decoder.blocks.{}.mlp.down": "model.layers.{}.mlp.down_proj",
    "decoder.norm": "model.norm",
    "head": "lm_head",
}


def config(a: Architecture, encoding: Encoding) -> Config:
    """`config.json` but for what every architecture has. The base of the rotation is written as `transformers` 5 and as
    older versions read it."""
    return {
        "vocab_size": a.vocabulary,
        "max_position_embeddings": a.context,
        "hidden_size": a.width,
        "num_hidden_layers": a.layers,
        "num_attention_heads": a.heads,
        "num_key_value_heads": a.kv_heads,
        "head_dim": a.head_width,
        "intermediate_size": a.mlp_width,
        "hidden_act": name_of(a.mlp, ACTIVATIONS),
        "rms_norm_eps": a.norm_eps,
        "rope_theta": a.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": a.rope_theta},
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": a.dropout,
        "initializer_range": a.init_std,
    }


def _theta(config: Config) -> float:
    """Base of the rotation; ValueError where positions are scaled (LLaMA 3.1's long contexts, say)."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise ValueError(f"rope_parameters: {rope!r} is not understood")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ValueError(f"rope_parameters: scaled rotary positions ({kind}) are not supported here")
    return float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0)


def fields(config: Config) -> dict[str, Any]:
    """The fields of the architecture in which a LLaMA differs from the preset."""
    allow(config, attention_bias=False, mlp_bias=False, pretraining_tp=1)
    heads = config.get("num_attention_heads", 32)
    return {
        "vocabulary": config.get("vocab_size", 32000),
        "context": config.get("max_position_embeddings", 2048),
        "width": config.get("hidden_size", 4096),
        "layers": config.get("num_hidden_layers", 32),
        "heads": heads,
        "kv_heads": config.get("num_key_value_heads") or heads,
        "head_width": config.get("head_dim") or 0,
        "mlp_width": config.get("intermediate_size", 11008),
        "mlp": one_of(config, "hidden_act", "silu", ACTIVATIONS),
        "norm_eps": config.get("rms_norm_eps", 1e-6),
        "rope_theta": _theta(config),
    }


CORRESPONDENCE = Correspondence(
    model_type="llama",
    model_class="LlamaForCausalLM",
    prefix="model.",
    embedding="model.embed_tokens.weight",
    head="lm_head.weight",
    tied=False,
    config=config,
    fields=fields,
    table=lambda a: TABLE,
    ignored=r"rotary_emb\.inv_freq$",
)
