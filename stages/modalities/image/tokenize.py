"""Pictures become uint8 pixels of one size: decoded here, once, and memory-mapped ever after. A corpus too large for
that keeps them as JPEGs of this size (`jpeg`), which are memory-mapped too and decoded as their rows are read.

A picture is scaled until it covers the wanted size and its centre is cut out (`pictures.py`). Mean and deviation
of each channel, and the visual codebook where one is asked for, come from a sample that a hash of the id chooses: all
of a corpus of up to `sample` pictures, and the same pictures in every run.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field, model_validator

from ssl_models.config import Strict
from ssl_models.data.encoding import Encoding
from stages.modalities.image import pictures
from stages.modalities.image.pictures import Pixels
from stages.params import UserError

BATCH = 64
"""Pictures decoded at once."""
LEAST_DEVIATION = 1 / 255
"""Of a channel: pictures of one colour have none, and models divide by it."""
SAMPLE_BYTES = 2**28
"""Pixels in the sample: it is held in memory, and twice for a moment."""
Decode = Callable[[bytes], Pixels | None]
"""A payload to the pixels of its row, or None where it has not enough for one."""


class Options(Strict):
    """`corpora.NAME.tokenize` of a picture corpus: `size`, or `height` and `width`, in pixels."""

    size: int | None = Field(default=None, ge=4, le=4096, description="of a square")
    height: int | None = Field(default=None, ge=4, le=4096, description="in pixels, with `width` instead of `size`")
    width: int | None = Field(default=None, ge=4, le=4096, description="in pixels, with `height` instead of `size`")
    channels: int = Field(default=3, description="1 (grey) or 3 (RGB)")
    jpeg: int = Field(default=0, ge=0, le=100, description="keep pictures as JPEG of this quality; 0: as uint8 pixels")
    codebook: int = Field(default=0, ge=0, le=65536, description="entries of the visual codebook; 0: none")
    patch: int = Field(default=4, ge=1, description="side of the patches that the codebook stands for, in pixels")
    sample: int = Field(
        default=4096, ge=1, description="pictures for statistics and codebook, at most; 256 MB of pixels at most"
    )
    seed: int = Field(default=0, ge=0, description="of the codebook's first entries")

    @model_validator(mode="after")
    def _sizes_fit(self) -> Options:
        if (self.size is None) == (self.height is None or self.width is None):
            raise ValueError("give either size, or both height and width")
        if self.size is not None and (self.height is not None or self.width is not None):
            raise ValueError("give either size, or both height and width")
        if self.channels not in (1, 3):
            raise ValueError(f"channels: must be 1 or 3 (got {self.channels})")
        if self.codebook == 1:
            raise ValueError("codebook: must have at least 2 entries, or 0 for none")
        if self.codebook and (self.shape[0] % self.patch or self.shape[1] % self.patch):
            raise ValueError(f"patch: {self.patch} does not divide {self.shape[0]}x{self.shape[1]} pixels")
        return self

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        if self.size is not None:
            return self.size, self.size
        assert self.height is not None and self.width is not None  # the validator's promise
        return self.height, self.width


def fit(partitions: Sequence[Path], options: Options, folder: Path) -> Encoding:
    """Mean and deviation over the sample, and the codebook of it, written into `folder`."""
    pixels = sample(partitions, "image", lambda data: decoded(data, options), at_most(options))
    return described("image", pixels, options, folder)


def at_most(options: Options, frames: int = 1) -> int:
    """Rows in the sample, of `frames` pictures each: as many as asked for, and as `SAMPLE_BYTES` hold."""
    return max(1, min(options.sample, SAMPLE_BYTES // (frames * options.channels * math.prod(options.shape))))


def described(modality: Any, pixels: Pixels, options: Options, folder: Path) -> Encoding:
    """The encoding of sampled pictures `[batch, channels, height, width]`; their codebook goes into `folder`."""
    mean, deviation = statistics(pixels)
    codes = _codebook(pixels, options, folder) if options.codebook else 0
    height, width = options.shape
    return Encoding(
        modality=modality,
        channels=options.channels,
        height=height,
        width=width,
        mean=mean,
        std=deviation,
        codec="jpeg" if options.jpeg else None,
        codebook=codes,
    )


def expected(options: Options, folder: Path, modality: Any = "image") -> Encoding:
    """The encoding that `fit` will make, as far as `options` tell, with an empty codebook of that size in `folder`."""
    (height, width), channels = options.shape, options.channels
    if options.codebook:
        import torch

        from ssl_models.models import codebook

        values = options.patch**2 * channels
        codebook.Codebook(torch.zeros(options.codebook, values), options.patch).save(folder)
    return Encoding(
        modality=modality,
        channels=channels,
        height=height,
        width=width,
        mean=(0.5,) * channels,
        std=(0.5,) * channels,
        codec="jpeg" if options.jpeg else None,
        codebook=options.codebook,
    )


def decoded(data: bytes, options: Options) -> Pixels:
    """Pixels `[channels, height, width]` of one picture; UserError where it has changed since ingest saw it."""
    try:
        return pictures.decode(data, *options.shape, options.channels)
    except pictures.PictureError as error:
        raise UserError(f"a picture that ingest took cannot be decoded any more: {error}; run ingest again") from None


def sample(partitions: Sequence[Path], column: str, decode: Decode, most: int) -> Pixels:
    """The decoded rows `[rows, ...]` of the `most` smallest ids, which are hashes, in the order of their ids.

    Rows without pixels do not count. Only row groups that hold a chosen row are read. UserError where no row has any.
    """
    groups = [(path, group) for path in partitions for group in range(pq.read_metadata(path).num_row_groups)]
    chosen = frozenset(heapq.nsmallest(most, (id_ for place in groups for id_ in _column(*place, "id"))))
    sample: dict[str, Pixels] = {}
    for place in groups:
        wanted = [row for row, id_ in enumerate(_column(*place, "id")) if id_ in chosen]
        if not wanted:
            continue
        ids, data = _column(*place, "id"), _column(*place, column)
        for row in wanted:
            pixels = decode(data[row])
            if pixels is not None:
                sample[ids[row]] = pixels
    if not sample:
        raise UserError("tokenize: no clip has the frames of a row: ask for fewer frames")
    return np.stack([sample[id_] for id_ in sorted(sample)])


def _column(path: Path, group: int, name: str) -> list[Any]:
    """The values of one column of a row group, which is a partition at most."""
    with pq.ParquetFile(path) as file:
        return list(file.read_row_group(group, columns=[name]).column(0).to_pylist())


def statistics(pixels: Pixels) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of pictures `[batch, channels, height, width]`, in [0, 1]."""
    means, deviations = [], []
    for channel in range(pixels.shape[1]):
        counts = np.bincount(pixels[:, channel].ravel(), minlength=256)
        levels = np.arange(256) / 255
        mean = float((counts * levels).sum() / counts.sum())
        variance = float((counts * (levels - mean) ** 2).sum() / counts.sum())
        means.append(round(mean, 6))
        deviations.append(round(max(math.sqrt(variance), LEAST_DEVIATION), 6))
    return tuple(means), tuple(deviations)


def _codebook(pixels: Pixels, options: Options, folder: Path) -> int:
    """Train the codebook and write it; its entries, fewer than asked for where the patches differ less."""
    import torch  # half a second, for corpora with a codebook only

    from ssl_models.models import codebook

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in another order would be another codebook
    try:
        fitted = codebook.fit(torch.from_numpy(pixels), options.patch, options.codebook, options.seed)
    finally:
        torch.set_num_threads(threads)
    fitted.save(folder)
    return len(fitted.centres)


def fields(encoding: Encoding) -> list[pa.Field]:
    """`pixels`: the bytes of uint8 `[frames, channels, height, width]` (`[channels, height, width]` of a picture), or
    of a JPEG."""
    size = encoding.frames * encoding.channels * encoding.height * encoding.width
    return [pa.field("pixels", pa.binary() if encoding.codec else pa.binary(size))]


class Usage:
    """Counts the codes that the patches of a corpus get: None where there is no codebook."""

    def __init__(self, encoding: Encoding) -> None:
        from ssl_models.models import codebook

        self._codebook = codebook.load(encoding.folder)
        self._size = len(self._codebook.centres)

    def count(self, pixels: Pixels, counts: Counter[str]) -> None:
        """Add the codes of pictures `[batch, channels, height, width]` to `counts`."""
        import torch

        codes = self._codebook.encode(torch.from_numpy(pixels)).numpy().ravel()
        used: NDArray[np.int64] = np.bincount(codes, minlength=self._size)
        counts.update({f"code {code}": int(used[code]) for code in np.flatnonzero(used)})


class Encoder:
    """Decodes the pictures of one partition."""

    COLUMNS = ("image",)

    def __init__(self, encoding: Encoding, options: Options) -> None:
        self.counts: Counter[str] = Counter()
        self._options, self._type = options, fields(encoding)[0].type
        self._usage = Usage(encoding) if encoding.codebook else None

    def encode(self, rows: pa.RecordBatch) -> list[pa.Array]:
        """The one column `pixels` of `rows`."""
        decoded_rows = []
        for data in rows.column("image"):
            content = data.as_py()
            decoded_rows.append(decoded(content, self._options))
            self.counts["bytes"] += len(content)
        if self._usage is not None and decoded_rows:
            self._usage.count(np.stack(decoded_rows), self.counts)
        jpeg = self._options.jpeg
        kept = (pictures.as_jpeg(pixels, jpeg) if jpeg else pixels.tobytes() for pixels in decoded_rows)
        return [pa.array(kept, self._type)]


def metrics(counts: Mapping[str, int], encoding: Encoding) -> dict[str, Any]:
    """The size of a row, and of the codebook the entries in use and their perplexity over the whole corpus."""
    report: dict[str, Any] = {
        "channels": encoding.channels,
        "height": encoding.height,
        "width": encoding.width,
        "mean": list(encoding.mean),
        "std": list(encoding.std),
    }
    if encoding.codebook:
        used = np.array([count for name, count in counts.items() if name.startswith("code ")], float)
        share = used / used.sum()
        report["codebook"] = {
            "entries": encoding.codebook,
            "used": len(used),
            "perplexity": round(float(np.exp(-(share * np.log(share)).sum())), 3),
        }
    return report
