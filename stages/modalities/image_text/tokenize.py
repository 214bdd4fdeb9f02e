"""Pairs are encoded by the two modalities they are made of: pixels by `image`, the caption's tokens by `text`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import Field

from ssl_models.data.encoding import Encoding
from stages.modalities.image import tokenize as image
from stages.modalities.text import tokenize as text

BATCH = image.BATCH
SPECIAL = ("<pad>", "</s>", "<s>", "<unk>", "<mask>", "<cls>", "<sep>")
"""As of a text corpus, but that `</s>` must not be 2: `transformers` takes that for a mistake of early CLIPs, and reads
such captions elsewhere than at their end."""


class Options(image.Options):
    """`corpora.NAME.tokenize` of a corpus of pairs: the picture's options, and the caption's under a key."""

    caption: text.Options = Field(default=text.Options(), description="the captions' tokenizer, as of a text corpus")


def fit(partitions: Sequence[Path], options: Options, folder: Path) -> Encoding:
    """The captions' tokenizer, and statistics and codebook of the pictures, in one folder."""
    captions = text.fit(partitions, options.caption, folder, SPECIAL)
    pictures = image.fit(partitions, options, folder)
    seen = ("channels", "height", "width", "mean", "std", "codebook")
    return captions.model_copy(
        update={"modality": "image_text", **{name: getattr(pictures, name) for name in seen}},
    )


def expected(options: Options, folder: Path) -> Encoding | None:
    """The encoding that `fit` will make, as far as `options` tell; None where the captions' tokenizer is imported."""
    captions = text.expected(options.caption, folder)
    if captions is None:
        return None
    pictures = image.expected(options, folder, "image_text")
    return pictures.model_copy(update=captions.model_dump(include=captions.model_fields_set - {"modality"}))


def fields(encoding: Encoding) -> list[pa.Field]:
    """`pixels` and `tokens`."""
    return [*image.fields(encoding), *text.fields(encoding)]


class Encoder:
    """Encodes the pairs of one partition."""

    COLUMNS = (*image.Encoder.COLUMNS, *text.Encoder.COLUMNS)

    def __init__(self, encoding: Encoding, options: Options) -> None:
        self._sides = image.Encoder(encoding, options), text.Encoder(encoding, options.caption)
        self.counts: Counter[str] = Counter()

    def encode(self, rows: pa.RecordBatch) -> list[pa.Array]:
        """The columns `pixels` and `tokens` of `rows`."""
        found = [array for side in self._sides for array in side.encode(rows)]
        for side in self._sides:
            self.counts.update(side.counts)
            side.counts.clear()
        return found


def metrics(counts: Mapping[str, int], encoding: Encoding) -> dict[str, Any]:
    """What both modalities say, but for the bytes a token, as the bytes are those of pictures, too."""
    captions = text.metrics(counts, encoding)
    captions.pop("bytes_per_token")
    return {**image.metrics(counts, encoding), **captions}
