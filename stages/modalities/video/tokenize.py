"""Clips become uint8 pixels of one size and number of frames; each frame is decoded as a picture is.

A row has the first `frames` frames of a clip, or every `every`-th. A clip of fewer has no row: it is counted here
(`short`) and left out, and counted again, by shard.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from ssl_models.data.encoding import Encoding
from stages.modalities.image import pictures
from stages.modalities.image import tokenize as image
from stages.modalities.image.pictures import Pixels

BATCH = 16
"""Clips decoded at once."""


class Options(image.Options):
    """`corpora.NAME.tokenize` of video: the picture's options for every frame."""

    frames: int = Field(ge=2, le=1024, description="in a row")
    every: int = Field(default=1, ge=1, description="1: each frame of the clip, 2: each second one, ...")
    sample: int = Field(default=512, ge=1, description="clips for statistics and codebook, at most")

    @model_validator(mode="after")
    def _frames_are_uint8(self) -> Options:
        if self.jpeg:
            raise ValueError("jpeg: only single pictures can be kept as JPEG, frames of video are uint8: leave it out")
        return self


def fit(partitions: Sequence[Path], options: Options, folder: Path) -> Encoding:
    """Mean and deviation over all frames of the sample, and the codebook of them, written into `folder`."""
    most = image.at_most(options, options.frames)
    clips = image.sample(partitions, "video", lambda data: decoded(data, options), most)
    encoding = image.described("video", clips.reshape(-1, *clips.shape[2:]), options, folder)
    return encoding.model_copy(update={"frames": options.frames})


def expected(options: Options, folder: Path) -> Encoding:
    """The encoding that `fit` will make, as far as `options` tell."""
    return image.expected(options, folder, "video").model_copy(update={"frames": options.frames})


def decoded(data: bytes, options: Options) -> Pixels | None:
    """Pixels `[frames, channels, height, width]` of one clip; None where it has too few frames."""
    chosen = pictures.frames(data)[:: options.every][: options.frames]
    if len(chosen) < options.frames:
        return None
    return np.stack([image.decoded(frame, options) for frame in chosen])


fields = image.fields


class Encoder:
    """Decodes the clips of one partition."""

    COLUMNS = ("video",)

    def __init__(self, encoding: Encoding, options: Options) -> None:
        self.counts: Counter[str] = Counter()
        self._options, self._type = options, fields(encoding)[0].type
        self._usage = image.Usage(encoding) if encoding.codebook else None

    def encode(self, rows: pa.RecordBatch) -> list[pa.Array]:
        """The one column `pixels` of `rows`; null for a clip that is too short."""
        clips: list[bytes | None] = []
        for data in rows.column("video"):
            content = data.as_py()
            pixels = decoded(content, self._options)
            self.counts["bytes"] += len(content)
            self.counts["short"] += pixels is None
            clips.append(None if pixels is None else pixels.tobytes())
            if self._usage is not None and pixels is not None:
                self._usage.count(pixels, self.counts)
        return [pa.array(clips, self._type)]


def metrics(counts: Mapping[str, int], encoding: Encoding) -> dict[str, Any]:
    """What a picture corpus says, the frames in a row, and the clips too `short` for one."""
    if counts["short"]:
        print(f"warning: {counts['short']} clips have too few frames and are left out", file=sys.stderr)
    return {"frames": encoding.frames, "short": counts["short"], **image.metrics(counts, encoding)}
