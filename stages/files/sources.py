"""Files of a source: listed from a path, folder, glob or URL, and grouped into partitions, which `streams.py` reads.
Local files need no fsspec; every other URL goes through it."""

from __future__ import annotations

import glob
import mmap
import os
import stat
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from stages.files.streams import CHUNK, COMPRESSIONS, MissingError, is_url, opened, persistent
from stages.files.tables import PARTITION_BYTES
from stages.params import UserError
from stages.readers import File, Partition

MARKS = (".", "_")
"""How names of marks begin that other programs leave (`_SUCCESS`): never data."""


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
    if any(step.startswith(MARKS) for step in relative.split("/")):
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
    """Files below `folder`; OSError for a folder that may not be read. UserError where a folder is a link: DVC does not
    look into it for change. A link to a file is that file, as it is to DVC."""

    def fail(error: OSError) -> None:
        raise error

    for parent, folders, names in os.walk(folder, onerror=fail):
        folders.sort()
        for name in folders:
            if (link := Path(parent, name)).is_symlink() and not name.startswith(MARKS):
                raise UserError(
                    f"ingest.source: {link}: is a link to a folder, in which DVC would see no change: put the folder "
                    "itself there, or make it a source of its own"
                )
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

    def listed() -> tuple[Any, str, dict[str, Any], bool]:
        system, path = fsspec.core.url_to_fs(source)
        if glob.has_magic(path) and "http" not in system.protocol:
            return system, path, system.glob(path, detail=True), True
        if "http" not in system.protocol and system.isdir(path):
            return system, path, system.find(path, detail=True), False
        return system, path, {path: system.info(path)}, True

    try:
        system, path, found, exact = persistent(listed, f"ingest.source: {source}")
    except MissingError:
        raise UserError(f"ingest.source: there is no file or folder {source}") from None
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
