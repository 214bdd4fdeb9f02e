"""dvc.yaml: whatever code decides a stage's result is a dependency of it, so that an edit runs the stage again."""

from __future__ import annotations

import ast
import functools
import importlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
STAGES = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
READERS = sorted(path.stem for path in (ROOT / "stages/readers").glob("[a-z]*.py"))
OBJECTIVES = sorted(path.stem for path in (ROOT / "ssl_models/objectives").glob("[a-z]*.py"))

EXCEPTIONS = {
    "what was asked for": "stages.params ssl_models.config ssl_models.addresses ssl_models.presets",
    "the form of files, which those already written have": "stages.tables ssl_models.encoding ssl_models.manifest "
    "ssl_models.huggingface",
    "where and how fast it runs, and how that is shown": "stages.engine stages.progress stages.dispatch "
    "ssl_models.checkpoint ssl_models.compiler ssl_models.job ssl_models.lifetime ssl_models.memory "
    "ssl_models.parallel ssl_models.progress ssl_models.signals",
    "pages of MLflow": "stages.provenance stages.registry stages.serving stages.pyfunc_model ssl_models.description "
    "ssl_models.encode ssl_models.generate ssl_models.pictures ssl_models.probe_tracking ssl_models.sampling "
    "ssl_models.tracking",
    "scikit-learn's pictures, which requirements.lock pins": "stages.readers.digits",
}
"""Modules (or packages) that a stage imports and does not depend on, by reason."""
EXCEPTED = [name for names in EXCEPTIONS.values() for name in names.split()]
BESIDE = {
    "tokenize": "ssl_models.linear ssl_models.resnet ssl_models.rms_norm ssl_models.transformer "
    "ssl_models.vision",  # patches alone are cut
    "pretrain": "stages.pretrain ssl_models.statistics",  # the first starts the job, the second watches it
    "linear-probe": "ssl_models.artifact ssl_models.augment ssl_models.augment_kernel ssl_models.codebook "
    "ssl_models.cross_entropy ssl_models.denoising ssl_models.keyed ssl_models.losses ssl_models.shards "
    "ssl_models.vocabulary",  # features do not pass through them
}
"""Modules that one stage imports beside what decides its result."""


def module(name: str) -> Path | None:
    """The file of a module of this project; a package's own is its contract."""
    path = ROOT.joinpath(*name.split(".")).with_suffix(".py")
    return path if path.exists() else None


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@functools.cache
def imported(path: Path) -> frozenset[Path]:
    """The project's modules that a file imports by name, at its top or within a function."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
    return frozenset(found for name in names if (found := module(name)) and not excepted(name))


def excepted(name: str) -> bool:
    return any(name == other or name.startswith(f"{other}.") for other in EXCEPTED)


def reached(roots: Iterable[Path]) -> set[Path]:
    """All that `roots` import, directly or not, and themselves."""
    found, new = set[Path](), set(roots)
    while new:
        path = new.pop()
        found.add(path)
        new |= imported(path) - found
    return found


def entries(stage: str) -> Iterator[dict[str, str]]:
    """What the dependencies of a stage name in braces, for every reader and modality, or every objective, there is."""
    if STAGES[stage]["foreach"] == "${models}":
        yield from ({"objective": objective} for objective in OBJECTIVES)
        return
    for reader in READERS:
        for modality in sorted(importlib.import_module(f"stages.readers.{reader}").MODALITIES):
            yield {"ingest.reader": reader, "modality": modality}


@pytest.mark.parametrize("stage", STAGES)
def test_an_edit_of_what_decides_a_result_runs_its_stage_again(stage: str) -> None:
    work = STAGES[stage]["do"]
    command = module(re.findall(r"-m (\S+)", work["cmd"])[0])
    assert command
    lacking = set[str]()
    for item in entries(stage):
        code = set[Path]()
        for dep in work["deps"]:
            if dep.endswith(".py"):
                code.add(
                    ROOT / functools.reduce(lambda path, key: path.replace(f"${{item.{key}}}", item[key]), item, dep)
                )
        assert all(path.exists() for path in code)
        lacking |= {name_of(path) for path in reached({command, *code}) - code}
    assert lacking - set(BESIDE.get(stage, "").split()) == set()
