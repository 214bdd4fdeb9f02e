"""BERT: `BertForMaskedLM`. Of the two segments the first alone is used, so its vector is part of our positions."""

from __future__ import annotations

from typing import Any

import torch

from ssl_models.data.encoding import Encoding
from ssl_models.huggingface.gpt2 import ACTIVATIONS
from ssl_models.huggingface.mapping import Config, Correspondence, State, Table, allow, name_of, one_of
from ssl_models.models.presets import Architecture

TABLE: Table = {
    "tokens": "bert.embeddings.word_embeddings",
    "encoder_positions.table": "bert.embeddings.position_embeddings",
    "encoder_positions.norm": "bert.embeddings.LayerNorm",
    "encoder.blocks.{}.attention.qkv": (
        "bert.encoder.layer.{}.attention.self.query",
        "bert.encoder.layer.{}.attention.self.key",
        "bert.encoder.layer.{}.attention.self.value",
    ),
    "encoder.blocks.{}.attention.out": "bert.encoder.layer.{}.attention.output.dense",
    "encoder.blocks.{}.attention_residual.norm": "bert.encoder.layer.{}.attention.output.LayerNorm",
    "encoder.blocks.{}.mlp.up": "bert.encoder.layer.{}.intermediate.dense",
    "encoder.blocks.{}.mlp.down": "bert.encoder.layer.{}.output.dense",
    "encoder.blocks.{}.mlp_residual.norm": "bert.encoder.layer.{}.output.LayerNorm",
    "transform.dense": "cls.predictions.transform.dense",
    "transform.norm": "cls.predictions.transform.LayerNorm",
    "head": "cls.predictions.decoder",
    "head_bias": "cls.predictions.bias",
}
_SEGMENTS = "bert.embeddings.token_type_embeddings.weight"
_BIAS, _OWN_BIAS = "cls.predictions.bias", "cls.predictions.decoder.bias"
_POSITIONS = "bert.embeddings.position_embeddings.weight"


def config(a: Architecture, encoding: Encoding) -> Config:
    """`config.json` but for what every architecture has."""
    return {
        "vocab_size": a.vocabulary,
        "max_position_embeddings": a.context,
        "hidden_size": a.width,
        "num_hidden_layers": a.layers,
        "num_attention_heads": a.heads,
        "intermediate_size": a.mlp_width,
        "hidden_act": name_of(a.mlp, ACTIVATIONS),
        "layer_norm_eps": a.norm_eps,
        "type_vocab_size": 1,
        "initializer_range": a.init_std,
        "hidden_dropout_prob": a.dropout,
        "attention_probs_dropout_prob": a.dropout,
    }


def fields(config: Config) -> dict[str, Any]:
    """The fields of the architecture in which a BERT differs from the preset."""
    allow(config, position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)
    return {
        "vocabulary": config.get("vocab_size", 30522),
        "context": config.get("max_position_embeddings", 512),
        "width": config.get("hidden_size", 768),
        "layers": config.get("num_hidden_layers", 12),
        "heads": config.get("num_attention_heads", 12),
        "mlp_width": config.get("intermediate_size", 3072),
        "mlp": one_of(config, "hidden_act", "gelu", ACTIVATIONS),
        "norm_eps": config.get("layer_norm_eps", 1e-12),
    }


def adopt(state: State, architecture: Architecture) -> State:
    """Names of early checkpoints made today's, the output bias found under either name (an untied head adds its own),
    the first segment's vector added to every position."""
    adopted = {
        name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"): value
        for name, value in state.items()
    }
    own_bias = adopted.pop(_OWN_BIAS, None)
    if own_bias is not None and not (architecture.tied and _BIAS in adopted):
        adopted[_BIAS] = own_bias
    segments = adopted.pop(_SEGMENTS, None)
    if segments is not None and _POSITIONS in adopted:
        adopted[_POSITIONS] = adopted[_POSITIONS] + segments[0]
    return adopted


def release(state: State, architecture: Architecture) -> State:
    """One segment, which adds nothing, and the output bias under the name that an untied head has for it, too."""
    own_bias = {} if architecture.tied else {_OWN_BIAS: state[_BIAS]}
    return {**state, **own_bias, _SEGMENTS: torch.zeros(1, architecture.width)}


CORRESPONDENCE = Correspondence(
    model_type="bert",
    model_class="BertForMaskedLM",
    prefix="bert.",
    embedding="bert.embeddings.word_embeddings.weight",
    head="cls.predictions.decoder.weight",
    tied=True,
    config=config,
    fields=fields,
    table=lambda a: TABLE,
    ignored=r"position_ids$",
    dropped=r"^bert\.pooler\.|^cls\.seq_relationship\.",
    adopt=adopt,
    release=release,
)
