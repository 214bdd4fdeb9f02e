"""Video as folders of picture files: a folder is a video, its files in the order of their names are its frames.

Numbers in names count as numbers (`frame2` before `frame10`). A video is cut into clips that follow each other; what is
left at its end is no clip. Where most names count on by the same step and one does not, frames are missing: a clip that
leaps over them is rejected. All clips of a video are one group; the folder that its folder lies in is its class.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath

from pydantic import Field

from stages import readers
from stages.files import sources, streams
from stages.files.tables import PARTITION_BYTES
from stages.modalities.image import pictures
from stages.readers import File, Partition, Record, Reject

MODALITIES = frozenset({"video"})


class Options(readers.Pictures):
    """How videos are cut into clips."""

    frames: int = Field(default=16, ge=2, le=1024, description="in a clip")
    every: int = Field(default=1, ge=1, description="1: each frame, 2: each second one, ...")
    clips: int | None = Field(default=None, ge=1, description="of a video, at most: its first ones")
    class_folders: bool = Field(default=True, description="the folder that holds a video's folder is its class")
    files: str | None = Field(default=None, description="glob of the files to take from the folder, relative to it")


def plan(source: str, options: Options) -> list[Partition]:
    """Whole videos, small ones grouped."""
    listed = sources.listing(source, pictures.SUFFIXES, options.files)
    result: list[Partition] = []
    group: list[File] = []
    size = 0
    for video in _videos(sorted(listed, key=_order)):
        weight = sum(file.size for file in video)
        if group and size + weight > PARTITION_BYTES:
            result.append(Partition(tuple(group)))
            group, size = [], 0
        group += video
        size += weight
    return [dataclasses.replace(part, root=sources.root(source)) for part in [*result, Partition(tuple(group))]]


def _order(file: File) -> tuple[str, list[tuple[bool, int, str]]]:
    """The folder, then the name with its numbers as numbers."""
    folder, _, name = file.path.rpartition("/")
    steps = [step for step in re.split(r"(\d+)", name) if step]
    return folder, [(step.isdecimal(), int(step) if step.isdecimal() else 0, step) for step in steps]


def _videos(files: list[File]) -> Iterator[list[File]]:
    """Runs of files of one folder."""
    for _, run in itertools.groupby(files, key=lambda file: file.path.rpartition("/")[0]):
        yield list(run)


def read(partition: Partition, options: Options) -> Iterator[Record | Reject]:
    """One Record or Reject for every clip, and a Reject for a video that is too short for one."""
    for video in _videos(list(partition.files)):
        folder = video[0].path.rpartition("/")[0]
        above = PurePosixPath(folder.removeprefix(partition.root).lstrip("/")).parts[:-1]
        label = above[-1] if options.class_folders and above else None
        leaps = _leaps(video)
        chosen = video[:: options.every]
        count = len(chosen) // options.frames
        if count == 0:
            yield Reject(folder, f"video is shorter than a clip ({len(chosen)} frames, not {options.frames})")
        for number in range(count if options.clips is None else min(count, options.clips)):
            first, last = number * options.frames, (number + 1) * options.frames - 1
            leap = next((at for at in leaps if first * options.every <= at < last * options.every), None)
            if leap is not None:
                yield Reject(chosen[first].path, f"frames are missing in the clip (after {video[leap].path})")
                continue
            yield _clip(chosen[first : last + 1], label, folder, options)


def _leaps(video: list[File]) -> list[int]:
    """The places in `video` after which frames are missing: its names' last numbers go on by another step than most."""
    numbers = [re.findall(r"\d+", file.path.rpartition("/")[2].rpartition(".")[0])[-1:] for file in video]
    if not all(numbers) or len(video) < 3:
        return []
    steps = [int(after) - int(before) for (before,), (after,) in itertools.pairwise(numbers)]
    usual, count = Counter(steps).most_common(1)[0]
    return [at for at, step in enumerate(steps) if step != usual] if 2 * count > len(steps) else []


def _clip(files: list[File], label: str | None, folder: str, options: Options) -> Record | Reject:
    frames = []
    for file in files:
        content = streams.whole(file.path, options.max_document_bytes)
        if isinstance(content, Reject):
            return content
        frames.append(content)
    return Record({"video": pictures.bundle(frames)}, label, files[0].path, folder)
