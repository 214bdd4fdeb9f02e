"""Parquet: rows of text, of pictures, or of both. Large files are cut at row groups, and batches are small, so that
memory is bounded. A picture is a column of bytes, or the struct of `bytes` and `path` that `datasets` writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from stages import readers
from stages.params import UserError
from stages.readers import File, Partition, Record, Reject, jsonl
from stages.sources import listing, opened, partitions
from stages.tables import PARTITION_BYTES

MODALITIES = frozenset({"text", "image", "image_text"})
SUFFIXES = (".parquet", ".pq")
BATCH = 64
"""Rows decoded at once: few, as each may be a document of the largest size."""
PICTURES = 8
"""Rows with pictures decoded at once."""
FAULTS = (pa.ArrowException, OSError, EOFError)
"""What pyarrow raises for a damaged file."""


class Options(jsonl.Options, readers.Pictures):
    """Which columns are what."""

    image: str | None = Field(default=None, description="column of the picture; needed for image and image_text")


def plan(source: str, options: Options) -> list[Partition]:
    """Large files are cut at row groups, small ones grouped."""
    return partitions(listing(source, SUFFIXES, options.files), _split)


def _split(file: File) -> list[Partition]:
    """Runs of row groups of about `PARTITION_BYTES`; whole where the file cannot be read, which `read` will say."""
    try:
        with opened(file.path) as stream:
            footer = pq.ParquetFile(stream).metadata
    except (pa.ArrowException, EOFError, UserError):
        return [Partition((file,))]
    result: list[Partition] = []
    start, size, first, rows = 0, 0, 1, 0
    for index in range(footer.num_row_groups):
        group = footer.row_group(index)
        size += sum(group.column(column).total_compressed_size for column in range(group.num_columns))
        rows += group.num_rows
        if size >= PARTITION_BYTES or index == footer.num_row_groups - 1:
            result.append(Partition((File(file.path, size),), start, index + 1, first))
            start, size, first, rows = index + 1, 0, first + rows, 0
    return result or [Partition((file,))]


def read(partition: Partition, options: Options) -> Iterator[Record | Reject]:
    """One Record or Reject for every row; one Reject for a file that is none, or for what follows damage."""
    for file in partition.files:
        if file.size == 0:
            yield Reject(file.path, "empty file")
            continue
        with opened(file.path) as stream:
            row = partition.first
            try:
                for values in _rows(pq.ParquetFile(stream), partition, options):
                    yield record(values, options, f"{file.path}:{row}")
                    row += 1
            except FAULTS as error:
                place = file.path if row == partition.first else f"{file.path}:{row}"
                yield Reject(place, f"not a Parquet file, or damaged ({str(error).splitlines()[0]})")


def record(row: dict[str, Any], options: Options, place: str) -> Record | Reject:
    """The Record that a row of named values holds, or why it holds none. The caption of a picture may be missing."""
    if options.image is None:
        if options.text not in row:
            reason = f"no column {options.text!r}: name the text's in ingest.text, or the picture's in ingest.image"
            return Reject(place, reason, readers.excerpt(", ".join(row)))
        return jsonl.record(row, options, place)
    if options.image not in row:
        return Reject(place, f"no column {options.image!r}", ", ".join(row))
    image = row[options.image]
    if isinstance(image, dict):
        image = image.get("bytes")
        if image is None:
            return Reject(
                place, f"column {options.image!r} has a path, but no bytes", str(row[options.image].get("path"))
            )
    if not isinstance(image, bytes):
        return Reject(place, f"column {options.image!r} is not bytes (it is {readers.kind(image)})")
    found = jsonl.record({**row, options.text: row.get(options.text) or ""}, options, place)
    if isinstance(found, Reject):
        return found
    caption = {"text": found.payload["text"]} if row.get(options.text) is not None else {}
    return Record({"image": image, **caption}, found.label, place, found.group)


def _rows(file: pq.ParquetFile, partition: Partition, options: Options) -> Iterator[dict[str, Any]]:
    """The rows as named values. A string that is no UTF-8 comes as bytes, which no column of text accepts."""
    wanted = {name for name in (options.image, options.text, options.label, options.group) if name is not None}
    names = [name for name in file.schema_arrow.names if name in wanted]
    for name in wanted:
        if names.count(name) > 1:
            path = partition.files[0].path
            raise UserError(f"{path}: has several columns {name!r}: rename all but one")
    groups = range(partition.start, file.num_row_groups if partition.end is None else partition.end)
    size = BATCH if options.image is None else PICTURES
    for batch in file.iter_batches(size, row_groups=list(groups), columns=names or file.schema_arrow.names[:1]):
        columns = {name: _values(batch.column(name)) for name in names}
        for index in range(batch.num_rows):
            yield {name: values[index] for name, values in columns.items()}


def _values(column: pa.Array) -> list[Any]:
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        return [_value(scalar) for scalar in column]


def _value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return bytes(scalar.as_buffer())


def columns(partition: Partition, options: Options) -> list[str]:
    """Names of the columns of the first file."""
    try:
        with opened(partition.files[0].path) as stream:
            return list(pq.ParquetFile(stream).schema_arrow.names)
    except FAULTS:
        return []
