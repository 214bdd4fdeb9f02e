"""Parquet: rows of text, of pictures, or of both. Large files are cut at row groups, and batches are small, so that
memory is bounded. A picture is a column of bytes, or the struct of `bytes` and `path` that `datasets` writes.

A page is decoded whole, and its header alone says how large it becomes: so the headers of a local file's pages are
looked at first (https://parquet.apache.org/docs/file-format, Thrift's compact protocol), of a remote one the footer.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from stages import readers
from stages.files.sources import listing, partitions
from stages.files.streams import CHUNK, Reading, is_url, opened
from stages.files.tables import PARTITION_BYTES
from stages.params import UserError
from stages.readers import File, Partition, Record, Reject, jsonl

MODALITIES = frozenset({"text", "image", "image_text"})
SUFFIXES = (".parquet", ".pq")
BATCH = 64
"""Rows decoded at once: few, as each may be a document of the largest size."""
PICTURES = 8
"""Rows with pictures decoded at once."""
FAULTS = (pa.ArrowException, OSError, EOFError, ValueError, OverflowError, MemoryError)
"""What pyarrow raises for a damaged file."""
EXPANSION, PAGE_BYTES = 100, 2**26
"""A page that grows more than so many times, and to more than so many bytes, was made to fill a memory."""
MOST_ROWS = 2**40
"""Of a row group, for what a damaged footer says."""
DICTIONARY_PAGE, MOST_DEPTH = 2, 8
DICTIONARY_BYTES = 2**27
"""Of a batch whose rows all have the largest value that a dictionary can hold."""
ROWS_PER_BYTE, MANY_ROWS = 1000, 2**20
"""More rows than that for a byte of the file, and than so many, hold nothing but the wish to keep a reader busy."""
HEADER_BYTES = (2**12, 2**18, 2**24)
"""What is read of a page to find its header, which holds statistics: the last is where pyarrow gives up."""


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
    except FAULTS:
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
            row = end = partition.first
            try:
                source = pq.ParquetFile(stream, buffer_size=CHUNK)  # else a column's chunk is read whole
                groups = range(partition.start, source.num_row_groups if partition.end is None else partition.end)
                end += sum(min(max(0, source.metadata.row_group(group).num_rows), MOST_ROWS) for group in groups)
                names = _names(source, file.path, options)
                pages = partial(_pages, stream, source, groups, names)
                _refuse_bomb(pages(), source, names, end - row, file.size, options)
                for values in (
                    _rows(source, pages(), groups, names, options) if names else ({} for _ in range(end - row))
                ):
                    yield record(values, options, f"{file.path}:{row}")
                    row += 1
                if row < end:
                    raise EOFError("it has fewer rows than its footer says")
            except FAULTS as error:
                place = file.path if row == partition.first else f"{file.path}:{row}"
                detail = (str(error) or type(error).__name__).splitlines()[0]
                yield Reject(place, f"not a Parquet file, or damaged ({detail})", rows=max(1, end - row))


def _names(file: pq.ParquetFile, path: str, options: Options) -> list[str]:
    """The columns that are read; UserError where one is there twice."""
    wanted = {options.image, options.text, options.label, options.group}
    names = [name for name in file.schema_arrow.names if name in wanted]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{path}: has several columns {name!r}: rename all but one")
    return names


def _refuse_bomb(
    pages: Iterator[Page], file: pq.ParquetFile, names: list[str], rows: int, size: int, options: Options
) -> None:
    """ValueError where the row groups were made to fill a memory or to keep a reader busy."""
    if rows > max(MANY_ROWS, ROWS_PER_BYTE * size):
        raise ValueError(f"{rows} rows in {size} bytes")
    for name in names:
        kind = file.schema_arrow.field(name).type
        if pa.types.is_nested(kind) and options.image != name:
            raise ValueError(f"column {name!r} is a {kind}")
    for page in pages:
        if page.memory > max(PAGE_BYTES, EXPANSION * page.size):
            raise ValueError(f"a page of {page.size} bytes grows to {page.memory}")


class Page(NamedTuple):
    """What is known of a page before it is decoded: bytes in `memory` and in the file."""

    dictionary: bool
    memory: int
    size: int


def _pages(stream: Reading, file: pq.ParquetFile, groups: range, names: list[str]) -> Iterator[Page]:
    """The pages of the columns that are read; of a remote file each column's chunk, as its footer has it."""
    for index in groups:
        group = file.metadata.row_group(index)
        for number in range(group.num_columns):
            column = group.column(number)
            if column.path_in_schema.partition(".")[0] not in names:
                continue
            at = column.data_page_offset
            if column.dictionary_page_offset:
                at = min(at, column.dictionary_page_offset)
            if is_url(stream.path):
                yield Page(False, column.total_uncompressed_size, column.total_compressed_size)
            else:
                yield from _headers(stream, at, at + column.total_compressed_size)


def _headers(stream: Reading, at: int, end: int) -> Iterator[Page]:
    """The pages from byte `at` to `end`; what cannot be read ends them, as it will end pyarrow."""
    while 0 <= at < end:
        for size in HEADER_BYTES:
            stream.seek(at)
            content = stream.read(size)
            try:
                fields, length = _struct(content, 0)
            except IndexError:
                continue
            kind, large, small = (fields.get(number, -1) for number in (1, 2, 3))
            if large < 0 or small < 0:
                return
            yield Page(kind == DICTIONARY_PAGE, large, small)
            at += length + small
            break
        else:
            return


def _struct(content: bytes, at: int, depth: int = 0) -> tuple[dict[int, int], int]:
    """The whole numbers of a struct by their fields, and the byte after it; IndexError where `content` ends first."""
    found: dict[int, int] = {}
    number = 0
    while (head := content[at]) != 0:
        at += 1
        if head >> 4:
            number += head >> 4
        else:
            number, at = _integer(content, at)
        value, at = _skipped(content, at, head & 15, depth)
        found[number] = value
    return found, at + 1


def _skipped(content: bytes, at: int, kind: int, depth: int) -> tuple[int, int]:
    """The value of a field, where it is a whole number, and the byte after it."""
    if depth > MOST_DEPTH:
        raise IndexError
    if kind in (1, 2):  # true and false have no bytes
        return 0, at
    if kind == 3:
        return 0, at + 1
    if kind in (4, 5, 6):
        return _integer(content, at)
    if kind == 7:
        return 0, at + 8
    if kind == 8:
        length, at = _varint(content, at)
        return 0, at + length
    if kind == 12:
        return 0, _struct(content, at, depth + 1)[1]
    raise IndexError  # lists and maps: no header of a page has one


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128 or shift > 63:
            return value, at


def _integer(content: bytes, at: int) -> tuple[int, int]:
    value, at = _varint(content, at)
    return (value >> 1) ^ -(value & 1), at


def record(row: dict[str, Any], options: Options, place: str) -> Record | Reject:
    """The Record that a row of named values holds, or why it holds none. The caption of a picture may be missing."""
    if options.image is None:
        if options.text not in row:
            reason = f"no column {options.text!r}: name the text's in ingest.text, or the picture's in ingest.image"
            return Reject(place, reason, readers.excerpt(", ".join(row)))
        return jsonl.record(row, options, place)
    if options.image not in row:
        return Reject(place, f"no column {options.image!r}", readers.excerpt(", ".join(row)))
    image = row[options.image]
    if isinstance(image, dict):
        image = image.get("bytes")
        if image is None:
            path = readers.excerpt(str(row[options.image].get("path")))
            return Reject(place, f"column {options.image!r} has a path, but no bytes", path)
    if not isinstance(image, bytes):
        return Reject(place, f"column {options.image!r} is not bytes (it is {readers.kind(image)})")
    found = jsonl.record({**row, options.text: row.get(options.text) or ""}, options, place)
    if isinstance(found, Reject):
        return found
    caption = {"text": found.payload["text"]} if row.get(options.text) is not None else {}
    return Record({"image": image, **caption}, found.label, place, found.group)


def _rows(
    file: pq.ParquetFile, pages: Iterator[Page], groups: range, names: list[str], options: Options
) -> Iterator[dict[str, Any]]:
    """The rows as named values. A string that is no UTF-8 comes as bytes, which no column of text accepts."""
    largest = max((page.memory for page in pages if page.dictionary), default=1)
    size = max(1, min(BATCH if options.image is None else PICTURES, DICTIONARY_BYTES // max(1, largest)))
    for batch in file.iter_batches(size, row_groups=list(groups), columns=names):
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
