"""Features of a frozen encoder, computed once and kept in float32 on disk.

Frozen is checked, not hoped for: eval mode, inference mode, and a hash of every parameter and buffer that must be the
same before and after. One file per named feature in a folder that the caller deletes; the kernel holds what fits.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array, vstack
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from ssl_models.cpu.side_by_side import Passes
from ssl_models.data.manifest import PROBE_COLUMNS
from ssl_models.objectives import Objective, Rows
from ssl_models.probing.logistic import Matrix

Indices = npt.NDArray[np.int64]
Read = Callable[[Indices], Rows]
"""Rows at these indices, on the CPU: `ssl_models.data.shards.Split.rows`."""

BATCH = {"cpu": 32}
BATCH_ON_DEVICE = 256
LARGEST_RAW = 4096
"""Pixels are averaged over squares until a row has at most as many values: the raw baseline stays affordable."""
SPARE = 2
"""Padding left behind the longest text of a batch, so that an objective still sees where it ends."""
SPARSE_WIDTH, SPARSE_SHARE = 1024, 0.1
"""Raw rows at least so wide and at most so full are kept sparse."""


def fingerprint(module: nn.Module) -> str:
    """BLAKE2b-128 of the names, shapes and bytes of all parameters and buffers, as hex."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        values = tensor.detach().cpu().contiguous()
        digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes() if values.numel() else b"")
    return digest.hexdigest()


@contextmanager
def frozen(objective: Objective) -> Iterator[None]:
    """Eval and inference mode; RuntimeError where a parameter or buffer is not what it was when it ends."""
    before, training = fingerprint(objective), objective.training
    objective.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        objective.train(training)
    if fingerprint(objective) != before:
        raise RuntimeError(
            f"{type(objective).__name__}.features changed a parameter or a buffer of the frozen encoder: "
            "what was probed is not what was trained"
        )


@dataclass(frozen=True)
class Source:
    """Rows to be encoded, numbered as `read` numbers them. `lengths` `[rows]`: tokens of each text without its padding;
    texts of like length are then read together, without most of the padding, which changes no feature."""

    read: Read
    rows: Indices
    lengths: Indices | None = None

    def part(self, mask: npt.NDArray[np.bool_]) -> Source:
        """The rows where `mask` `[rows]` holds."""
        return Source(self.read, self.rows[mask], None if self.lengths is None else self.lengths[mask])

    def batches(self, objective: Objective) -> Iterator[tuple[Indices, Rows]]:
        """(positions in `rows`, those rows on the objective's device)."""
        device = next(objective.parameters()).device
        size = BATCH.get(device.type, BATCH_ON_DEVICE)
        order = np.arange(len(self.rows)) if self.lengths is None else np.argsort(self.lengths, kind="stable")
        for start in tqdm(range(0, len(order), size), unit="batch", disable=None, leave=False):
            at = np.sort(order[start : start + size])
            batch = {name: values for name, values in self.read(self.rows[at]).items() if name not in PROBE_COLUMNS}
            if self.lengths is not None:
                batch["tokens"] = batch["tokens"][:, : int(self.lengths[at].max()) + SPARE]
            yield at, {name: values.to(device) for name, values in batch.items()}


def extract(objective: Objective, source: Source, folder: Path) -> dict[str, Matrix]:
    """All named features of the source's rows, each a memory-mapped float32 `[rows, width]` in `folder`, by name in the
    objective's order. The objective stays on its device."""
    stored: dict[str, npt.NDArray[np.float32]] = {}
    device = next(objective.parameters()).device

    def features(read: tuple[Indices, Rows]) -> tuple[Indices, dict[str, Tensor]]:
        at, batch = read
        return at, objective.features(batch)

    with frozen(objective):
        for at, named in Passes(objective)(features, source.batches(objective), device):
            for name, values in named.items():
                if name not in stored:
                    stored[name] = _store(folder / f"{len(stored):03d}.npy", len(source.rows), values)
                stored[name][at] = values.float().cpu().numpy()
    return stored


def classify(objective: Objective, source: Source, names: Sequence[str]) -> Indices | None:
    """The zero-shot class of each of the source's rows, an index into `names`; None where the objective has none."""
    found = np.empty(len(source.rows), np.int64)
    with frozen(objective):
        classifier = objective.zero_shot(names)
        if classifier is None:
            return None
        for at, batch in source.batches(objective):
            found[at] = classifier(batch).cpu().numpy()
    return found


def extract_raw(objective: Objective, source: Source, folder: Path) -> Matrix:
    """The raw-input baseline of the source's rows: sparse where most of its values are zero (counts of tokens), else
    memory-mapped in `folder`."""
    parts: list[csr_array] = []
    places: list[Indices] = []
    dense: npt.NDArray[np.float32] | None = None
    with frozen(objective):
        for at, batch in source.batches(objective):
            values = objective.raw(_shrink(batch))
            if not parts and dense is None and not _mostly_zero(values):
                dense = _store(folder / "raw.npy", len(source.rows), values)
            if dense is None:
                parts.append(_sparse(values))
                places.append(at)
            else:
                dense[at] = values.float().cpu().numpy()
    if dense is not None:
        return dense
    return csr_array(vstack(parts), dtype=np.float32)[np.argsort(np.concatenate(places))]


def _store(path: Path, rows: int, values: Tensor) -> npt.NDArray[np.float32]:
    """A file for `rows` rows like those of `values` `[batch, width]`."""
    if values.ndim != 2:
        raise RuntimeError(f"features are [batch, width], these are {list(values.shape)}")
    store: npt.NDArray[np.float32] = np.lib.format.open_memmap(
        path, mode="w+", dtype=np.float32, shape=(rows, values.shape[1])
    )
    if sys.platform == "linux":  # a full disk is an OSError here; writing into the array, it would be the end (SIGBUS)
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return store


def _shrink(rows: Rows) -> Rows:
    """Average pixels over squares until a row has at most LARGEST_RAW values."""
    pixels = rows.get("pixels")
    if pixels is None or pixels[0].numel() <= LARGEST_RAW:
        return rows
    height, width = pixels.shape[-2:]
    side = 1
    while pixels[0].numel() // (height * width) * -(-height // side) * -(-width // side) > LARGEST_RAW and side < max(
        height, width
    ):
        side += 1
    smaller = (-(-height // side), -(-width // side))
    averaged = functional.adaptive_avg_pool2d(pixels.flatten(0, -4).float(), smaller)
    return {**rows, "pixels": averaged.round().to(torch.uint8).view(*pixels.shape[:-2], *smaller)}


def _mostly_zero(values: Tensor) -> bool:
    if values.layout != torch.strided:
        return True
    return values.shape[1] >= SPARSE_WIDTH and int(values.count_nonzero()) <= SPARSE_SHARE * values.numel()


def _sparse(values: Tensor) -> csr_array:
    values = values.detach().cpu()
    if values.layout == torch.strided:
        return csr_array(values.float().numpy())
    pairs = torch.Tensor.to_sparse(values).coalesce()
    content = (pairs.values().float().numpy(), tuple(pairs.indices().numpy()))
    return csr_array(content, shape=tuple(values.shape))
