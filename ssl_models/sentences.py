"""What is wrong with a configuration, in sentences: the key, the keys that there are, and the one that was meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from ssl_models.addresses import public

_KINDS: dict[type, str] = {list: "a list", type(None): "nothing"}


def sentences(error: ValidationError, kind: type[BaseModel], at: str = "") -> list[str]:
    """One sentence for each thing wrong at key path `at` with what should be a `kind`; each begins with its key."""
    found = error.errors()
    unions = [
        len(found) > 1 and re.fullmatch(r"int|bool|float|str|constrained-\w+|literal\[.*", str((*e["loc"], "")[-2]))
        for e in found
    ]
    told: dict[str, str] = {}
    for entry, union in zip(found, unions, strict=True):
        steps = [str(step) for step in entry["loc"]]
        key = ".".join(part for part in [at, *(steps[:-1] if union else steps)] if part)
        told.setdefault(*_said(entry, key, kind))
    return [f"{key}: {message}" if key else message for key, message in told.items()]


def _said(entry: Any, key: str, kind: type[BaseModel]) -> tuple[str, str]:
    """The key of one of pydantic's errors, and what is wrong with it."""
    if entry["type"] == "extra_forbidden":
        known = _fields(kind, entry["loc"][:-1])
        return key, f"no such key{meant(str(entry['loc'][-1]), known)}; the keys are: {', '.join(known)}"
    if entry["type"] == "missing":
        return key, "is required"
    if entry["type"] in ("dict_type", "model_type"):
        given = _KINDS.get(type(entry["input"]), repr(entry["input"]))
        return key, f"must be a mapping of keys to values, not {given}"
    if entry["loc"][-1:] == ("[key]",):
        rule = "a name must be text of letters, digits, '-' and '_', beginning with a letter or digit"
        return key.removesuffix(".[key]"), rule
    message = entry["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    if not isinstance(entry["input"], dict | list):
        message += public(f" (got {entry['input']!r})")
    if entry["type"] == "literal_error":
        message += meant(str(entry["input"]), re.findall(r"'([^']*)'", entry["ctx"]["expected"]))
    return key, message


def _fields(kind: Any, steps: Sequence[str | int]) -> list[str]:
    """The keys of the model that lies at `steps` below the model `kind`."""
    for step in steps:
        if isinstance(kind, type) and issubclass(kind, BaseModel) and step in kind.model_fields:
            kind = kind.model_fields[str(step)].annotation
        while get_origin(kind) in (Annotated, Union, UnionType, dict, list, tuple):
            inner = [part for part in get_args(kind) if part not in (type(None), Ellipsis)]
            keyed = get_origin(kind) is dict
            kind = inner[1] if keyed else inner[0]
            if keyed:
                break
    return list(kind.model_fields) if isinstance(kind, type) and issubclass(kind, BaseModel) else []


def meant(given: str, known: Iterable[str]) -> str:
    """A question to add to "there is no ...": which of the names that are `known` was meant; empty where none is
    like it."""
    close = difflib.get_close_matches(given, list(known), 1)
    return f" (did you mean {close[0]!r}?)" if close else ""
