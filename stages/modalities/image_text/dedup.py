"""Duplicates among pairs: only where the picture AND the caption are. One picture with two captions is two pairs.

*Exact* means equal pixels and an equal caption. *Near* means that the pictures are near-duplicates
(`stages/modalities/image/dedup.py`) and that the sets of words of the captions have a Jaccard similarity of at least
`caption`, estimated from MinHash minima: with 64 of them the standard error at 0.8 is 0.05, so a caption on the
threshold goes either way. Order, case and punctuation of the words make no difference.
"""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path

import numpy as np
from pydantic import Field

from stages.files import tables
from stages.grouping.clusters import Clusters, Sketch, Sketches
from stages.modalities.image import dedup as image
from stages.modalities.image.dedup import Bytes, Compared, Pairs
from stages.modalities.text import dedup as text

_MINIMA = text.Options(ngram=1, bands=16, rows=4)
_WORDS = _MINIMA.bands * _MINIMA.rows


class Options(image.Options):
    """`corpora.NAME.dedup` of pairs. Memory is 540 bytes a pair."""

    caption: float = Field(default=0.8, gt=0, le=1, description="Jaccard similarity of the words of near captions")


def sketch(partition: Path, options: Options) -> Sketch:
    """The exact keys and, if asked for, the near-signatures of a partition's pairs: the picture's, then the minima."""
    width = image.SIDE + 4 * _WORDS if options.near else 0
    exact, near, size = [], [np.empty((0, width), np.uint8)], 0
    for batch in tables.batches(partition, ["image", "text"], image.BATCH_ROWS):
        captions = batch.column("text")
        minima = text.signatures(captions, _MINIMA).view(np.uint8)
        pairs = zip(batch.column("image").to_pylist(), captions.to_pylist(), minima, strict=True)
        for data, caption, words in pairs:
            key, picture = image.signature(data)
            exact.append(blake2b(key + caption.encode(), digest_size=16).digest())
            near.append(np.concatenate([picture, words])[None, :width])
            size += len(data) + len(caption.encode())
    return Sketch(partition, image.keys(exact), np.concatenate(near), size)


def compare(near: Bytes, pairs: Pairs, options: Options) -> Compared:
    """The lesser of the two similarities of each pair of rows; alike, if both sides are."""
    pictures, alike = image.compare(near, pairs, options)
    minima = np.ascontiguousarray(near[:, image.SIDE :]).view(np.uint32)
    words = (minima[pairs[:, 0]] == minima[pairs[:, 1]]).mean(axis=1)
    return np.minimum(pictures, words), alike & (words >= options.caption)


def cluster(sketches: Sketches, options: Options) -> Clusters:
    """The duplicates among all partitions."""
    return image.clustered(sketches, options, lambda near, pairs: compare(near, pairs, options))
