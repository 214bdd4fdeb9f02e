"""Each text gets the features the probe would see, under its own id; nothing is cut or skipped in silence."""

import csv
import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ssl_models import artifact
from ssl_models.config import Backbone, Model, Train
from ssl_models.tools.encode import main
from tests.ssl_models import texts

LINES = ["The quick brown fox.", "", "Ann said </s> stop.", "naïve café, 東京 " * 30]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    at = tmp_path_factory.mktemp("trained")
    encoding = texts.bpe(at / "encoding")
    backbone = Backbone.model_validate({"preset": "llama", **texts.SMALL})
    model = Model(corpus="c", objective="next_token", backbone=backbone, train=Train(steps=1, batch=1))
    torch.manual_seed(0)
    artifact.save(artifact.build(model, encoding), model, encoding, at / "model")
    return at / "model"


def identity(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def test_lines_get_the_features_of_the_objective(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "lines.txt"
    file.write_text("\n".join(LINES) + "\n", encoding="utf-8")
    assert main([str(folder), str(file), "--feature", "mean"]) == 0
    said = capsys.readouterr().out
    assert "'mean' of 4 texts; 1 were longer than 64 tokens and were cut" in said
    found = pq.read_table(tmp_path / "lines.features.parquet")
    assert found.column("id").to_pylist() == [identity(line) for line in LINES]
    assert found.schema.field("features").type == pa.list_(pa.float32(), 32)
    objective = artifact.load(folder)
    rows = [[*texts.encode(objective.encoding, line.replace("</s>", "")), 2] for line in (LINES[0], LINES[3])]
    with torch.no_grad():
        expected = objective.features({"tokens": texts.padded(rows, objective.encoding)})["mean"]
    values = torch.tensor(found.column("features").to_pylist())
    torch.testing.assert_close(values[[0, 3]], expected, atol=1e-6, rtol=1e-5)
    assert values.isfinite().all()


def test_json_lines_csv_and_parquet_with_ids_give_the_same(folder: Path, tmp_path: Path) -> None:
    rows = [{"id": f"row{number}", "body": line} for number, line in enumerate(LINES)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet")
    with (tmp_path / "c.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["body", "id"])
        writer.writeheader()
        writer.writerows(rows)
    for name in ("a.jsonl", "b.parquet", "c.csv"):
        output = tmp_path / f"{name}.out"
        assert main([str(folder), str(tmp_path / name), "--column", "body", "--output", str(output)]) == 0
    first, second, third = (pq.read_table(tmp_path / f"{name}.out") for name in ("a.jsonl", "b.parquet", "c.csv"))
    assert first.equals(second) and first.equals(third)
    assert first.column("id").to_pylist() == ["row0", "row1", "row2", "row3"]


def test_many_rows_are_written_in_order(folder: Path, tmp_path: Path) -> None:
    lines = [f"line {number}" for number in range(150)]
    (tmp_path / "many.txt").write_text("\n".join(lines))
    assert main([str(folder), str(tmp_path / "many.txt")]) == 0
    found = pq.read_table(tmp_path / "many.features.parquet")
    assert found.column("id").to_pylist() == [identity(line) for line in lines]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_an_id_of_zero_is_an_id_and_null_is_none(name: str, folder: Path, tmp_path: Path) -> None:
    rows = [{"id": 0, "text": "x"}, {"id": None, "text": "y"}]
    if name == "a.parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    else:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main([str(folder), str(tmp_path / name)]) == 0
    assert pq.read_table(tmp_path / "a.features.parquet").column("id").to_pylist() == ["0", identity("y")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("U.CSV", b"id,text\n1,x\n"),
        ("u.tsv", b"id\ttext\n1\tx\n"),
        ("U.JSONL", b'{"id": 1, "text": "x"}\n'),
        ("u.json", b'\xef\xbb\xbf{"id": 1, "text": "x"}\n'),
    ],
)
def test_the_ending_tells_the_format(name: str, content: bytes, folder: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert main([str(folder), str(tmp_path / name), "--output", str(tmp_path / "out")]) == 0
    assert pq.read_table(tmp_path / "out").column("id").to_pylist() == ["1"]


def test_a_byte_order_mark_is_no_text(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfx\n")
    assert main([str(folder), str(tmp_path / "a.txt")]) == 0
    assert pq.read_table(tmp_path / "a.features.parquet").column("id").to_pylist() == [identity("x")]


def test_quoted_line_ends_and_blank_lines_of_csv_are_kept_and_skipped(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'\ntext\n"x\ny"\n\n"a, ""b"""\n')
    assert main([str(folder), str(tmp_path / "a.csv")]) == 0
    found = pq.read_table(tmp_path / "a.features.parquet").column("id").to_pylist()
    assert found == [identity("x\ny"), identity('a, "b"')]


def test_a_column_that_stands_twice_in_parquet_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pa.table([pa.array(["x"]), pa.array(["y"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    assert main([str(folder), str(tmp_path / "a.parquet")]) == 2
    assert "a.parquet: has 2 columns 'text': rename all but one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.txt", b"fine\n\xff\xfe\n", "a.txt:2: is not UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "a.jsonl:2: is not JSON"),
        ("a.jsonl", b'{"body": "x"}\n', "a.jsonl:1: has no 'text'; name the field with --column"),
        ("a.jsonl", b'{"text": 3}\n', "a.jsonl:1: 'text' is not a text but int"),
        ("a.jsonl", b'["x"]\n', "a.jsonl:1: is not a JSON object; one object a line is read"),
        ("a.jsonl", b'{"text": "\\ud800 x"}\n', "a.jsonl:1: 'text' is not Unicode"),
        ("a.jsonl", b'{"id": "\\ud800", "text": "x"}\n', "a.jsonl:1: 'id' is not Unicode"),
        ("a.jsonl", b"[" * 100_000 + b"\n", "a.jsonl:1: is JSON that is nested too deeply"),
        ("a.parquet", b"PAR1", "a.parquet: cannot be read: "),
        ("a.csv", b"body,id\nx,1\n", "a.csv:1: has no column 'text' (columns: body, id); name one with --column"),
        ("a.csv", b"id,text\n1,x\n2\n", "a.csv:3: has another number of fields than the header (1, not 2)"),
        ("a.csv", b"id,text\n1,a,b\n", "a.csv:2: has another number of fields than the header (3, not 2)"),
        ("a.csv", b'id,text\n1,"a\n2,b\n', "a.csv:2: a quote is not closed before the end of the file"),
        ("a.csv", b'id,text\n1,"a\n2,"b"\n', "a.csv:2: invalid CSV ("),
        ("a.csv", b"text,text\na,b\n", "a.csv:1: has 2 columns 'text': rename all but one"),
        ("a.csv", b"id,text,id\n1,a,2\n", "a.csv:1: has 2 columns 'id': rename all but one"),
        ("a.csv", b"text\nx\n\xff\n", "a.csv: is not UTF-8"),
        ("a.txt", b"", "a.txt: there is no text to encode"),
        ("a.csv", b"", "a.csv: there is no text to encode"),
        ("a.xlsx", b"PK", "a.xlsx: files that end in .xlsx are not read; .parquet, .csv, .tsv, .jsonl, "),
    ],
)
def test_what_cannot_be_read_is_one_sentence_and_leaves_no_file(
    name: str, content: bytes, sentence: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    assert main([str(folder), str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.splitlines()[-1].startswith("error: ")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_column_or_feature_that_is_not_there_is_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "b.parquet")
    assert main([str(folder), str(tmp_path / "b.parquet")]) == 2
    assert "has no column 'text' (columns: body)" in capsys.readouterr().err
    assert main([str(folder), str(tmp_path / "b.parquet"), "--column", "body", "--feature", "max"]) == 2
    assert "the model has no feature 'max' (features: last, mean" in capsys.readouterr().err
    assert main([str(folder), str(tmp_path / "none.txt")]) == 2
    assert "none.txt: there is no such file" in capsys.readouterr().err
