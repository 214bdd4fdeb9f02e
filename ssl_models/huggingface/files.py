"""The files of a Hugging Face model folder: JSON, and tensors in one file or in shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from ssl_models.huggingface.mapping import State

WEIGHTS, INDEX, CONFIG, GENERATION = (
    "model.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "generation_config.json",
)


def read_json(path: Path) -> dict[str, Any]:
    """The object that a file of the folder holds; ValueError where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: is missing, so this is no Hugging Face model folder") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: is not a JSON object")
    return content


def read_tensors(file: Path) -> State:
    """The tensors of one file; ValueError where it is missing or damaged."""
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file}: cannot be read: {error}") from None


def read_weights(folder: Path) -> State:
    """All tensors of a folder, from one file or from the shards that its index names; ValueError as `read_tensors`."""
    files = [folder / WEIGHTS]
    if not files[0].exists():
        if not (folder / INDEX).exists():
            raise ValueError(f"{folder}: holds no {WEIGHTS}; other formats are not read: save it as safetensors")
        index = read_json(folder / INDEX).get("weight_map")
        if not isinstance(index, dict):
            raise ValueError(f"{folder / INDEX}: has no weight_map")
        for name in index.values():
            if not isinstance(name, str):
                raise ValueError(f"{folder / INDEX}: weight_map: {name!r} is not understood")
        files = [folder / Path(name).name for name in sorted(set(index.values()))]
    state: State = {}
    for file in files:
        state |= read_tensors(file)
    return state
