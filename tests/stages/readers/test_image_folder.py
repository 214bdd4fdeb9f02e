"""Folders of pictures: classes from folders or metadata, globs, URLs, and files that should be there and are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stages.params import UserError
from stages.readers import Record, Reject, image_folder


def read(source: Any, **options: Any) -> list[Record | Reject]:
    chosen = image_folder.Options(**options)
    return [item for part in image_folder.plan(str(source), chosen) for item in image_folder.read(part, chosen)]


def write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(f"bytes of {name}".encode())


def labels(found: list[Record | Reject], root: Path) -> dict[str, str | None]:
    return {item.source.removeprefix(f"{root}/"): item.label for item in found if isinstance(item, Record)}


def test_the_folder_below_the_source_is_the_class(tmp_path: Path) -> None:
    write(tmp_path, "cat/1.jpg", "cat/more/2.PNG", "dog/3.webp", "4.gif", "dog/readme.txt", "cat/.hidden.jpg")
    expected = {"4.gif": None, "cat/1.jpg": "cat", "cat/more/2.PNG": "cat", "dog/3.webp": "dog"}
    assert labels(read(tmp_path), tmp_path) == expected
    assert labels(read(f"{tmp_path}/"), tmp_path) == expected
    assert set(labels(read(tmp_path, class_folders=False), tmp_path).values()) == {None}


def test_globs_single_files_and_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    write(tmp_path, "cat/1.jpg", "dog/3.jpg")
    assert labels(read(f"{tmp_path}/*/*.jpg"), tmp_path) == {"cat/1.jpg": "cat", "dog/3.jpg": "dog"}
    assert labels(read(tmp_path, files="dog/*"), tmp_path) == {"dog/3.jpg": "dog"}
    monkeypatch.chdir(tmp_path)
    (found,) = read("cat/1.jpg")
    assert (found.source, found.payload["image"]) == ("cat/1.jpg", b"bytes of cat/1.jpg")
    fsspec.filesystem("memory").pipe("/pictures/cat/1.jpg", b"x")
    (remote,) = read("memory://pictures")
    assert (remote.label, remote.payload["image"]) == ("cat", b"x")


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_metadata_name_labels_and_captions(tmp_path: Path, kind: str) -> None:
    write(tmp_path, "a/1.jpg", "a/2.jpg", "a/3.jpg")
    rows = [
        {"file_name": "a/1.jpg", "label": "seven", "caption": "a seven, black", "who": "x"},
        {"file_name": "./a/2.jpg", "label": "", "caption": "another", "who": "y"},
        {"file_name": "a/9.jpg", "label": "nine", "caption": "a nine", "who": "z"},
    ]
    if kind == "csv":
        lines = [",".join(rows[0])] + [",".join(f'"{value}"' for value in row.values()) for row in rows]
        (tmp_path / "metadata.csv").write_text("\n".join(lines) + "\n")
    else:
        (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second, third, ninth = read(tmp_path, group="who")
    assert isinstance(first, Record) and isinstance(second, Record)
    assert (first.label, first.payload["text"], first.group) == ("seven", "a seven, black", "x")
    assert (second.label, second.payload["text"]) == (None, "another")
    assert third == Reject(f"{tmp_path}/a/3.jpg", "not in the metadata of the folder")
    assert ninth == Reject(f"{tmp_path}/a/9.jpg", "in the metadata, but there is no such file")
    who = read(tmp_path, label="who", text="label")
    assert [(item.label, item.payload.get("text")) for item in who[:2]] == [("x", "seven"), ("y", None)]


def test_metadata_that_would_be_lost_are_one_sentence(tmp_path: Path) -> None:
    write(tmp_path, "a/1.jpg")
    (tmp_path / "a/metadata.csv").write_text("file_name,label\n1.jpg,a\n")
    with pytest.raises(UserError, match=r"a/metadata\.csv: metadata are read at the top of the source only"):
        read(tmp_path)
    assert labels(read(tmp_path / "a"), tmp_path) == {"a/1.jpg": "a"}
    (tmp_path / "a/metadata.csv").write_text("file_name,text\n1.jpg,a\n./1.jpg,b\n")
    with pytest.raises(UserError, match=r"metadata\.csv:3: \./1\.jpg has a row already.*image_caption_table"):
        read(tmp_path / "a")


def test_files_of_other_kinds_are_rejects_or_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "cat/1.jpg", "cat/2.HEIC", "notes.txt", "cat/raw.CR2", "README", ".DS_Store")
    assert len(read(tmp_path)) == 2  # what a HEIC is, ingest says
    note = "3 files of other kinds are not read: 1 .CR2, 1 .txt, 1 without a suffix"
    assert capsys.readouterr().err == f"note: {tmp_path}: {note}\n"


def test_metadata_without_file_names_are_one_sentence(tmp_path: Path) -> None:
    write(tmp_path, "1.jpg")
    (tmp_path / "metadata.csv").write_text("name,label\n1.jpg,a\n")
    with pytest.raises(UserError, match=r"metadata\.csv:2: has no column 'file_name'"):
        read(tmp_path)


def test_large_and_empty_files_are_rejected_unread(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x" * 101)
    (tmp_path / "b.jpg").write_bytes(b"")
    large, empty = read(tmp_path, max_document_bytes=100)
    assert large.reason == "document is longer than max_document_bytes (101 bytes, not 100)"
    assert empty.reason == "empty file"
