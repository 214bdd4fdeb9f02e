"""`params.yaml` (what is computed) and `compute.yaml` (where it runs) as typed, validated data.

Every stage reads its parameters through here before any work. A mistake in either file ends the stage with one
sentence that names the key, and exit status 2. Options that belong to a reader, a modality or an objective are
validated by that module, which is found by its name.
"""

from __future__ import annotations

import functools
import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

import ssl_models
from ssl_models.config import Backbone, Model, Probe, Strict
from ssl_models.models import presets
from ssl_models.tracking.addresses import public, secret

PARAMS = Path("params.yaml")
COMPUTE = Path("compute.yaml")
OBJECTIVES = Path(ssl_models.__file__).parent / "objectives"

AnyModel = TypeVar("AnyModel", bound=BaseModel)


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
"""Of a corpus or a model: it is part of paths and of DVC's stage names."""


class UserError(Exception):
    """A condition the user can mend. Its message is one sentence that names the place and the mend."""


class Ingest(BaseModel, extra="allow", frozen=True):
    """`corpora.NAME.ingest`: the reader, its source, and the reader's own options as further keys."""

    reader: str = Field(description="a module of stages/readers")
    source: str = Field(description="path, folder or URL that DVC can hash")
    max_reject_fraction: float = Field(default=0.05, ge=0, le=1)

    @property
    def options(self) -> dict[str, Any]:
        """The reader's own options."""
        return dict(self.model_extra or {})


class Corpus(Strict):
    """One entry of `corpora`. `dedup`, `tokenize` and `shard` are validated by the modality's module of that name."""

    modality: Literal["text", "image", "video", "image_text"]
    ingest: Ingest
    dedup: dict[str, Any]
    tokenize: dict[str, Any]
    shard: dict[str, Any]


class Params(Strict):
    """The whole of `params.yaml`."""

    corpora: dict[Name, Corpus]
    models: dict[Name, Model] = Field(default_factory=dict)
    probe: Probe = Probe()

    @model_validator(mode="after")
    def _models_name_corpora(self) -> Params:
        for name, model in self.models.items():
            if model.corpus not in self.corpora:
                known = ", ".join(sorted(self.corpora)) or "none"
                raise ValueError(f"models.{name}.corpus: there is no corpus {model.corpus!r} (corpora: {known})")
        return self

    @model_validator(mode="after")
    def _sources_hold_no_secret(self) -> Params:
        for name, corpus in self.corpora.items():
            if secret(corpus.ingest.source):
                raise ValueError(
                    f"corpora.{name}.ingest.source: holds a password or a token, which dvc.lock would keep: leave it "
                    "out, and let the environment give it (docs/data-sources.md)"
                )
        return self

    @model_validator(mode="after")
    def _models_are_probed(self) -> Params:
        if self.models and "probe" not in self.model_fields_set:
            raise ValueError("probe: is required where there are models (`probe: {}` takes every default)")
        return self

    @model_validator(mode="after")
    def _objectives_and_backbones_exist(self) -> Params:
        known = sorted(path.stem for path in OBJECTIVES.glob("*.py") if path.stem != "__init__")
        for name, model in self.models.items():
            if model.objective not in known:
                raise ValueError(
                    f"models.{name}.objective: there is no {model.objective!r} in ssl_models/objectives "
                    f"(there are: {', '.join(known)})"
                )
            backbone = model.backbone
            if model.init_from is not None:  # sizes left open are the folder's: the training job checks them
                backbone = Backbone(architecture=backbone.architecture, preset=backbone.preset)
            try:
                presets.check(backbone)
            except ValueError as error:
                raise ValueError(f"models.{name}.backbone.{error}") from None
        return self


class Local(Strict):
    """The local launcher: processes on this machine."""

    processes: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        default="auto", description="auto: one per GPU, or one on the CPU"
    )
    threads: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        default="auto", description="CPU threads per process"
    )


class Compute(Strict):
    """The whole of `compute.yaml`. Nothing in it changes what is computed, so DVC does not track it."""

    workers: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        default="auto", description="processes of the data stages"
    )
    launcher: str = Field(default="local", description="a module of stages/dispatch")
    local: Local = Local()
    micro_batch: int | Literal["auto"] = Field(default="auto", description="rows that a process computes at once")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="auto: bfloat16 on GPUs that have it"
    )
    compile: bool | Literal["auto"] = Field(default="auto", description="torch.compile; auto: on GPU only")
    portable: bool = Field(default=False, description="train with AVX2, though a processor has more")
    checkpoint_seconds: float = Field(default=30.0, ge=0, description="at most this much training is ever repeated")
    tracking_uri: str | None = Field(default=None, description="MLflow server; default: sqlite in .mlflow/")


_KINDS: dict[type, str] = {list: "a list", type(None): "nothing"}


def sentence(error: ValidationError, file: Path, at: str = "") -> str:
    """One sentence for the first thing wrong, with the path of its key."""
    first = error.errors()[0]
    steps = [str(step) for step in first["loc"]]
    branch = (
        len(error.errors()) > 1 and steps and re.fullmatch(r"int|bool|float|str|constrained-\w+|literal\[.*", steps[-1])
    )
    key = ".".join(part for part in [at, *(steps[:-1] if branch else steps)] if part)
    if first["type"] == "extra_forbidden":
        message = "no such key; check its spelling"
    elif first["type"] == "missing":
        message = "is required"
    elif first["type"] in ("dict_type", "model_type"):
        message = f"must be a mapping of keys to values, not {_KINDS.get(type(first['input']), repr(first['input']))}"
    elif first["loc"][-1:] == ("[key]",):
        key = key.removesuffix(".[key]")
        message = "a name must be text of letters, digits, '-' and '_', beginning with a letter or digit"
    else:
        message = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        if not isinstance(first["input"], dict | list):
            message += public(f" (got {first['input']!r})")
    return f"{file}: {key}: {message}" if key else f"{file}: {message}"


def _load(path: Path, kind: type[AnyModel]) -> AnyModel:
    try:
        content = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run the stage from the root of the project") from None
    except (YAMLError, UnicodeDecodeError) as error:
        place = getattr(error, "problem_mark", None)
        where = f", line {place.line + 1}" if place else ""
        raise UserError(
            f"{path}{where}: is not valid YAML: {str(getattr(error, 'problem', error)).splitlines()[0]}"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return kind.model_validate(content if content is not None else {})
    except ValidationError as error:
        raise UserError(sentence(error, path)) from None


@functools.cache
def load_params() -> Params:
    """`params.yaml` of the working directory."""
    return _load(PARAMS, Params)


@functools.cache
def load_compute() -> Compute:
    """`compute.yaml` of the working directory; without the file, every default."""
    return _load(COMPUTE, Compute) if COMPUTE.exists() else Compute()


def corpus(name: str) -> Corpus:
    """The entry `corpora.NAME`."""
    corpora = load_params().corpora
    if name not in corpora:
        raise UserError(f"{PARAMS}: corpora.{name}: there is no such corpus (corpora: {', '.join(sorted(corpora))})")
    return corpora[name]


def model(name: str) -> Model:
    """The entry `models.NAME`."""
    models = load_params().models
    if name not in models:
        raise UserError(f"{PARAMS}: models.{name}: there is no such model (models: {', '.join(sorted(models))})")
    return models[name]


def options(kind: type[AnyModel], given: dict[str, Any], at: str) -> AnyModel:
    """The options at key path `at`, validated by the module they belong to."""
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise UserError(sentence(error, PARAMS, at)) from None


class Named(Protocol):
    """A module of a registry: a reader, a modality's stage, a launcher. Its protocol is in its package's docstring."""

    Options: type[BaseModel]


def find(package: str, name: str, at: str, file: Path = PARAMS) -> Any:
    """The module `package.name`; `at` is the key of `file` that named it. A package is its own registry."""
    folder = Path(importlib.import_module(package).__path__[0])
    known = sorted(
        {entry.stem for entry in folder.iterdir() if entry.suffix == ".py" and entry.stem != "__init__"}
        | {entry.name for entry in folder.iterdir() if (entry / "__init__.py").exists()}
    )
    if name not in known:
        raise UserError(f"{file}: {at}: there is no {name!r} in {package} (there are: {', '.join(known)})")
    return importlib.import_module(f"{package}.{name}")


def _decides(kind: str, name: str) -> object:
    """What DVC records of `params.yaml` for one stage."""
    if kind == "linear_probe":
        return load_params().probe
    if kind == "pretrain":
        return model(name)
    return corpus(name).modality, getattr(corpus(name), kind)


def main(stage: Callable[[str], None]) -> None:
    """Run `stage` on the name given on the command line; a UserError is one sentence and exit status 2."""
    if len(sys.argv) != 2:
        sys.exit(f"usage: python -m stages.{Path(sys.argv[0]).stem} NAME")
    kind, name = Path(sys.argv[0]).stem, sys.argv[1]
    try:
        stage(name)
        before = _decides(kind, name)  # as the stage has read it
        load_params.cache_clear()
        if _decides(kind, name) != before:
            at = f"{kind.replace('_', '-')}@{name}"
            raise UserError(
                f"{PARAMS}: what decides {at} was edited while it ran, and DVC would record the new values with the "
                f"old result: `dvc repro {at}` makes the new; or undo the edit, and `dvc commit -f {at}` keeps the old"
            )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
