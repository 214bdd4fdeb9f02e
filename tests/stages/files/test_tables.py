"""Writes are whole or absent, and the same bytes for the same data."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.files import tables
from stages.params import UserError


def test_the_same_table_is_the_same_bytes(tmp_path: Path) -> None:
    table = pa.table({"id": [str(number) for number in range(9000)], "label": ["a", None, "b"] * 3000})
    tables.write_parquet(tmp_path / "a", table)
    tables.write_parquet(tmp_path / "b", table.combine_chunks())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert pq.read_table(tmp_path / "a").equals(table)
    assert pq.read_metadata(tmp_path / "a").num_row_groups == -(-9000 // tables.ROW_GROUP)


@pytest.mark.parametrize("rows", [0, 3])
def test_ipc_is_one_record_batch(tmp_path: Path, rows: int) -> None:
    table = pa.concat_tables([pa.table({"x": pa.array([1] * rows, pa.int64())})] * 2)
    tables.write_ipc(tmp_path / "a.arrow", table)
    with pa.memory_map(str(tmp_path / "a.arrow")) as source:
        reader = pa.ipc.open_file(source)
        assert reader.num_record_batches == 1
        assert reader.read_all().equals(table.combine_chunks())


def test_rows_are_cut_into_files_by_their_size(tmp_path: Path) -> None:
    writer = tables.PartWriter(tmp_path, pa.schema([("id", pa.string())]), "rows", limit=800)
    for number in range(100):
        writer.append({"id": str(number)}, size=20)
    writer.close()
    assert [pq.read_metadata(path).num_rows for path in writer.paths] == [40, 40, 20]
    assert [row["id"] for path in writer.paths for row in pq.read_table(path).to_pylist()] == list(map(str, range(100)))


def test_an_id_is_the_hash_of_the_content() -> None:
    assert tables.content_id({"text": "é"}) == hashlib.blake2b("é".encode(), digest_size=16).hexdigest()
    assert tables.content_id({"image": b"ab", "text": "c"}) != tables.content_id({"image": b"a", "text": "bc"})


def test_partitions_come_in_order_past_99999(tmp_path: Path) -> None:
    for number in (100_000, 2, 99_999):
        (tmp_path / tables.part(number)).touch()
    assert [path.stem for path in tables.partitions(tmp_path)] == ["part-00002", "part-99999", "part-100000"]
    with pytest.raises(UserError, match="is missing: run the stage"):
        tables.partitions(tmp_path / "none")


def test_metrics_refuse_a_lost_row(tmp_path: Path) -> None:
    counts = {"rows_in": 3, "rejects": 1, "bytes_in": 9}
    tables.write_metrics(tmp_path, rows_out=2, **counts, tokens=5)
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"rows_in": 3, "rows_out": 2}
    report = json.loads((tmp_path / "report.json").read_text())
    assert report == {"rows_in": 3, "rows_out": 2, "rejects": 1, "duplicates": 0, "bytes_in": 9, "tokens": 5}
    with pytest.raises(UserError, match="3 rows in, but 1 out"):
        tables.write_metrics(tmp_path, rows_out=1, **counts)
