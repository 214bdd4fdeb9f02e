"""Parquet: types, nulls, damage, and large files cut at row groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.params import UserError
from stages.readers import Partition, Record, Reject, parquet


def read(path: Path, **options: Any) -> list[Record | Reject]:
    chosen = parquet.Options(**options)
    return [item for part in parquet.plan(str(path), chosen) for item in parquet.read(part, chosen)]


def reasons(found: list[Record | Reject]) -> list[str]:
    return [item.reason for item in found if isinstance(item, Reject)]


def test_rows_have_text_label_group_and_place(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"body": ["a", None, "c"], "n": [1, 2, None], "g": ["x", "y", "z"]}), file)
    found = read(file, text="body", label="n", group="g")
    assert found == [
        Record({"text": "a"}, "1", f"{file}:1", "x"),
        Reject(f"{file}:2", "null in column 'body'"),
        Record({"text": "c"}, None, f"{file}:3", "z"),
    ]


@pytest.mark.parametrize("kind", [pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_any_string_type_is_text(tmp_path: Path, kind: pa.DataType) -> None:
    pq.write_table(pa.table({"text": pa.array(["a"]).cast(kind)}), tmp_path / "a.parquet")
    assert isinstance(read(tmp_path / "a.parquet")[0], Record)


def test_wrong_types_missing_columns_and_broken_utf8_are_rejects(tmp_path: Path) -> None:
    broken = pa.array([b"ok", b"\xff"]).view(pa.string())
    for name, table in {
        "a": pa.table({"text": [1, 2]}),
        "b": pa.table({"other": ["x"]}),
        "c": pa.table({"text": broken}),
    }.items():
        pq.write_table(table, tmp_path / f"{name}.parquet")
    assert reasons(read(tmp_path)) == [
        "column 'text' is not a string (it is a number)",
        "column 'text' is not a string (it is a number)",
        "no column 'text': name the text's in ingest.text, or the picture's in ingest.image",
        "column 'text' is not a string (it is bytes)",
    ]


def test_damaged_files_are_rejects(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["x" * 100] * 1000}), tmp_path / "a.parquet")
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(content[: len(content) // 2])
    (tmp_path / "b.parquet").write_bytes(b"")
    (tmp_path / "c.parquet").write_bytes(b"text\nhello\n")
    found = reasons(read(tmp_path))
    assert [reason.partition(" (")[0] for reason in found] == [
        "not a Parquet file, or damaged",
        "empty file",
        "not a Parquet file, or damaged",
    ]


def test_rows_before_a_damaged_page_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [str(number) for number in range(2000)]}), file, row_group_size=1000)
    column = pq.read_metadata(file).row_group(1).column(0)
    content = bytearray(file.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + 40] = b"\xff" * 40
    file.write_bytes(content)
    found = read(file)
    assert sum(isinstance(item, Record) for item in found) >= 900
    assert len(reasons(found)) == 1


def test_a_large_file_is_cut_at_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [str(number) for number in range(1000)]}), file, row_group_size=100)
    options = parquet.Options()
    (whole,) = parquet.plan(str(file), options)
    monkeypatch.setattr(parquet, "PARTITION_BYTES", 2000)
    pieces = parquet._split(whole.files[0])
    assert len(pieces) == 3
    read_in_pieces = [item for piece in pieces for item in parquet.read(piece, options)]
    assert read_in_pieces == list(parquet.read(Partition(whole.files), options))
    assert len(read_in_pieces) == 1000


def test_a_column_named_twice_is_refused(tmp_path: Path) -> None:
    twice = pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"])], names=["text", "text"])
    pq.write_table(twice, tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet: has several columns 'text': rename all but one"):
        read(tmp_path)


def test_the_names_of_columns_are_known(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": ["x"], "b": [1]}), tmp_path / "a.parquet")
    options = parquet.Options()
    assert parquet.columns(parquet.plan(str(tmp_path), options)[0], options) == ["a", "b"]


def test_pictures_are_bytes_or_the_struct_of_datasets(tmp_path: Path) -> None:
    struct = pa.array([{"bytes": b"one", "path": "1.jpg"}, {"bytes": None, "path": "2.jpg"}, None])
    pq.write_table(pa.table({"img": struct, "text": ["a cat", "b", "c"], "n": [1, 2, 3]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"img": [b"four"], "n": [4]}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"img": ["five"], "n": [5]}), tmp_path / "c.parquet")
    first, second, third, fourth, fifth = read(tmp_path, image="img", label="n")
    assert first == Record({"image": b"one", "text": "a cat"}, "1", f"{tmp_path}/a.parquet:1")
    assert second == Reject(f"{tmp_path}/a.parquet:2", "column 'img' has a path, but no bytes", "2.jpg")
    assert isinstance(third, Reject)
    assert fourth == Record({"image": b"four"}, "4", f"{tmp_path}/b.parquet:1")
    assert isinstance(fifth, Reject) and fifth.reason == "column 'img' is not bytes (it is a string)"
