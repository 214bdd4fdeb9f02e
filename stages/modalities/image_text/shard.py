"""A row of a corpus of pairs is one picture and one caption, ended with `eos` and padded to `length` tokens."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from pydantic import Field

from ssl_models.data.encoding import Encoding
from ssl_models.data.manifest import Column
from stages.grouping.splits import Ragged
from stages.modalities.image import shard as image
from stages.modalities.text import shard as text

COLUMNS = (*image.COLUMNS, *text.COLUMNS)
PACKED = False
described = text.described


class Options(text.Options):
    """`corpora.NAME.shard` of a corpus of pairs."""

    sequence: int = Field(default=64, ge=4, le=2**16, description="tokens of a caption, with the one that ends it")


def columns(encoding: Encoding) -> dict[str, Column]:
    """One row: `pixels` `[channels, height, width]` and `tokens` `[length]`."""
    return {**image.columns(encoding), **text.columns(encoding)}


def values(rows: pa.RecordBatch, encoding: Encoding) -> dict[str, Ragged]:
    """The pixels and the tokens of each pair. A caption that is too long is cut so that its `eos` stays."""
    whole = text.values(rows, encoding)["tokens"]
    lengths = np.minimum(whole.lengths, encoding.length)
    starts = np.cumsum(whole.lengths) - whole.lengths
    within = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    tokens = whole.values[np.repeat(starts, lengths) + within]
    tokens[np.cumsum(lengths)[lengths > 0] - 1] = encoding.eos
    return {**image.values(rows, encoding), "tokens": Ragged(tokens, lengths)}
