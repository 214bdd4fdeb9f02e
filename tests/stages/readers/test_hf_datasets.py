"""Any data set of `datasets`, from a local folder: columns, classes by name, pictures as they were encoded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.modalities.image import pictures
from stages.params import UserError
from stages.readers import Record, Reject, hf_datasets


def read(source: Any, **options: Any) -> list[Record | Reject]:
    chosen = hf_datasets.Options(**options)
    return [item for part in hf_datasets.plan(str(source), chosen) for item in hf_datasets.read(part, chosen)]


def test_rows_of_text(tmp_path: Path) -> None:
    for shard in "ab":
        pq.write_table(pa.table({"text": [f"{shard} one", None], "kind": [1, 2]}), tmp_path / f"{shard}.parquet")
    found = read(tmp_path, label="kind")
    assert [(item.payload["text"], item.label) for item in found if isinstance(item, Record)] == [
        ("a one", "1"),
        ("b one", "1"),
    ]
    assert [item.reason for item in found if isinstance(item, Reject)] == ["null in column 'text'"] * 2
    assert found[0].source == f"{tmp_path}/train/0:1"


def test_what_save_to_disk_wrote(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "kind": datasets.ClassLabel(names=["a", "b"])})
    rows = {"text": ["one", "two", "three"], "kind": [0, 1, 0]}
    saved = datasets.Dataset.from_dict(rows, features=features)
    saved.save_to_disk(tmp_path / "one", num_shards=2)
    datasets.DatasetDict({"train": saved, "test": saved.select([1])}).save_to_disk(tmp_path / "two")
    found = [(item.payload["text"], item.label) for item in read(tmp_path / "one", label="kind")]
    assert found == [("one", "a"), ("two", "b"), ("three", "a")]
    assert [item.payload["text"] for item in read(tmp_path / "two", split="test")] == ["two"]
    with pytest.raises(UserError, match="two: cannot be loaded"):
        read(tmp_path / "two", split="nope")


def test_pictures_keep_their_bytes_and_classes_their_names(tmp_path: Path) -> None:
    import datasets

    picture = pictures.encoded(np.zeros((9, 9), np.uint8))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"image": [{"bytes": picture, "path": None}] * 3, "label": [1, 0, -1]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    found = read(tmp_path, image="image", label="label")
    assert [(item.payload["image"] == picture, item.label) for item in found] == [
        (True, "dog"),
        (True, "cat"),
        (True, None),
    ]


@pytest.mark.parametrize("dataset", [None, "imagefolder"])
def test_a_folder_of_pictures_by_its_builder(tmp_path: Path, dataset: str | None) -> None:
    for name, level in (("cat/1.png", 0), ("dog/2.png", 90)):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(pictures.encoded(np.full((9, 9), level, np.uint8)))
    (tmp_path / "dog/3.png").write_bytes(b"")
    *found, empty = read(tmp_path, dataset=dataset, image="image", label="label")
    assert [(item.label, pictures.decode(item.payload["image"], 9, 9, 1).max()) for item in found] == [
        ("cat", 0),
        ("dog", 90),
    ]
    assert empty == Reject(f"{dataset or tmp_path}/train/0:3", "empty file")


def test_what_cannot_be_loaded_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    for options in ({}, {"split": "nowhere"}):
        with pytest.raises(UserError, match=r"ingest\.dataset: .*cannot be loaded") as caught:
            read(tmp_path / "missing", **options)
        assert "\n" not in str(caught.value)
