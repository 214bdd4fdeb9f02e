"""JSON lines: pieces of a large file, deep nesting, every compression."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from stages.files import sources
from stages.readers import Partition, Record, Reject, jsonl

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}
LINES = [json.dumps({"text": f"ä {number}"}, ensure_ascii=False).encode() + b"\n" for number in range(300)]


def read(path: Path) -> list[Record | Reject]:
    options = jsonl.Options()
    return [item for part in jsonl.plan(str(path), options) for item in jsonl.read(part, options)]


@pytest.mark.parametrize("suffix", PACKERS)
def test_every_compression_reads_alike_also_in_several_members(tmp_path: Path, suffix: str) -> None:
    pack = PACKERS[suffix]
    (tmp_path / f"a.jsonl{suffix}").write_bytes(pack(b"".join(LINES[:100])) + pack(b"".join(LINES[100:])))
    found = read(tmp_path)
    assert [item.payload["text"] for item in found if isinstance(item, Record)] == [f"ä {n}" for n in range(300)]


@pytest.mark.parametrize("suffix", [suffix for suffix in PACKERS if suffix])
@pytest.mark.parametrize("cut", [1, 3, 30])
def test_every_truncation_is_noticed(tmp_path: Path, suffix: str, cut: int) -> None:
    (tmp_path / f"a.jsonl{suffix}").write_bytes(PACKERS[suffix](b"".join(LINES))[:-cut])
    found = read(tmp_path)
    assert isinstance(found[-1], Reject)
    assert "truncated" in found[-1].reason
    assert sum(isinstance(item, Reject) for item in found) == 1


def test_bytes_after_the_compressed_data_are_a_reject(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES[0]) + b"rubbish rubbish")
    kept, reject = read(tmp_path)
    assert isinstance(kept, Record)
    assert isinstance(reject, Reject) and reject.reason == "bytes after the end of the gzip data"


def test_deep_nesting_is_a_reject(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n")
    (reject,) = read(tmp_path)
    assert isinstance(reject, Reject)
    assert "nested" in reject.reason or "not a string" in reject.reason


def test_pieces_of_a_large_file_hold_its_rows_and_places(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(LINES) + b"no end of line")
    (file,) = sources.listing(str(path))
    pieces = sources.split_lines(file, size=500)
    assert len(pieces) > 5
    options = jsonl.Options()
    found = [item for piece in pieces for item in jsonl.read(piece, options)]
    assert found == list(jsonl.read(Partition((file,)), options))
    assert found[-1].source == f"{path}:301"


def test_a_folder_gives_its_own_files_sorted(tmp_path: Path) -> None:
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "deep" / "b.jsonl").write_bytes(LINES[1])
    (tmp_path / "data" / "a.jsonl").write_bytes(LINES[0])
    (tmp_path / "data" / "README.md").write_text("no data")
    assert [item.source.rpartition("/")[2] for item in read(tmp_path / "data")] == ["a.jsonl:1", "b.jsonl:1"]


def test_the_names_of_columns_are_known(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\nno\n{"b": 1, "a": 2}\n')
    options = jsonl.Options()
    assert jsonl.columns(jsonl.plan(str(tmp_path), options)[0], options) == ["a", "b"]
