"""Where records come from: one module per kind of source, found by its name in `corpora.NAME.ingest.reader`.

A reader module has

    MODALITIES: frozenset[str]                             what it can read
    class Options(stages.readers.Options)                  its keys in corpora.NAME.ingest
    def plan(source, options) -> list[Partition]           the same for the same data, on any machine
    def read(partition, options) -> Iterator[Record | Reject]
    def columns(partition, options) -> list[str]           optional: for sentences about a wrong column

`read` streams, and turns every fault of the data into a Reject; it raises UserError only for what is no fault of the
data, such as a file that may not be read or a connection that fails (`streams.opened` sees to that). A reason
is a few words that many rejects share; particulars follow in parentheses.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

EXCERPT = 200
"""Characters of a rejected record that are kept."""
DEFAULT_MAX_PIXELS = 2**26
"""Of a picture: twice a 24-megapixel camera's, and 270 MB of memory where it is decoded in colour."""
MOST_PIXELS = 2**27
"""Above it Pillow's own guard against decompression bombs would be in the way."""


class Options(BaseModel):
    """Options of every reader: subclass and add fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_document_bytes: int = Field(default=10_000_000, ge=1, description="longer records are rejected")


class Pictures(Options):
    """Options of every reader of pictures or video."""

    max_document_bytes: int = Field(default=50_000_000, ge=1, description="longer files are rejected")
    max_pixels: int = Field(
        default=DEFAULT_MAX_PIXELS, ge=1, le=MOST_PIXELS, description="a larger picture is rejected undecoded"
    )


@dataclass(frozen=True)
class File:
    """A file of a source, or a piece of one: `path` as the user would find it (a URL where it is remote), `size` in
    bytes."""

    path: str
    size: int


@dataclass(frozen=True)
class Partition:
    """A bounded piece of a source: some whole `files`, or the units `start` to `end` of one file (bytes, row groups).

    `first` is the number of the first line or row in that piece, counted from 1. `root` is the folder that the paths of
    `files` mean something relative to (class folders), where the reader asked for one.
    """

    files: tuple[File, ...]
    start: int = 0
    end: int | None = None
    first: int = 1
    root: str = ""

    @property
    def size(self) -> int:
        """Bytes of the source in this partition: a piece of a file counts its own bytes only."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True)
class Record:
    """One row: the modality's `payload`, a `label` or None, the `source` it came from (`file:line`), and the `group`
    that must never be split between train, validation and probe (None: the record alone)."""

    payload: Mapping[str, str | bytes]
    label: str | None
    source: str
    group: str | None = None


@dataclass(frozen=True)
class Reject:
    """What could not be read: where, why, how it begins, and how many `rows` it stands for: exactly where the source
    says (Parquet, video), else by the bytes that were not read, and one where nobody can know."""

    source: str
    reason: str
    excerpt: str = ""
    rows: int = 1


def excerpt(content: str | bytes) -> str:
    """The beginning of a record as text that Arrow and a terminal can hold; nothing of bytes that are no UTF-8, which
    may be of any file."""
    if isinstance(content, str):
        return content[:EXCERPT].encode("utf-8", "backslashreplace").decode()[:EXCERPT]
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(content[: 4 * EXCERPT])[:EXCERPT]
    except UnicodeDecodeError:
        return ""


def shown(value: object) -> str:
    """An excerpt of a value of JSON or Arrow."""
    try:
        return excerpt(json.dumps(value, default=str))
    except (RecursionError, ValueError):
        return ""


def too_long(source: str, size: int, limit: int, head: str | bytes) -> Reject:
    """The Reject of a document of `size` bytes where `max_document_bytes` is `limit`."""
    return Reject(source, f"document is longer than max_document_bytes ({size} bytes, not {limit})", excerpt(head))


def kind(value: object) -> str:
    """What a value of JSON or Arrow is, in words."""
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    names = {type(None): "null", str: "a string", list: "a list", dict: "an object", bytes: "bytes"}
    return names.get(type(value), f"a {type(value).__name__}")
