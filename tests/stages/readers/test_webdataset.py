"""Tars of samples: pictures, captions, classes, JSON; compressed, truncated, and no tars at all."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from stages.readers import Record, Reject, webdataset


def read(source: Any, **options: Any) -> list[Record | Reject]:
    chosen = webdataset.Options(**options)
    return [item for part in webdataset.plan(str(source), chosen) for item in webdataset.read(part, chosen)]


def packed(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


SAMPLES = {
    "shard/0001.jpg": b"one",
    "shard/0001.txt": b"a cat",
    "shard/0001.cls": b"3\n",
    "shard/0002.seg.png": b"two",
    "shard/0002.json": json.dumps({"label": "dog", "caption": "a dog"}).encode(),
    "shard/0003.txt": b"no picture",
}


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz"])
def test_files_of_one_name_are_a_sample(tmp_path: Path, name: str) -> None:
    content = packed(SAMPLES)
    (tmp_path / name).write_bytes(content if name == "a.tar" else gzip.compress(content))
    place = f"{tmp_path}/{name}:shard"
    assert read(tmp_path) == [
        Record({"image": b"one", "text": "a cat"}, "3", f"{place}/0001"),
        Record({"image": b"two"}, None, f"{place}/0002"),
        Reject(f"{place}/0003", "no picture in the sample", "txt"),
    ]
    named = read(tmp_path, label="json.label", text="json.caption")
    assert named[1] == Record({"image": b"two", "text": "a dog"}, "dog", f"{place}/0002")


def test_a_sample_has_one_picture_or_names_it(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(packed({"1.in.jpg": b"in", "1.out.png": b"out", "2.jpg": b"a", "2.txt": b"x"}))
    several, alone = read(tmp_path)
    reason = "several pictures in the sample: name the extension of one in ingest.image"
    assert several == Reject(f"{tmp_path}/a.tar:1", reason, "in.jpg, out.png")
    assert isinstance(alone, Record) and alone.payload == {"image": b"a", "text": "x"}
    named, none = read(tmp_path, image="out.png")
    assert named.payload == {"image": b"out"} and none.reason == "no picture in the sample"


def test_files_that_all_share_a_key_are_not_held(tmp_path: Path) -> None:
    files = {f"day.{number}.jpg": bytes(900_000) for number in range(5)}
    (tmp_path / "a.tar").write_bytes(packed({**files, "2.jpg": b"a"}))
    large, good = read(tmp_path, max_document_bytes=1_000_000)
    assert large == Reject(f"{tmp_path}/a.tar:day", "sample is too large: a name's key ends at its first dot")
    assert isinstance(good, Record)


def test_a_second_sample_of_the_same_name_is_kept(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(packed({"1.jpg": b"a", "1.txt": b"x"})[:2048] + packed({"1.jpg": b"b"}))
    assert [record.payload for record in read(tmp_path)] == [{"image": b"a", "text": "x"}, {"image": b"b"}]


@pytest.mark.parametrize("kept", [0.35, 0.6, 0.9])
def test_of_a_truncated_tar_the_whole_samples_are_kept(tmp_path: Path, kept: float) -> None:
    content = packed({f"{number:04d}.jpg": bytes([number]) * 700 for number in range(20)})
    (tmp_path / "a.tar").write_bytes(content[: int(20 * 1536 * kept)])
    found = read(tmp_path)
    records = [item for item in found if isinstance(item, Record)]
    assert len(records) in (int(20 * kept), int(20 * kept) - 1)
    assert all(record.payload["image"] == bytes([number]) * 700 for number, record in enumerate(records))
    assert found[-1].reason.startswith("not a tar, or a truncated one") and len(found) == len(records) + 1


def test_a_tar_cut_between_two_files_is_truncated_too(tmp_path: Path) -> None:
    content = packed({f"{number:04d}.jpg": b"x" * 700 for number in range(4)})
    (tmp_path / "a.tar").write_bytes(content[: 2 * 1536])
    assert read(tmp_path)[-1].reason == "not a tar, or a truncated one (it ends without the mark of an end)"


def test_what_is_no_tar_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"this is no tar\n" * 100)
    (tmp_path / "b.tar").write_bytes(b"")
    (tmp_path / "c.tar.gz").write_bytes(gzip.compress(packed(SAMPLES))[:60])
    first, second, third = read(tmp_path)
    assert first.reason.startswith("not a tar") and second.reason == "empty file"
    assert "truncated gzip data" in third.reason


def test_large_files_and_broken_captions_are_rejected(tmp_path: Path) -> None:
    files = {"1.jpg": b"x" * 101, "2.jpg": b"x", "2.txt": b"\xff", "3.jpg": b"x"}
    (tmp_path / "a.tar").write_bytes(packed(files))
    large, broken, good = read(tmp_path, max_document_bytes=100)
    assert large.reason == "document is longer than max_document_bytes (101 bytes, not 100)"
    assert broken.reason.startswith("a file of the sample is not UTF-8 or JSON")
    assert isinstance(good, Record)
