"""CSV as RFC 4180 has it: a header, quoted fields that may hold line ends, doubled quotes. Blank lines are no rows."""

from __future__ import annotations

import csv
from collections.abc import Iterator

from pydantic import Field, field_validator

from stages import readers
from stages.files import sources, streams
from stages.params import UserError
from stages.readers import File, Partition, Record, Reject, excerpt, jsonl

MODALITIES = frozenset({"text"})
SUFFIXES = (".csv", ".tsv")
QUOTE = '"'
ESCAPED = 2
"""A row may be so many times longer than the document in it, as CSV doubles quotes."""
Line = tuple[File, int, bytes]


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
                yield Reject(place, reason, excerpt(_delimiter(file, options).join(row[: readers.EXCERPT])))
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
            return Reject(place, f"invalid {options.encoding}")
    return found


class _Row:
    """The lines of one row for `csv.reader`, which asks for another while a quote is open. `size` counts their bytes;
    `ended` is why there is no further one, where one was asked for."""

    def __init__(self, first: str, size: int, lines: Iterator[Line | Reject], options: Options) -> None:
        self.first, self.size, self.limit = first, size, ESCAPED * options.max_document_bytes
        self.ended: Reject | str | None = None
        self._lines, self._options = lines, options

    def __iter__(self) -> Iterator[str]:
        yield self.first
        for found in self._lines:
            if isinstance(found, Reject):
                self.ended = found
                return
            self.size += len(found[2]) + 1
            line = _decoded(found[2], self._options)
            if self.size > self.limit:
                self._pass(line)
                return
            yield line
        self.ended = "a quote is not closed before the end of the file"

    def _pass(self, line: str) -> None:
        """Go over the rest of a row that is too long: in a quoted field, quotes come in pairs until it ends."""
        while line.count(QUOTE) % 2 == 0:
            found = next(self._lines, None)
            if found is None or isinstance(found, Reject):
                self.ended = found or "a quote is not closed before the end of the file"
                return
            self.size += len(found[2]) + 1
            line = _decoded(found[2], self._options)
        self.ended = f"row is too long ({self.size} bytes; at most {self.limit} are read)"


def _decoded(line: bytes, options: Options) -> str:
    return line.decode(options.encoding, "surrogateescape") + "\n"


def _rows(partition: Partition, options: Options) -> Iterator[tuple[str, list[str]] | Reject]:
    """(place, fields) of every row of one file; what is held of a row is bounded."""
    limit = ESCAPED * options.max_document_bytes
    csv.field_size_limit(max(csv.field_size_limit(), limit))
    delimiter = _delimiter(partition.files[0], options)
    lines = streams.numbered(partition, limit)
    for found in lines:
        if isinstance(found, Reject):
            yield found
            continue
        file, number, content = found
        line = _decoded(content, options)
        if line.isspace():
            continue
        place, row = f"{file.path}:{number}", _Row(line, len(content) + 1, lines, options)
        try:
            yield place, next(csv.reader(row, delimiter=delimiter, strict=True))
        except csv.Error as error:
            reason = f"invalid CSV ({str(error).partition(' - ')[0]})" if row.ended is None else row.ended
            if isinstance(reason, Reject):
                yield Reject(place, "a quote is not closed", excerpt(content))
                yield reason
            else:
                yield Reject(place, reason, excerpt(content))


def _delimiter(file: File, options: Options) -> str:
    return options.delimiter or ("\t" if sources.stem(file.path).lower().endswith(".tsv") else ",")


def columns(partition: Partition, options: Options) -> list[str]:
    """The header of the first file."""
    first = next(_rows(Partition(partition.files[:1]), options), None)
    return [] if first is None or isinstance(first, Reject) else first[1]
