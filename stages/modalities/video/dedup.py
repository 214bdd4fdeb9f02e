"""Duplicates among video clips, by a few frames taken at equal distances, the first and the last among them.

*Exact* means as many frames, and that the sampled ones have the same pixels. *Near* means that every sampled frame is a
near-duplicate of its counterpart (`stages/modalities/image/dedup.py`): clips that begin alike and go on differently
both stay.
"""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path

import numpy as np
from pydantic import Field

from stages.files import tables
from stages.grouping.clusters import Clusters, Sketch, Sketches
from stages.modalities.image import dedup as image
from stages.modalities.image import pictures
from stages.modalities.image.dedup import SIDE, Bytes, Compared, Pairs


class Options(image.Options):
    """`corpora.NAME.dedup` of video. Memory is 270 bytes a sampled frame."""

    frames: int = Field(default=4, ge=1, le=64, description="frames of a clip that are compared")


def sketch(partition: Path, options: Options) -> Sketch:
    """The exact keys and, if asked for, the near-signatures of a partition's clips: those of the frames in order."""
    width = options.frames * SIDE if options.near else 0
    exact, near, size = [], [np.empty((0, width), np.uint8)], 0
    for batch in tables.batches(partition, ["video"], image.BATCH_ROWS):
        for data in batch.column("video"):
            content = data.as_py()
            frames = pictures.frames(content)
            chosen = np.linspace(0, len(frames) - 1, options.frames).round().astype(int)
            signatures = [image.signature(frames[number]) for number in chosen]
            key = blake2b(len(frames).to_bytes(8, "big"), digest_size=16)
            key.update(b"".join(digest for digest, _ in signatures))
            exact.append(key.digest())
            near.append(np.concatenate([signature for _, signature in signatures])[None, :width])
            size += len(content)
    return Sketch(partition, image.keys(exact), np.concatenate(near), size)


def compare(near: Bytes, pairs: Pairs, options: Options) -> Compared:
    """The least similarity of any two frames that belong together; alike, if all are."""
    similarity, alike = np.ones(len(pairs)), np.ones(len(pairs), bool)
    for start in range(0, near.shape[1], SIDE):
        frame, same = image.compare(near[:, start : start + SIDE], pairs, options)
        similarity, alike = np.minimum(similarity, frame), alike & same
    return similarity, alike


def cluster(sketches: Sketches, options: Options) -> Clusters:
    """The duplicates among all partitions."""
    return image.clustered(sketches, options, lambda near, pairs: compare(near, pairs, options))
