"""BEiT: `BeitForMaskedImageModeling`, the whole of `masked_visual_tokens` but for its codebook."""

from __future__ import annotations

from ssl_models.data.encoding import Encoding
from ssl_models.huggingface.mapping import Config, Table, allow
from ssl_models.huggingface.picture_mapping import (
    Described,
    PictureCorrespondence,
    encoder_config,
    encoder_described,
    encoder_of,
    encoder_table,
    square,
)
from ssl_models.objectives import Objective
from ssl_models.objectives.masked_visual_tokens import MaskedVisualTokens

_BIAS = "relative_position_bias.relative_position_bias_table"


def config(objective: MaskedVisualTokens, encoding: Encoding) -> Config:
    """`config.json` but for what every architecture has. `use_mean_pooling` leaves the last norm to the head."""
    square(objective.encoder)
    return {
        **encoder_config(objective.encoder),
        "vocab_size": len(objective.centres),
        "use_mask_token": True,
        "use_absolute_position_embeddings": False,
        "use_relative_position_bias": True,
        "use_shared_relative_position_bias": False,
        "use_mean_pooling": True,
        "layer_scale_init_value": objective.encoder.architecture.layer_scale,
        "drop_path_rate": 0.0,
    }


def described(config: Config) -> Described:
    """Theirs in our terms."""
    allow(config, use_absolute_position_embeddings=False, use_shared_relative_position_bias=False)
    allow(config, use_mean_pooling=True)
    if not config.get("use_relative_position_bias", False):
        raise ValueError("use_relative_position_bias: False is not supported here, only True")
    return encoder_described(
        config, positions="relative", layer_scale=max(0.0, config.get("layer_scale_init_value", 0.1))
    )


def table(objective: Objective) -> Table:
    """Names, ours to theirs."""
    found = encoder_of(objective)
    assert found is not None
    encoder = {
        **encoder_table(objective, "beit.", "layernorm"),
        f"{found[0]}.biases.{{}}.table": f"beit.encoder.layer.{{}}.attention.attention.{_BIAS}",
    }
    if not isinstance(objective, MaskedVisualTokens):
        return encoder
    return {**encoder, "mask": "beit.embeddings.mask_token", "head": "lm_head"}


CORRESPONDENCE = PictureCorrespondence(
    model_type="beit",
    model_class="BeitForMaskedImageModeling",
    processor="BeitImageProcessor",
    presets=("beit",),
    objective="masked_visual_tokens",
    prefix="beit.",
    patches="beit.embeddings.patch_embeddings.projection",
    framed=("beit.embeddings.cls_token", "beit.embeddings.mask_token"),
    positions="",
    config=config,
    described=described,
    table=table,
    keyless=True,
)
