"""Folders of objectives on pictures: what `transformers` has a name for lies in `model.safetensors` under that name,
the rest (projectors, a codebook) under our own in `pretext.safetensors`.

`preprocessor_config.json` holds the corpus's mean and standard deviation. A folder with other ones is started from all
the same: the difference is folded into the embedding of the patches, which then computes the same from our pixels.
"""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ssl_models import objectives
from ssl_models.config import Backbone, Model
from ssl_models.data.encoding import Encoding
from ssl_models.huggingface import beit, clip, vit, vit_mae
from ssl_models.huggingface.files import CONFIG, WEIGHTS, read_json, read_tensors, read_weights
from ssl_models.huggingface.mapping import (
    LEARNING,
    Config,
    State,
    Table,
    matching,
    rename_from,
    rename_to,
    their_names,
)
from ssl_models.huggingface.picture_mapping import (
    ABSOLUTE,
    Described,
    PictureCorrespondence,
    adopt,
    encoder_of,
    release,
)
from ssl_models.huggingface.tokenizer import save_tokenizer
from ssl_models.models.presets import Architecture, resolve
from ssl_models.models.vision import PatchEncoder
from ssl_models.objectives import Objective

CORRESPONDENCES: dict[str, PictureCorrespondence] = {
    module.CORRESPONDENCE.model_type: module.CORRESPONDENCE for module in (vit, vit_mae, beit, clip)
}
REST, PROCESSOR = "pretext.safetensors", "preprocessor_config.json"
_BILINEAR = 2
_BASES = ("", "vit.", "beit.")
"""Prefixes of an encoder, by the class that saved it."""
_BASE_PARTS = ("embeddings.", "encoder.", "layernorm.", "pooler.")


def _owns(c: PictureCorrespondence, objective: Objective) -> bool:
    """Whether the architecture is the whole of the objective."""
    return bool(c.objective) and isinstance(objective, objectives.find(c.objective))


def _correspondence(objective: Objective) -> PictureCorrespondence:
    """What an objective is over there; ValueError where it is nothing."""
    if encoder_of(objective) is None:
        raise ValueError("architecture: Hugging Face has no equal that is known here of an encoder other than a ViT")
    return next((c for c in CORRESPONDENCES.values() if _owns(c, objective)), vit.CORRESPONDENCE)


def _architecture(c: PictureCorrespondence, described: Described) -> Architecture:
    return resolve(Backbone.model_validate({"preset": c.presets[0], **described.backbone}))


def _compare(here: Architecture, there: Architecture, sentence: str) -> None:
    """ValueError, of the field and `sentence`, unless both compute the same."""
    for field in sorted(set(Architecture.model_fields) - LEARNING - {"preset"}):
        ours, theirs = getattr(here, field), getattr(there, field)
        if ours != theirs and not (field == "positions" and {ours, theirs} <= set(ABSOLUTE)):
            raise ValueError(f"{field}: {sentence.format(ours=ours, theirs=theirs)}")


def picture_config(objective: Objective, encoding: Encoding) -> Config:
    """`config.json` of an objective on pictures; ValueError, beginning with the key, where there is no equal of it."""
    c = _correspondence(objective)
    found = encoder_of(objective)
    assert found is not None
    config = {
        "model_type": c.model_type,
        "architectures": [c.model_class],
        "dtype": "float32",
        **c.config(objective, encoding),
    }
    there = _architecture(c, c.described(config))
    _compare(found[1].architecture, there, f"Hugging Face's {c.model_type} has {{theirs!r}}, this model {{ours!r}}")
    return config


def picture_state(objective: Objective) -> tuple[State, State]:
    """The `state_dict` of an objective in two: what `transformers` has, under its names, and the rest under ours; on
    the CPU, contiguous, no two sharing memory."""
    c, found = _correspondence(objective), encoder_of(objective)
    assert found is not None
    table = c.table(objective)
    state = {name: value.detach().cpu() for name, value in objective.state_dict().items()}
    rest = {name: value for name, value in state.items() if not _covered(name, table)}
    theirs = rename_to({name: value for name, value in state.items() if name not in rest}, table, found[1].architecture)
    theirs = {**release(theirs, c, found[1].architecture), **c.constants(found[1].width)}
    return _copied(theirs), _copied(rest)


def _copied(state: State) -> State:
    return {name: value.clone().contiguous() for name, value in state.items()}


def _covered(name: str, table: Table) -> tuple[str, ...]:
    """Their tensors that make up our tensor `name`; none where they have no name for it."""
    try:
        return their_names(name, table)
    except KeyError:
        return ()


def processor_config(objective: Objective) -> Config:
    """`preprocessor_config.json`: resize to the corpus's size, scale to [0, 1], normalise as the encoder does."""
    c, found = _correspondence(objective), encoder_of(objective)
    assert found is not None
    encoder = found[1]
    size = {"height": encoder.rows * encoder.patch, "width": encoder.columns * encoder.patch}
    mean, std = ([float(number) for number in part.flatten()] for part in _statistics(encoder))
    return {
        "image_processor_type": c.processor,
        "do_resize": True,
        "size": size,
        "resample": _BILINEAR,
        "do_center_crop": False,
        "do_convert_rgb": len(mean) == 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }


def save_picture_model(objective: Objective, encoding: Encoding, folder: Path) -> bool:
    """Write a folder that `transformers` opens: weights, configuration, how pixels are made and, for CLIP, the
    tokenizer. False, and nothing written, where Hugging Face has no such architecture."""
    try:
        config = picture_config(objective, encoding)
    except ValueError:
        return False
    theirs, rest = picture_state(objective)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(theirs, folder / WEIGHTS, metadata={"format": "pt"})
    if rest:
        save_file(rest, folder / REST, metadata={"format": "pt"})
    for name, content in ((CONFIG, config), (PROCESSOR, processor_config(objective))):
        (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if "text_config" in config:
        save_tokenizer(encoding, config["text_config"]["max_position_embeddings"], folder, ends=True)
    return True


def is_picture_config(config: Config) -> bool:
    """Whether `config.json` is of an architecture on pictures that is known here."""
    return config.get("model_type") in CORRESPONDENCES


def _opened(folder: Path) -> tuple[Config, PictureCorrespondence, Described, Architecture]:
    """What the configuration of a folder says; ValueError, beginning with the folder, for what is not supported."""
    config = read_json(folder / CONFIG)
    c = CORRESPONDENCES[config["model_type"]]
    try:
        described = c.described(config)
        return config, c, described, _architecture(c, described)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    except (TypeError, AttributeError):
        raise ValueError(f"{folder / CONFIG}: is not a configuration of {c.model_class}") from None


def complete_model(model: Model, folder: Path) -> Model:
    """`model` with every size that it leaves open taken from the folder (`models.NAME.init_from`): the backbone's, and
    the task's where the objective is the architecture's own.

    ValueError, beginning with the key, where it says otherwise than the folder.
    """
    _, c, described, architecture = _opened(folder)
    backbone = model.backbone
    if backbone.preset not in c.presets:
        raise ValueError(
            f"backbone.preset: {backbone.preset!r} cannot start from {folder}, which holds {c.model_type!r} "
            f"(preset: {' or '.join(c.presets)})"
        )
    there = architecture.model_dump(exclude=LEARNING | {"preset", "context", "vocabulary"})
    if {there["positions"], resolve(Backbone(preset=backbone.preset)).positions} <= set(ABSOLUTE):
        del there["positions"]
    fields = _merged(backbone.overrides, there, "backbone", folder)
    task = _merged(model.task, described.task if model.objective == c.objective else {}, "task", folder)
    completed = Backbone.model_validate({"preset": backbone.preset, **fields})
    return model.model_copy(update={"backbone": completed, "task": task})


def _merged(given: dict[str, Any], there: dict[str, Any], at: str, folder: Path) -> dict[str, Any]:
    """`given`, and of `there` what it leaves open; ValueError where the two differ."""
    merged = dict(given)
    for key, value in there.items():
        own = given.get(key, {} if isinstance(value, dict) else value)
        if isinstance(value, dict) and isinstance(own, dict):
            merged[key] = _merged(own, value, f"{at}.{key}", folder)
        elif own != value:
            raise ValueError(f"{at}.{key}: is {own!r}, but the model in {folder} has {value!r}: leave it out")
        else:
            merged[key] = value
    return merged


def start_picture_model(objective: Objective, folder: Path, *, whole: bool) -> None:
    """Take over the weights of a folder. With `whole` it must hold all of them; else an objective whose own heads it
    lacks keeps them as they are. ValueError where the two differ in what they compute."""
    config, c, described, architecture = _opened(folder)
    found = encoder_of(objective)
    if found is None:
        raise ValueError(f"{folder}: this objective has no ViT on single pictures to start from it")
    name, encoder = found
    try:
        _check_size(encoder, described)
        _compare(encoder.architecture, architecture, "is {ours!r}, the folder's is {theirs!r}")
        if _owns(c, objective):
            c.check(config, objective)
        ours = _renamed(objective, c, _based(read_weights(folder), c), whole=whole)
    except ValueError as error:
        raise ValueError(f"{folder}: {str(error).removeprefix(f'{folder}: ')}") from None
    _fold(ours, name, encoder, folder)
    ours |= _rest(objective, folder, whole=whole)
    missing = sorted(set(objective.state_dict()) - set(ours))
    if missing and whole:
        raise ValueError(f"{folder}: lacks {missing[0]!r}, which this model has")
    objective.load_state_dict(ours, strict=False)


def _check_size(encoder: PatchEncoder, described: Described) -> None:
    patch = encoder.patch
    here = (encoder.rows * patch, encoder.columns * patch, encoder.values // patch**2)
    there = (described.height, described.width, described.channels)
    if here != there:
        sizes = ["{}x{} with {} channels".format(*size) for size in (here, there)]
        raise ValueError(f"image_size: the corpus has pictures of {sizes[0]}, the model reads {sizes[1]}")


def _based(state: State, c: PictureCorrespondence) -> State:
    """Their tensors with the encoder's prefix of the class that we write, whichever class saved them."""
    base = next((base for base in _BASES if f"{base}embeddings.cls_token" in state), c.prefix)
    if base == c.prefix or c.prefix not in _BASES:
        return state
    parts = tuple(base + part for part in _BASE_PARTS)
    return {c.prefix + name.removeprefix(base) if name.startswith(parts) else name: v for name, v in state.items()}


def _renamed(objective: Objective, c: PictureCorrespondence, theirs: State, *, whole: bool) -> State:
    """Their tensors under our names; a warning names those without a place here, and heads that start afresh."""
    table, found = c.table(objective), encoder_of(objective)
    assert found is not None
    name, encoder = found
    shapes = {key: value.shape for key, value in objective.state_dict().items() if _covered(key, table)}
    left = adopt({key: value.float() for key, value in theirs.items() if not key.endswith("position_ids")}, c)
    for key, value in c.constants(encoder.width).items():
        if key in left and torch.equal(left[key], value):
            del left[key]
    heads = {key for key in shapes if not key.startswith(f"{name}.")}
    if heads and not whole and not any(left.keys() & {*_covered(key, table)} for key in heads):
        shapes = {key: shape for key, shape in shapes.items() if key not in heads}
        warnings.warn("the folder holds the encoder alone: the heads of this objective start afresh", stacklevel=4)
    ours = rename_from(left, table, encoder.architecture, shapes)
    block = re.escape(f"{c.prefix}encoder.") + r"layers?\.\d+\."
    if surplus := sorted(matching(left, f"^{block}")):
        raise ValueError(f"holds the tensor {surplus[0]}, which a {c.model_class} of its config.json has not")
    if left:
        warnings.warn(f"weights with no place here are left out: {', '.join(sorted(left))}", stacklevel=4)
    return ours


def _statistics(encoder: PatchEncoder) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation `[channels]` of the pixels in [0, 1] that the encoder normalises by."""
    return encoder.normalise.mean.flatten(), encoder.normalise.std.flatten()


def _their_statistics(folder: Path, channels: int) -> tuple[Tensor, Tensor] | None:
    """The same of the folder's processor; None where it has none, and the corpus's own are as good as any."""
    if not (folder / PROCESSOR).exists():
        return None
    content = read_json(folder / PROCESSOR)
    rescaled = content.get("rescale_factor", 1 / 255) if content.get("do_rescale", True) else 1.0
    if abs(rescaled * 255 - 1) > 1e-6:
        raise ValueError(f"{folder / PROCESSOR}: makes other pixels than [0, 1], which is not supported here")
    found = []
    for key, neutral in (("image_mean", 0.0), ("image_std", 1.0)):
        value = content.get(key) if content.get("do_normalize", True) else None
        found.append(torch.tensor([neutral] * channels if value is None else value, dtype=torch.float32).flatten())
        if len(found[-1]) != channels:
            raise ValueError(f"{folder / PROCESSOR}: {key} has {len(found[-1])} numbers for {channels} channels")
    return found[0], found[1]


def _fold(ours: State, name: str, encoder: PatchEncoder, folder: Path) -> None:
    """Make the embedding of the patches expect our normalised pixels z = (p - m) / s instead of their (p - M) / S: it
    gets W s / S and the bias W (m - M) / S, which without a bias goes into the patches' positions."""
    mean, std = _statistics(encoder)
    theirs = _their_statistics(folder, len(mean))
    if theirs is None or (torch.equal(theirs[0], mean) and torch.equal(theirs[1], std)):
        return
    weight = ours[f"{name}.embedding.weight"].double()
    factor, offset = (
        part.double().repeat(encoder.patch**2) for part in (std / theirs[1], (mean - theirs[0]) / theirs[1])
    )
    shift = weight @ offset
    ours[f"{name}.embedding.weight"] = (weight * factor).float()
    bias, positions = f"{name}.embedding.bias", f"{name}.positions"
    if bias in ours:
        ours[bias] = (ours[bias] + shift).float()
    else:
        placed = ours[positions].clone()
        placed[1:] = (placed[1:] + shift).float()
        ours[positions] = placed


def _rest(objective: Objective, folder: Path, *, whole: bool) -> State:
    """What lies beside the weights under our names; left out with a warning where it is another objective's."""
    path = folder / REST
    if not path.exists():
        return {}
    rest, own = read_tensors(path), objective.state_dict()
    other = [name for name, value in rest.items() if name not in own or own[name].shape != value.shape]
    if other and whole:
        raise ValueError(f"{path}: holds {other[0]!r}, which this model has not, or of another shape")
    if other:
        warnings.warn(f"{path}: is of another objective and left out", stacklevel=4)
        return {}
    return rest
