"""Pictures for a reviewer: uint8 `[height, width, 3]`, tiled from pixels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_SMALLEST = 64  # pixels of a tile's longer side: below, tiles are enlarged by whole factors
_MARGIN, _WHITE = 2, 255


def to_uint8(pixels: Tensor) -> Tensor:
    """Float pictures in [0, 1], clipped, as uint8; uint8 as it is."""
    if pixels.dtype == torch.uint8:
        return pixels
    return (pixels.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)


def tile(rows: list[Tensor]) -> Tensor:
    """A table of pictures, one table row per tensor `[columns, channels, height, width]` (uint8, or float in [0, 1]),
    all of one size, one or three channels: uint8 `[height, width, 3]` with white margins."""
    table = torch.stack([to_uint8(row).cpu() for row in rows])
    if table.shape[2] != 3:
        table = table[:, :, :1].expand(-1, -1, 3, -1, -1)
    factor = max(1, _SMALLEST // max(table.shape[-2:]))
    table = table.repeat_interleave(factor, dim=3).repeat_interleave(factor, dim=4)
    table = functional.pad(table, (0, _MARGIN, 0, _MARGIN), value=_WHITE)
    height, width = table.shape[0] * table.shape[3], table.shape[1] * table.shape[4]
    return table.permute(0, 3, 1, 4, 2).reshape(height, width, 3).contiguous()


def heat(matrix: Tensor) -> Tensor:
    """A matrix of non-negative numbers as grey levels, dark where large, each row scaled by its sum: uint8 pixels."""
    shares = matrix.float() / matrix.float().sum(dim=1, keepdim=True).clamp(min=1e-9)
    return tile([(1 - shares)[None, None]])
