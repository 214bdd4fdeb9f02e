"""What decides a result: for every stage, and there for each reader, modality or objective, the digest of just that
code; and for every model and corpus that of the folder it starts from. `code.json` holds them all.

`dvc.yaml` names no code file: each stage has its keys of `code.json` as parameters. The key of the checkpoints uses the
same digests, and a stage compares them at its end. A registry is its folder, so a new reader or objective is one file.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from ssl_models.layout import flat
from stages.digests.syntax import Digests, digest_of

FILE = Path("code.json")
PARAMS = Path("params.yaml")
PIPELINE = Path("dvc.yaml")
NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"
"""Of a corpus or a model: it is part of paths and of DVC's stage names."""

OTHER_FOLDERS = "ssl_models.huggingface"
EXCEPTIONS = {
    "what was asked for reaches a stage as parameters, which DVC knows": ["stages.check", "stages.params"],
    "where and how fast it runs, and how that is shown": [
        "stages.code", "stages.digests", "stages.dispatch", "stages.engine", "stages.results.kept",
        "ssl_models.cpu.allocator", "ssl_models.models.compiler", "ssl_models.training.checkpoint",
        "ssl_models.training.job", "ssl_models.training.lifetime", "ssl_models.training.parallel",
        "ssl_models.training.progress", "ssl_models.training.signals",
    ],
    "pages of MLflow, and what is written to be shown": [
        "stages.results.provenance", "stages.registry", "ssl_models.tools", "ssl_models.tracking",
        "ssl_models.objectives.shared.sampling",
    ],
    "other people's folders: with `init_from` it counts as a part of the folder": [OTHER_FOLDERS],
}  # fmt: skip
"""Modules and rooms that stages import and that decide no result, by reason."""
SETTINGS = "ssl_models.config"
BESIDE = {
    "the settings of models are pretrain's; the folder of a trained model holds all of its own": {
        "ingest": [SETTINGS], "dedup": [SETTINGS], "tokenize": [SETTINGS], "shard": [SETTINGS],
        "linear-probe": [SETTINGS, "ssl_models.training"],
    },
    "a codebook takes from models.vision what cuts patches, and nothing that this imports": {
        "tokenize": ["ssl_models.cpu", "ssl_models.models.attention", "ssl_models.models.presets",
                     "ssl_models.models.resnet", "ssl_models.models.transformer"],
    },
}  # fmt: skip
"""Further ones of one stage, by reason."""


def of(digests: Digests, stage: str, *roots: str) -> str:
    """The digest of the code that `roots` (modules) need within `stage`."""
    return digests.code(roots, beside(stage))


def beside(stage: str) -> list[str]:
    """What decides no result of `stage`."""
    found = [name for names in EXCEPTIONS.values() for name in names]
    return found + [name for stages in BESIDE.values() for name in stages.get(stage, ())]


def reader(digests: Digests, name: str) -> str:
    """The code that ingests with a reader."""
    return of(digests, "ingest", "stages.ingest", f"stages.readers.{name}")


def modality(digests: Digests, stage: str, name: str) -> str:
    """The code of a data stage for a modality; of ingest, what its driver takes from there."""
    driver = [] if stage == "ingest" else [f"stages.{stage}"]
    return of(digests, stage, *driver, f"stages.modalities.{name}.{stage}")


def pretrain(digests: Digests, objective: str) -> str:
    """The code that trains an objective."""
    return of(digests, "pretrain", "ssl_models.train", f"ssl_models.objectives.{objective}")


def linear_probe(digests: Digests, objective: str) -> str:
    """The code that probes an objective's features."""
    return of(digests, "linear-probe", "stages.linear_probe", f"ssl_models.objectives.{objective}")


def started_from(digests: Digests, folder: str | None) -> str | None:
    """What a model starts from (`init_from`): the folder's content and the code that reads it; None without one."""
    if folder is None:
        return None
    room = digests.root.joinpath(*OTHER_FOLDERS.split("."))
    reading = [OTHER_FOLDERS, *(f"{OTHER_FOLDERS}.{name}" for name in _registered(room))]
    others = [name for name in beside("pretrain") if name != OTHER_FOLDERS]
    return digest_of([("folder", digests.content(Path(folder))), ("code", digests.code(reading, others))])


def tokenizers(digests: Digests, options: object) -> str | None:
    """The content of every tokenizer that options of tokenize name; None where they name none."""
    found = sorted(_tokenizers(options))
    return digest_of((path, digests.content(Path(path))) for path in found) if found else None


def _tokenizers(options: object) -> Iterator[str]:
    for key, value in _mapping(options).items():
        if key == "tokenizer" and isinstance(value, str | Path):
            yield str(value)
        else:
            yield from _tokenizers(value)


def _registered(folder: Path) -> list[str]:
    """The modules of a registry: a file or a package each; what objectives share is none of them."""
    found = (path for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists())
    return sorted(path.stem for path in found if path.stem not in ("__init__", "shared"))


def table(digests: Digests, params: object) -> dict[str, Any]:
    """All that `code.json` says."""
    stages, learning = digests.root / "stages", digests.root / "ssl_models" / "objectives"
    modalities, objectives = _registered(stages / "modalities"), _registered(learning)
    by_modality = {
        stage: {name: modality(digests, stage, name) for name in modalities}
        for stage in ("ingest", "dedup", "tokenize", "shard")
    }
    readers = {name: reader(digests, name) for name in _registered(stages / "readers")}
    corpora, models = _entries(params, "corpora"), _entries(params, "models")
    return {
        **by_modality,
        "ingest": {"readers": readers, "modalities": by_modality["ingest"]},
        "pretrain": {name: pretrain(digests, name) for name in objectives},
        "linear-probe": {name: linear_probe(digests, name) for name in objectives},
        "folders": {
            "corpora": {name: tokenizers(digests, entry.get("tokenize")) for name, entry in corpora.items()},
            "models": {
                name: started_from(digests, folder if isinstance(folder := entry.get("init_from"), str) else None)
                for name, entry in models.items()
            },
        },
    }


def _entries(params: object, kind: str) -> dict[str, Mapping[str, Any]]:
    return {str(name): _mapping(entry) for name, entry in _mapping(_mapping(params).get(kind)).items()}


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def of_corpus(digests: Digests, stage: str, name: str, entry: Any) -> dict[str, str | None]:
    """Keys of `code.json` that a data stage of the corpus `name` depends on, with what they are now."""
    if stage == "ingest":
        return {
            f"ingest.readers.{entry.ingest.reader}": reader(digests, entry.ingest.reader),
            f"ingest.modalities.{entry.modality}": modality(digests, stage, entry.modality),
        }
    folders = {f"folders.corpora.{name}": tokenizers(digests, entry.tokenize)} if stage == "tokenize" else {}
    return {f"{stage}.{entry.modality}": modality(digests, stage, entry.modality), **folders}


def of_model(digests: Digests, stage: str, name: str, entry: Any) -> dict[str, str | None]:
    """Keys of `code.json` that a stage of the model `name` depends on, with what they are now."""
    if stage == "linear_probe":
        return {f"linear-probe.{entry.objective}": linear_probe(digests, entry.objective)}
    return {
        f"pretrain.{entry.objective}": pretrain(digests, entry.objective),
        f"folders.models.{name}": started_from(digests, entry.init_from),
    }


def recorded() -> dict[str, str | None]:
    """What `code.json` says, by dotted keys; empty where there is none."""
    try:
        return flat(json.loads(FILE.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def refresh() -> None:
    """Write `code.json` where the pipeline in the working directory has one, before anything asks DVC what is changed:
    DVC watches the code, but no folder that `init_from` or a tokenizer names. ValueError as `write`."""
    with contextlib.suppress(OSError):
        if FILE.name in PIPELINE.read_text(encoding="utf-8"):
            write()


def write() -> bool:
    """Write `code.json`, if it says anything new: whether it does. ValueError, one sentence, where params.yaml cannot
    be used."""
    try:
        params = YAML(typ="safe").load(PARAMS.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise ValueError(f"{PARAMS}: cannot be read: {' '.join(str(error).split())}") from None
    digests = Digests()
    _check(params, digests.root)
    text = json.dumps(table(digests, params), indent=1, sort_keys=True) + "\n"
    digests.remember()
    if FILE.exists() and FILE.read_text(encoding="utf-8") == text:
        return False
    partial = FILE.with_name(f".{FILE.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(FILE)
    return True


def _check(params: object, root: Path) -> None:
    """ValueError for a name that cannot be one (DVC makes paths of names before a stage has seen them), or that no
    registry has."""
    for kind in ("corpora", "models"):
        for name in _mapping(_mapping(params).get(kind)):
            if not isinstance(name, str) or not re.fullmatch(NAME, name) or name.endswith("\n"):
                raise ValueError(
                    f"{PARAMS}: {kind}: {name!r}: a name must be text of letters, digits, '-' and '_', beginning with "
                    "a letter or digit"
                )
    for name, entry in _entries(params, "corpora").items():
        _check_registry(
            f"corpora.{name}.ingest.reader", _mapping(entry.get("ingest")).get("reader"), root, "stages/readers"
        )
        _check_registry(f"corpora.{name}.modality", entry.get("modality"), root, "stages/modalities")
    for name, entry in _entries(params, "models").items():
        _check_registry(f"models.{name}.objective", entry.get("objective"), root, "ssl_models/objectives")


def _check_registry(at: str, name: object, root: Path, registry: str) -> None:
    known = _registered(root / registry)
    if name not in known:
        raise ValueError(f"{PARAMS}: {at}: there is no {name!r} in {registry} (there are: {', '.join(known)})")
