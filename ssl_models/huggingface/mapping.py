"""What a module of this package says about one architecture, and the renaming of tensors that follows from it.

A table maps our module names to theirs, `{}` standing for a block's number. Where theirs is a tuple, our tensor is
theirs laid one upon the other: `qkv` is queries, keys, values; a gated `up` is gate, values.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ssl_models.data.encoding import Encoding
from ssl_models.models.presets import Architecture

State = dict[str, Tensor]
Config = dict[str, Any]
Table = dict[str, str | tuple[str, ...]]

LEARNING = {"init", "init_std", "embedding_std", "depth_scaled", "dropout"}
"""Fields of an architecture that decide how a model learns, not what it computes."""

_NUMBER = re.compile(r"\.(\d+)\.")


def unchanged(state: State, architecture: Architecture) -> State:
    """For architectures whose tensors need no more than new names."""
    return state


@dataclass(frozen=True)
class Correspondence:
    """One architecture in Hugging Face's terms."""

    model_type: str
    """Hugging Face's name of the architecture, which is our preset's as well."""
    model_class: str
    """The class of `transformers` that opens the folder."""
    prefix: str
    """Of the weights below the head, which a folder of the headless model lacks."""
    embedding: str
    """Their token embedding."""
    head: str
    """Their head's matrix; it is the embedding where it is missing or equal."""
    tied: bool
    """Their default of `tie_word_embeddings`."""
    config: Callable[[Architecture, Encoding], Config]
    """Ours to theirs."""
    fields: Callable[[Config], dict[str, Any]]
    """Theirs to the fields of ours; ValueError, beginning with the key, for what has no equal here."""
    table: Callable[[Architecture], Table]
    """Names of modules, ours to theirs."""
    ignored: str = r"$^"
    """Their tensors that hold nothing learned, as a regular expression."""
    dropped: str = r"$^"
    """Their learned tensors that have no place here; a warning names them."""
    adopt: Callable[[State, Architecture], State] = unchanged
    """Their tensors, by their names, made such that the table holds."""
    release: Callable[[State, Architecture], State] = unchanged
    """The inverse of `adopt`."""


def allow(config: Config, **supported: Any) -> None:
    """ValueError unless every one of these keys that `config` has holds the one value that is supported."""
    for key, value in supported.items():
        if config.get(key, value) != value:
            raise ValueError(f"{key}: {config[key]!r} is not supported here, only {value!r}")


def one_of(config: Config, key: str, default: str, meanings: Mapping[str, str]) -> str:
    """What the value of `key` is called here; ValueError where it has no equal."""
    value = config.get(key, default)
    if not isinstance(value, str) or value not in meanings:
        raise ValueError(f"{key}: {value!r} is not supported here, only {', '.join(meanings)}")
    return meanings[value]


def name_of(value: str, meanings: Mapping[str, str]) -> str:
    """What `value` is called there: the inverse of `one_of`; ValueError where it has no equal."""
    for theirs, ours in meanings.items():
        if ours == value:
            return theirs
    raise ValueError(f"mlp: {value!r} has no name in Hugging Face's configuration")


def their_names(name: str, table: Table) -> tuple[str, ...]:
    """Their tensors that make up our tensor `name`; KeyError where there are none."""
    number = _NUMBER.search(name)
    general = _NUMBER.sub(".{}.", name, count=1)
    module, _, kind = general.rpartition(".")
    theirs = table[general] if general in table else table[module]
    suffix = "" if general in table or not kind else f".{kind}"
    parts = (theirs,) if isinstance(theirs, str) else theirs
    return tuple((part.format(number[1]) if number else part) + suffix for part in parts)


def _sizes(name: str, rows: int, parts: int, a: Architecture) -> list[int]:
    """Rows of each of the `parts` that our tensor `name` of `rows` consists of."""
    if ".qkv." in name and a.kv_heads != a.heads:
        return [a.heads * a.head_width, a.kv_heads * a.head_width, a.kv_heads * a.head_width]
    return [rows // parts] * parts


def rename_to(state: State, table: Table, architecture: Architecture) -> State:
    """Our tensors under their names."""
    renamed: State = {}
    for name, value in state.items():
        theirs = their_names(name, table)
        if len(theirs) == 1:
            renamed[theirs[0]] = value
        else:
            sizes = _sizes(name, len(value), len(theirs), architecture)
            renamed |= dict(zip(theirs, torch.split(value, sizes), strict=True))
    return renamed


def rename_from(state: State, table: Table, architecture: Architecture, shapes: Mapping[str, torch.Size]) -> State:
    """Their tensors under our names, whose `shapes` are given; takes them out of `state`. ValueError names a tensor
    that is missing or of another shape."""
    renamed: State = {}
    for name, shape in shapes.items():
        theirs = their_names(name, table)
        for part in theirs:
            if part not in state:
                raise ValueError(f"lacks the tensor {part}")
        value = torch.cat([state.pop(part) for part in theirs]) if len(theirs) > 1 else state.pop(theirs[0])
        if value.shape != shape:
            raise ValueError(f"{theirs[0]} has the shape {list(value.shape)}; its config.json makes it {list(shape)}")
        renamed[name] = value
    return renamed


def matching(names: Iterable[str], pattern: str) -> list[str]:
    """The `names` that match the regular expression anywhere."""
    return [name for name in names if re.search(pattern, name)]
