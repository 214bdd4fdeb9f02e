"""Architectures as data: everything in which GPT-2, LLaMA, BERT, T5, BART, ViT, MAE, BEiT and CLIP's text tower differ.

`transformer` and `resnet` build whatever an `Architecture` or a `ResNetArchitecture` says, so a new architecture of
known parts is a new entry of `PRESETS`. Free of torch, so that `params.yaml` is validated in milliseconds.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator

from ssl_models.config import Backbone, Strict
from ssl_models.sentences import meant, sentences

AnyArchitecture = TypeVar("AnyArchitecture", "Architecture", "ResNetArchitecture")


class Architecture(Strict):
    """One transformer, complete. A size of 0 means "as usual" and is filled in when the object is made."""

    preset: str = Field(description="the entry of PRESETS it was made from")
    structure: Literal["decoder", "encoder", "encoder-decoder"] = Field(description="who reads and who writes")

    layers: int = Field(ge=1, description="blocks of the stack; of the encoder, where there are two")
    decoder_layers: int = Field(default=0, ge=0, description="encoder-decoder only; 0: as many as `layers`")
    width: int = Field(ge=1, description="of the residual stream")
    heads: int = Field(ge=1, description="of attention; they divide `width`")
    kv_heads: int = Field(default=0, ge=0, description="grouped queries: heads of keys and values; 0: `heads`")
    head_width: int = Field(default=0, ge=0, description="0: `width` / `heads`")
    mlp: Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "relu2", "swiglu", "geglu"] = Field(
        description="activation; the last two have a gate"
    )
    mlp_width: int = Field(default=0, ge=0, description="0: 4 x `width`; gated: 8/3 x, to a multiple of 32")

    norm: Literal["layer", "rms"] = Field(default="layer", description="layer normalisation, or root mean square")
    norm_place: Literal["pre", "post"] = Field(default="pre", description="before each residual branch, or after it")
    norm_eps: float = Field(default=1e-5, gt=0, description="added to the variance")
    biases: bool = Field(default=True, description="of linear layers and of layer norms")
    qk_norm: bool = Field(default=False, description="RMS-normalise queries and keys per head")
    scaled_attention: bool = Field(default=True, description="divide scores by sqrt(head width); T5 does not")
    layer_scale: float = Field(default=0.0, ge=0, description="initial LayerScale of every branch; 0: none")

    positions: Literal["learned", "rotary", "relative", "sincos", "none"] = Field(
        default="learned", description="how tokens know their place"
    )
    rope_theta: float = Field(default=10_000.0, gt=0, description="base of the rotary frequencies")
    relative_buckets: int = Field(default=32, ge=4, description="T5's buckets of distance")
    relative_distance: int = Field(default=128, ge=8, description="beyond it all distances share a bucket")
    context: int = Field(default=0, ge=0, description="most positions of a sequence; 0: the rows' length")
    patch: int = Field(default=0, ge=0, description="side of an image patch in pixels; text: 0")
    patch_bias: bool = Field(default=True, description="of the embedding of patches; CLIP has none")

    vocabulary: int = Field(default=0, ge=0, description="0: the tokenizer's; larger pads the table for speed")
    embedding_norm: bool = Field(default=False, description="normalise after the embeddings")
    tied: bool = Field(default=True, description="the head's matrix is the token embedding")
    head_transform: bool = Field(default=False, description="BERT's dense + GELU + norm before the head")
    head_bias: bool = Field(default=False, description="a bias per entry of the vocabulary")
    scale_logits: bool = Field(default=False, description="T5 1.0: divide the head's input by sqrt(width)")

    dropout: float = Field(default=0.0, ge=0, lt=1, description="of embeddings, attention and branches")
    init: Literal["normal", "xavier", "t5", "clip"] = Field(default="normal", description="how weights start")
    init_std: float = Field(default=0.02, gt=0, description="linear layers under init normal")
    embedding_std: float = Field(default=0.02, gt=0, description="of the embeddings' start")
    depth_scaled: bool = Field(default=False, description="init normal: residual projections / sqrt(2 x layers)")

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: Any) -> Any:
        """Derive what was left at 0."""
        if not isinstance(given, dict):
            return given
        full = dict(given)
        width, heads, layers = (full.get(key) for key in ("width", "heads", "layers"))
        full["kv_heads"] = full.get("kv_heads") or heads
        if full.get("structure") == "encoder-decoder":
            full["decoder_layers"] = full.get("decoder_layers") or layers
        if isinstance(width, int) and isinstance(heads, int) and heads > 0:
            full["head_width"] = full.get("head_width") or width // heads
            gated = full.get("mlp") in ("swiglu", "geglu")
            usual = (8 * width // 3 + 31) // 32 * 32 if gated else 4 * width
            full["mlp_width"] = full.get("mlp_width") or usual
        return full

    @model_validator(mode="after")
    def _fits(self) -> Architecture:
        if self.width % self.heads and self.head_width == self.width // self.heads:
            raise ValueError(f"heads: {self.heads} heads do not divide a width of {self.width}")
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads: {self.kv_heads} do not divide {self.heads} heads")
        if self.positions == "rotary" and self.head_width % 2:
            raise ValueError(f"heads: rotary positions need an even head width, not {self.head_width}")
        if self.positions == "sincos" and self.width % 4:
            raise ValueError(f"width: sine-cosine positions need a multiple of 4, not {self.width}")
        if self.decoder_layers and self.structure != "encoder-decoder":
            raise ValueError(f"decoder_layers: a model of structure {self.structure} has one stack: set `layers`")
        return self

    @property
    def gated(self) -> bool:
        """Whether the MLP multiplies by a gate."""
        return self.mlp in ("swiglu", "geglu")


class ResNetArchitecture(Strict):
    """One residual network, complete (He et al. 2015, arXiv:1512.03385)."""

    preset: str
    block: Literal["basic", "bottleneck"] = Field(description="two convolutions of 3x3, or a bottleneck of three")
    layers: tuple[int, int, int, int] = Field(description="blocks of each of the four stages")
    width: int = Field(default=64, ge=1, description="channels of the first stage")
    stem: Literal["small", "large"] = Field(
        default="small", description="small images: 3x3 and no pooling (SimCLR's CIFAR-10); large: 7x7 and pooling"
    )

    @property
    def features(self) -> int:
        """Width of the pooled features."""
        return self.width * 8 * (4 if self.block == "bottleneck" else 1)


_VIT: dict[str, Any] = {
    "structure": "encoder", "layers": 12, "width": 768, "heads": 12, "mlp": "gelu", "norm_eps": 1e-6, "patch": 16,
}  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {
    # Radford et al. 2019, and OpenAI's code
    "gpt2": {
        "structure": "decoder", "layers": 12, "width": 768, "heads": 12, "mlp": "gelu_tanh", "depth_scaled": True,
    },
    # Touvron et al. 2023, arXiv:2302.13971 (the 7B model's proportions at a small size)
    "llama": {
        "structure": "decoder", "layers": 12, "width": 768, "heads": 12, "mlp": "swiglu", "norm": "rms",
        "positions": "rotary", "biases": False, "tied": False,
    },
    # Devlin et al. 2018, arXiv:1810.04805
    "bert": {
        "structure": "encoder", "layers": 12, "width": 768, "heads": 12, "mlp": "gelu", "norm_place": "post",
        "norm_eps": 1e-12, "embedding_norm": True, "head_transform": True, "head_bias": True,
    },
    # Raffel et al. 2019, arXiv:1910.10683, as released in version 1.1; version 1.0: mlp relu, tied, scale_logits
    "t5": {
        "structure": "encoder-decoder", "layers": 12, "width": 768, "heads": 12, "mlp": "geglu", "norm": "rms",
        "norm_eps": 1e-6, "positions": "relative", "biases": False, "scaled_attention": False, "tied": False,
        "init": "t5", "embedding_std": 1.0,
    },
    # Lewis et al. 2019, arXiv:1910.13461
    "bart": {
        "structure": "encoder-decoder", "layers": 6, "width": 768, "heads": 12, "mlp": "gelu", "norm_place": "post",
        "embedding_norm": True,
    },
    # Dosovitskiy et al. 2020, arXiv:2010.11929
    "vit": _VIT,
    # He et al. 2021, arXiv:2111.06377: the encoder is a ViT with fixed positions, the decoder a light stack of its own
    "mae": {**_VIT, "norm_eps": 1e-12, "positions": "sincos", "init": "xavier"},
    "mae-decoder": {**_VIT, "norm_eps": 1e-12, "positions": "sincos", "init": "xavier", "layers": 8, "width": 512,
                    "heads": 16},
    # Bao et al. 2021, arXiv:2106.08254
    "beit": {**_VIT, "norm_eps": 1e-12, "positions": "relative", "layer_scale": 0.1, "depth_scaled": True},
    # Radford et al. 2021, arXiv:2103.00020: the text tower
    "clip-text": {
        "structure": "decoder", "layers": 12, "width": 512, "heads": 8, "mlp": "quick_gelu", "init": "clip",
    },
    # the same paper's image tower
    "clip-vision": {**_VIT, "norm_eps": 1e-5, "mlp": "quick_gelu", "embedding_norm": True, "patch_bias": False,
                    "init": "clip"},
}  # fmt: skip

RESNETS: dict[str, dict[str, Any]] = {
    "resnet18": {"block": "basic", "layers": (2, 2, 2, 2)},
    "resnet50": {"block": "bottleneck", "layers": (3, 4, 6, 3)},
}


def _resolve(kind: type[AnyArchitecture], presets: dict[str, dict[str, Any]], backbone: Backbone) -> AnyArchitecture:
    """`presets[backbone.preset]` with the backbone's overrides, as `kind`; ValueError as `resolve` says."""
    if backbone.preset not in presets:
        known = ", ".join(presets)
        hint = meant(backbone.preset, presets)
        raise ValueError(f"preset: there is no {backbone.architecture} {backbone.preset!r}{hint} (there are: {known})")
    fields = {**presets[backbone.preset], **backbone.overrides, "preset": backbone.preset}
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise ValueError(sentences(error, kind)[0]) from None


def resolve(backbone: Backbone, *, vocabulary: int = 0, context: int = 0) -> Architecture:
    """The transformer that `backbone` describes, for a tokenizer of `vocabulary` ids and rows of `context` positions.

    ValueError, one sentence beginning with the key, where preset or key is unknown or the sizes do not fit together.
    """
    if backbone.architecture != "transformer":
        raise ValueError(f"architecture: this objective needs a transformer, not a {backbone.architecture}")
    architecture = _resolve(Architecture, PRESETS, backbone)
    sizes: dict[str, int] = {}
    for key, needed, what in (("vocabulary", vocabulary, "ids"), ("context", context, "positions")):
        given: int = getattr(architecture, key)
        if given and given < needed:
            raise ValueError(f"{key}: {given} is too small: the corpus needs {needed} {what}")
        sizes[key] = given or needed
    return architecture.model_copy(update=sizes)


def resolve_resnet(backbone: Backbone) -> ResNetArchitecture:
    """The residual network that `backbone` describes; ValueError as in `resolve`."""
    if backbone.architecture != "resnet":
        raise ValueError(f"architecture: this objective needs a resnet, not a {backbone.architecture}")
    return _resolve(ResNetArchitecture, RESNETS, backbone)


def check(backbone: Backbone) -> None:
    """ValueError where `backbone` describes no model."""
    if backbone.architecture == "resnet":
        resolve_resnet(backbone)
    else:
        resolve(backbone)
