"""A row of a picture corpus is one picture's pixels, or the JPEG of them, ready to be memory-mapped."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ssl_models.data.encoding import Encoding
from ssl_models.data.manifest import Column
from stages.grouping.splits import Fractions, Ragged

COLUMNS = ("pixels",)
PACKED = False


class Options(Fractions):
    """`corpora.NAME.shard` of a picture corpus."""


def described(encoding: Encoding, options: Options) -> Encoding:
    """The encoding as a model will see it: as tokenize wrote it."""
    return encoding


def columns(encoding: Encoding) -> dict[str, Column]:
    """One row: `pixels` `[channels, height, width]`."""
    shape = (encoding.channels, encoding.height, encoding.width)
    return {"pixels": Column(dtype="uint8", shape=shape, codec=encoding.codec)}


def values(rows: pa.RecordBatch, encoding: Encoding) -> dict[str, Ragged]:
    """The bytes of each picture; nothing of a row without any, which is then left out."""
    pixels = rows.column("pixels")
    lengths = pc.fill_null(pc.binary_length(pixels), 0).to_numpy().astype(np.int64)
    return {"pixels": Ragged(np.frombuffer(b"".join(pixels.drop_null().to_pylist()), np.uint8), lengths)}
