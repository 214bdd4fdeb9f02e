from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages import dedup, params
from stages.files import tables

SCHEMA = tables.rows_schema([pa.field("text", pa.string())])
LONG = " ".join(f"word{i}" for i in range(100))
PARTS = [
    [("one small step", "red", "file-a"), (LONG, None, "file-a"), ("one small step", None, "file-b")],
    [],
    [(LONG + " more", "blue", "file-c"), ("quite another thing", None, None), (LONG, None, "file-c")],
]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRETEXT_WORKERS", "1")
    (tmp_path / "params.yaml").write_text(
        "corpora: {mine: {modality: text, ingest: {reader: files, source: x}, dedup: {}, tokenize: {}, shard: {}}}\n"
    )
    (tmp_path / "data/ingest/mine/rows").mkdir(parents=True)
    number = 0
    for index, part in enumerate(PARTS):
        rows = []
        for text, label, group in part:
            identity = tables.content_id({"text": text})
            rows.append({"id": identity, "text": text, "label": label, "source": f"line {number}", "group": group})
            number += 1
        table = pa.Table.from_pylist(rows, schema=SCHEMA)
        tables.write_parquet(tmp_path / "data/ingest/mine/rows" / tables.part(index), table)
    params.load_params.cache_clear()
    params.load_compute.cache_clear()
    yield tmp_path
    params.load_params.cache_clear()
    params.load_compute.cache_clear()


def rows(project: Path) -> pa.Table:
    folder = project / "data/dedup/mine/rows"
    return pa.concat_tables([pq.read_table(path) for path in tables.partitions(folder)])


def test_the_first_labelled_row_of_each_cluster_stays_as_it_was(project: Path) -> None:
    dedup.run("mine")
    table = rows(project)
    assert table.schema.equals(SCHEMA)
    assert table.column("source").to_pylist() == ["line 0", "line 3", "line 4"]
    assert table.column("group").to_pylist() == ["file-a", "file-c", None]
    assert table.column("label").to_pylist() == ["red", "blue", None]


def test_duplicates_say_what_went_and_why(project: Path) -> None:
    dedup.run("mine")
    found = pq.read_table(project / "data/dedup/mine/duplicates.parquet").to_pylist()
    step, long, more = (tables.content_id({"text": text}) for text in ("one small step", LONG, LONG + " more"))
    assert [(row["id"], row["kept"], row["cluster"], row["kind"], row["source"]) for row in found] == [
        (long, more, 1, "near", "line 1"),
        (step, step, 0, "exact", "line 2"),
        (long, more, 1, "near", "line 5"),
    ]
    assert [row["similarity"] for row in found] == pytest.approx([96 / 97, 1, 96 / 97])


def test_metrics_account_for_every_row(project: Path) -> None:
    dedup.run("mine")
    metrics = json.loads((project / "data/dedup/mine/report.json").read_text())
    assert [metrics[key] for key in ("rows_in", "rows_out", "rejects", "duplicates")] == [6, 3, 0, 3]
    assert [metrics[key] for key in ("exact", "near")] == [1, 2]
    assert metrics["clusters"] == 2 and metrics["largest_cluster"] == 3
    assert metrics["bytes_in"] == sum(len(text) for part in PARTS for text, _, _ in part)


def test_no_rows_at_all_are_fine(project: Path) -> None:
    for path in (project / "data/ingest/mine/rows").iterdir():
        path.unlink()
    dedup.run("mine")
    assert pq.read_table(project / "data/dedup/mine/duplicates.parquet").num_rows == 0
    assert json.loads((project / "data/dedup/mine/report.json").read_text())["rows_in"] == 0


def test_a_mistaken_option_is_named(project: Path) -> None:
    path = project / "params.yaml"
    path.write_text(path.read_text().replace("dedup: {}", "dedup: {threshold: 1.5}"))
    with pytest.raises(params.UserError, match=r"corpora\.mine\.dedup\.threshold"):
        dedup.run("mine")


def test_without_ingest_the_stage_says_so(project: Path) -> None:
    (project / "data/ingest").rename(project / "data/elsewhere")
    with pytest.raises(params.UserError, match=r"data/ingest/mine/rows is missing"):
        dedup.run("mine")


@pytest.mark.slow
def test_one_and_two_workers_write_the_same_bytes(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    for count in ("1", "2"):
        monkeypatch.setenv("PRETEXT_WORKERS", count)
        dedup.run("mine")
        folder = project / "data/dedup/mine"
        written.append({path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.parquet")})
    assert len(written[0]) == 4 and written[0] == written[1]
