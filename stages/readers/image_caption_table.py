"""A table of pictures: CSV, TSV or JSON lines, with a column of paths and columns of captions and labels.

Paths are relative to the folder of the table, and lead to pictures below it. A table is data, often of other people:
that it may name any file and any address by an absolute path, `..` or a URL is for `outside` to allow. A picture may be
in many rows, with a caption each; rows of one picture are one group, unless a column says otherwise.
"""

from __future__ import annotations

import functools
import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from stages import readers
from stages.files import sources, streams
from stages.readers import File, Partition, Record, Reject, csv, image_folder, jsonl

MODALITIES = frozenset({"image", "image_text"})
TABLE_BYTES = 2**20
"""Of a table in one partition: the pictures that it names are far larger."""


class Options(readers.Pictures):
    """Which columns are what, and the dialect of CSV."""

    image: str = Field(default="image", description="column of the picture's path")
    text: str | None = Field(default=None, description="column of the caption; needed for modality image_text")
    label: str | None = Field(default=None, description="column of the label")
    group: str | None = Field(default=None, description="column of what must stay on one side of every split")
    files: str | None = Field(default=None, description="glob of the tables to take from a folder, relative to it")
    outside: bool = Field(default=False, description="take absolute paths, `..` and URLs, too")
    delimiter: str | None = Field(default=None, description="of CSV; default: a comma, in .tsv a tab")
    encoding: str = Field(default="utf-8", description="of CSV, any that Python knows")

    _known = field_validator("encoding")(sources.ascii_superset)
    _delimits = field_validator("delimiter")(csv.delimits)


def plan(source: str, options: Options) -> list[Partition]:
    """Ranges of lines, as of any table."""
    tables = sources.listing(source, (*csv.SUFFIXES, *jsonl.SUFFIXES), options.files)
    return sources.partitions(tables, _split, size=TABLE_BYTES)


def _split(file: File) -> list[Partition]:
    return sources.split_lines(file, unless=b"" if _is_json(file) else csv.QUOTE.encode(), size=TABLE_BYTES)


def _is_json(file: File) -> bool:
    return sources.stem(file.path).lower().endswith(jsonl.SUFFIXES)


def read(partition: Partition, options: Options) -> Iterator[Record | Reject]:
    """One Record or Reject for every row."""
    for file in partition.files:
        for found in _rows(Partition((file,), partition.start, partition.end, partition.first), options):
            yield found if isinstance(found, Reject) else _record(file, *found, options)


def _rows(partition: Partition, options: Options) -> Iterator[tuple[str, dict[str, Any]] | Reject]:
    (file,) = partition.files
    if _is_json(file):
        yield from jsonl.rows(partition, jsonl.Options())
        return
    dialect = csv.Options(delimiter=options.delimiter, encoding=options.encoding, text=options.image)
    yield from csv.rows(partition, dialect)


def _record(table: File, place: str, row: dict[str, Any], options: Options) -> Record | Reject:
    name = row.get(options.image)
    if not isinstance(name, str) or not name:
        reason = f"no column {options.image!r}" if options.image not in row else f"column {options.image!r} has no path"
        return Reject(place, reason, readers.shown(row))
    folder = table.path.rpartition("/")[0]
    if not options.outside and not _below(folder, name):
        return Reject(place, "picture is not below the folder of the table (`outside: true` in ingest takes any)")
    path = _located(folder, name.removeprefix("file://"))
    try:
        content = streams.whole(path, options.max_document_bytes, place)
    except streams.MissingError:
        return Reject(place, f"there is no such picture ({readers.excerpt(path)})")
    if isinstance(content, Reject):
        return content
    payload: dict[str, str | bytes] = {"image": content}
    if options.text is not None and (caption := row.get(options.text)) is not None:
        payload["text"] = caption
    group = image_folder.value(row, options.group) if options.group is not None else path
    return Record(payload, image_folder.value(row, options.label), place, group)


def _below(folder: str, name: str) -> bool:
    """Whether `name` is a relative path that stays below `folder`, and no folder on its way is a link elsewhere."""
    steps = name.split("/")
    if "://" in name or name.startswith("/") or ".." in steps:
        return False
    return streams.is_url(folder) or _is_plain(folder, "/".join(steps[:-1]))


@functools.lru_cache(maxsize=1024)
def _is_plain(folder: str, below: str) -> bool:
    """Whether the folder `below` another is there itself, not by a link to a folder."""
    try:
        return Path(folder, below).resolve() == Path(folder).resolve() / posixpath.normpath(below)
    except (OSError, ValueError):  # there can be no such folder, which reading will say
        return True


def _located(folder: str, name: str) -> str:
    """The path or URL that a table in `folder` means by `name`: one spelling for one picture."""
    if streams.is_url(name):
        return name
    return f"{folder}/{name}" if streams.is_url(folder) else posixpath.normpath(posixpath.join(folder, name))


def columns(partition: Partition, options: Options) -> list[str]:
    """Names of the columns of the first row."""
    first = next((row for row in _rows(Partition(partition.files[:1]), options) if not isinstance(row, Reject)), None)
    return [] if first is None else list(first[1])
