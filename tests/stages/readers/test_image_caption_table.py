"""Tables of paths and captions, in three formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stages.readers import Record, Reject, image_caption_table


def read(source: Any, **options: Any) -> list[Record | Reject]:
    chosen = image_caption_table.Options(**options)
    plan = image_caption_table.plan(str(source), chosen)
    return [item for part in plan for item in image_caption_table.read(part, chosen)]


TABLES = {
    "t.csv": 'image,text,kind\npictures/1.jpg,"a cat, black",cat\npictures/9.jpg,gone,cat\n,no path,\n',
    "t.tsv": "image\ttext\tkind\npictures/1.jpg\ta cat, black\tcat\npictures/9.jpg\tgone\tcat\n\tno path\t\n",
    "t.jsonl": '{"image": "pictures/1.jpg", "text": "a cat, black", "kind": "cat"}\n'
    '{"image": "pictures/9.jpg", "text": "gone", "kind": "cat"}\n{"image": "", "text": "no path"}\n',
}


@pytest.mark.parametrize("name", TABLES)
def test_rows_name_pictures_beside_the_table(tmp_path: Path, name: str) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/1.jpg").write_bytes(b"one")
    (tmp_path / name).write_text(TABLES[name])
    lines = (1, 2, 3) if name.endswith("jsonl") else (2, 3, 4)
    good, gone, none = read(tmp_path, text="text", label="kind")
    picture = f"{tmp_path}/pictures/1.jpg"
    assert good == Record({"image": b"one", "text": "a cat, black"}, "cat", f"{tmp_path}/{name}:{lines[0]}", picture)
    assert gone == Reject(f"{tmp_path}/{name}:{lines[1]}", f"there is no such picture ({tmp_path}/pictures/9.jpg)")
    assert (none.source, none.reason) == (f"{tmp_path}/{name}:{lines[2]}", "column 'image' has no path")


def test_captions_of_one_picture_are_one_group_and_absolute_paths_are_taken(tmp_path: Path) -> None:
    picture = tmp_path / "elsewhere.jpg"
    picture.write_bytes(b"one")
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables/t.csv").write_text(
        f"path,text,who\n{picture},a,x\n../elsewhere.jpg,b,x\nfile://{picture},c,y\n"
    )
    found = read(tmp_path / "tables/t.csv", image="path", text="text", outside=True)
    assert [item.payload["text"] for item in found] == ["a", "b", "c"]
    assert {item.group for item in found} == {str(picture)}
    assert [item.group for item in read(tmp_path / "tables", image="path", group="who", outside=True)] == [
        "x",
        "x",
        "y",
    ]
    assert "text" not in read(tmp_path / "tables", image="path", outside=True)[0].payload


def test_a_wrong_column_is_named_with_the_columns_there_are(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("file,text\na.jpg,b\n")
    (found,) = read(tmp_path)
    assert found.reason == "no column 'image'"
    options = image_caption_table.Options()
    (partition,) = image_caption_table.plan(str(tmp_path), options)
    assert image_caption_table.columns(partition, options) == ["file", "text"]
