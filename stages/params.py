"""`params.yaml` (what is computed) and `compute.yaml` (where it runs) as typed, validated data.

Every stage reads its parameters through here before any work. A mistake in either file ends the stage with one
sentence that names the key, and exit status 2. Options that belong to a reader, a modality or an objective are
validated by that module, which is found by its name.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

import ssl_models
from ssl_models import disk
from ssl_models.addresses import secret
from ssl_models.config import Backbone, Model, Strict
from ssl_models.models import presets
from ssl_models.probing.settings import Probe
from ssl_models.sentences import meant, sentences
from stages.digests import policy as code
from stages.digests.syntax import Digests

PARAMS = code.PARAMS
COMPUTE = Path("compute.yaml")
OBJECTIVES = Path(ssl_models.__file__).parent / "objectives"

DVC_STAGE = "DVC_STAGE"
"""Set by DVC for each command: the stage that it runs, `ingest@python`."""

AnyModel = TypeVar("AnyModel", bound=BaseModel)


Name = Annotated[str, Field(pattern=code.NAME)]


class UserError(Exception):
    """A condition the user can mend. Its message is one sentence that names the place and the mend, or a line for each
    of several."""


class Ingest(BaseModel, extra="allow", frozen=True):
    """`corpora.NAME.ingest`: the reader, its source, and the reader's own options as further keys."""

    reader: str = Field(description="a module of stages/readers")
    source: str = Field(description="path, folder or URL that DVC can hash")
    max_reject_fraction: float = Field(default=0.05, ge=0, le=1, description="of the rows; more rejects stop the stage")

    @property
    def options(self) -> dict[str, Any]:
        """The reader's own options."""
        return dict(self.model_extra or {})


class Corpus(Strict):
    """One entry of `corpora`. `dedup`, `tokenize` and `shard` are validated by the modality's module of that name."""

    modality: Literal["text", "image", "video", "image_text"] = Field(description="what kind of data it is")
    ingest: Ingest
    dedup: dict[str, Any] = Field(description="options of the modality's dedup stage")
    tokenize: dict[str, Any] = Field(description="options of the modality's tokenize stage")
    shard: dict[str, Any] = Field(description="options of the modality's shard stage")


class Params(Strict):
    """The whole of `params.yaml`."""

    corpora: dict[Name, Corpus]
    models: dict[Name, Model] = Field(default_factory=dict)
    probe: Probe = Probe()

    @model_validator(mode="after")
    def _fits_together(self) -> Params:
        wrong = [*self._sources(), *self._names()]
        if self.models and "probe" not in self.model_fields_set:
            wrong.append("probe: is required where there are models (`probe: {}` takes every default)")
        if wrong:
            raise ValueError("\n".join(wrong))
        return self

    def _sources(self) -> Iterator[str]:
        for name, corpus in self.corpora.items():
            if secret(corpus.ingest.source):
                yield (
                    f"corpora.{name}.ingest.source: holds a password or a token, which dvc.lock would keep: leave it "
                    "out, and let the environment give it (docs/data-sources.md)"
                )

    def _names(self) -> Iterator[str]:
        known = sorted(path.stem for path in OBJECTIVES.glob("*.py") if path.stem != "__init__")
        for name, model in self.models.items():
            if model.corpus not in self.corpora:
                corpora, hint = ", ".join(sorted(self.corpora)) or "none", meant(model.corpus, self.corpora)
                yield f"models.{name}.corpus: there is no corpus {model.corpus!r}{hint} (corpora: {corpora})"
            if model.objective not in known:
                yield (
                    f"models.{name}.objective: there is no {model.objective!r} in ssl_models/objectives"
                    f"{meant(model.objective, known)} (there are: {', '.join(known)})"
                )
            backbone = model.backbone
            if model.init_from is not None:  # sizes left open are the folder's: the training job checks them
                backbone = Backbone(architecture=backbone.architecture, preset=backbone.preset)
            try:
                presets.check(backbone)
            except ValueError as error:
                yield f"models.{name}.backbone.{error}"


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
    local: Local = Field(default=Local(), description="the launcher `local`: processes on this machine")
    micro_batch: int | Literal["auto"] = Field(default="auto", description="rows that a process computes at once")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="auto: bfloat16 on GPUs that have it"
    )
    compile: bool | Literal["auto"] = Field(default="auto", description="torch.compile; auto: on GPU only")
    portable: bool = Field(default=False, description="train with AVX2, though a processor has more")
    checkpoint_seconds: float = Field(default=30.0, ge=0, description="at most this much training is ever repeated")
    tracking_uri: str | None = Field(default=None, description="MLflow server; default: sqlite in .mlflow/")


def _wrong(file: Path, error: ValidationError, kind: type[BaseModel], at: str = "") -> UserError:
    lines = (line for sentence in sentences(error, kind, at) for line in sentence.splitlines())
    return UserError("\n".join(f"{file}: {line}" for line in lines))


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
        raise _wrong(path, error, kind) from None


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
        raise _wrong(PARAMS, error, kind, at) from None


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
        raise UserError(
            f"{file}: {at}: there is no {name!r} in {package.replace('.', '/')}{meant(name, known)} "
            f"(there are: {', '.join(known)})"
        )
    return importlib.import_module(f"{package}.{name}")


def _decides(kind: str, name: str) -> object:
    """What DVC records of `params.yaml` for one stage."""
    if kind == "linear_probe":
        return load_params().probe
    if kind == "pretrain":
        return model(name)
    return corpus(name).modality, getattr(corpus(name), kind)


def _code(kind: str, name: str) -> dict[str, str | None]:
    """The keys of `code.json` that decide one stage, as code and folders are now."""
    digests = Digests()
    of, entry = (code.of_model, model) if kind in ("pretrain", "linear_probe") else (code.of_corpus, corpus)
    found = of(digests, kind, name, entry(name))
    digests.remember()
    return found


def _name(kind: str) -> str:
    """The corpus or model that a stage is for: its one argument, or, below DVC, the rest of the stage's name. Names
    come from the user, and a command that held one would be run by a shell."""
    if len(sys.argv) == 2:
        return sys.argv[1]
    stage = re.fullmatch(rf"(?:.*dvc\.yaml:)?{kind.replace('_', '-')}@(.*)", os.environ.get(DVC_STAGE, ""), re.DOTALL)
    if len(sys.argv) != 1 or stage is None:
        sys.exit(f"usage: python -m stages.{kind} NAME")
    return stage[1]


def main(stage: Callable[[str], None]) -> None:
    """Run `stage` on the corpus or model it is for; a UserError is one sentence and exit status 2."""
    kind = Path(sys.argv[0]).stem
    name = _name(kind)
    at = f"{kind.replace('_', '-')}@{name}"
    try:
        digests = _code(kind, name)
        known = code.recorded() if os.environ.get(DVC_STAGE) else {}
        if known and any(known.get(key) != digest for key, digest in digests.items()):
            raise UserError(
                f"{code.FILE}: what it says of {at} is not of the code and the folders as they are now: run `python -m "
                f"stages.code`, then `dvc repro {at}`"
            )
        stage(name)
        before = _decides(kind, name)  # as the stage has read it
        load_params.cache_clear()
        edited = str(PARAMS) if _decides(kind, name) != before else ""
        if not edited and (after := _code(kind, name)) != digests:
            edited = ", ".join(key for key, digest in after.items() if digests.get(key) != digest)
        if edited:
            raise UserError(
                f"{edited}: what decides {at} was edited while it ran, and DVC would record the new values with the "
                f"old result: `dvc repro {at}` makes the new; or undo the edit, and `dvc commit -f {at}` keeps the old"
            )
    except UserError as error:
        for sentence in str(error).splitlines():
            print(f"error: {sentence}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        reason = disk.full(error, f"{kind.replace('_', '-')}@{name}")
        if reason is None:
            raise
        print(f"error: {reason}", file=sys.stderr)
        sys.exit(2)
