"""A finished training is kept until DVC has recorded it, and put in place without a second copy."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from stages.results import kept
from stages.results.kept import RESULTS


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def result(key: str, weights: str, model: str = "gpt") -> Path:
    folder = RESULTS / model / key
    (folder / "model/encoding").mkdir(parents=True)
    (folder / "model/model.safetensors").write_text(weights)
    (folder / "model/encoding/encoding.json").write_text("{}")
    (folder / "loss.csv").write_text("step,loss\n")
    return folder


def record(folder: Path, model: str = "gpt") -> None:
    """What `dvc.lock` says once DVC has seen the outputs."""
    outs = [
        {"path": f"data/pretrain/{model}/{name}", "md5": kept.md5(folder / name), "size": size}
        for name, size in (("model", 9), ("loss.csv", 1))
    ]
    Path("dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": {f"pretrain@{model}": {"outs": outs}}}))


def test_the_hash_of_a_folder_is_dvcs() -> None:
    from dvc.fs import localfs
    from dvc_data.hashfile.build import build
    from dvc_data.hashfile.db import HashFileDB
    from dvc_data.hashfile.state import StateNoop

    folder = result("a", "weights") / "model"
    database = HashFileDB(localfs, str(Path("cache").absolute()), state=StateNoop())
    _, _, found = build(database, str(folder.absolute()), localfs, "md5")
    assert found.hash_info.value == kept.md5(folder)
    assert kept.md5(Path("nowhere")) is None


def test_it_is_put_in_place_by_links_over_what_was_there() -> None:
    made, place = result("a", "new"), Path("data/pretrain/gpt")
    (place / "model").mkdir(parents=True)
    (place / "model/old").write_text("old")
    kept.place(made, place)
    assert sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()) == [
        "loss.csv",
        "model/encoding/encoding.json",
        "model/model.safetensors",
    ]
    assert (place / "model/model.safetensors").samefile(made / "model/model.safetensors")


def test_it_is_copied_where_there_are_no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    kept.place(result("a", "new"), Path("data/pretrain/gpt"))
    assert Path("data/pretrain/gpt/model/model.safetensors").read_text() == "new"


def test_what_the_lock_has_is_removed_with_older_ones_of_the_same_model_and_nothing_else() -> None:
    older, recorded, newer = (result(key, key) for key in ("older", "recorded", "newer"))
    other = result("older", "other", model="bert")
    for age, path in enumerate((newer, recorded, older, other)):
        os.utime(path, (100 - age, 100 - age))
    kept.prune()
    assert recorded.exists()  # there is no lock
    record(recorded)
    kept.prune()
    assert [path.exists() for path in (older, recorded, newer, other)] == [False, False, True, True]


@pytest.mark.parametrize("change", ["model/model.safetensors", "loss.csv"])
def test_a_result_that_differs_from_the_recorded_one_stays(change: str) -> None:
    made = result("a", "weights")
    record(made)
    (made / change).write_text("different")
    kept.prune()
    assert made.exists()


@pytest.mark.parametrize("content", ["", "stages: {pretrain@gpt: {}}", "stages: {pretr", "[]"])
def test_a_lock_that_says_nothing_of_it_removes_nothing(content: str) -> None:
    made = result("a", "weights")
    Path("dvc.lock").write_text(content)
    kept.prune()
    assert made.exists()
