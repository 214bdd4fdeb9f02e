"""Which random views of pictures are drawn: a parameter set per sample, a pure function of its key.

Parameters follow SimCLR (Chen et al. 2020, arXiv 2002.05709). `ssl_models.objectives.shared.augment` makes the views.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from ssl_models.data import keyed

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as PIL's "L"
REACH = 4  # standard deviations after which a Gaussian is cut off
_ATTEMPTS = 10  # crops drawn before one that does not fit is clipped to the picture, as torchvision does


class Augmentation(BaseModel):
    """Which views are drawn. Probabilities are per sample; a strength s draws a factor from 1-s to 1+s."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    crop: tuple[float, float] = Field(default=(0.08, 1.0), description="fraction of the area kept")
    aspect: tuple[float, float] = Field(default=(3 / 4, 4 / 3), description="width over height of the crop")
    flip: float = Field(default=0.5, ge=0, le=1, description="probability of a horizontal flip")
    jitter: float = Field(default=0.8, ge=0, le=1, description="probability of the four strengths below")
    brightness: float = Field(default=0.4, ge=0, le=1, description="strength")
    contrast: float = Field(default=0.4, ge=0, le=1, description="strength")
    saturation: float = Field(default=0.4, ge=0, le=1, description="strength")
    hue: float = Field(default=0.1, ge=0, le=0.5, description="largest turn of the colour wheel, in full turns")
    grey: float = Field(default=0.2, ge=0, le=1, description="probability of losing all colour")
    blur: float = Field(default=0.0, ge=0, le=1, description="probability of a Gaussian blur; off for small pictures")
    sigma: tuple[float, float] = Field(default=(0.1, 2.0), description="its standard deviation, in pixels of the view")
    solarise: float = Field(default=0.0, ge=0, le=1, description="probability of inverting the bright pixels")

    @model_validator(mode="after")
    def _ranges(self) -> Augmentation:
        for name, (low, high) in (("crop", self.crop), ("aspect", self.aspect), ("sigma", self.sigma)):
            if not 0 < low <= high:
                raise ValueError(f"{name}: [{low}, {high}] is no range of positive numbers, smaller first")
        if self.crop[1] > 1:
            raise ValueError(f"crop: {self.crop[1]} of the area is more than the whole")
        return self


@dataclass(frozen=True)
class Parameters:
    """What was drawn for each sample; every tensor is `[batch]`. Crops are whole pixels of the source; `sigma` 0 is no
    blur; `hue` is in turns; factors of 1 and a hue of 0 change nothing."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    flip: Tensor
    sigma: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    solarise: Tensor


def identity(batch: int, height: int, width: int, device: torch.device | None = None) -> Parameters:
    """Parameters that change nothing."""
    zero, one = torch.zeros(batch, device=device), torch.ones(batch, device=device)
    no = zero.bool()
    return Parameters(zero, zero, one * height, one * width, no, zero, one, one, one, zero, no)


def draw(options: Augmentation, key: Tensor, height: int, width: int, stream: int) -> Parameters:
    """Parameters of one view per sample of pictures of `height` x `width`, a pure function of `key` `[batch]` and
    `stream`. Streams `stream` and `stream + 1` are used: views of the same sample take streams two apart."""
    top, left, crop_height, crop_width = _draw_crop(options, key, height, width, stream)
    u = keyed.uniform(key, 11, stream + 1)
    jitter = u[:, 0] < options.jitter

    def factor(strength: float, value: Tensor) -> Tensor:
        return torch.where(jitter, 1 + strength * (2 * value - 1), 1.0)

    low, high = options.sigma
    return Parameters(
        top=top,
        left=left,
        height=crop_height,
        width=crop_width,
        flip=u[:, 1] < options.flip,
        sigma=torch.where(u[:, 2] < options.blur, low + (high - low) * u[:, 3], 0.0),
        brightness=factor(options.brightness, u[:, 4]),
        contrast=factor(options.contrast, u[:, 5]),
        saturation=torch.where(u[:, 6] < options.grey, 0.0, factor(options.saturation, u[:, 7])),
        hue=torch.where(jitter, options.hue * (2 * u[:, 8] - 1), 0.0),
        solarise=u[:, 9] < options.solarise,
    )


def _draw_crop(
    options: Augmentation, key: Tensor, height: int, width: int, stream: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Top, left, height, width `[batch]` of a crop with uniform area and log-uniform aspect: the first of a few
    attempts that fits into the picture."""
    u = keyed.uniform(key, 2 * _ATTEMPTS + 2, stream)
    low, high = options.crop
    # In float64, as a last bit may depend on a sample's place in the batch. Powers and integers, as torch splits
    # exp, sqrt and round of even a few numbers over the threads of a CPU, which costs more than it gains.
    tried = u[:, : 2 * _ATTEMPTS].double()
    area = (low + (high - low) * tried[:, :_ATTEMPTS]) * height * width
    side = area ** torch.full_like(area, 0.5)
    narrow, wide = options.aspect
    root = narrow**0.5 * (wide / narrow) ** (tried[:, _ATTEMPTS:] / 2)
    widths = (side * root + 0.5).long().clamp(min=1).float()
    heights = (side / root + 0.5).long().clamp(min=1).float()
    fits = (widths <= width) & (heights <= height)
    first = fits.float().argmax(dim=1, keepdim=True)
    crop_height = heights.gather(1, first)[:, 0].clamp(max=height)
    crop_width = widths.gather(1, first)[:, 0].clamp(max=width)
    top = torch.floor(u[:, -2] * (height - crop_height + 1))
    left = torch.floor(u[:, -1] * (width - crop_width + 1))
    return top, left, crop_height, crop_width
