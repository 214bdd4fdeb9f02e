"""A folder of picture files. The folder below the source that a picture lies in is its class, as torchvision has it;
or a `metadata.csv` or `metadata.jsonl` at the top, with a column `file_name`, says more, as `datasets` has it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from pydantic import Field

from stages import readers
from stages.files import sources, streams
from stages.modalities.image import pictures
from stages.params import UserError
from stages.readers import File, Partition, Record, Reject, csv, jsonl

MODALITIES = frozenset({"image", "image_text"})
METADATA = ("metadata.csv", "metadata.jsonl")
KEY = "file_name"
LABEL, CAPTIONS = "label", ("text", "caption")
"""Columns of metadata that are taken where no others are named."""


class Options(readers.Pictures):
    """Which files, and what is known of them."""

    files: str | None = Field(default=None, description="glob of the files to take from the folder, relative to it")
    class_folders: bool = Field(default=True, description="the class is the folder, where metadata name none")
    label: str | None = Field(default=None, description="column of metadata; default `label`, where there is one")
    text: str | None = Field(default=None, description="column of metadata; default `text` or `caption`")
    group: str | None = Field(default=None, description="column of metadata of what must stay on one side of a split")


def plan(source: str, options: Options) -> list[Partition]:
    """The pictures in the order of their paths, with those that the metadata name and that are missing."""
    listed = sources.listing(source, (*pictures.SUFFIXES, *METADATA), options.files)
    root = sources.root(source)
    metadata.cache_clear()
    for file in listed:
        if PurePosixPath(file.path).name in METADATA and file.path not in {_joined(root, name) for name in METADATA}:
            raise UserError(
                f"{file.path}: metadata are read at the top of the source only: make its folder the source, or move it"
            )
    listed = [file for file in listed if PurePosixPath(file.path).name not in METADATA]
    known = metadata(root)
    if known is not None and options.files is None:
        there = {file.path for file in listed}
        missing = [File(path, 0) for name in known if (path := _joined(root, name)) not in there]
        listed = sorted([*listed, *missing], key=lambda file: file.path)
    return [dataclasses.replace(part, root=root) for part in sources.partitions(listed)]


def _joined(root: str, name: str) -> str:
    """The path of a file as a listing of `root` has it."""
    return f"{root.rstrip('/')}/{name.removeprefix('./')}" if root else name.removeprefix("./")


@functools.lru_cache(maxsize=2)
def metadata(root: str) -> Mapping[str, Mapping[str, Any]] | None:
    """The rows of the folder's metadata by file name; None where it has none. UserError where they are faulty."""
    for name in METADATA:
        path = _joined(root, name)
        try:
            with streams.opened(path) as stream:
                size = stream.size or 0
        except streams.MissingError:
            continue
        known: dict[str, Mapping[str, Any]] = {}
        partition = Partition((File(path, size),))
        read = csv.rows(partition, csv.Options()) if name.endswith("csv") else jsonl.rows(partition, jsonl.Options())
        for found in read:
            if isinstance(found, Reject):
                raise UserError(f"{found.source}: {found.reason}")
            place, row = found
            if not isinstance(row.get(KEY), str):
                raise UserError(f"{place}: has no column {KEY!r}: it says which picture a row is about")
            if ".." in row[KEY].split("/"):
                raise UserError(f"{place}: {row[KEY]!r} leads out of the folder: metadata are of the pictures in it")
            if row[KEY].removeprefix("./") in known:
                raise UserError(
                    f"{place}: {row[KEY]} has a row already: a picture with several captions needs reader: "
                    f"image_caption_table, source: {path}, image: {KEY}"
                )
            known[row[KEY].removeprefix("./")] = row
        return known
    return None


def read(partition: Partition, options: Options) -> Iterator[Record | Reject]:
    """One Record or Reject for every file."""
    known = metadata(partition.root)
    for file in partition.files:
        name = file.path.removeprefix(partition.root).lstrip("/")
        row = None if known is None else known.get(name)
        if known is not None and row is None:
            yield Reject(file.path, "not in the metadata of the folder")
            continue
        try:
            content = streams.whole(file.path, options.max_document_bytes)
        except streams.MissingError:
            yield Reject(file.path, "in the metadata, but there is no such file")
            continue
        yield content if isinstance(content, Reject) else _record(content, file.path, name, row or {}, options)


def _record(content: bytes, path: str, name: str, row: Mapping[str, Any], options: Options) -> Record | Reject:
    folders = PurePosixPath(name).parts[:-1]
    label = value(row, options.label or LABEL)
    if label is None and options.class_folders and options.label is None and LABEL not in row:
        label = folders[0] if folders else None
    wanted = (options.text,) if options.text is not None else CAPTIONS
    caption = next((text for column in wanted if (text := value(row, column)) is not None), None)
    payload: dict[str, str | bytes] = {"image": content}
    if caption is not None:
        payload["text"] = caption
    return Record(payload, label, path, value(row, options.group))


def value(row: Mapping[str, Any], column: str | None) -> str | None:
    """The text or number in `column`, if there is one."""
    found = row.get(column) if column is not None else None
    return str(found) if isinstance(found, str | int | float) and found != "" else None


def columns(partition: Partition, options: Options) -> list[str]:
    """The columns of the metadata."""
    known = metadata(partition.root)
    return sorted({name for row in list((known or {}).values())[: jsonl.PEEK] for name in row})
