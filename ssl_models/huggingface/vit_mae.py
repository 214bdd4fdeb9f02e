"""ViT-MAE: `ViTMAEForPreTraining`, the whole of `masked_pixels`. Both tables of fixed positions are kept as they
are."""

from __future__ import annotations

from ssl_models.data.encoding import Encoding
from ssl_models.huggingface.mapping import Config, Table
from ssl_models.huggingface.picture_mapping import (
    Described,
    PictureCorrespondence,
    encoder_config,
    encoder_described,
    encoder_table,
    layers,
    square,
)
from ssl_models.objectives import Objective
from ssl_models.objectives.masked_pixels import MaskedPixels


def config(objective: MaskedPixels, encoding: Encoding) -> Config:
    """`config.json` but for what every architecture has."""
    square(objective.encoder)
    small = objective.decoder.architecture
    return {
        **encoder_config(objective.encoder),
        "qkv_bias": True,
        "decoder_hidden_size": small.width,
        "decoder_num_hidden_layers": small.layers,
        "decoder_num_attention_heads": small.heads,
        "decoder_intermediate_size": small.mlp_width,
        "mask_ratio": objective.options.ratio,
        "norm_pix_loss": objective.options.normalise,
    }


def described(config: Config) -> Described:
    """Theirs in our terms. What is masked and how targets are made stays the task's own choice."""
    found = encoder_described(config, positions="sincos")
    decoder = {
        "width": config.get("decoder_hidden_size", 512),
        "layers": config.get("decoder_num_hidden_layers", 8),
        "heads": config.get("decoder_num_attention_heads", 16),
        "mlp_width": config.get("decoder_intermediate_size", 2048),
    }
    found.task["decoder"] = decoder
    return found


def table(objective: Objective) -> Table:
    """Names, ours to theirs."""
    encoder = encoder_table(objective, "vit.", "vit.layernorm")
    if not isinstance(objective, MaskedPixels):
        return encoder
    return {
        **encoder,
        "narrow": "decoder.decoder_embed",
        "mask": "decoder.mask_token",
        "fixed": "decoder.decoder_pos_embed",
        **layers("decoder", "decoder.decoder_encoder"),
        "decoder.norm": "decoder.decoder_norm",
        "head": "decoder.decoder_pred",
    }


CORRESPONDENCE = PictureCorrespondence(
    model_type="vit_mae",
    model_class="ViTMAEForPreTraining",
    processor="ViTImageProcessor",
    presets=("mae", "vit"),
    objective="masked_pixels",
    prefix="vit.",
    patches="vit.embeddings.patch_embeddings.projection",
    framed=(
        "vit.embeddings.cls_token",
        "vit.embeddings.position_embeddings",
        "decoder.mask_token",
        "decoder.decoder_pos_embed",
    ),
    positions="vit.embeddings.position_embeddings",
    config=config,
    described=described,
    table=table,
)
