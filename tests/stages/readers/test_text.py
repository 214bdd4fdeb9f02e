"""Plain text by file, paragraph or line."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from stages.files import sources
from stages.readers import File, Partition, Record, Reject, text


def read(path: Path, **options: Any) -> list[Record | Reject]:
    chosen = text.Options(**options)
    return [item for part in text.plan(str(path), chosen) for item in text.read(part, chosen)]


def test_a_file_is_a_document_labelled_by_its_folder(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.txt").write_text(f"in {folder}\n\nmore\n")
    (tmp_path / ".hidden").write_text("no")
    (tmp_path / "_SUCCESS").touch()
    found = read(tmp_path, label="folder")
    place = str(tmp_path / "a" / "x.txt")
    assert found[0] == Record({"text": "in a\n\nmore\n"}, "a", place, place)
    assert [item.label for item in found if isinstance(item, Record)] == ["a", "b"]


def test_paragraphs_end_at_blank_lines_and_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n \r\n\r\nthree")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"four\n"))
    found = read(tmp_path, unit="paragraph")
    assert [item.payload["text"] for item in found if isinstance(item, Record)] == ["one\ntwo", "three", "four"]
    assert [item.source.rpartition(":")[2] for item in found] == ["1", "5", "1"]


def test_faults_are_rejects(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"good\nbad \xff\nx" + b"y" * 100 + b"\n")
    (tmp_path / "b.txt").write_bytes(b"")
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"word " * 1000)[:-20])
    for unit, kept in (("line", 1), ("paragraph", 0), ("file", 0)):
        found = read(tmp_path, unit=unit, max_document_bytes=90)
        reasons = [item.reason.partition(" (")[0] for item in found if isinstance(item, Reject)]
        assert len(found) - len(reasons) == kept
        assert "empty file" in reasons
        assert "truncated gzip data" in reasons
        assert any("too long" in reason or "longer" in reason for reason in reasons)
    found = read(tmp_path, unit="line")
    assert any(isinstance(item, Reject) and item.reason.startswith("invalid utf-8") for item in found)


def test_the_encoding_is_an_option(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("café".encode("latin-1"))
    (record,) = read(tmp_path, encoding="latin-1")
    assert isinstance(record, Record) and record.payload == {"text": "café"}


@given(
    st.lists(st.sampled_from(["", "a", "bc", " "]), max_size=60),
    st.sampled_from(["line", "paragraph"]),
    st.integers(1, 20),
)
def test_pieces_of_a_file_hold_the_documents_of_the_whole(
    tmp_path_factory: Any, lines: list[str], unit: str, size: int
) -> None:
    path = tmp_path_factory.mktemp("any") / "a.txt"
    path.write_text("\n".join([*lines, "end"]))
    file = File(str(path), path.stat().st_size)
    options = text.Options.model_validate({"unit": unit})
    separator = b"\n" if unit == "line" else b"\n\n"
    pieces = sources.split_lines(file, separator, size=size)
    assert sum(piece.size for piece in pieces) == file.size
    found = [item for piece in pieces for item in text.read(piece, options)]
    assert found == list(text.read(Partition((file,)), options))


def test_documents_of_a_file_are_a_group_unless_it_is_the_only_one(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    assert [item.group for item in read(tmp_path, unit="line") if isinstance(item, Record)] == [None, None]
    (tmp_path / "b.txt").write_text("three\n")
    groups = [item.group for item in read(tmp_path, unit="line") if isinstance(item, Record)]
    assert groups == [str(tmp_path / name) for name in ("a.txt", "a.txt", "b.txt")]
