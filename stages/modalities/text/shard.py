"""Text rows for training are packed: documents in a random order, each ended with `eos`, cut into rows of `sequence`
tokens. A row of the probe holds one document, cut or padded: a label belongs to a document."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from pydantic import Field

from ssl_models.data.encoding import Encoding
from ssl_models.data.manifest import Column
from stages.grouping.splits import Fractions, Ragged

COLUMNS = ("tokens",)
PACKED = True


class Options(Fractions):
    """`corpora.NAME.shard` of a text corpus."""

    sequence: int = Field(ge=8, le=2**20, description="tokens in a row")


def described(encoding: Encoding, options: Options) -> Encoding:
    """The encoding as a model will see it: rows have a length now."""
    return encoding.model_copy(update={"length": options.sequence})


def columns(encoding: Encoding) -> dict[str, Column]:
    """One row: `tokens` `[length]`."""
    return {"tokens": Column(dtype="uint16" if encoding.vocabulary <= 2**16 else "uint32", shape=(encoding.length,))}


def values(rows: pa.RecordBatch, encoding: Encoding) -> dict[str, Ragged]:
    """The tokens of each document and its `eos`; nothing of a document without a token, which is then left out."""
    tokens = rows.column("tokens")
    lengths = np.diff(tokens.offsets.to_numpy()).astype(np.int64)
    ended = lengths > 0
    lengths = lengths + ended
    ordinary = tokens.flatten().to_numpy(zero_copy_only=True)
    flat = np.full(int(lengths.sum()), encoding.eos, ordinary.dtype)
    place = np.ones(len(flat), bool)
    place[np.cumsum(lengths)[ended] - 1] = False
    flat[place] = ordinary
    return {"tokens": Ragged(flat, lengths)}
