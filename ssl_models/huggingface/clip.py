"""CLIP: `CLIPModel`, the whole of `image_text` with the loss `clip`.

`transformers` reads a caption at its first end of text, except where that has the id 2: early configurations said so by
mistake, so it then reads at the highest id instead. Such a configuration is read in that sense and never written.
"""

from __future__ import annotations

from typing import Any

from ssl_models.data.encoding import Encoding
from ssl_models.huggingface.gpt2 import ACTIVATIONS
from ssl_models.huggingface.mapping import Config, Table, allow, name_of, one_of
from ssl_models.huggingface.picture_mapping import (
    Described,
    PictureCorrespondence,
    encoder_of,
    side,
    square,
)
from ssl_models.models.presets import Architecture
from ssl_models.models.vision import PatchEncoder
from ssl_models.objectives import Objective
from ssl_models.objectives.image_text import ImageText

_MISTAKEN_END = 2
_MLPS = {name: ACTIVATIONS[name] for name in ("quick_gelu", "gelu")}


def _tower(a: Architecture, projection: int) -> Config:
    """What the configurations of both encoders share."""
    return {
        "hidden_size": a.width,
        "num_hidden_layers": a.layers,
        "num_attention_heads": a.heads,
        "intermediate_size": a.mlp_width,
        "hidden_act": name_of(a.mlp, _MLPS),
        "layer_norm_eps": a.norm_eps,
        "attention_dropout": a.dropout,
        "projection_dim": projection,
    }


def config(objective: ImageText, encoding: Encoding) -> Config:
    """`config.json` but for what every architecture has."""
    image, text = objective.image, objective.text.architecture
    if objective.options.loss != "clip":
        raise ValueError(f"loss: Hugging Face's CLIP has no {objective.options.loss!r}")
    if encoding.eos == _MISTAKEN_END:
        raise ValueError("eos: Hugging Face's CLIP cannot read captions that end with the id 2")
    assert isinstance(image, PatchEncoder)
    a, width = image.architecture, objective.options.width
    ends = {"pad_token_id": encoding.pad, "bos_token_id": encoding.bos, "eos_token_id": encoding.eos}
    sizes = {"vocab_size": text.vocabulary, "max_position_embeddings": text.context}
    pixels = {"image_size": square(image), "patch_size": a.patch, "num_channels": image.values // a.patch**2}
    return {
        "projection_dim": width,
        "logit_scale_init_value": float(objective.scale.detach()),
        "text_config": {"model_type": "clip_text_model", **_tower(text, width), **sizes, **ends},
        "vision_config": {"model_type": "clip_vision_model", **_tower(a, width), **pixels},
    }


def _tower_described(config: Config, width: int, heads: int) -> dict[str, Any]:
    """The inverse of `_tower`; `width` and `heads` are the defaults."""
    width = config.get("hidden_size", width)
    return {
        "width": width,
        "layers": config.get("num_hidden_layers", 12),
        "heads": config.get("num_attention_heads", heads),
        "mlp_width": config.get("intermediate_size", 3072 if heads == 12 else 2048),
        "mlp": one_of(config, "hidden_act", "quick_gelu", _MLPS),
    }


def _part(config: Config, key: str) -> Config:
    part = config.get(key) or {}
    if not isinstance(part, dict):
        raise ValueError(f"{key}: {part!r} is no configuration")
    return part


def described(config: Config) -> Described:
    """Theirs in our terms."""
    vision, text = _part(config, "vision_config"), _part(config, "text_config")
    allow(text, layer_norm_eps=1e-5)
    size = side(vision, "image_size", 224)
    backbone = {
        **_tower_described(vision, 768, 12),
        "norm_eps": vision.get("layer_norm_eps", 1e-5),
        "patch": side(vision, "patch_size", 32),
        "positions": "learned",
    }
    sizes = {"vocabulary": text.get("vocab_size", 49408), "context": text.get("max_position_embeddings", 77)}
    task = {
        "width": config.get("projection_dim", 512),
        "text": {**_tower_described(text, 512, 8), **sizes},
    }
    return Described(size, size, vision.get("num_channels", 3), backbone, task)


def check(config: Config, objective: ImageText) -> None:
    """ValueError where the folder reads captions at another id than the corpus ends them with."""
    text = _part(config, "text_config")
    end = text.get("eos_token_id", 49407)
    end = text.get("vocab_size", 49408) - 1 if end == _MISTAKEN_END else end
    if end != objective.encoding.eos:
        raise ValueError(
            f"eos_token_id: captions of the corpus end with the id {objective.encoding.eos}, the model reads them at "
            f"{end!r}; tokenize them with the model's own tokenizer"
        )


def _layers(ours: str, theirs: str) -> Table:
    block, layer = f"{ours}.blocks.{{}}", f"{theirs}.encoder.layers.{{}}"
    return {
        f"{block}.attention_residual.norm": f"{layer}.layer_norm1",
        f"{block}.attention.qkv": tuple(f"{layer}.self_attn.{part}_proj" for part in "qkv"),
        f"{block}.attention.out": f"{layer}.self_attn.out_proj",
        f"{block}.mlp_residual.norm": f"{layer}.layer_norm2",
        f"{block}.mlp.up": f"{layer}.mlp.fc1",
        f"{block}.mlp.down": f"{layer}.mlp.fc2",
    }


def table(objective: Objective) -> Table:
    """Names, ours to theirs."""
    found = encoder_of(objective)
    assert found is not None
    ours = found[0]
    image: Table = {
        f"{ours}.cls": "vision_model.embeddings.class_embedding",
        f"{ours}.embedding": "vision_model.embeddings.patch_embedding",
        f"{ours}.positions": "vision_model.embeddings.position_embedding.weight",
        f"{ours}.fixed": "vision_model.embeddings.position_embedding.weight",
        f"{ours}.norm": "vision_model.pre_layrnorm",
        **_layers(f"{ours}.stack", "vision_model"),
        f"{ours}.stack.norm": "vision_model.post_layernorm",
    }
    if not isinstance(objective, ImageText):
        return image
    return {
        **image,
        "image_projection": "visual_projection",
        "text.tokens": "text_model.embeddings.token_embedding",
        "text.decoder_positions.table": "text_model.embeddings.position_embedding",
        **_layers("text.decoder", "text_model"),
        "text.decoder.norm": "text_model.final_layer_norm",
        "text_projection": "text_projection",
        "scale": "logit_scale",
    }


CORRESPONDENCE = PictureCorrespondence(
    model_type="clip",
    model_class="CLIPModel",
    processor="CLIPImageProcessor",
    presets=("clip-vision",),
    objective="image_text",
    prefix="vision_model.",
    patches="vision_model.embeddings.patch_embedding",
    framed=(),
    scalars=("logit_scale",),
    positions="vision_model.embeddings.position_embedding.weight",
    config=config,
    described=described,
    table=table,
    check=check,
)
