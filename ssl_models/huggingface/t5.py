"""T5: `T5ForConditionalGeneration`, both of version 1.0 (ReLU, tied, scaled logits) and of 1.1 (gated GELU, untied)."""

from __future__ import annotations

from typing import Any

from ssl_models.data.encoding import Encoding
from ssl_models.huggingface.mapping import Config, Correspondence, State, Table, name_of, one_of
from ssl_models.models.presets import Architecture

PROJECTIONS = {"relu": "relu", "gated-gelu": "geglu", "gated-silu": "swiglu", "gelu": "gelu", "gelu_new": "gelu_tanh"}

_CROSS = "decoder.block.{}.layer.1.EncDecAttention"


def _side(side: str, mlp: int, *, gated: bool) -> Table:
    """The table of one stack; its MLP is the block's layer number `mlp`."""
    ours, attention = side + ".blocks.{}", side + ".block.{}.layer.0"
    dense = f"{side}.block.{{}}.layer.{mlp}"
    up = (f"{dense}.DenseReluDense.wi_0", f"{dense}.DenseReluDense.wi_1")
    return {
        f"{ours}.attention_residual.norm": f"{attention}.layer_norm",
        f"{ours}.attention.qkv": tuple(f"{attention}.SelfAttention.{part}" for part in "qkv"),
        f"{ours}.attention.out": f"{attention}.SelfAttention.o",
        f"{ours}.mlp_residual.norm": f"{dense}.layer_norm",
        f"{ours}.mlp.up": up if gated else f"{dense}.DenseReluDense.wi",
        f"{ours}.mlp.down": f"{dense}.DenseReluDense.wo",
        f"{side}.bias.table": f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias",
        f"{side}.norm": f"{side}.final_layer_norm",
    }


def table(a: Architecture) -> Table:
    """Names of modules, ours to theirs."""
    return {
        "tokens": "shared",
        **_side("encoder", 1, gated=a.gated),
        **_side("decoder", 2, gated=a.gated),
        "decoder.blocks.{}.cross_residual.norm": "decoder.block.{}.layer.1.layer_norm",
        "decoder.blocks.{}.cross_attention.q": f"{_CROSS}.q",
        "decoder.blocks.{}.cross_attention.kv": (f"{_CROSS}.k", f"{_CROSS}.v"),
        "decoder.blocks.{}.cross_attention.out": f"{_CROSS}.o",
        "head": "lm_head",
    }


def config(a: Architecture, encoding: Encoding) -> Config:
    """`config.json` but for what every architecture has. `transformers` takes untied for unscaled."""
    return {
        "vocab_size": a.vocabulary,
        "n_positions": a.context,
        "d_model": a.width,
        "d_kv": a.head_width,
        "d_ff": a.mlp_width,
        "num_layers": a.layers,
        "num_decoder_layers": a.decoder_layers,
        "num_heads": a.heads,
        "feed_forward_proj": name_of(a.mlp, PROJECTIONS),
        "layer_norm_epsilon": a.norm_eps,
        "relative_attention_num_buckets": a.relative_buckets,
        "relative_attention_max_distance": a.relative_distance,
        "dropout_rate": a.dropout,
        "is_encoder_decoder": True,
        "decoder_start_token_id": encoding.pad,
        "tie_word_embeddings": a.scale_logits,
        "scale_decoder_outputs": a.scale_logits,
    }


def fields(config: Config) -> dict[str, Any]:
    """The fields of the architecture in which a T5 differs from the preset."""
    layers = config.get("num_layers", 6)
    return {
        "vocabulary": config.get("vocab_size", 32128),
        "context": config.get("n_positions", 512),
        "width": config.get("d_model", 512),
        "head_width": config.get("d_kv", 64),
        "mlp_width": config.get("d_ff", 2048),
        "layers": layers,
        "decoder_layers": config.get("num_decoder_layers") or layers,
        "heads": config.get("num_heads", 8),
        "mlp": one_of(config, "feed_forward_proj", "relu", PROJECTIONS),
        "norm_eps": config.get("layer_norm_epsilon", 1e-6),
        "relative_buckets": config.get("relative_attention_num_buckets", 32),
        "relative_distance": config.get("relative_attention_max_distance", 128),
        "scale_logits": config.get("scale_decoder_outputs", config.get("tie_word_embeddings") is not False),
    }


def release(state: State, architecture: Architecture) -> State:
    """A head of its own wherever the configuration says untied."""
    if architecture.tied and not architecture.scale_logits:
        return {**state, "lm_head.weight": state["shared.weight"].clone()}
    return state


CORRESPONDENCE = Correspondence(
    model_type="t5",
    model_class="T5ForConditionalGeneration",
    prefix="",
    embedding="shared.weight",
    head="lm_head.weight",
    tied=True,
    config=config,
    fields=fields,
    table=table,
    ignored=r"^(encoder|decoder)\.embed_tokens\.weight$|EncDecAttention\.relative_attention_bias\.weight$",
    release=release,
)
