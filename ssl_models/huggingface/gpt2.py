"""GPT-2: `GPT2LMHeadModel`. Its linear layers are stored transposed."""

from __future__ import annotations

from typing import Any

from ssl_models.data.encoding import Encoding
from ssl_models.huggingface.mapping import Config, Correspondence, State, Table, allow, name_of, one_of
from ssl_models.models.presets import Architecture

ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu2": "relu2",
}

TABLE: Table = {
    "tokens": "transformer.wte",
    "decoder_positions.table": "transformer.wpe",
    "decoder.blocks.{}.attention_residual.norm": "transformer.h.{}.ln_1",
    "decoder.blocks.{}.attention.qkv": "transformer.h.{}.attn.c_attn",
    "decoder.blocks.{}.attention.out": "transformer.h.{}.attn.c_proj",
    "decoder.blocks.{}.mlp_residual.norm": "transformer.h.{}.ln_2",
    "decoder.blocks.{}.mlp.up": "transformer.h.{}.mlp.c_fc",
    "decoder.blocks.{}.mlp.down": "transformer.h.{}.mlp.c_proj",
    "decoder.norm": "transformer.ln_f",
    "head": "lm_head",
}


def config(a: Architecture, encoding: Encoding) -> Config:
    """`config.json` but for what every architecture has."""
    return {
        "vocab_size": a.vocabulary,
        "n_positions": a.context,
        "n_embd": a.width,
        "n_layer": a.layers,
        "n_head": a.heads,
        "n_inner": a.mlp_width,
        "activation_function": name_of(a.mlp, ACTIVATIONS),
        "layer_norm_epsilon": a.norm_eps,
        "initializer_range": a.init_std,
        "resid_pdrop": a.dropout,
        "embd_pdrop": a.dropout,
        "attn_pdrop": a.dropout,
    }


def fields(config: Config) -> dict[str, Any]:
    """The fields of the architecture in which a GPT-2 differs from the preset."""
    allow(
        config,
        scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False,
        reorder_and_upcast_attn=False,
        add_cross_attention=False,
    )
    return {
        "vocabulary": config.get("vocab_size", 50257),
        "context": config.get("n_positions", 1024),
        "width": config.get("n_embd", 768),
        "layers": config.get("n_layer", 12),
        "heads": config.get("n_head", 12),
        "mlp_width": config.get("n_inner") or 0,
        "mlp": one_of(config, "activation_function", "gelu_new", ACTIVATIONS),
        "norm_eps": config.get("layer_norm_epsilon", 1e-5),
    }


def transpose(state: State, architecture: Architecture) -> State:
    """Their `Conv1D` holds `[in, out]`; `torch.nn.Linear` holds `[out, in]`."""
    return {
        name: value.T.contiguous() if name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")) else value
        for name, value in state.items()
    }


CORRESPONDENCE = Correspondence(
    model_type="gpt2",
    model_class="GPT2LMHeadModel",
    prefix="transformer.",
    embedding="transformer.wte.weight",
    head="lm_head.weight",
    tied=True,
    config=config,
    fields=fields,
    table=lambda a: TABLE,
    ignored=r"\.attn\.(masked_)?bias$",
    adopt=transpose,
    release=transpose,
)
