"""The bytes of a file of a source: read from a disk or a network, decompressed, cut into lines.

What the reading of a file raises is never a fault of its data: a connection that fails is made again, goes on at the
same byte, and at last ends the stage. A line past the limit is counted, not held, and what a decompressor gives at once
is bounded, so that memory is bounded whatever the data.
"""

from __future__ import annotations

import bz2
import codecs
import errno
import io
import lzma
import os
import re
import stat
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import zstandard

from stages.params import UserError
from stages.readers import File, Partition, Reject, excerpt, too_long

CHUNK = 2**20
"""Bytes read at once from a plain file."""
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
"""How a file begins whose line ends are not those of ASCII."""
COMPRESSED_CHUNK = 2**13
"""Bytes given to a decompressor at once that bounds its own output."""
ZSTD_CHUNK = 2**8
"""Bytes given at once to zstd, which does not: a block has 4 at least and becomes 128 KiB at most, so these 8 MiB."""
DECOMPRESSOR_BYTES = 2**27
"""The window of zstd and the dictionary of xz, at most: what `zstd --long` and twice what `xz -9` ask for."""
EXPANSION, EXPANDED = 1000, 2**24
"""A file that grows more than so many times, and to more than so many bytes, was made to fill a memory or a disk."""
ATTEMPTS, PAUSE = 5, 1.0
"""How often in a row a connection is made, and the seconds before the second time, doubled each time after."""
PASSING = frozenset({408, 425, 429})
"""Statuses of HTTP below 500 that another attempt may not meet."""
NO_FILE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP})
"""What the system says of a path at which there can be no file."""
MOST_FOLLOWING = 1_000_000
"""Rows that one row read is taken to stand for, at most."""
Found = TypeVar("Found")


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


@dataclass(frozen=True)
class Compression:
    """A format that a suffix names and the first bytes prove: `magic` matches them."""

    name: str
    magic: re.Pattern[bytes]
    new: Callable[[], Decompressor]
    step: Callable[[Any, bytes], tuple[bytes, bytes, bool]]
    """What some bytes become first, of about CHUNK bytes at most; those of them still to be given; and whether there
    is more to come without them."""


def _zlib_step(decompressor: Any, data: bytes) -> tuple[bytes, bytes, bool]:
    chunk: bytes = decompressor.decompress(data, CHUNK)
    rest = b"" if decompressor.eof else decompressor.unconsumed_tail  # at the end it may be that of `unused_data`
    return chunk, rest, len(chunk) == CHUNK


def _zstd_step(decompressor: Any, data: bytes) -> tuple[bytes, bytes, bool]:
    return decompressor.decompress(data[:ZSTD_CHUNK]), data[ZSTD_CHUNK:], False


def _keeping_step(decompressor: Any, data: bytes) -> tuple[bytes, bytes, bool]:
    """Of bz2 and lzma, which keep what they have not used."""
    chunk: bytes = decompressor.decompress(data, CHUNK)
    return chunk, b"", not decompressor.needs_input


GZIP = Compression("gzip", re.compile(rb"\x1f\x8b\x08"), lambda: zlib.decompressobj(31), _zlib_step)
COMPRESSIONS: dict[str, Compression] = {
    ".gz": GZIP,
    ".zst": Compression(
        "zstd",
        re.compile(rb"\x28\xb5\x2f\xfd"),
        lambda: zstandard.ZstdDecompressor(max_window_size=DECOMPRESSOR_BYTES).decompressobj(),
        _zstd_step,
    ),
    ".bz2": Compression("bzip2", re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"), bz2.BZ2Decompressor, _keeping_step),
    ".xz": Compression(
        "xz", re.compile(rb"\xfd7zXZ\x00"), lambda: lzma.LZMADecompressor(memlimit=DECOMPRESSOR_BYTES), _keeping_step
    ),
    ".tgz": GZIP,
}
ERRORS = (zlib.error, zstandard.ZstdError, lzma.LZMAError, OSError, EOFError)
"""What decompressors raise for damaged data."""


def is_url(source: str) -> bool:
    """Whether `source` goes through fsspec."""
    return "://" in source and not source.startswith("file://")


def _is_missing(error: BaseException | None) -> bool:
    """Whether `error` says that there is no such file. fsspec's HTTP calls whatever fails a FileNotFoundError, and what
    it was the cause."""
    while isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    return isinstance(error, FileNotFoundError) or getattr(error, "status", None) in (404, 410)


def _is_final(error: BaseException) -> bool:
    """Whether another attempt would meet the same `error`: access denied, an address that means nothing."""
    status = getattr(error.__cause__ or error, "status", None)
    if isinstance(status, int):
        return 400 <= status < 500 and status not in PASSING
    return isinstance(error, PermissionError | ImportError | ValueError | TypeError | NotImplementedError)


def detail(error: BaseException) -> str:
    """What an error of a file system says, in one line, with its type."""
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def persistent(act: Callable[[], Found], place: str) -> Found:
    """What `act` of a file system finds, tried again where the connection fails. MissingError where there is no such
    file, UserError where it may not be read or the connection fails for good."""
    for attempt in range(ATTEMPTS):
        try:
            return act()
        except (UserError, DamageError):
            raise
        except Exception as error:  # every file system has its own: credentials, names, networks
            if _is_missing(error):
                raise MissingError(f"{place}: cannot be read: there is no such file") from None
            cause = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
            if _is_final(error):
                raise UserError(f"{place}: cannot be read ({detail(cause)})") from None
            if attempt + 1 == ATTEMPTS:
                raise UserError(
                    f"{place}: the connection failed {ATTEMPTS} times in a row ({detail(cause)}): run the stage again "
                    "once the server can be reached"
                ) from None
            pause = PAUSE * 2**attempt
            print(f"note: {place}: {detail(cause)}: trying again in {pause:g} s", file=sys.stderr, flush=True)
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


class Reading(io.RawIOBase):
    """A local file or URL that is being read. A connection that fails is made again, and goes on at the same byte.

    `fault` is the UserError by which reading ended: parsers may take it for damage, so `opened` raises it at its end.
    """

    mode = "rb"

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path, self._at = path, 0
        self.fault: UserError | None = None
        self._file: Any = None
        self.size: int | None
        if is_url(path):
            persistent(self._connect, path)
            self.size = getattr(self._file, "size", None)
        else:
            self._file, self.size = _local(path)

    def _connect(self) -> None:
        """Open the URL at the byte that is due."""
        import fsspec

        if self._file is None:
            self._file = fsspec.open(self.path, "rb").open()
            if self._at and self._file.seekable():
                self._file.seek(self._at)
            elif self._at:  # what cannot be entered in its middle is passed over
                passed = 0
                while passed < self._at and (chunk := self._file.read(min(CHUNK, self._at - passed))):
                    passed += len(chunk)

    def _disconnect(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with suppress(Exception):  # a broken connection may refuse even that, and nothing was written
                file.close()

    def _read(self, size: int) -> bytes:
        try:
            self._connect()
            chunk: bytes = self._file.read(size)
            if size and not chunk and self.size is not None and self._at < self.size:
                raise EOFError(f"it ended after {self._at} of {self.size} bytes")
        except BaseException:
            self._disconnect()
            raise
        return chunk

    def read(self, size: int = -1) -> bytes:
        """The next bytes, at most `size`; UserError where there is no way to read them."""
        try:
            act = partial(self._read if is_url(self.path) else self._file.read, size)
            chunk: bytes = persistent(act, self.path) if is_url(self.path) else act()
        except UserError as error:
            self.fault = error
            raise
        except OSError as error:
            self.fault = UserError(f"{self.path}: cannot be read: {error.strerror or error}")
            raise self.fault from None
        self._at += len(chunk)
        return chunk

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """Whether any byte can be read next."""
        return bool(self._file is None or self._file.seekable())

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a byte, as any file has it."""
        if whence == io.SEEK_END and self.size is None:
            raise io.UnsupportedOperation("the size is not known")
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size or 0}[whence]
        if base + offset != self._at:
            if self._file is not None:
                self._file.seek(base + offset)
            self._at = base + offset
        return self._at

    def tell(self) -> int:
        """The byte that is due."""
        return self._at

    def fileno(self) -> int:
        """Of a local file."""
        return int(self._file.fileno())

    def close(self) -> None:
        """Let the file go."""
        self._disconnect()
        super().close()


def _local(path: str) -> tuple[Any, int]:
    """A local file, open, and its size. MissingError where the path leads to none, be it a folder or a pipe."""
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):
            raise MissingError(f"{path}: cannot be read: it is no file")
        return Path(path).open("rb"), status.st_size
    except ValueError:  # a zero byte, or what is no Unicode
        raise MissingError(f"{path!r}: cannot be read: there can be no such file") from None
    except OSError as error:
        if error.errno in NO_FILE:
            raise MissingError(f"{path}: cannot be read: there is no such file") from None
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None


@contextmanager
def opened(path: str) -> Iterator[Reading]:
    """The bytes of a local file or URL; UserError where it may not be read or the connection fails, whatever the block
    made of that."""
    with closing(Reading(path)) as stream:
        try:
            yield stream
        finally:
            if stream.fault is not None:
                raise stream.fault


def whole(path: str, limit: int, place: str | None = None) -> bytes | Reject:
    """The content of a file of at most `limit` bytes, decompressed; else why there is none, at `place` (the path)."""
    held, size = list[bytes](), 0
    try:
        for chunk in Content(path):
            size += len(chunk)
            if size <= limit:
                held.append(chunk)
            else:
                held.clear()
    except DamageError as damage:
        return Reject(place or path, str(damage))
    if size == 0:
        return Reject(place or path, "empty file")
    return too_long(place or path, size, limit, "") if size > limit else b"".join(held)


class Content:
    """The content of `path` in chunks, decompressed as its suffix says, or its bytes `start` to `end`; DamageError at a
    fault. `unread` is the share of the file's own bytes that are still to come."""

    def __init__(self, path: str, start: int = 0, end: int | None = None) -> None:
        self.path, self._start, self._end = path, start, end
        self.unread = 1.0

    def __iter__(self) -> Iterator[bytes]:
        with opened(self.path) as stream:
            _, suffix = os.path.splitext(self.path)  # noqa: PTH122 - also of URLs
            if suffix in COMPRESSIONS:
                yield from self._decompressed(stream, COMPRESSIONS[suffix])
                return
            start = self._start
            if start:
                stream.seek(start)
            first = start == 0
            while chunk := stream.read(CHUNK if self._end is None else min(CHUNK, self._end - start)):
                if first:
                    _refuse_compressed(chunk, suffix)
                first = False
                start += len(chunk)
                self._advance(stream)
                yield chunk

    def _advance(self, stream: Reading) -> None:
        self.unread = 1 - stream.tell() / stream.size if stream.size else 0.0

    def _decompressed(self, stream: Reading, kind: Compression) -> Iterator[bytes]:
        decompressor, begun, members, taken, given = kind.new(), False, 0, 0, 0
        while data := stream.read(COMPRESSED_CHUNK):
            self._advance(stream)
            taken += len(data)
            more = False
            while data or more:
                try:
                    chunk, data, more = kind.step(decompressor, data)
                except ERRORS as error:
                    if not begun and members:
                        raise DamageError(f"bytes after the end of the {kind.name} data") from None
                    if not begun and not kind.magic.match(data):
                        raise DamageError(f"file is not {kind.name} data, whatever its name says") from None
                    raise DamageError(f"damaged {kind.name} data ({error})") from None
                begun = True
                given += len(chunk)
                if given > max(EXPANDED, EXPANSION * taken):
                    raise DamageError(
                        f"{kind.name} data grow more than {EXPANSION} times: if they are no bomb, decompress them first"
                    )
                if chunk:
                    yield chunk
                if decompressor.eof:
                    data = (decompressor.unused_data + data).lstrip(b"\0")  # tapes are padded with zeros
                    decompressor, begun, members, more = kind.new(), False, members + 1, False
        if begun:
            raise DamageError(f"truncated {kind.name} data")


def _refuse_compressed(head: bytes, suffix: str) -> None:
    for proper, kind in COMPRESSIONS.items():
        if kind.magic.match(head):
            raise DamageError(
                f"file is {kind.name} data, but its name does not end in {proper} (it ends in {suffix!r})"
            )


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


def following(rows: int, unread: float) -> int:
    """How many rows the `unread` share of a file holds, after `rows` in what was read: by their mean size, at least
    one."""
    return max(1, round(rows * unread / max(1 - unread, unread / MOST_FOLLOWING)))


def numbered(partition: Partition, limit: int) -> Iterator[tuple[File, int, bytes] | Reject]:
    """(file, number, line) for every line of `partition`, numbers from 1; a Reject for each line of more than `limit`
    bytes, each empty file, and what follows damage. A byte order mark is dropped."""
    for file in partition.files:
        number, empty, unread = partition.first - 1, True, 1.0
        content = Content(file.path, partition.start, partition.end)
        try:
            for line in lines(content, limit):
                if empty and isinstance(line, bytes) and line.startswith(UTF_16):
                    raise DamageError("file is UTF-16: convert it to UTF-8 first")
                empty = False
                number, unread = number + 1, content.unread
                if isinstance(line, Overlong):
                    reason = f"line is too long ({line.size} bytes; at most {limit} are read)"
                    yield Reject(f"{file.path}:{number}", reason, excerpt(line.head))
                else:
                    yield file, number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        except DamageError as damage:
            yield Reject(f"{file.path}:{number + 1}", str(damage), rows=following(number, unread))
        else:
            if empty:
                yield Reject(file.path, "empty file")
