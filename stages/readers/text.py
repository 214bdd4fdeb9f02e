"""Plain text: a document is a whole file, a paragraph (blank lines between), or a line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import PurePosixPath
from typing import Literal

from pydantic import Field, field_validator

from stages import readers
from stages.files import sources, streams
from stages.readers import File, Partition, Record, Reject

MODALITIES = frozenset({"text"})


class Options(readers.Options):
    """What a document is, and how it is written."""

    unit: Literal["file", "paragraph", "line"] = Field(default="file", description="what is one document")
    label: Literal["folder"] | None = Field(default=None, description="folder: the name of the folder of the file")
    encoding: str = Field(default="utf-8", description="any that Python knows")
    files: str | None = Field(default=None, description="glob of the files to take from a folder, relative to it")

    _known = field_validator("encoding")(sources.ascii_superset)


def plan(source: str, options: Options) -> list[Partition]:
    """Large plain files are cut between documents, small ones grouped; files that are documents stay whole."""
    separator = {"file": b"", "paragraph": b"\n\n", "line": b"\n"}[options.unit]
    split = partial(sources.split_lines, separator=separator) if separator else None
    files = sources.listing(source, (), options.files)
    root = source if len(files) > 1 or options.unit == "file" else ""
    return [replace(part, root=root) for part in sources.partitions(files, split)]


def read(partition: Partition, options: Options) -> Iterator[Record | Reject]:
    """One Record or Reject for every document. Documents of a file are one group, unless it is the only one."""
    for found in _files(partition, options) if options.unit == "file" else _pieces(partition, options):
        if isinstance(found, Reject):
            yield found
            continue
        file, number, content = found
        place = file.path if options.unit == "file" else f"{file.path}:{number}"
        try:
            text = content.decode(options.encoding)
        except UnicodeDecodeError as error:
            yield Reject(place, f"invalid {options.encoding} ({error.reason} at byte {error.start})")
            continue
        label = PurePosixPath(file.path).parent.name if options.label == "folder" else None
        yield Record({"text": text}, label, place, file.path if partition.root else None)


def _files(partition: Partition, options: Options) -> Iterator[tuple[File, int, bytes] | Reject]:
    """Whole files, none of more than `max_document_bytes`."""
    for file in partition.files:
        content = streams.whole(file.path, options.max_document_bytes)
        yield content if isinstance(content, Reject) else (file, 1, content.removeprefix(b"\xef\xbb\xbf"))


def _pieces(partition: Partition, options: Options) -> Iterator[tuple[File, int, bytes] | Reject]:
    """Lines that are not blank, or runs of them."""
    held: list[bytes] = []
    size, first, last = 0, 0, partition.files[0]
    for found in streams.numbered(partition, options.max_document_bytes):
        file, number, line = (last, 0, b"") if isinstance(found, Reject) else found
        blank = not line or line.isspace()
        if size and (blank or file != last or options.unit == "line"):
            yield _piece(last, first, held, size, options)
            held, size = [], 0
        if isinstance(found, Reject):
            yield found
        elif not blank:
            last, first = file, first if size else number
            size += len(line) + 1
            if size <= options.max_document_bytes or not held:
                held.append(line.removesuffix(b"\r"))
    if size:
        yield _piece(last, first, held, size, options)


def _piece(file: File, number: int, held: list[bytes], size: int, options: Options) -> tuple[File, int, bytes] | Reject:
    if size - 1 > options.max_document_bytes:
        return readers.too_long(f"{file.path}:{number}", size - 1, options.max_document_bytes, held[0])
    return file, number, b"\n".join(held)
