"""Hugging Face both ways: our weights and configuration in its terms, and its folders read here.

Needs no `transformers`: a folder is `config.json`, `model.safetensors` (also in shards) and the tokenizer's files. Each
architecture is one module with its names as data (`mapping.Correspondence`). What has no equal on the other side is
refused in one sentence, never translated approximately.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn
from torch.overrides import TorchFunctionMode

from ssl_models.config import Backbone
from ssl_models.data.encoding import Encoding
from ssl_models.huggingface import bart, bert, gpt2, llama, t5
from ssl_models.huggingface.files import CONFIG, GENERATION, WEIGHTS, read_json, read_weights
from ssl_models.huggingface.mapping import (
    LEARNING,
    Config,
    Correspondence,
    State,
    matching,
    rename_from,
    rename_to,
)
from ssl_models.huggingface.tokenizer import save_tokenizer
from ssl_models.models.presets import Architecture, resolve
from ssl_models.models.transformer import Transformer
from ssl_models.objectives.shared.denoising import Denoising

CORRESPONDENCES: dict[str, Correspondence] = {
    module.CORRESPONDENCE.model_type: module.CORRESPONDENCE for module in (gpt2, llama, bert, t5, bart)
}
_BEGIN = "decoder_start_token_id"
_TABLED = {"learned"}
"""Positions of which a model has a fixed number."""


def _correspondence(architecture: Architecture) -> Correspondence:
    if architecture.preset not in CORRESPONDENCES:
        raise ValueError(f"preset: Hugging Face has no equal of {architecture.preset!r} that is known here")
    return CORRESPONDENCES[architecture.preset]


def _architecture(config: Config, *, tied: bool) -> Architecture:
    """What `config.json` describes; ValueError beginning with the key for what is not supported here."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in CORRESPONDENCES:
        raise ValueError(f"model_type: {kind!r} is not supported here (supported: {', '.join(CORRESPONDENCES)})")
    fields = {**CORRESPONDENCES[kind].fields(config), "tied": tied}
    return resolve(Backbone.model_validate({"preset": kind, **fields}))


def hugging_face_config(architecture: Architecture, encoding: Encoding) -> Config:
    """`config.json` of a model on the corpus of `encoding`; ValueError where Hugging Face has no such architecture."""
    correspondence = _correspondence(architecture)
    config = {
        "model_type": correspondence.model_type,
        "architectures": [correspondence.model_class],
        "dtype": "float32",
        "tie_word_embeddings": architecture.tied,
        "pad_token_id": None if _pads_with_eos(correspondence, encoding) else encoding.pad,
        "bos_token_id": encoding.bos,
        "eos_token_id": encoding.eos,
        **correspondence.config(architecture, encoding),
    }
    described = _architecture(config, tied=architecture.tied)
    for field in sorted(set(Architecture.model_fields) - LEARNING):
        here, there = getattr(architecture, field), getattr(described, field)
        if here != there:
            raise ValueError(f"{field}: Hugging Face's {correspondence.model_type} has {there!r}, this model {here!r}")
    return config


def _pads_with_eos(correspondence: Correspondence, encoding: Encoding) -> bool:
    """Whether `transformers` would not train the embedding of `eos` because it is `pad`, too. T5's is trained all the
    same, and its decoder needs `pad_token_id`."""
    return encoding.pad == encoding.eos and correspondence.model_type != "t5"


def fits(architecture: Architecture) -> bool:
    """Whether Hugging Face has an architecture that computes the same."""
    try:
        hugging_face_config(architecture, Encoding(modality="text"))
    except ValueError:
        return False
    return True


class _Unfilled(TorchFunctionMode):
    """Draws no weights: on the meta device there is nothing to fill, and trying it imports torch's compiler."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        return kwargs["tensor"] if function is nn.init.normal_ else function(*args, **kwargs)


def state_to_hugging_face(state: State, architecture: Architecture) -> State:
    """The `state_dict` of a `Transformer` under Hugging Face's names, on the CPU, contiguous, no two sharing memory."""
    correspondence = _correspondence(architecture)
    renamed = rename_to(state, correspondence.table(architecture), architecture)
    released = correspondence.release(renamed, architecture)
    return {name: value.detach().cpu().clone().contiguous() for name, value in released.items()}


def state_from_hugging_face(state: State, config: Config) -> tuple[Architecture, State]:
    """The architecture that `config.json` describes, and its `Transformer`'s `state_dict` in float32.

    ValueError for what is not supported, missing, of another shape, or has no place here; weights that belong to heads
    of other tasks are left out with a warning.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in CORRESPONDENCES:
        raise ValueError(f"model_type: {kind!r} is not supported here (supported: {', '.join(CORRESPONDENCES)})")
    c = CORRESPONDENCES[kind]
    if c.embedding not in state:
        state = {name if name.startswith(c.head) else c.prefix + name: value for name, value in state.items()}
    skipped = set(matching(state, c.ignored))
    left = {name: value.float() for name, value in state.items() if name not in skipped}
    if c.embedding not in left:
        raise ValueError(f"lacks the tensor {c.embedding}")
    head = left.get(c.head)
    if head is None and not config.get("tie_word_embeddings", c.tied):
        raise ValueError(f"lacks the tensor {c.head}")
    tied = head is None or torch.equal(head, left[c.embedding])
    if tied:
        left.pop(c.head, None)
    architecture = _architecture(config, tied=tied)
    left = c.adopt(left, architecture)
    with torch.device("meta"), _Unfilled():
        shapes = {name: value.shape for name, value in Transformer(architecture).state_dict().items()}
    ours = rename_from(left, c.table(architecture), architecture, shapes)
    dropped = matching(left, c.dropped)
    if dropped:
        warnings.warn(f"weights with no place here are left out: {', '.join(sorted(dropped))}", stacklevel=2)
    surplus = sorted(set(left) - set(dropped))
    if surplus:
        raise ValueError(f"holds the tensor {surplus[0]}, which a {c.model_class} has not")
    return architecture, ours


def read(folder: Path) -> tuple[Architecture, State]:
    """Architecture and `Transformer` weights of a Hugging Face folder; ValueError where it is none."""
    config = read_json(folder / CONFIG)
    weights = read_weights(folder)
    try:
        return state_from_hugging_face(weights, config)
    except ValidationError as error:
        raise ValueError(f"{folder / CONFIG}: {error.errors()[0]['msg']}") from None
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{folder / CONFIG}: is not understood ({error})") from None


def from_hugging_face(folder: Path) -> Transformer:
    """The model of a Hugging Face folder, in eval mode on the CPU in float32; ValueError as `read`."""
    architecture, state = read(folder)
    with torch.device("meta"), _Unfilled():
        model = Transformer(architecture)
    model.load_state_dict(state, assign=True)
    return model.requires_grad_().eval()


def to_hugging_face(
    model: Transformer, encoding: Encoding, folder: Path, *, begin: int | None = None, source: Path | None = None
) -> None:
    """Write a folder that `transformers` opens: weights, configuration and, where `encoding` has one, the tokenizer.

    `begin`: the id that a decoder starts with, where it is not the architecture's usual. `source`: the folder that the
    model started from; what it calls its special tokens is carried over. ValueError where Hugging Face has no such
    architecture.
    """
    config = hugging_face_config(model.architecture, encoding)
    if begin is not None and _BEGIN in config:
        config[_BEGIN] = begin
    state = state_to_hugging_face(model.state_dict(), model.architecture)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    save_config(config, folder)
    save_tokenizer(encoding, model.architecture.context, folder, source=source)


def save_config(config: Config, folder: Path) -> None:
    """Write `config.json` and, for a model that generates, `generation_config.json`."""
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    if config["model_type"] != "bert":
        kept = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
        generation = {key: config[key] for key in kept if config.get(key) is not None}
        (folder / GENERATION).write_text(json.dumps(generation, indent=1) + "\n", encoding="utf-8")


def complete(backbone: Backbone, folder: Path) -> Backbone:
    """`backbone` with every size that it leaves open taken from the model in `folder` (`models.NAME.init_from`).

    ValueError, beginning with the key, where it says otherwise than the folder.
    """
    architecture, _ = read(folder)
    if backbone.preset != architecture.preset:
        raise ValueError(f"preset: {backbone.preset!r} cannot start from {folder}, which holds {architecture.preset!r}")
    there = architecture.model_dump(exclude=LEARNING | {"preset"})
    if architecture.positions not in _TABLED:
        del there["context"]
    for key, value in backbone.overrides.items():
        if key in there and value != there[key]:
            raise ValueError(f"{key}: is {value!r}, but the model in {folder} has {there[key]!r}: leave it out")
    return Backbone.model_validate({**backbone.model_dump(), **there})


def start_from(model: nn.Module, folder: Path) -> None:
    """Take over the weights of a Hugging Face folder into the one `Transformer` that `model` is or holds, and the id
    that its decoder starts with.

    ValueError, beginning with the field, where the two differ.
    """
    inner = next((module for module in model.modules() if isinstance(module, Transformer)), None)
    if inner is None:
        raise ValueError(f"{folder}: this objective has no language model to start from it")
    architecture, state = read(folder)
    for field in sorted(set(Architecture.model_fields) - LEARNING):
        here, there = getattr(inner.architecture, field), getattr(architecture, field)
        if here != there and (field != "context" or architecture.positions in _TABLED):
            raise ValueError(f"{field}: is {here!r}, but the model in {folder} has {there!r}")
    inner.load_state_dict(state)
    if isinstance(model, Denoising):
        model.begin = _begin(folder, architecture, model.begin)


def _begin(folder: Path, architecture: Architecture, usual: int) -> int:
    """The id that the decoder of a folder starts with, `usual` where it does not say; ValueError where it is none."""
    config = read_json(folder / CONFIG)
    begin = config.get(_BEGIN, bart.BEGIN if architecture.preset == "bart" else None)
    if begin is None:
        return usual
    if type(begin) is not int or not 0 <= begin < architecture.vocabulary:
        raise ValueError(f"{folder / CONFIG}: {_BEGIN}: {begin!r} is not understood")
    return begin
