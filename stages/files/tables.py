"""What the stages write: addresses, Arrow schemas, the one dialect of Parquet, and the numbers of a data stage.

Files are byte-identical for identical data: no timestamps, fixed row groups, one compression. Every write is whole or
absent (`ssl_models.files`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ssl_models.files import whole_file, write_json
from ssl_models.tracking.execution import METRICS, REPORT
from stages.params import UserError
from stages.results.provenance import DATA

PARTITION_BYTES = 64 * 2**20
"""Payload in one partition, about: small enough for memory, large enough that DVC has few files to hash."""
ROW_GROUP = 4096
"""Rows in a Parquet row group: what a reader of one group must hold."""

LABEL_SOURCE_GROUP = (pa.field("label", pa.string()), pa.field("source", pa.string()), pa.field("group", pa.string()))
REJECTS = pa.schema([("source", pa.string()), ("reason", pa.string()), ("excerpt", pa.string()), ("rows", pa.int64())])
DUPLICATES = pa.schema(
    [
        ("id", pa.string()),
        ("kept", pa.string()),
        ("similarity", pa.float32()),
        ("cluster", pa.int64()),
        ("kind", pa.string()),
        ("source", pa.string()),
    ]
)


def address(stage: str, name: str) -> Path:
    """Where a stage writes: `data/<stage>/<name>`."""
    return DATA / stage / name


def rows_schema(fields: Sequence[pa.Field]) -> pa.Schema:
    """Rows of a modality: `id`, the payload `fields`, `label`, `source`, `group` (the last three nullable)."""
    return pa.schema([pa.field("id", pa.string()), *fields, *LABEL_SOURCE_GROUP])


def content_id(payload: Mapping[str, str | bytes]) -> str:
    """32 hex digits: blake2b-128 of the payload, every value but the last preceded by its length in 8 bytes."""
    digest = blake2b(digest_size=16)
    values = [value.encode() if isinstance(value, str) else value for value in payload.values()]
    for value in values[:-1]:
        digest.update(len(value).to_bytes(8, "big"))
        digest.update(value)
    digest.update(values[-1])
    return digest.hexdigest()


def part(index: int, suffix: str = "parquet") -> str:
    """The name of partition `index`."""
    return f"part-{index:05d}.{suffix}"


def partitions(folder: Path, suffix: str = "parquet") -> list[Path]:
    """The partitions in `folder`, in order."""
    paths = sorted(folder.glob(f"part-*.{suffix}"), key=lambda path: int(path.stem.removeprefix("part-")))
    if not paths and not folder.is_dir():
        raise UserError(f"{folder} is missing: run the stage that writes it first (dvc repro)")
    return paths


def parquet_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """The one Parquet dialect of the project: zstd, dictionaries for `label` and `group` only."""
    repeated = [name for name in ("label", "group", "reason") if name in schema.names]
    return pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=repeated or False, write_statistics=False)


def write_parquet(path: Path, table: pa.Table) -> None:
    """Write `table` atomically."""
    with whole_file(path) as partial, parquet_writer(partial, table.schema) as writer:
        writer.write_table(table, row_group_size=ROW_GROUP)


def write_ipc(path: Path, table: pa.Table) -> None:
    """Write `table` atomically as an uncompressed Arrow IPC file of one record batch, to be memory-mapped."""
    batches = table.combine_chunks().to_batches() or [pa.RecordBatch.from_pylist([], schema=table.schema)]
    with whole_file(path) as partial, pa.ipc.new_file(partial, table.schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def batches(partition: Path, columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
    """These columns of a partition, `rows` at a time."""
    with pq.ParquetFile(partition) as file:
        yield from file.iter_batches(rows, columns=list(columns))


class PartWriter:
    """Writes one stream of rows as files of about `PARTITION_BYTES`, holding one row group in memory.

    Files are cut by the data alone. The caller names them: `name(0)`, `name(1)`, ... in the order of the rows.
    """

    def __init__(self, folder: Path, schema: pa.Schema, stem: str, limit: int = PARTITION_BYTES) -> None:
        self.paths: list[Path] = []
        self.rows = 0
        self._folder, self._schema, self._stem, self._limit = folder, schema, stem, limit
        self._pending: list[dict[str, Any]] = []
        self._pending_bytes = 0
        self._written_bytes = 0
        self._writer: pq.ParquetWriter | None = None

    def append(self, row: dict[str, Any], size: int) -> None:
        """Add one row whose payload is `size` bytes."""
        self._pending.append(row)
        self._pending_bytes += size
        self.rows += 1
        if len(self._pending) >= ROW_GROUP or self._pending_bytes >= self._limit // 8:
            self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        if self._writer is None:
            self.paths.append(self._folder / f"{self._stem}-{len(self.paths):05d}.parquet")
            self._writer = parquet_writer(self.paths[-1], self._schema)
        self._writer.write_table(pa.Table.from_pylist(self._pending, schema=self._schema), row_group_size=ROW_GROUP)
        self._written_bytes += self._pending_bytes
        self._pending, self._pending_bytes = [], 0
        if self._written_bytes >= self._limit:
            self.close()

    def close(self) -> None:
        """Write what is pending and end the current file."""
        if self._pending:
            self._flush()
        if self._writer is not None:
            self._writer.close()
            self._writer, self._written_bytes = None, 0


def write_metrics(
    folder: Path,
    *,
    rows_in: int,
    rows_out: int,
    rejects: int = 0,
    duplicates: int = 0,
    bytes_in: int,
    **more: Any,
) -> None:
    """Write a data stage's `metrics.json` (rows in and out) and `report.json` (that, and all the rest), after the check
    that no row was lost: in = out + rejects + duplicates."""
    if rows_in != rows_out + rejects + duplicates:
        raise UserError(
            f"{folder}: {rows_in} rows in, but {rows_out} out + {rejects} rejects + {duplicates} duplicates: "
            "rows were lost or invented, which is a defect of the stage; please report it"
        )
    counts = {"rows_in": rows_in, "rows_out": rows_out, "rejects": rejects, "duplicates": duplicates}
    write_json(folder / REPORT, {**counts, "bytes_in": bytes_in, **more})
    write_json(folder / METRICS, {"rows_in": rows_in, "rows_out": rows_out})
