"""Thirty mistakes of the first day, each told by one sentence with its key and the mend, before any stage has run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from stages import check, params

ROOT = Path(__file__).parents[2]
Edit = Callable[[dict[str, Any]], None]


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The project's own parameters, in a folder of their own."""
    for name in ("params.yaml", "compute.yaml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    params.load_params.cache_clear()
    params.load_compute.cache_clear()
    yield
    params.load_params.cache_clear()
    params.load_compute.cache_clear()


def edited(edit: Edit, file: str = "params.yaml") -> None:
    yaml = YAML(typ="safe")
    content = yaml.load(Path(file).read_text())
    edit(content)
    with Path(file).open("w") as stream:
        yaml.dump(content, stream)
    params.load_params.cache_clear()
    params.load_compute.cache_clear()


def put(path: str, value: Any) -> Edit:
    """Set the key at `path`; None takes it away."""

    def edit(content: dict[str, Any]) -> None:
        *steps, last = path.split("/")
        for step in steps:
            content = content[step]
        if value is None:
            del content[last]
        else:
            content[last] = value

    return edit


def renamed(path: str, name: str) -> Edit:
    def edit(content: dict[str, Any]) -> None:
        *steps, last = path.split("/")
        for step in steps:
            content = content[step]
        content[name] = content.pop(last)

    return edit


MISTAKES: list[tuple[Edit, str]] = [
    (
        put("models/gpt/corpus", "pyton"),
        "models.gpt.corpus: there is no corpus 'pyton' (did you mean 'python'?) "
        "(corpora: captioned-digits, digits, moving-digits, python)",
    ),
    (put("models/gpt/corpus", None), "models.gpt.corpus: is required"),
    (
        put("models/gpt/objective", "next_tokens"),
        "models.gpt.objective: there is no 'next_tokens' in ssl_models/objectives (did you mean 'next_token'?)",
    ),
    (
        put("models/gpt/backbone/preset", "lama"),
        "models.gpt.backbone.preset: there is no transformer 'lama' (did you mean 'llama'?)",
    ),
    (
        put("models/gpt/backbone/layer", 2),
        "models.gpt.backbone.layer: no such key (did you mean 'layers'?); the keys are: ",
    ),
    (put("models/gpt/backbone/heads", 5), "models.gpt.backbone.heads: 5 heads do not divide a width of 128"),
    (put("models/gpt/backbone/width", "wide"), "models.gpt.backbone.width: must be a valid integer"),
    (
        put("models/gpt/train/step", 5),
        "models.gpt.train.step: no such key (did you mean 'steps'?); the keys are: steps, batch, ",
    ),
    (put("models/gpt/train/steps", None), "models.gpt.train.steps: is required"),
    (put("models/gpt/train/batch", 0), "models.gpt.train.batch: must be greater than or equal to 1 (got 0)"),
    (
        put("models/gpt/train/optimizer", "adam"),
        "models.gpt.train.optimizer: must be 'adamw' or 'muon' (got 'adam') (did you mean 'adamw'?)",
    ),
    (put("models/gpt/train/learning_rate", "1e-3x"), "models.gpt.train.learning_rate: must be a valid number"),
    (put("models/gpt/trian", {}), "models.gpt.trian: no such key (did you mean 'train'?); the keys are: corpus, "),
    (
        put("models/gpt/task", {"document_mask": True}),
        "models.gpt.task.document_mask: no such key (did you mean 'document_masking'?); the keys are: document_masking",
    ),
    (
        put("models/simclr/task/augment/blurr", 1),
        "models.simclr.task.augment.blurr: no such key (did you mean 'blur'?); the keys are: crop, aspect, ",
    ),
    (
        put("models/simclr/corpus", "python"),
        "models.simclr: objective: this objective needs pictures, and the corpus is text",
    ),
    (put("models/gpt/corpus", "digits"), "models.gpt: corpus: a language task needs rows of text, not of image"),
    (
        put("models/bert/backbone/preset", "gpt2"),
        "models.bert: preset: gpt2 is of structure decoder; this task needs encoder",
    ),
    (
        put("models/mae/backbone", {"architecture": "resnet", "preset": "resnet18"}),
        "models.mae: architecture: this objective masks patches and needs a transformer, not a resnet",
    ),
    (put("models/mae/backbone/patch", 5), "models.mae: patch: patches of 5 pixels do not tile pictures of 16x16"),
    (
        put("models/beit/backbone/patch", 8),
        "models.beit: patch: the codebook has patches of 4 pixels, the backbone of 8",
    ),
    (put("models/gpt/init_from", "gone"), "models.gpt.init_from: there is no folder gone"),
    (
        put("corpora/python/ingest/reader", "installed_package"),
        "corpora.python.ingest.reader: there is no 'installed_package' in stages/readers "
        "(did you mean 'installed_packages'?) (there are: ",
    ),
    (
        put("corpora/python/ingest/source", "requirement.lock"),
        "corpora.python.ingest.source: there is no file or folder requirement.lock (did you mean 'requirements.lock'?)",
    ),
    (put("corpora/python/ingest/source", None), "corpora.python.ingest.source: is required"),
    (
        put("corpora/python/ingest/package", ["dvc"]),
        "corpora.python.ingest.package: no such key (did you mean 'packages'?); the keys are: ",
    ),
    (
        put("corpora/python/modality", "txt"),
        "corpora.python.modality: must be 'text', 'image', 'video' or 'image_text' (got 'txt') (did you mean 'text'?)",
    ),
    (
        put("corpora/python/modality", "image"),
        "corpora.python.modality: the reader installed_packages reads text, not image",
    ),
    (
        put("corpora/python/tokenize/vocab", 4096),
        "corpora.python.tokenize.vocab: no such key (did you mean 'vocabulary'?); the keys are: algorithm, ",
    ),
    (put("corpora/python/tokenize/vocabulary", 100), "corpora.python.tokenize: vocabulary must be at least 363"),
    (
        put("corpora/python/tokenize", {"tokenizer": "gone.json"}),
        "corpora.python.tokenize.tokenizer: there is no file or folder gone.json",
    ),
    (put("corpora/python/shard/sequence", None), "corpora.python.shard.sequence: is required"),
    (put("corpora/python/shard/validation", 2), "corpora.python.shard.validation: must be less than or equal to 0.5"),
    (put("corpora/digits/dedup/distance", -1), "corpora.digits.dedup.distance: must be greater than or equal to 0"),
    (put("corpora/digits/tokenize/channels", 2), "corpora.digits.tokenize: channels: must be 1 or 3 (got 2)"),
    (put("corpora/python/dedup", None), "corpora.python.dedup: is required"),
    (renamed("models/gpt", "gpt.2"), "models.gpt.2: a name must be text of letters, digits, '-' and '_'"),
    (renamed("corpora/python", "x; touch y"), "corpora.x; touch y: a name must be text of letters, digits"),
    (renamed("models", "model"), "model: no such key (did you mean 'models'?); the keys are: corpora, models, probe"),
    (put("probe/shot", [1]), "probe.shot: no such key (did you mean 'shots'?); the keys are: shots, "),
    (put("probe", None), "probe: is required where there are models (`probe: {}` takes every default)"),
]


@pytest.mark.parametrize(("edit", "sentence"), MISTAKES, ids=[sentence[:50] for _, sentence in MISTAKES])
def test_a_mistake_is_one_sentence_with_its_key(edit: Edit, sentence: str) -> None:
    edited(edit)
    found = check.problems()
    assert any(line.startswith(f"params.yaml: {sentence}") for line in found), found
    assert all("\n" not in line and "Traceback" not in line for line in found)


def test_the_projects_own_parameters_are_right() -> None:
    assert check.problems() == []


def test_every_mistake_is_told_at_once() -> None:
    edited(put("models/gpt/train/step", 5))
    edited(put("corpora/digits/dedups", {}))
    edited(put("launcher", "slrum"), "compute.yaml")
    found = "\n".join(check.problems())
    assert "models.gpt.train.step" in found and "corpora.digits.dedups" in found
    assert "compute.yaml: launcher: there is no 'slrum' in stages/dispatch" in found


def test_compute_yaml_is_checked_too() -> None:
    edited(put("worker", 2), "compute.yaml")
    assert check.problems()[0].startswith("compute.yaml: worker: no such key (did you mean 'workers'?); the keys are: ")


def test_a_model_too_large_to_be_built_in_a_moment_is_checked_without_memory() -> None:
    edited(put("models/gpt/backbone", {"preset": "llama", "layers": 32, "width": 4096, "heads": 32}))
    assert check.problems() == []
    edited(put("models/gpt/objective", "masked_language"))
    assert any("structure decoder; this task needs encoder" in line for line in check.problems())


def test_the_command_prints_them_and_ends_with_status_2() -> None:
    edited(put("models/gpt/corpus", "pyton"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "stages.check"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: params.yaml: models.gpt.corpus: there is no corpus 'pyton'")
