"""Files of a source: listed from a path, folder, glob or URL, grouped into partitions, decompressed, cut into lines.

Local files need no fsspec; every other URL goes through it. Lines are cut from a stream of chunks, and a line past
the limit is counted, not held, so that memory is bounded whatever the data.
"""

from __future__ import annotations

import bz2
import codecs
import glob
import lzma
import mmap
import os
import re
import stat
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

import zstandard

from stages.params import UserError
from stages.readers import File, Partition, Reject, excerpt, too_long
from stages.tables import PARTITION_BYTES

CHUNK = 2**20
"""Bytes read at once from a plain file."""
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
"""How a file begins whose line ends are not those of ASCII."""
COMPRESSED_CHUNK = 2**13
"""Bytes given to a decompressor at once: small, as 8 KiB may grow ten-thousandfold."""


class DamageError(Exception):
    """The stream cannot be read further; what came before is good. The message is a reason to reject the rest."""


class MissingError(UserError):
    """There is no such file."""


class Decompressor(Protocol):
    """What zlib, bz2, lzma and zstandard objects have in common."""

    @property
    def eof(self) -> bool:
        """Whether the compressed data are complete."""

    @property
    def unused_data(self) -> bytes:
        """What followed their end."""

    def decompress(self, data: bytes, /) -> bytes:
        """The next bytes."""


@dataclass(frozen=True)
class Compression:
    """A format that a suffix names and the first bytes prove: `magic` matches them."""

    name: str
    magic: re.Pattern[bytes]
    new: Callable[[], Decompressor]


COMPRESSIONS: dict[str, Compression] = {
    ".gz": Compression("gzip", re.compile(rb"\x1f\x8b\x08"), lambda: zlib.decompressobj(31)),
    ".zst": Compression("zstd", re.compile(rb"\x28\xb5\x2f\xfd"), lambda: zstandard.ZstdDecompressor().decompressobj()),
    ".bz2": Compression("bzip2", re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"), bz2.BZ2Decompressor),
    ".xz": Compression("xz", re.compile(rb"\xfd7zXZ\x00"), lzma.LZMADecompressor),
    ".tgz": Compression("gzip", re.compile(rb"\x1f\x8b\x08"), lambda: zlib.decompressobj(31)),
}
ERRORS = (zlib.error, zstandard.ZstdError, lzma.LZMAError, OSError, EOFError)
"""What decompressors raise for damaged data."""


def ascii_superset(encoding: str) -> str:
    """`encoding`; ValueError where Python does not know it, or its line ends are not those of ASCII (UTF-16)."""
    try:
        known = "a\n".encode(encoding) == b"a\n"
    except (LookupError, UnicodeError):
        raise ValueError(f"there is no text encoding {encoding!r}") from None
    if not known:
        raise ValueError(f"{encoding} is not supported: convert the files to UTF-8 first (iconv)")
    return encoding


# ---- listing ----------------------------------------------------------------------------------------------------


def is_url(source: str) -> bool:
    """Whether `source` goes through fsspec."""
    return "://" in source and not source.startswith("file://")


def root(source: str) -> str:
    """The folder that the paths of a `listing` of `source` may be told relative to, written as they are: the source
    itself, up to the first step that is a glob."""
    steps = source.removeprefix("file://").rstrip("/").split("/")
    plain = next((number for number, step in enumerate(steps) if glob.has_magic(step)), len(steps))
    folder = "/".join(steps[:plain])
    if not is_url(source):
        return folder if Path(folder).is_dir() or plain < len(steps) else folder.rpartition("/")[0]
    import fsspec

    system, path = fsspec.core.url_to_fs(folder)
    return str(system.unstrip_protocol(path))


def stem(path: str) -> str:
    """`path` without the suffix of a compression."""
    base, suffix = os.path.splitext(path)  # noqa: PTH122 - also of URLs
    return base if suffix in COMPRESSIONS else path


def listing(source: str, suffixes: Sequence[str] = (), pattern: str | None = None) -> list[File]:
    """The files of `source`, sorted by path.

    A file or a glob is taken as it is. Of a folder (and of those in it) the files that match `pattern`; without one,
    those that end in one of `suffixes` (none: any), compressed or not. Names that begin with `.` or `_` are marks
    that other programs leave (`_SUCCESS`), never data. UserError where nothing is found or nothing may be read.
    """
    found = _list_url(source) if is_url(source) else _list_local(source.removeprefix("file://"))
    files = [file for file in found.files if found.exact or _wanted(file.path, found.root, suffixes, pattern)]
    if not files:
        wanted = pattern or " ".join(suffixes)
        empty = "no file matches it" if found.exact else "there is no file in it"
        reason = f"none of its {len(found.files)} files match {wanted}" if found.files and wanted else empty
        raise UserError(f"ingest.source: {source}: {reason}")
    if pattern is None and not found.exact:
        _say_what_is_passed_over(found, files)
    return sorted(files, key=lambda file: file.path)


@dataclass(frozen=True)
class _Found:
    files: list[File]
    root: str
    exact: bool


def _say_what_is_passed_over(found: _Found, files: list[File]) -> None:
    """Other kinds of files are no part of the corpus, but a user may have meant them: their suffixes, on stderr."""
    every = [file for file in found.files if _wanted(file.path, found.root, (), None)]
    kinds = Counter(PurePosixPath(file.path).suffix or "without a suffix" for file in every)
    kinds.subtract(PurePosixPath(file.path).suffix or "without a suffix" for file in files)
    shown = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()) if count)
    if shown:
        count = len(every) - len(files)
        print(f"note: {found.root}: {count} files of other kinds are not read: {shown}", file=sys.stderr)


def _wanted(path: str, root: str, suffixes: Sequence[str], pattern: str | None) -> bool:
    relative = path.removeprefix(root).lstrip("/")
    if any(step.startswith((".", "_")) for step in relative.split("/")):
        return False
    if pattern is not None:
        return fnmatch(relative, pattern) or fnmatch("/" + relative, pattern)
    return not suffixes or any(name.lower().endswith(tuple(suffixes)) for name in (relative, stem(relative)))


def _list_local(source: str) -> _Found:
    try:
        if glob.has_magic(source) and not os.path.lexists(source):
            paths = glob.iglob(source, recursive=True)  # noqa: PTH207 - takes absolute patterns, too
            return _Found([_local_file(path) for path in paths if not Path(path).is_dir()], "", exact=True)
        if Path(source).is_dir():
            return _Found([_local_file(path) for path in _walk(source)], source, exact=False)
        return _Found([_local_file(source)], "", exact=True)
    except FileNotFoundError as error:
        raise UserError(f"ingest.source: there is no file or folder {error.filename or source}") from None
    except OSError as error:
        raise UserError(f"{error.filename or source}: cannot be read: {error.strerror}") from None


def _walk(folder: str) -> Iterator[str]:
    """Files below `folder`, links to folders followed once; OSError for a folder that may not be read."""

    def fail(error: OSError) -> None:
        raise error

    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        seen.add(os.path.realpath(parent))
        folders[:] = sorted(name for name in folders if os.path.realpath(Path(parent, name)) not in seen)
        yield from (str(Path(parent, name)) for name in names)


def _local_file(path: str) -> File:
    status = Path(path).stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(0, "it is neither a file nor a folder", path)
    if not os.access(path, os.R_OK):
        raise PermissionError(13, "Permission denied", path)
    return File(path, status.st_size)


def _list_url(source: str) -> _Found:
    import fsspec  # 0.1 s, for remote sources only

    try:
        system, path = fsspec.core.url_to_fs(source)
        if glob.has_magic(path) and "http" not in system.protocol:
            found, exact = system.glob(path, detail=True), True
        elif system.isdir(path) and "http" not in system.protocol:
            found, exact = system.find(path, detail=True), False
        else:
            found, exact = {path: system.info(path)}, True
    except FileNotFoundError:
        raise UserError(f"ingest.source: there is no file or folder {source}") from None
    except ImportError as error:
        raise UserError(f"ingest.source: {source}: {error}") from None
    except Exception as error:  # every file system has its own: credentials, names, networks
        raise UserError(f"ingest.source: {source}: cannot be listed: {type(error).__name__}: {error}") from None
    files = [
        File(system.unstrip_protocol(name), int(info.get("size") or 0))
        for name, info in found.items()
        if info.get("type") != "directory"
    ]
    return _Found(files, system.unstrip_protocol(path), exact)


# ---- partitions -------------------------------------------------------------------------------------------------


def partitions(
    files: Iterable[File], split: Callable[[File], list[Partition]] | None = None, size: int = PARTITION_BYTES
) -> list[Partition]:
    """Group `files`, in order, into partitions of about `size` bytes; a larger file is cut by `split` if given."""
    result: list[Partition] = []
    group: list[File] = []
    total = 0
    for file in files:
        if group and total + file.size > size:
            result.append(Partition(tuple(group)))
            group, total = [], 0
        if file.size > size and split is not None:
            result.extend(split(file))
        else:
            group.append(file)
            total += file.size
    return [*result, Partition(tuple(group))] if group else result


def split_lines(
    file: File, separator: bytes = b"\n", unless: bytes = b"", size: int = PARTITION_BYTES
) -> list[Partition]:
    """Cut a plain local file after `separator` into byte ranges of about `size`; whole where it is remote or
    compressed, or contains the byte `unless`. One pass over it counts its lines, so that a fault can be placed."""
    whole = [Partition((file,))]
    if is_url(file.path) or stem(file.path) != file.path:
        return whole
    with opened(file.path) as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
        if any(kind.magic.match(view) for kind in COMPRESSIONS.values()):
            return whole
        cuts = [0]
        while (found := view.find(separator, cuts[-1] + size)) >= 0 and found + len(separator) < file.size:
            cuts.append(found + len(separator))
        result, line = [], 1
        for start, end in zip(cuts, [*cuts[1:], file.size], strict=True):
            result.append(Partition((File(file.path, end - start),), start, end, line))
            for at in range(start, end, CHUNK):
                chunk = view[at : min(at + CHUNK, end)]
                if unless and unless in chunk:
                    return whole
                line += chunk.count(b"\n")
            view.madvise(mmap.MADV_DONTNEED, 0, end)  # else the whole file would count as this process's memory
    return result


# ---- reading ----------------------------------------------------------------------------------------------------


@contextmanager
def opened(path: str) -> Iterator[IO[bytes]]:
    """The bytes of a local file or URL; UserError where it may not be read or the connection fails."""
    try:
        if is_url(path):
            import fsspec

            with fsspec.open(path, "rb") as stream:
                yield stream
        else:
            with Path(path).open("rb") as stream:
                yield stream
    except FileNotFoundError:
        raise MissingError(f"{path}: cannot be read: there is no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None


def whole(path: str, limit: int, place: str | None = None) -> bytes | Reject:
    """The content of a file of at most `limit` bytes, decompressed; else why there is none, at `place` (the path)."""
    held, size = list[bytes](), 0
    try:
        for chunk in chunks(path):
            size += len(chunk)
            if size <= limit or not held:
                held.append(chunk)
    except DamageError as damage:
        return Reject(place or path, str(damage), excerpt(held[0]) if held else "")
    if size == 0:
        return Reject(place or path, "empty file")
    return too_long(place or path, size, limit, held[0]) if size > limit else b"".join(held)


def chunks(path: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
    """The content of `path`, decompressed as its suffix says, or its bytes `start` to `end`; DamageError at a fault."""
    with opened(path) as stream:
        _, suffix = os.path.splitext(path)  # noqa: PTH122 - also of URLs
        if suffix in COMPRESSIONS:
            yield from _decompressed(stream, COMPRESSIONS[suffix])
            return
        if start:
            stream.seek(start)
        first = True
        while chunk := stream.read(CHUNK if end is None else min(CHUNK, end - start)):
            if first and start == 0:
                _refuse_compressed(chunk, suffix)
            first = False
            start += len(chunk)
            yield chunk


def _refuse_compressed(head: bytes, suffix: str) -> None:
    for proper, kind in COMPRESSIONS.items():
        if kind.magic.match(head):
            raise DamageError(
                f"file is {kind.name} data, but its name does not end in {proper} (it ends in {suffix!r})"
            )


def _decompressed(stream: IO[bytes], kind: Compression) -> Iterator[bytes]:
    decompressor, begun, members = kind.new(), False, 0
    while data := stream.read(COMPRESSED_CHUNK):
        while data:
            try:
                chunk = decompressor.decompress(data)
            except ERRORS as error:
                if not begun and members:
                    raise DamageError(f"bytes after the end of the {kind.name} data") from None
                if not begun and not kind.magic.match(data):
                    raise DamageError(f"file is not {kind.name} data, whatever its name says") from None
                raise DamageError(f"damaged {kind.name} data ({error})") from None
            begun = True
            if chunk:
                yield chunk
            data = b""
            if decompressor.eof:
                data = decompressor.unused_data.lstrip(b"\0")  # tapes are padded with zeros
                decompressor, begun, members = kind.new(), False, members + 1
    if begun:
        raise DamageError(f"truncated {kind.name} data")


@dataclass(frozen=True)
class Overlong:
    """A line that was too long to be held: its length in bytes, and how it begins."""

    size: int
    head: bytes


def lines(content: Iterable[bytes], limit: int) -> Iterator[bytes | Overlong]:
    """The lines of a stream of chunks, without their `\\n`. A line of more than `limit` bytes is an Overlong."""
    held: list[bytes] = []
    size = 0
    for chunk in content:
        *whole, rest = chunk.split(b"\n")
        for piece in whole:
            if not size:
                yield piece if len(piece) <= limit else Overlong(len(piece), piece[:CHUNK])
                continue
            held.append(piece)
            size += len(piece)
            yield b"".join(held) if size <= limit else Overlong(size, held[0])
            held, size = [], 0
        if rest:
            size += len(rest)
            if size <= limit or not held:
                held.append(rest)
    if size:
        yield b"".join(held) if size <= limit else Overlong(size, held[0])


def numbered(partition: Partition, limit: int) -> Iterator[tuple[File, int, bytes] | Reject]:
    """(file, number, line) for every line of `partition`, numbers from 1; a Reject for each line of more than `limit`
    bytes, each empty file, and what follows damage. A byte order mark is dropped."""
    for file in partition.files:
        number, empty = partition.first - 1, True
        try:
            for line in lines(chunks(file.path, partition.start, partition.end), limit):
                if empty and isinstance(line, bytes) and line.startswith(UTF_16):
                    raise DamageError("file is UTF-16: convert it to UTF-8 first")
                empty = False
                number += 1
                if isinstance(line, Overlong):
                    reason = f"line is too long ({line.size} bytes; at most {limit} are read)"
                    yield Reject(f"{file.path}:{number}", reason, excerpt(line.head))
                else:
                    yield file, number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        except DamageError as damage:
            yield Reject(f"{file.path}:{number + 1}", str(damage))
        else:
            if empty:
                yield Reject(file.path, "empty file")
