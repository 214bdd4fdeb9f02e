"""WebDataset: tars, plain or compressed, in which the files of one sample follow each other and share their name up to
the first dot: `0001.jpg`, `0001.txt` (caption), `0001.cls` (class), `0001.json` (anything).

Tars are streamed from wherever they lie; of one that is cut short, what came before is kept. Names and other headers of
a member are read whole by `tarfile`, however long they say they are, so what is read of them is bounded.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from typing import IO, Any, cast

from pydantic import Field

from stages import readers
from stages.files import sources, streams
from stages.modalities.image import pictures
from stages.readers import Partition, Record, Reject, image_folder

MODALITIES = frozenset({"image", "image_text"})
SUFFIXES = (".tar", ".tgz")
TEXT_BYTES = 2**20
"""The most that is read of a caption, a class or a JSON."""


HEADER_BYTES = 2**17
"""The most that is read of a member's headers: a name has 4,096 bytes at most on any system."""
FAULTS = (tarfile.TarError, streams.DamageError, ValueError, IndexError, RecursionError, OverflowError)
"""What `tarfile` raises for damage; the last ones where headers lie."""
SAMPLE = 2
"""A sample may be so many times larger than the largest file of it."""


class Options(readers.Pictures):
    """What a sample's files are."""

    image: str | None = Field(default=None, description="the extension of the picture; default: the only one")
    text: str = Field(default="txt", description="the extension of the caption, or `json.KEY`")
    label: str | None = Field(default=None, description="the extension of the class, or `json.KEY`; default cls")
    files: str | None = Field(default=None, description="glob of the tars to take from a folder, relative to it")


class _Stream:
    """A file of chunks that counts what was read of it, and gives no more than up to byte `end`."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._held = chunks, b""
        self.taken, self.end = 0, HEADER_BYTES

    def read(self, size: int) -> bytes:
        if self.taken > self.end:
            raise tarfile.ReadError(f"the headers of a member have more than {HEADER_BYTES} bytes")
        while len(self._held) < size and (chunk := next(self._chunks, b"")):
            self._held += chunk
        found, self._held = self._held[:size], self._held[size:]
        self.taken += len(found)
        return found


def plan(source: str, options: Options) -> list[Partition]:
    """Whole tars, small ones grouped."""
    return sources.partitions(sources.listing(source, SUFFIXES, options.files))


def read(partition: Partition, options: Options) -> Iterator[Record | Reject]:
    """One Record or Reject for every sample, and a Reject for what follows damage."""
    for file in partition.files:
        if file.size == 0:
            yield Reject(file.path, "empty file")
            continue
        last, size, samples = "", 0, 0
        content_of = streams.Content(file.path)
        sample: dict[str, bytes | Reject] = {}
        try:
            for key, extension, content in _members(content_of, options):
                if sample and (key != last or extension in sample):
                    yield _record(f"{file.path}:{last}", sample, options)
                    sample, size, samples = {}, 0, samples + 1
                last = key
                size += tarfile.BLOCKSIZE + (len(content) if isinstance(content, bytes) else 0)
                if size > SAMPLE * max(options.max_document_bytes, TEXT_BYTES):
                    sample = {}  # whatever follows of it, memory is bounded
                    content = Reject(f"{file.path}:{key}", "sample is too large: a name's key ends at its first dot")
                sample[extension] = content
        except FAULTS as error:
            # the last sample may lack files
            rows = streams.following(samples, content_of.unread)
            place = f"{file.path}:{last}" if last else file.path
            yield Reject(place, f"not a tar, or a truncated one ({error})", rows=rows)
            continue
        if sample:
            yield _record(f"{file.path}:{last}", sample, options)


def _members(source: streams.Content, options: Options) -> Iterator[tuple[str, str, bytes | Reject]]:
    """(key, extension, content) of every file of a tar, in order; TarError or DamageError where it is cut short."""
    path = source.path
    stream = _Stream(iter(source))
    with tarfile.open(fileobj=cast(IO[bytes], stream), mode="r|") as tar:
        while (member := tar.next()) is not None:
            cast(Any, tar).members.clear()  # else it keeps every one
            stream.end = tar.offset + HEADER_BYTES
            folder, _, name = member.name.rpartition("/")
            key, _, extension = name.partition(".")
            if not member.isfile() or not key or not extension:
                continue  # folders, links, and names that begin with a dot
            limit = options.max_document_bytes if f".{_last(extension)}" in pictures.SUFFIXES else TEXT_BYTES
            content: bytes | Reject
            if member.size > limit:
                content = readers.too_long(f"{path}:{member.name}", member.size, limit, "")
            else:
                opened = tar.extractfile(member)
                content = b"" if opened is None else opened.read()
                if len(content) < member.size:
                    raise tarfile.ReadError("unexpected end of data")
            yield f"{folder}/{key}".lstrip("/"), extension.lower(), content
        if stream.taken <= tar.offset:
            raise tarfile.ReadError("it ends without the mark of an end")


def _last(extension: str) -> str:
    return extension.rpartition(".")[2].lower()


def _record(place: str, sample: dict[str, bytes | Reject], options: Options) -> Record | Reject:
    faults = [content for content in sample.values() if isinstance(content, Reject)]
    if faults:
        return faults[0]
    files = cast(dict[str, bytes], sample)
    if options.image is not None:
        images = [options.image] if options.image in files else []
    else:
        images = [name for name in files if f".{_last(name)}" in pictures.SUFFIXES]
    if len(images) != 1:
        several = "several pictures in the sample: name the extension of one in ingest.image"
        return Reject(
            place, several if images else "no picture in the sample", readers.excerpt(", ".join(sorted(files)))
        )
    (image,) = images
    payload: dict[str, str | bytes] = {"image": files[image]}
    try:
        caption = _value(files, options.text)
        label = _value(files, options.label or "cls")
    except ValueError as error:
        return Reject(place, f"a file of the sample is not UTF-8 or JSON ({error})")
    if caption is not None:
        payload["text"] = caption
    return Record(payload, None if label is None else label.strip() or None, place, None)


def _value(files: dict[str, bytes], name: str) -> str | None:
    """The text of the file with the extension `name`, or the value of a key of the JSON."""
    extension, _, key = name.partition(".")
    if extension == "json" and key:
        row: Any = json.loads(files["json"]) if "json" in files else {}
        return image_folder.value(row, key) if isinstance(row, dict) else None
    return files[name].decode("utf-8") if name in files else None
