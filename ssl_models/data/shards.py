"""Read what the shard stage wrote: fixed-width rows in memory-mapped Arrow files, in a random order that has no state.

A column of a file is a zero-copy NumPy view `[rows, ...]`; a batch costs one fancy index per file it touches, and
memory holds what the kernel keeps of the files. A column of JPEGs is indexed alike, and decodes the rows asked for.

Which rows make up step `n` is a pure function of (seed, n): each epoch is a Feistel permutation of the row numbers
(Black and Rogaway 2002, "Ciphers with arbitrary finite domains": cycle walking), evaluated just at the positions asked
for. So a resumed run needs no replay, no permutation of a billion rows is ever held, and any number of processes sees
the same global batches.
"""

from __future__ import annotations

import functools
import io
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from ssl_models.data.manifest import FILE, PROBE_COLUMNS, Column, Manifest
from ssl_models.files import checksum

Indices = npt.NDArray[np.int64]
View = npt.NDArray[Any]
Pixels = npt.NDArray[np.uint8]

_ROUNDS = 8  # 4 make a Feistel network strong; small domains deserve more
_FEW = 1024  # rows that are sorted by a keyed hash instead: no slower, and every permutation is equally likely


@dataclass(frozen=True)
class Split:
    """Memory-mapped rows of one split, numbered 0..len-1 over its files in order."""

    name: str
    columns: dict[str, Column]
    files: tuple[dict[str, View | Jpegs], ...]
    starts: Indices
    """First row number of each file, and the number of rows as the last entry."""

    def __len__(self) -> int:
        return int(self.starts[-1])

    def rows(self, indices: npt.ArrayLike) -> dict[str, Tensor]:
        """The rows at `indices` `[batch]`, in that order: `[batch, *shape]`, uint8 as uint8 and all else as int64.

        IndexError where an index is outside 0..len-1. Safe to call from several threads.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"{self.name}: row numbers go from 0 to {len(self) - 1}")
        file_of = np.searchsorted(self.starts, wanted, side="right") - 1
        found = {
            name: np.empty((wanted.size, *column.shape), np.uint8 if column.dtype == "uint8" else np.int64)
            for name, column in self.columns.items()
        }
        for number in np.unique(file_of):
            here = file_of == number
            local = wanted[here] - self.starts[number]
            for name, out in found.items():
                out[here] = self.files[number][name][local]
        return {name: torch.from_numpy(out) for name, out in found.items()}


@dataclass(frozen=True)
class Shards:
    """An opened folder of shards."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path) -> Shards:
        """Read the manifest of `folder`; FileNotFoundError, or ValueError where it is none."""
        return cls(folder, Manifest.load(folder))

    def split(self, name: str) -> Split:
        """Map the files of one split; ValueError names a file that is missing, cut short or belies the manifest."""
        if name not in self.manifest.splits:
            raise ValueError(f"{self.folder / FILE}: there is no split {name!r}")
        columns = {
            column: kind
            for column, kind in self.manifest.columns.items()
            if name == "probe" or column not in PROBE_COLUMNS
        }
        shards = self.manifest.splits[name].shards
        files = tuple(_map(self.folder / shard.file, shard.rows, columns) for shard in shards)
        starts = np.cumsum([0, *(shard.rows for shard in shards)], dtype=np.int64)
        return Split(name, columns, files, starts)

    def verify(self) -> None:
        """Compare every file with its checksum; ValueError names the first that differs or is missing."""
        for split in self.manifest.splits.values():
            for shard in split.shards:
                path = self.folder / shard.file
                if not path.exists():
                    raise ValueError(f"{path}: is missing; run the shard stage again")
                if checksum(path) != shard.blake2b:
                    raise ValueError(f"{path}: differs from its checksum in {FILE}; run the shard stage again")


@dataclass(frozen=True)
class Jpegs:
    """A column of pictures as JPEG: row `i` is `data[ends[i]:ends[i + 1]]`, zero-copy views of the file `path`. Indexed
    by row numbers `[batch]`, it is uint8 `[batch, *shape]`, of `shape` (channels, height, width)."""

    path: Path
    ends: Indices
    data: Pixels
    shape: tuple[int, ...]

    def __getitem__(self, rows: Indices) -> Pixels:
        """The pixels of `rows`, decoded by threads; ValueError names a row that cannot be."""
        out = np.empty((len(rows), *self.shape), np.uint8)
        for _ in _threads().map(self._decode, rows.tolist(), out):
            pass
        return out

    def _decode(self, row: int, out: Pixels) -> None:
        from PIL import Image  # needed for such columns alone

        data = self.data[self.ends[row] : self.ends[row + 1]].tobytes()
        try:
            with Image.open(io.BytesIO(data), formats=("JPEG",)) as picture:
                pixels = np.asarray(picture)
            out[:] = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(
                f"{self.path}: row {row} is not a JPEG of {list(self.shape)} ({error}); run the shard stage again"
            ) from None


@functools.cache
def _threads() -> ThreadPoolExecutor:
    """As many as there are cores for this process: Pillow decodes outside Python's lock."""
    return ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="jpeg")


def _map(path: Path, rows: int, columns: dict[str, Column]) -> dict[str, View | Jpegs]:
    """Zero-copy views `[rows, *shape]` of the columns of one file; they keep the map open as long as they live."""
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        batches = reader.num_record_batches
        batch = reader.get_batch(0) if batches == 1 else None
    except FileNotFoundError:
        raise ValueError(f"{path}: is missing; run the shard stage again") from None
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: is damaged or cut short ({error}); run the shard stage again") from None
    if batch is None or batch.num_rows != rows:
        raise ValueError(f"{path}: does not hold one batch of {rows} rows; run the shard stage again")
    views: dict[str, View | Jpegs] = {}
    for name, column in columns.items():
        if name not in batch.schema.names:
            raise ValueError(f"{path}: has no column {name!r}; run the shard stage again")
        values = batch.column(name)
        if column.codec:
            views[name] = _jpegs(path, values, column)
            continue
        if isinstance(values, pa.FixedSizeListArray):
            values = values.flatten()
        view = values.to_numpy(zero_copy_only=True)
        if view.dtype != column.dtype or view.size != rows * int(np.prod(column.shape)):
            raise ValueError(f"{path}: column {name!r} is not {column.dtype} {list(column.shape)} a row")
        views[name] = view.reshape(rows, *column.shape)
    return views


def _jpegs(path: Path, values: pa.Array, column: Column) -> Jpegs:
    if not pa.types.is_large_binary(values.type):
        raise ValueError(f"{path}: its pictures are not JPEGs, as the manifest says; run the shard stage again")
    _, ends, data = values.buffers()
    return Jpegs(path, np.frombuffer(ends, np.int64), np.frombuffer(data, np.uint8), column.shape)


def order(seed: int, epoch: int, rows: int, positions: npt.ArrayLike | None = None) -> Indices:
    """Row numbers at `positions` (default: all of 0..rows-1) of this epoch's permutation of 0..rows-1."""
    wanted = np.arange(rows, dtype=np.int64) if positions is None else np.asarray(positions, dtype=np.int64)
    keys = np.random.SeedSequence([seed, epoch]).generate_state(_ROUNDS, np.uint64).astype(np.uint64)
    if rows <= _FEW:
        shuffled: Indices = np.argsort(_mix(np.arange(rows, dtype=np.uint64) ^ keys[0]), kind="stable")
        return shuffled[wanted]
    half = ((rows - 1).bit_length() + 1) // 2
    found = _feistel(wanted.astype(np.uint64), half, keys)
    while (outside := found >= rows).any():  # walk the cycle until it comes back to the rows: below 4 times on average
        found[outside] = _feistel(found[outside], half, keys)
    return found.astype(np.int64)


def batch_indices(seed: int, step: int, batch: int, rows: int) -> Indices:
    """Row numbers `[batch]` of the global batch of `step` (from 0).

    Epochs follow each other without a gap, so a batch may span several; each epoch has every row exactly once.
    ValueError where there are no rows.
    """
    if rows < 1:
        raise ValueError("there are no rows to train on")
    positions = np.arange(step * batch, (step + 1) * batch, dtype=np.int64)
    epochs, within = np.divmod(positions, rows)
    return np.concatenate([order(seed, int(epoch), rows, within[epochs == epoch]) for epoch in np.unique(epochs)])


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finalizer of MurmurHash3, 64 bit (public domain, A. Appleby)."""
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return values ^ (values >> np.uint64(33))


def _feistel(values: npt.NDArray[np.uint64], half: int, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """A bijection of 0..4**half-1, whatever the round function is."""
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << shift) | right
