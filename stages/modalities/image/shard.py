"""A row of a picture corpus is one picture's pixels, ready to be memory-mapped."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from ssl_models.encoding import Encoding
from ssl_models.manifest import Column
from stages.splits import Fractions, Ragged

COLUMNS = ("pixels",)
PACKED = False


class Options(Fractions):
    """`corpora.NAME.shard` of a picture corpus."""


def described(encoding: Encoding, options: Options) -> Encoding:
    """The encoding as a model will see it: as tokenize wrote it."""
    return encoding


def columns(encoding: Encoding) -> dict[str, Column]:
    """One row: `pixels` `[channels, height, width]`."""
    return {"pixels": Column(dtype="uint8", shape=(encoding.channels, encoding.height, encoding.width))}


def values(rows: pa.RecordBatch, encoding: Encoding) -> dict[str, Ragged]:
    """The pixels of each picture; nothing of a row without any, which is then left out."""
    pixels = rows.column("pixels")
    present = pixels.is_valid().to_numpy(zero_copy_only=False)
    flat = np.frombuffer(b"".join(pixels.drop_null().to_pylist()), np.uint8)
    return {"pixels": Ragged(flat, np.where(present, pixels.type.byte_width, 0).astype(np.int64))}
