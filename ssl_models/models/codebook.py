"""A small visual codebook: k-means on patches of pixels, trained once by the tokenize stage and frozen ever after.

It stands where BEiT has DALL-E's tokenizer, and is named for what it is: the index of a patch is that of the nearest
of K mean patches. Deterministic: the first centres are drawn far apart by k-means++ from a seed, Lloyd's iterations
follow (Arthur and Vassilvitskii 2007), and a centre that lost all its patches moves to the patch that is worst
represented.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ssl_models.models.vision import patchify, to_unit, unpatchify

FILE = "codebook.safetensors"
_CHUNK = 1 << 24  # distances held at once, in numbers


@dataclass(frozen=True)
class Codebook:
    """`centres` float32 `[codes, side * side * channels]` in [0, 1], flattened as by `vision.patchify`; `side` in
    pixels."""

    centres: Tensor
    side: int

    def encode(self, pixels: Tensor) -> Tensor:
        """Index of the nearest centre of each patch: int64 `[batch, patches]` of pictures `[batch, channels, height,
        width]`."""
        patches = patchify(to_unit(pixels), self.side)
        return _nearest(patches.flatten(0, 1), self.centres.to(patches))[0].view(patches.shape[:2])

    def decode(self, codes: Tensor, height: int, width: int) -> Tensor:
        """The pictures float `[batch, channels, height, width]` that `codes` `[batch, patches]` stand for."""
        return unpatchify(self.centres.to(codes.device)[codes], self.side, height, width)

    def save(self, folder: Path) -> None:
        """Write `codebook.safetensors` into `folder`."""
        save_file({"centres": self.centres.contiguous()}, folder / FILE, metadata={"side": str(self.side)})


def load(folder: Path) -> Codebook:
    """The codebook of an encoding's folder; ValueError where there is none."""
    try:
        with safe_open(folder / FILE, "pt") as file:
            return Codebook(file.get_tensor("centres"), int(file.metadata()["side"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        raise ValueError(
            f"{folder / FILE}: is missing or damaged; ask for a codebook in tokenize and run it again"
        ) from None


@dataclass(frozen=True)
class Usage:
    """How a codebook is used: `used` codes, and the `perplexity` of their distribution (codes, if all were equally
    frequent)."""

    used: int
    perplexity: float


def usage(codes: Tensor, size: int) -> Usage:
    """Usage of `size` codes by any tensor of indices."""
    share = torch.bincount(codes.flatten().cpu(), minlength=size).double() / max(1, codes.numel())
    present = share[share > 0]
    return Usage(len(present), math.exp(float(-(present * present.log()).sum())))


def fit(pixels: Tensor, side: int, codes: int, seed: int, iterations: int = 20) -> Codebook:
    """A codebook of at most `codes` entries from a sample of pictures uint8 `[batch, channels, height, width]`: fewer
    where there are not as many different patches. ValueError where patches of `side` pixels do not tile the
    pictures."""
    if pixels.shape[2] % side or pixels.shape[3] % side:
        raise ValueError(f"patches of {side} pixels do not tile pictures of {pixels.shape[2]}x{pixels.shape[3]}")
    distinct, counts = torch.unique(patchify(pixels, side).flatten(0, 1), dim=0, return_counts=True)
    patches, weights = distinct.float() / 255, counts.float()
    centres = _spread(patches, weights, min(codes, len(patches)), torch.Generator().manual_seed(seed))
    for _ in range(iterations):
        nearest, distance = _nearest(patches, centres)
        mass = torch.zeros(len(centres)).index_add_(0, nearest, weights)
        sums = torch.zeros_like(centres).index_add_(0, nearest, patches * weights[:, None])
        moved = sums / mass.clamp(min=1e-9)[:, None]
        empty = (mass == 0).nonzero()[:, 0]
        moved[empty] = patches[(distance * weights).topk(len(empty)).indices]
        if torch.equal(moved, centres):
            break
        centres = moved
    return Codebook(centres, side)


def _spread(patches: Tensor, weights: Tensor, codes: int, generator: torch.Generator) -> Tensor:
    """k-means++: each further centre is a patch drawn with probability proportional to weight times squared
    distance."""

    def drawn(mass: Tensor) -> int:
        cumulative = mass.double().cumsum(0)
        at = torch.rand((), generator=generator, dtype=torch.float64) * cumulative[-1]
        return min(int(torch.searchsorted(cumulative, at, right=True)), len(patches) - 1)

    chosen = [drawn(weights)]
    distance = ((patches - patches[chosen[0]]) ** 2).sum(dim=1)
    for _ in range(codes - 1):
        chosen.append(drawn(distance * weights))
        distance = torch.minimum(distance, ((patches - patches[chosen[-1]]) ** 2).sum(dim=1))
    return patches[chosen].clone()


def _nearest(patches: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Index of and squared distance to the nearest of `centres` for each of `patches` `[count, values]`."""
    offset = (centres**2).sum(dim=1)
    found, distances = [], []
    for part in torch.split(patches, max(1, _CHUNK // len(centres))):
        score = torch.addmm(offset, part, centres.T, alpha=-2)
        least, index = score.min(dim=1)
        found.append(index)
        distances.append((least + (part**2).sum(dim=1)).clamp(min=0))
    return torch.cat(found), torch.cat(distances)
