"""The folder of a trained model: safetensors and JSON, nothing that runs code when it is opened.

`model.safetensors` and `config.json` are Hugging Face's where the architecture exists there (`transformers` then opens
the folder; what it has no name for is in `pretext.safetensors`), else this project's own names. `pretext.json` says how
to build the objective again, `encoding/` how its rows were encoded.
"""

from __future__ import annotations

import importlib.metadata
import json
import pkgutil
import shutil
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ssl_models import huggingface, objectives
from ssl_models.config import Backbone, Model
from ssl_models.data.encoding import Encoding
from ssl_models.huggingface import vision
from ssl_models.huggingface.files import read_json
from ssl_models.huggingface.tokenizer import same_ids
from ssl_models.models import presets
from ssl_models.models.transformer import Transformer
from ssl_models.objectives import Objective
from ssl_models.sentences import meant, sentences

WEIGHTS, CONFIG, PRETEXT, ENCODING = "model.safetensors", "config.json", "pretext.json", "encoding"
FORMAT = 1
OWN = "pretext"
"""`model_type` of weights under this project's own names."""
TOKENIZER = "tokenizer.json"


def build(model: Model, encoding: Encoding, at: str = "task") -> Objective:
    """The untrained objective of a model. ValueError names what does not fit, also of the folder that the model starts
    from; `at` is the key path of its options."""
    try:
        kind = objectives.find(model.objective)
    except KeyError:
        known = [name for _, name, package in pkgutil.iter_modules(objectives.__path__) if not package]
        hint = meant(model.objective, known)
        raise ValueError(f"there is no objective {model.objective!r} in ssl_models/objectives{hint}") from None
    try:
        options = kind.Options.model_validate(model.task)
    except ValidationError as error:
        raise ValueError(sentences(error, kind.Options, at)[0]) from None
    root = at.removesuffix("task")
    _check_tokenizer(model, encoding, root)
    try:
        return kind(model.backbone, options, encoding)
    except ValueError as error:
        if model.init_from is None or not (mend := _mend(str(error), model.corpus)):
            raise
        raise ValueError(f"{root}init_from: {error} (of the model in {model.init_from}); {mend}") from None


def _mend(error: str, corpus: str) -> str:
    """What to do where a corpus needs more than the folder's model has; empty for other errors."""
    if "is too small: the corpus needs" not in error:
        return ""
    if error.startswith("context: "):
        return f"lower corpora.{corpus}.shard.sequence"
    return f"set corpora.{corpus}.tokenize.tokenizer to that model's own"


def _check_tokenizer(model: Model, encoding: Encoding, root: str) -> None:
    """ValueError where the folder that a model starts from says by its tokenizer that its ids mean other tokens."""
    ours = encoding.folder / TOKENIZER
    if model.init_from is None or encoding.folder == Path() or not ours.is_file():
        return
    folder = Path(model.init_from)
    theirs = next((path for path in (folder / TOKENIZER, folder / ENCODING / TOKENIZER) if path.is_file()), None)
    if theirs is None:
        return
    try:
        same = same_ids(ours, theirs)
    except ValueError as error:
        raise ValueError(f"{root}init_from: {error}") from None
    if not same:
        key = f"{{tokenizer: {theirs.parent}}}"
        key = f"{{caption: {key}}}" if encoding.modality == "image_text" else key
        raise ValueError(
            f"{root}init_from: the model in {folder} was made with another tokenizer; set "
            f"corpora.{model.corpus}.tokenize: {key}"
        )


def completed(model: Model) -> Model:
    """`model` with the sizes that it leaves open taken from the Hugging Face folder it starts from, if it does.
    ValueError, beginning with the key, where the folder cannot be read or the two contradict each other."""
    if model.init_from is None:
        return model
    folder = Path(model.init_from)
    try:
        if _is_hugging_face(folder):
            if _is_pictures(folder):
                model = vision.complete_model(model, folder)
            else:
                model = model.model_copy(update={"backbone": _completed_backbone(model, folder)})
    except ValueError as error:
        raise ValueError(f"init_from: {error}" if str(error).startswith(f"{folder}") else str(error)) from None
    try:
        presets.check(model.backbone)
    except ValueError as error:
        raise ValueError(f"backbone.{error}") from None
    return model


def _completed_backbone(model: Model, folder: Path) -> Backbone:
    try:
        return huggingface.complete(model.backbone, folder)
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(f"{folder}") else f"backbone.{error}") from None


def _is_hugging_face(folder: Path) -> bool:
    """Whether the folder's weights are under Hugging Face's names. ValueError where its configuration does not say."""
    if not (folder / CONFIG).exists():
        raise ValueError(f"{folder}: is neither a Pretext nor a Hugging Face model folder: it has no {CONFIG}")
    kind = read_json(folder / CONFIG).get("model_type")
    if not isinstance(kind, str):
        raise ValueError(f"{folder / CONFIG}: model_type: {kind!r} is not understood")
    return kind != OWN


def _is_pictures(folder: Path) -> bool:
    """Whether a Hugging Face folder holds a model of pictures."""
    return vision.is_picture_config(read_json(folder / CONFIG))


def _language_model(objective: Objective) -> Transformer | None:
    """The transformer that is the whole of an objective, where Hugging Face has such an architecture."""
    inner = getattr(objective, "transformer", None)
    if not isinstance(inner, Transformer) or not huggingface.fits(inner.architecture):
        return None
    return inner if all(name.startswith("transformer.") for name in objective.state_dict()) else None


def unique(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state without the second names of tied tensors, contiguous and on the CPU."""
    seen: set[tuple[int, tuple[int, ...]]] = set()
    kept = {}
    for name, value in state.items():
        place = (value.data_ptr(), tuple(value.shape))
        if value.numel() and place in seen:
            continue
        seen.add(place)
        kept[name] = value.detach().cpu().contiguous()
    return kept


def save(objective: Objective, model: Model, encoding: Encoding, folder: Path, **facts: Any) -> None:
    """Write the folder, which is new or empty; `facts` (the step, say) go into `pretext.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    transformer = _language_model(objective)
    if transformer is not None:
        source = Path(model.init_from) if model.init_from is not None else None
        begin = getattr(objective, "begin", None)  # what a decoder's target begins with, where a task has such
        huggingface.to_hugging_face(transformer, encoding, folder, begin=begin, source=source)
    elif not vision.save_picture_model(objective, encoding, folder):
        save_file(unique(objective.state_dict()), folder / WEIGHTS, metadata={"format": "pt"})
        (folder / CONFIG).write_text(_json({"model_type": OWN, **model.model_dump(mode="json")}), encoding="utf-8")
    versions = {name: importlib.metadata.version(name) for name in ("torch", "safetensors")}
    content = {"format": FORMAT, "model": model.model_dump(mode="json"), "versions": versions, **facts}
    (folder / PRETEXT).write_text(_json(content), encoding="utf-8")
    encoding.save(folder / ENCODING)
    if encoding.folder != Path():
        for file in sorted(path for path in encoding.folder.iterdir() if path.is_file()):
            if file.name != "encoding.json":
                shutil.copyfile(file, folder / ENCODING / file.name)
            if file.name == TOKENIZER and not (folder / TOKENIZER).exists():
                shutil.copyfile(file, folder / file.name)


def read_model(folder: Path) -> Model:
    """The entry of `models` that a Pretext folder was trained as; ValueError where it is no such folder."""
    path = folder / PRETEXT
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"{path}: has format {content['format']}, this version reads {FORMAT}")
        return Model.model_validate(content["model"])
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValidationError):
        raise ValueError(f"{path}: is not what a training job wrote") from None


def load(folder: Path) -> Objective:
    """The trained objective of a Pretext folder, in eval mode on the CPU; ValueError says what is wrong with it."""
    model = read_model(folder)
    try:
        encoding = Encoding.load(folder / ENCODING)
    except OSError as error:
        raise ValueError(f"{error.filename}: cannot be read: {error.strerror}") from None
    objective = build(model.model_copy(update={"init_from": None}), encoding)
    load_weights(objective, folder, whole=True)
    return objective.eval()


def load_weights(objective: Objective, folder: Path, *, whole: bool) -> None:
    """Take over the weights of a model folder, all of them or, not `whole`, perhaps the encoder alone. ValueError where
    they are damaged or of another model."""
    if _is_hugging_face(folder):
        if _is_pictures(folder):
            vision.start_picture_model(objective, folder, whole=whole)
        else:
            huggingface.start_from(objective, folder)
        return
    path = folder / WEIGHTS
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None
    _take(objective, state, path)


def _take(objective: Objective, state: dict[str, Tensor], path: Path) -> None:
    own = objective.state_dict()
    for name, value in state.items():
        if name not in own:
            raise ValueError(f"{path}: holds {name!r}, which this model has not")
        if own[name].shape != value.shape:
            raise ValueError(
                f"{path}: {name} has the shape {list(value.shape)}, this model's is {list(own[name].shape)}"
            )
    missing = sorted(set(unique(own)) - set(state))
    if missing:
        raise ValueError(f"{path}: lacks {missing[0]!r}, which this model has")
    objective.load_state_dict(state, strict=False)


def start_from(objective: Objective, folder: Path) -> None:
    """Continue from another model (`models.NAME.init_from`), a Pretext or a Hugging Face folder. ValueError where it
    does not fit."""
    load_weights(objective, folder, whole=False)


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"
