"""JSON lines: one object a line, plain or compressed. Blank lines are no rows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

from pydantic import Field

from stages import readers
from stages.files.sources import listing, partitions, split_lines
from stages.files.streams import numbered
from stages.readers import Partition, Record, Reject, excerpt, shown

MODALITIES = frozenset({"text"})
SUFFIXES = (".jsonl", ".ndjson", ".json")
ESCAPED = 3
"""A line may be so many times longer than the document in it, as JSON may write a character of two bytes in six."""
MOST_VALUES = 2**20
"""Of a line, in all its lists and objects: each takes up to a hundred bytes of memory, and two in the line."""
PEEK = 100
"""Rows looked at for the names of columns."""
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"')


class Options(readers.Options):
    """Which columns of the source are what."""

    text: str = Field(default="text", description="column of the document")
    label: str | None = Field(default=None, description="column of the label")
    group: str | None = Field(default=None, description="column of what must stay on one side of every split")
    files: str | None = Field(default=None, description="glob of the files to take from a folder, relative to it")


def plan(source: str, options: Options) -> list[Partition]:
    """Large plain files are cut at line ends, small ones grouped."""
    return partitions(listing(source, SUFFIXES, options.files), split_lines)


def read(partition: Partition, options: Options) -> Iterator[Record | Reject]:
    """One Record or Reject for every line that is not blank."""
    for found in rows(partition, options):
        yield found if isinstance(found, Reject) else record(found[1], options, found[0])


def rows(partition: Partition, options: Options) -> Iterator[tuple[str, dict[str, Any]] | Reject]:
    """(place, named values) of every line that is not blank, or why it has none."""
    for found in numbered(partition, ESCAPED * options.max_document_bytes + readers.EXCERPT):
        if isinstance(found, Reject):
            yield found
            continue
        file, number, line = found
        if line and not line.isspace():
            place = f"{file.path}:{number}"
            parsed = _parse(line)
            yield Reject(place, parsed, excerpt(line)) if isinstance(parsed, str) else (place, parsed)


def _parse(line: bytes) -> dict[str, Any] | str:
    """The object in `line`, or the reason why there is none."""
    if len(line) > MOST_VALUES and _values(line) > MOST_VALUES:
        return f"JSON has too many values (more than {MOST_VALUES} in a line)"
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return f"invalid UTF-8 ({error.reason} at byte {error.start})"
    except RecursionError:
        return "JSON is nested too deeply"
    except ValueError as error:
        return f"invalid JSON ({error})"
    return value if isinstance(value, dict) else f"line is not a JSON object (it is {readers.kind(value)})"


def _values(line: bytes) -> int:
    """How many values a line of JSON has at most: what its commas and brackets outside of strings allow."""
    marks = (b",", b"[", b"{")
    if (most := sum(map(line.count, marks))) > MOST_VALUES:
        most = sum(map(_STRING.sub(b"", line).count, marks))
    return most


def record(row: dict[str, Any], options: Options, place: str) -> Record | Reject:
    """The Record that a row of named values holds, or why it holds none. An empty field and NaN are no label."""
    if options.text not in row:
        return Reject(place, f"no column {options.text!r}", shown(row))
    text = row[options.text]
    if text is None:
        return Reject(place, f"null in column {options.text!r}")
    if not isinstance(text, str):
        reason = f"column {options.text!r} is not a string (it is {readers.kind(text)})"
        return Reject(place, reason, shown(text))
    names = {}
    for key, column in (("label", options.label), ("group", options.group)):
        value = row.get(column) if column is not None else None
        if not isinstance(value, str | int | float | None):
            reason = f"column {column!r} is neither a string nor a number (it is {readers.kind(value)})"
            return Reject(place, reason, excerpt(text))
        missing = value is None or value == "" or value != value  # NaN is how pandas has it
        names[key] = None if missing else str(value)
    return Record({"text": text}, names["label"], place, names["group"])


def columns(partition: Partition, options: Options) -> list[str]:
    """Names of the columns in the first rows."""
    limit = ESCAPED * options.max_document_bytes + readers.EXCERPT
    found = (_parse(line[2]) for line in numbered(partition, limit) if not isinstance(line, Reject))
    return sorted({name for row in islice(found, PEEK) if isinstance(row, dict) for name in row})
