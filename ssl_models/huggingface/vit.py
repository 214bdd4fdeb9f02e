"""ViT: `ViTModel`, the encoder of any objective on single pictures.

The probe reads [CLS] as it is, without a pooler, so the pooler we write is the identity: `pooler_output` is our `cls`.
"""

from __future__ import annotations

import torch

from ssl_models.data.encoding import Encoding
from ssl_models.huggingface.mapping import Config, Table
from ssl_models.huggingface.picture_mapping import (
    Described,
    PictureCorrespondence,
    encoder_config,
    encoder_described,
    encoder_of,
    encoder_table,
)
from ssl_models.objectives import Objective


def config(objective: Objective, encoding: Encoding) -> Config:
    """`config.json` but for what every architecture has."""
    found = encoder_of(objective)
    assert found is not None
    return {
        **encoder_config(found[1]),
        "qkv_bias": True,
        "encoder_stride": found[1].patch,
        "pooler_output_size": found[1].width,
        "pooler_act": "linear",
    }


def described(config: Config) -> Described:
    """Theirs in our terms."""
    return encoder_described(config, positions="learned")


def table(objective: Objective) -> Table:
    """Names, ours to theirs."""
    return encoder_table(objective, "", "layernorm")


def pooler(width: int) -> dict[str, torch.Tensor]:
    """A pooler that hands [CLS] on."""
    return {"pooler.dense.weight": torch.eye(width), "pooler.dense.bias": torch.zeros(width)}


CORRESPONDENCE = PictureCorrespondence(
    model_type="vit",
    model_class="ViTModel",
    processor="ViTImageProcessor",
    presets=("vit", "mae"),
    objective="",
    prefix="",
    patches="embeddings.patch_embeddings.projection",
    framed=("embeddings.cls_token", "embeddings.position_embeddings"),
    positions="embeddings.position_embeddings",
    config=config,
    described=described,
    table=table,
    constants=pooler,
)
