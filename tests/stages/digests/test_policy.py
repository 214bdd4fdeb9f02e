"""An edit changes the digests of just the stages whose results it decides."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ssl_models import layout
from stages.digests import policy as code
from stages.digests.syntax import Digests

ROOT = Path(__file__).parents[3]
CODE = ("stages", "ssl_models")
TEXT_READERS = {"csv", "installed_packages", "jsonl", "parquet", "text"}
TEXT = {f"ingest.readers.{name}" for name in TEXT_READERS}
TEXT |= {"ingest.modalities.text", "dedup.text", "tokenize.text", "shard.text"}
LEARNING = {"pretrain", "linear-probe"}
LANGUAGE = {"masked_language", "next_token", "span_corruption", "text_infilling"}
PICTURES = [
    "stages/modalities/image", "stages/modalities/image_text", "stages/modalities/video",
    "stages/readers/image_folder.py",
    "ssl_models/models/vision.py", "ssl_models/models/resnet.py", "ssl_models/models/codebook.py",
    "ssl_models/data/augmentation.py", "ssl_models/cpu/augment_kernel.py", "ssl_models/objectives/shared/augment.py",
    "ssl_models/objectives/shared/losses.py", "ssl_models/objectives/shared/pictures.py",
]  # fmt: skip


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("code")
    for name in CODE:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture
def root(copied: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the code to be edited, which is undone; `started` is a folder that a model starts from."""
    monkeypatch.chdir(copied)
    (copied / "started").mkdir(exist_ok=True)
    (copied / "started/config.json").write_text("{}")
    yield copied
    for file in [file for name in CODE for file in (copied / name).rglob("*.py")]:
        original = ROOT / file.relative_to(copied)
        if not original.exists():
            file.unlink()
        elif file.read_bytes() != original.read_bytes():
            shutil.copyfile(original, file)


def flat(root: Path, **models: dict[str, Any]) -> dict[str, Any]:
    digests = Digests(root)
    found = dict(layout.flat(code.table(digests, {"models": models})))
    digests.remember()
    return found


def add(root: Path, text: str, places: Iterable[str]) -> None:
    for place in places:
        files = [root / place] if place.endswith(".py") else sorted((root / place).rglob("*.py"))
        assert files
        for file in files:
            file.write_text(file.read_text(encoding="utf-8") + text, encoding="utf-8")


def replace(root: Path, place: str, old: str, new: str) -> None:
    text = (root / place).read_text(encoding="utf-8")
    assert old in text
    (root / place).write_text(text.replace(old, new), encoding="utf-8")


def changed(root: Path, before: dict[str, Any], **models: dict[str, Any]) -> set[str]:
    after = flat(root, **models)
    assert after.keys() >= before.keys()
    return {key for key in after if after[key] != before.get(key)}


def test_comments_and_docstrings_anywhere_change_nothing(root: Path) -> None:
    before = flat(root, m={"init_from": "started"})
    add(root, '\n\n# A comment.\n"""A docstring of what stands above."""\n', ["stages", "ssl_models"])
    assert changed(root, before, m={"init_from": "started"}) == set()


@pytest.mark.parametrize(
    ("place", "wanted"),
    [
        ("ssl_models/objectives/rotation.py", {"pretrain.rotation", "linear-probe.rotation"}),
        ("ssl_models/objectives/next_token.py", {"pretrain.next_token", "linear-probe.next_token"}),
        ("stages/readers/parquet.py", {"ingest.readers.parquet", "ingest.readers.hf_datasets"}),
        ("stages/readers/text.py", {"ingest.readers.text"}),
        ("stages/modalities/text/dedup.py", {"dedup.text", "dedup.image_text"}),
        ("stages/modalities/video/tokenize.py", {"tokenize.video"}),
        ("stages/modalities/text/unigram.py", {"tokenize.text", "tokenize.image_text"}),
        ("stages/dedup.py", {f"dedup.{name}" for name in ("text", "image", "image_text", "video")}),
        ("ssl_models/objectives/shared/denoising.py",
         {f"{stage}.{name}" for stage in LEARNING for name in ("span_corruption", "text_infilling")}),
    ],
)  # fmt: skip
def test_an_edit_of_one_module_re_runs_what_it_decides_alone(root: Path, place: str, wanted: set[str]) -> None:
    before = flat(root)
    add(root, "\nEDITED = 1\n", [place])
    assert changed(root, before) == wanted


def test_picture_code_re_runs_no_text_stage_and_no_language_model(root: Path) -> None:
    before = flat(root)
    add(root, "\nEDITED = 1\n", PICTURES)
    found = changed(root, before)
    assert not found & TEXT
    assert {key for key in found if key.startswith("pretrain")} == {
        key for key in before if key.startswith("pretrain") and key.partition(".")[2] not in LANGUAGE
    }


@pytest.mark.parametrize(
    ("place", "old", "new", "stages"),
    [
        ("ssl_models/config.py", "default=0.95", "default=0.99", {"pretrain"}),
        ("ssl_models/training/optimizer.py", '"momentum": 0.95', '"momentum": 0.9', {"pretrain"}),
        ("ssl_models/train.py", "PATIENCE = 5", "PATIENCE = 6", {"pretrain"}),
        ("ssl_models/probing/settings.py", "default=5", "default=6", {"linear-probe"}),
        ("ssl_models/models/presets.py", "from typing", "EDITED = 1\nfrom typing", LEARNING),
        ("ssl_models/cpu/linear.py", "import torch\n", "import torch\nEDITED = 1\n", LEARNING),
        ("ssl_models/models/codebook.py", "_CHUNK = 1 << 24", "_CHUNK = 1 << 23", {"tokenize", *LEARNING}),
        ("ssl_models/tracking/tracker.py", "import time", "import time\nEDITED = 1", set()),
        ("stages/engine.py", "import os", "import os\nEDITED = 1", set()),
        ("ssl_models/huggingface/gpt2.py", "from typing", "EDITED = 1\nfrom typing", set()),
    ],
)  # fmt: skip
def test_a_default_re_runs_what_it_touches(root: Path, place: str, old: str, new: str, stages: set[str]) -> None:
    before = flat(root)
    replace(root, place, old, new)
    found = changed(root, before)
    assert {key.partition(".")[0] for key in found} == stages
    if stages and "codebook" not in place:  # of every model
        assert {key for key in before if key.partition(".")[0] in stages} == found


def test_a_folder_that_a_model_starts_from_counts_with_the_code_that_reads_it_and_only_there(root: Path) -> None:
    models: dict[str, dict[str, Any]] = {"fresh": {}, "m": {"init_from": "started"}}
    before = flat(root, **models)
    assert before["folders.models.fresh"] is None
    (root / "started/config.json").write_text("[]")
    assert changed(root, before, **models) == {"folders.models.m"}
    (root / "started/config.json").write_text("{}")
    assert changed(root, before, **models) == set()
    replace(root, "ssl_models/huggingface/gpt2.py", "from typing", "EDITED = 1\nfrom typing")
    assert changed(root, before, **models) == {"folders.models.m"}


@pytest.mark.parametrize("options", [{"tokenizer": "started"}, {"caption": {"tokenizer": Path("started/config.json")}}])
def test_a_tokenizer_counts_by_its_content(root: Path, options: dict[str, Any]) -> None:
    before = code.tokenizers(Digests(root), options)
    (root / "started/config.json").write_text("[]")
    assert code.tokenizers(Digests(root), options) != before
    assert code.tokenizers(Digests(root), {"vocabulary": 3}) is None


def test_a_new_objective_and_a_new_reader_have_keys_at_once(root: Path) -> None:
    before = flat(root)
    shutil.copy(root / "ssl_models/objectives/rotation.py", root / "ssl_models/objectives/flipping.py")
    shutil.copy(root / "stages/readers/text.py", root / "stages/readers/letters.py")
    wanted = {"pretrain.flipping", "linear-probe.flipping", "ingest.readers.letters"}
    assert changed(root, before) == wanted


def test_every_exception_is_a_module_or_a_room_that_there_is() -> None:
    digests = Digests()
    listed = {name for stage in ("ingest", "dedup", "tokenize", "shard", "pretrain", "linear-probe")
              for name in code.beside(stage)}  # fmt: skip
    assert {name for name in listed if digests._path(name) is None} == set()


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({"corpora": {"x; touch PWNED #": {}}}, r"corpora: 'x; touch PWNED #': a name must be text of letters"),
        ({"models": {"../x": {}}}, r"models: '\.\./x': a name must"),
        ({"corpora": {"x\n": {}}}, r"a name must"),
        ({"corpora": {"c": {"modality": "text", "ingest": {"reader": "xml"}}}}, r"ingest\.reader: there is no 'xml'"),
        ({"corpora": {"c": {"modality": "smell", "ingest": {"reader": "csv"}}}}, r"c\.modality: there is no 'smell'"),
        ({"models": {"m": {"objective": "shared"}}}, r"models\.m\.objective: there is no 'shared' .*next_token"),
        ("{", r"params\.yaml: cannot be read"),
    ],
)  # fmt: skip
def test_what_no_stage_could_use_is_refused_before_any_runs(
    params: Any, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code.PARAMS.write_text(params if isinstance(params, str) else json.dumps(params))
    with pytest.raises(ValueError, match=sentence) as raised:
        code.write()
    assert "\n" not in str(raised.value)
    assert not code.FILE.exists()


def test_it_is_written_only_where_it_says_anything_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code.PARAMS.write_text("corpora: {}\n")
    code.write()
    written = code.FILE.stat().st_mtime_ns
    code.write()
    assert code.FILE.stat().st_mtime_ns == written
    assert code.recorded()["pretrain.rotation"] == code.pretrain(Digests(), "rotation")


def test_a_project_without_such_a_pipeline_gets_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code.refresh()
    code.PIPELINE.write_text("stages: {}\n")
    code.refresh()
    assert not code.FILE.exists()
