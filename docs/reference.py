"""Every key of `params.yaml` and `compute.yaml`, from the types that validate them: `python -m docs.reference` writes
`docs/reference.md`, and the JSON schemas by which editors complete and check both files."""

from __future__ import annotations

import importlib
import json
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

import ssl_models.objectives
import stages.modalities
import stages.readers
from ssl_models import objectives
from ssl_models.config import Backbone, Model
from ssl_models.models import presets
from stages.params import Compute, Corpus, Params

FOLDER = Path(__file__).parent
PAGE, PARAMS_SCHEMA, COMPUTE_SCHEMA = "reference.md", "params.schema.json", "compute.schema.json"
STAGES = ("dedup", "tokenize", "shard")
Kind = type[BaseModel]


def modules(package: Any, folders: bool = False) -> list[str]:
    """The names of a registry's entries: modules, or `folders`."""
    return [name for _, name, folder in pkgutil.iter_modules(list(package.__path__)[:1]) if folder == folders]


def readers() -> dict[str, Any]:
    """The reader modules by name."""
    return {name: importlib.import_module(f"stages.readers.{name}") for name in modules(stages.readers)}


def modalities() -> dict[str, dict[str, Kind]]:
    """The options of each modality's data stages."""
    return {
        name: {stage: importlib.import_module(f"stages.modalities.{name}.{stage}").Options for stage in STAGES}
        for name in modules(stages.modalities, folders=True)
    }


def tasks() -> dict[str, Kind]:
    """The options of each objective."""
    return {name: objectives.find(name).Options for name in modules(ssl_models.objectives)}


# ---- the page ---------------------------------------------------------------------------------------------------


def described(kind: Any) -> str:
    """A type in words."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return described(parts[0])
    if origin is Literal:
        return " or ".join(f"`{part}`" for part in parts)
    if origin in (Union, UnionType):
        return " or ".join("nothing" if part is type(None) else described(part) for part in parts)
    if origin in (tuple, list):
        inner = [part for part in parts if part is not Ellipsis]
        return f"list of {described(inner[0])}" if len(set(inner)) == 1 else "list"
    if origin is dict:
        return f"mapping to {described(parts[1])}"
    names = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path", Any: "any"}
    return names.get(kind, "mapping")


def nested(kind: Any) -> Kind | None:
    """The model within a type, where there is one."""
    candidates = [kind, *(part for part in get_args(kind))]
    return next((part for part in candidates if isinstance(part, type) and issubclass(part, BaseModel)), None)


def default(field: FieldInfo) -> str:
    """A default as it would be written."""
    if field.default is PydanticUndefined and field.default_factory is None:
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return ""
    if isinstance(value, tuple | list | dict):
        return f"`{json.dumps(value)}`"
    return "nothing" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def rows(kind: Kind, left_out: frozenset[str] = frozenset(), at: str = "") -> Iterator[str]:
    """The keys of a model and of those within it, a table row each."""
    for name, field in kind.model_fields.items():
        if name in left_out or field.exclude:
            continue
        what = (field.description or "").replace("|", "\\|")
        yield f"| `{at}{name}` | {described(field.annotation)} | {default(field)} | {what} |"
        if (inner := nested(field.annotation)) is not None and inner is not kind:
            yield from rows(inner, at=f"{at}{name}.")


def table(kind: Kind, *left_out: str) -> list[str]:
    """The keys of a model as Markdown; nothing where it has none."""
    lines = list(rows(kind, frozenset(left_out)))
    return ["| key | value | default | |", "|---|---|---|---|", *lines, ""] if lines else ["No keys.", ""]


def sentence(thing: Any) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join((thing.__doc__ or "").split("\n\n")[0].split())


def page() -> str:
    """`docs/reference.md`."""
    lines = [
        "# Every key",
        "",
        "Made by `python -m docs.reference` from the types that validate `params.yaml` and `compute.yaml`, and held to",
        "them by a test. `make check` tells what is wrong with both files. An editor that knows JSON schemas completes",
        "and checks them by [params.schema.json](params.schema.json) and [compute.schema.json](compute.schema.json),",
        "which their first lines name.",
        "",
        "## params.yaml: `corpora.NAME`",
        "",
        *table(Corpus, "ingest"),
        "### `ingest`",
        "",
        "`reader` names one of the readers below; its own keys stand beside these.",
        "",
        *table(Corpus.model_fields["ingest"].annotation),  # type: ignore[arg-type]
    ]
    for name, reader in readers().items():
        reads = ", ".join(sorted(reader.MODALITIES))
        lines += [f"#### reader `{name}` ({reads})", "", sentence(reader), "", *table(reader.Options)]
    for name, options in modalities().items():
        for stage, kind in options.items():
            lines += [f"### `{stage}` of modality `{name}`", "", *table(kind)]
    lines += ["## params.yaml: `models.NAME`", "", *table(Model, "backbone")]
    lines += ["### `backbone`", "", "The preset's fields can be overridden, each by its name.", "", *table(Backbone)]
    for title, kind, known in (
        ("transformer", presets.Architecture, presets.PRESETS),
        ("resnet", presets.ResNetArchitecture, presets.RESNETS),
    ):
        lines += [
            f"#### architecture `{title}`: presets {', '.join(f'`{name}`' for name in known)}",
            "",
            *table(kind, "preset"),
        ]
    for name, kind in tasks().items():
        objective = sys.modules[objectives.find(name).__module__]
        lines += [f"### `task` of objective `{name}`", "", sentence(objective), "", *table(kind)]
    lines += ["## params.yaml: `probe`", "", *table(Params.model_fields["probe"].annotation)]  # type: ignore[arg-type]
    lines += ["## compute.yaml", "", *table(Compute)]
    return "\n".join(lines).rstrip() + "\n"


# ---- the schemas ------------------------------------------------------------------------------------------------


def params_schema() -> dict[str, Any]:
    """A JSON schema of `params.yaml`: the options of readers, modalities and objectives follow from their names."""
    schema = Params.model_json_schema()
    definitions = schema["$defs"]

    def put(kind: Kind) -> dict[str, Any]:
        own = kind.model_json_schema(ref_template="#/$defs/{model}")
        definitions.update(own.pop("$defs", {}))
        name = f"{kind.__module__}.{kind.__qualname__}"
        definitions[name] = own
        return {"$ref": f"#/$defs/{name}"}

    definitions["Ingest"]["allOf"] = []
    for name, reader in readers().items():
        put(reader.Options)
        own = definitions[f"{reader.Options.__module__}.{reader.Options.__qualname__}"]
        keys = {**own.get("properties", {}), **definitions["Ingest"]["properties"]}
        then = {"properties": keys, "required": own.get("required", []), "additionalProperties": False}
        definitions["Ingest"]["allOf"].append({"if": {"properties": {"reader": {"const": name}}}, "then": then})
    definitions["Ingest"]["properties"]["reader"]["enum"] = list(readers())
    definitions["Corpus"]["allOf"] = [
        {
            "if": {"properties": {"modality": {"const": name}}},
            "then": {"properties": {stage: put(kind) for stage, kind in options.items()}},
        }
        for name, options in modalities().items()
    ]
    definitions["Model"]["allOf"] = [
        {"if": {"properties": {"objective": {"const": name}}}, "then": {"properties": {"task": put(kind)}}}
        for name, kind in tasks().items()
    ]
    definitions["Model"]["properties"]["objective"]["enum"] = list(tasks())
    return schema


def files() -> dict[str, str]:
    """What is written, by its name in `docs/`."""
    schemas = {PARAMS_SCHEMA: params_schema(), COMPUTE_SCHEMA: Compute.model_json_schema()}
    return {PAGE: page(), **{name: json.dumps(schema, indent=1) + "\n" for name, schema in schemas.items()}}


if __name__ == "__main__":
    for name, content in files().items():
        (FOLDER / name).write_text(content, encoding="utf-8")
