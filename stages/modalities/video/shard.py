"""A row of a video corpus is the pixels of one clip, ready to be memory-mapped."""

from __future__ import annotations

from ssl_models.data.encoding import Encoding
from ssl_models.data.manifest import Column
from stages.grouping.splits import Fractions
from stages.modalities.image import shard as image

COLUMNS = image.COLUMNS
PACKED = False


class Options(Fractions):
    """`corpora.NAME.shard` of a video corpus."""


described = image.described
values = image.values


def columns(encoding: Encoding) -> dict[str, Column]:
    """One row: `pixels` `[frames, channels, height, width]`."""
    (pixels,) = image.columns(encoding).values()
    return {"pixels": Column(dtype=pixels.dtype, shape=(encoding.frames, *pixels.shape))}
