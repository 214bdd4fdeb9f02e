"""CSV as RFC 4180 has it: a header, quoted fields that may hold line ends, doubled quotes. Blank lines are no rows."""

from __future__ import annotations

import csv
from collections.abc import Iterator

from pydantic import Field, field_validator

from stages import sources
from stages.params import UserError
from stages.readers import File, Partition, Record, Reject, excerpt, jsonl

MODALITIES = frozenset({"text"})
SUFFIXES = (".csv", ".tsv")
QUOTE = '"'
ESCAPED = 2
"""A row may be so many times longer than the document in it, as CSV doubles quotes."""


def delimits(delimiter: str | None) -> str | None:
    """`delimiter`; ValueError where it cannot stand between fields."""
    if delimiter is not None and (len(delimiter) != 1 or delimiter in f"{QUOTE}\r\n"):
        raise ValueError("must be one character, neither a quote nor a line end")
    return delimiter


class Options(jsonl.Options):
    """Which columns are what, and the dialect."""

    delimiter: str | None = Field(
        default=None, description='between fields; a tab is "\\t"; default: a comma, in .tsv a tab'
    )
    encoding: str = Field(default="utf-8", description="any that Python knows")

    _known = field_validator("encoding")(sources.ascii_superset)
    _delimits = field_validator("delimiter")(delimits)


def plan(source: str, options: Options) -> list[Partition]:
    """Small files are grouped. A large plain file is cut at line ends where no quote in it could hide one."""
    return sources.partitions(
        sources.listing(source, SUFFIXES, options.files), lambda file: sources.split_lines(file, unless=QUOTE.encode())
    )


def read(partition: Partition, options: Options) -> Iterator[Record | Reject]:
    """One Record or Reject for every row."""
    for found in rows(partition, options):
        yield found if isinstance(found, Reject) else _record(found[1], options, found[0])


def rows(partition: Partition, options: Options) -> Iterator[tuple[str, dict[str, str]] | Reject]:
    """(place, fields by column) of every row, or why it has none."""
    for file in partition.files:
        piece = Partition((file,), partition.start, partition.end, partition.first)
        header: list[str] | None = columns(Partition((file,)), options) if partition.start else None
        for found in _rows(piece, options):
            if isinstance(found, Reject):
                yield found
                continue
            place, row = found
            if header is None:
                header = _header(row, options, place)
            elif len(row) != len(header):
                reason = f"row has another number of fields than the header ({len(row)}, not {len(header)})"
                yield Reject(place, reason, excerpt(_delimiter(file, options).join(row)))
            else:
                yield place, dict(zip(header, row, strict=True))


def _header(row: list[str], options: Options, place: str) -> list[str]:
    for name in (options.text, options.label, options.group):
        if name is not None and row.count(name) > 1:
            raise UserError(f"{place}: the header has {row.count(name)} columns {name!r}: rename all but one")
    return row


def _record(fields: dict[str, str], options: Options, place: str) -> Record | Reject:
    found = jsonl.record(fields, options, place)
    if isinstance(found, Record):
        try:
            "".join([*map(str, found.payload.values()), found.label or "", found.group or ""]).encode()
        except UnicodeEncodeError:  # a byte that did not decode was kept as a surrogate
            return Reject(place, f"invalid {options.encoding}", excerpt(fields[options.text]))
    return found


def _rows(partition: Partition, options: Options) -> Iterator[tuple[str, list[str]] | Reject]:
    """(place, fields) of every row of one file. A row goes on to the next line while a quote is open; what is held is
    bounded."""
    limit = ESCAPED * options.max_document_bytes
    csv.field_size_limit(max(csv.field_size_limit(), limit))
    delimiter = _delimiter(partition.files[0], options)
    held: list[str] = []
    size, place = 0, ""
    for found in sources.numbered(partition, limit):
        if isinstance(found, Reject):
            if held:
                yield Reject(place, "a quote is not closed", excerpt(held[0]))
            held, size = [], 0
            yield found
            continue
        file, number, content = found
        line = content.decode(options.encoding, "surrogateescape") + "\n"
        if not held:
            if line.isspace():
                continue
            place, size = f"{file.path}:{number}", 0
        size += len(content) + 1
        begins = not held
        if begins or size <= limit:
            held.append(line)
        if not begins and line.count(QUOTE) % 2 == 0:
            continue  # inside a quoted field, quotes come in pairs until it ends
        if size > limit:
            yield Reject(place, f"row is too long ({size} bytes; at most {limit} are read)", excerpt(held[0]))
        elif (fields := _fields("".join(held), delimiter)) is None:
            continue
        else:
            yield Reject(place, fields, excerpt(held[0])) if isinstance(fields, str) else (place, fields)
        held = []
    if held:
        yield Reject(place, "a quote is not closed before the end of the file", excerpt(held[0]))


def _delimiter(file: File, options: Options) -> str:
    return options.delimiter or ("\t" if sources.stem(file.path).lower().endswith(".tsv") else ",")


def _fields(row: str, delimiter: str) -> list[str] | str | None:
    """The fields of one row; a reason where it has none; None where it ends inside a quoted field."""
    try:
        return next(csv.reader([row], delimiter=delimiter, strict=True))
    except csv.Error as error:
        return None if "unexpected end of data" in str(error) else f"invalid CSV ({str(error).partition(' - ')[0]})"


def columns(partition: Partition, options: Options) -> list[str]:
    """The header of the first file."""
    first = next(_rows(Partition(partition.files[:1]), options), None)
    return [] if first is None or isinstance(first, Reject) else first[1]
