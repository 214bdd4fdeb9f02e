"""Duplicates among pictures: exact by decoded pixels, near by a perceptual hash, verified on a thumbnail.

*Exact* means the same pixels, whatever the file format: upright, in RGB, of one size. A picture of more than 256 pixels
on its shorter side is compared at a whole fraction of its size (a JPEG is never decoded in full for it).

*Near* means re-encoded, rescaled or hardly cropped: the 64-bit difference hashes (dHash: is each cell of a 9x8 picture
brighter than its left neighbour?) differ in at most `distance` bits, and the 16x16 grey thumbnails, in [0, 1], by at
most `difference` (root mean square). The hash proposes and the thumbnail decides: tiny or plain pictures share their
hash with many others (of scikit-learn's 8x8 digits, thousands of pairs are within 6 bits), and the thumbnail tells them
apart (at 0.025 none of these digits is taken for another). A cell must be brighter by more than `_CONTRAST`, so that
noise on a plain surface sets no bit.

Pairs within `distance` bits are found without comparing all with all (Manku, Jain, Das Sarma, WWW 2007): of
`distance` + 3 blocks of bits, at least 3 are equal, so that the rows are sorted once for each choice of 3 blocks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from ssl_models.config import Strict
from stages.files import tables
from stages.grouping.clusters import (
    Clusters,
    Sketch,
    Sketches,
    compiled,
    distinct,
    first_of_equals,
    heads,
    join,
    pairs_in_buckets,
)
from stages.modalities.image import pictures
from stages.params import UserError

BATCH_ROWS = 64
HASH, THUMBNAIL = 8, 16
"""Bytes of a perceptual hash, side of a thumbnail in pixels."""
SIDE = HASH + THUMBNAIL**2
"""Bytes of near-signature of one picture: its hash, then its thumbnail."""
EQUAL = 3
"""Blocks of the hash that two near pictures have in common at least: they are what rows are sorted by."""
_CANONICAL = 256
_CONTRAST = 2.0
_CHUNK = 1 << 16
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1)

Bytes = NDArray[np.uint8]
Pairs = NDArray[np.int64]


class Options(Strict):
    """`corpora.NAME.dedup` of pictures. Memory is 280 bytes a picture."""

    near: bool = Field(default=True, description="find near-duplicates too")
    distance: int = Field(default=4, ge=0, le=10, description="bits of 64 in which the hashes may differ")
    difference: float = Field(
        default=0.025, gt=0, le=1, description="root mean square in which thumbnails may differ; 1: the hash decides"
    )


def signature(data: bytes) -> tuple[bytes, Bytes]:
    """What a picture is known by: 16 bytes, equal where the pixels are, and the near-signature `[SIDE]`."""
    try:
        picture = pictures.opened(data, _CANONICAL // pictures.DRAFT, 3)
    except pictures.PictureError as error:
        raise UserError(f"a picture that ingest took cannot be decoded any more: {error}; run ingest again") from None
    exact = blake2b(f"{picture.width}x{picture.height}".encode(), digest_size=16)
    exact.update(picture.tobytes())
    grey = picture.convert("L").convert("F")
    cells = np.asarray(grey.resize((9, 8), Image.Resampling.BILINEAR))
    bits = np.packbits(cells[:, 1:] - cells[:, :-1] > _CONTRAST)
    thumbnail = np.asarray(grey.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR))
    return exact.digest(), np.concatenate([bits, np.rint(thumbnail).clip(0, 255).astype(np.uint8).ravel()])


def sketch(partition: Path, options: Options) -> Sketch:
    """The exact keys and, if asked for, the near-signatures of a partition's pictures."""
    exact, near, size = [], [np.empty((0, SIDE if options.near else 0), np.uint8)], 0
    for batch in tables.batches(partition, ["image"], BATCH_ROWS):
        for data in batch.column("image").to_pylist():
            key, found = signature(data)
            exact.append(key)
            near.append(found[None, : near[0].shape[1]])
            size += len(data)
    return Sketch(partition, keys(exact), np.concatenate(near), size)


def keys(digests: Sequence[bytes]) -> NDArray[np.uint64]:
    """Digests of 16 bytes as uint64 `[rows, 2]`."""
    return np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2)


Compared = tuple[NDArray[np.float64], NDArray[np.bool_]]
"""Of some pairs of rows: how similar they are, at most 1, and whether that makes them near-duplicates."""


def cluster(sketches: Sketches, options: Options) -> Clusters:
    """The duplicates among all partitions."""
    return clustered(sketches, options, lambda near, pairs: compare(near, pairs, options))


def clustered(sketches: Sketches, options: Options, compare: Callable[[Bytes, Pairs], Compared]) -> Clusters:
    """The clusters of rows whose near-signatures begin with a hash; `compare` judges pairs `[pairs, 2]` of them."""
    exact, near = sketches.exact, sketches.near
    kept = first_of_equals(exact, sketches.labelled)
    similarity = np.ones(len(kept))
    if options.near and len(kept):
        unique = np.flatnonzero(kept == np.arange(len(kept)))
        pairs = unique[candidates(near[unique, :HASH], options.distance)]
        parent = np.arange(len(kept))
        _join(pairs[compare(near, pairs)[1]], parent)
        head = heads(parent, sketches.labelled)
        gone = np.flatnonzero(head != np.arange(len(head)))
        similarity[gone] = compare(near, np.stack([head[gone], gone], axis=1))[0]
        kept, similarity = head[kept], similarity[kept]
    return Clusters(kept, similarity, (exact == exact[kept]).all(axis=1))


@compiled
def _join(pairs: Any, parent: Any) -> None:
    for i in range(len(pairs)):
        join(parent, pairs[i, 0], pairs[i, 1])


def candidates(hashes: Bytes, distance: int) -> Pairs:
    """Pairs `[pairs, 2]` of rows of `hashes` uint8 `[rows, HASH]` that are within `distance` bits of each other.

    All of them, but where more than ten rows share three whole blocks: there each is compared with the first and the
    eight before it, which is enough to join them into one cluster where they are alike.
    """
    words = np.ascontiguousarray(hashes).view(">u8").ravel().astype(np.uint64)
    edges = np.linspace(0, 64, distance + EQUAL + 1).astype(int)
    masks = [sum(1 << bit for bit in range(low, high)) for low, high in itertools.pairwise(edges)]

    def of(blocks: tuple[int, ...]) -> NDArray[np.int64]:
        pairs = pairs_in_buckets(words & np.uint64(sum(blocks)))
        return pairs[differing_bits(hashes, pairs) <= distance]

    return distinct(map(of, itertools.combinations(masks, EQUAL)))


def differing_bits(hashes: Bytes, pairs: Pairs) -> NDArray[np.int64]:
    """In how many bits the hashes of each pair differ: int64 `[pairs]`."""
    differing = np.zeros(len(pairs), np.int64)
    for start in range(0, len(pairs), _CHUNK):
        part = pairs[start : start + _CHUNK]
        differing[start : start + _CHUNK] = _BITS[hashes[part[:, 0]] ^ hashes[part[:, 1]]].sum(axis=1)
    return differing


def compare(near: Bytes, pairs: Pairs, options: Options) -> Compared:
    """1 less the root mean square by which the thumbnails of each pair differ; alike, if hashes agree as well."""
    similarity = np.ones(len(pairs))
    for start in range(0, len(pairs), _CHUNK // SIDE):
        part = pairs[start : start + _CHUNK // SIDE]
        one, other = (near[part[:, side], HASH:SIDE].astype(np.float64) for side in (0, 1))
        similarity[start : start + len(part)] = 1 - np.sqrt(((one - other) ** 2).mean(axis=1)) / 255
    bits = differing_bits(near[:, :HASH], pairs)
    return similarity, (bits <= options.distance) & (similarity >= 1 - options.difference)
