"""Random views of a whole batch of pictures at once, on the device, every sample with parameters of its own.

The geometry (crop, resize, flip, blur) is linear and separable, so it is two small matrices per sample and one batched
matrix product for each axis; brightness, contrast, saturation and grey are one affine map of the colours. Only hue and
solarise touch single pixels. A CPU does the same arithmetic sample by sample, see `augment_kernel`. Compared with a
pipeline of PIL operations, blur comes before the colours, and colours are clamped to [0, 1] once rather than after
every operation. Parameters follow SimCLR (Chen et al. 2020, arXiv 2002.05709).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from ssl_models import keyed

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
    brightness: float = Field(default=0.4, ge=0, le=1)
    contrast: float = Field(default=0.4, ge=0, le=1)
    saturation: float = Field(default=0.4, ge=0, le=1)
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


def resample(start: Tensor, extent: Tensor, size: int, source: int) -> Tensor:
    """Matrices `[batch, size, source]` that resize the stretch `[start, start + extent)` `[batch]` of an axis of
    `source` pixels to `size` pixels: linear interpolation, antialiased where it shrinks, pixel centres aligned."""
    scale = (extent / size)[:, None, None]
    steps = torch.arange(size, device=start.device)[None, :, None] + 0.5
    pixels = torch.arange(source, device=start.device)[None, None, :]
    begin, end = start[:, None, None], (start + extent)[:, None, None]
    distance = (pixels + 0.5 - (begin + steps * scale)).abs() / scale.clamp(min=1)
    weights = (1 - distance).clamp(min=0) * ((pixels >= begin) & (pixels < end))
    return weights / weights.sum(dim=2, keepdim=True)


def blur(sigma: Tensor, size: int) -> Tensor:
    """Matrices `[batch, size, size]` of a Gaussian blur of an axis; rows sum to 1, so borders do not darken. A sigma
    of 0 is the identity."""
    position = torch.arange(size, device=sigma.device, dtype=torch.float32)
    square = (position[:, None] - position[None, :]) ** 2
    weights = torch.exp(-square / (2 * sigma[:, None, None] ** 2).clamp(min=1e-6))
    weights = weights * (square <= (REACH * sigma[:, None, None]) ** 2)
    return weights / weights.sum(dim=2, keepdim=True)


def apply(pixels: Tensor, parameters: Parameters, size: tuple[int, int] | None = None) -> Tensor:
    """Views float32 `[batch, channels, *size]` in [0, 1] of pictures `[batch, channels, height, width]`, uint8 or
    float in [0, 1], with one or three channels; `size` defaults to the source's."""
    height, width = size or (pixels.shape[2], pixels.shape[3])
    if pixels.device.type == "cpu":
        from ssl_models import augment_kernel

        return augment_kernel.apply(pixels, parameters, height, width)
    return batched(pixels, parameters, height, width)


def batched(pixels: Tensor, parameters: Parameters, height: int, width: int) -> Tensor:
    """`apply` by operations on the whole batch, for any device."""
    rows = resample(parameters.top, parameters.height, height, pixels.shape[2])
    columns = resample(parameters.left, parameters.width, width, pixels.shape[3])
    columns = torch.where(parameters.flip[:, None, None], columns.flip(1), columns)
    if bool((parameters.sigma > 0).any()):
        rows = blur(parameters.sigma, height) @ rows
        columns = blur(parameters.sigma, width) @ columns
    if pixels.dtype == torch.uint8:
        columns = columns / 255
    channels = pixels.shape[1]
    luma = torch.tensor(LUMA if channels == 3 else [1 / channels] * channels, device=pixels.device)
    saturation = parameters.saturation if channels == 3 else torch.ones_like(parameters.saturation)
    factors = torch.stack([parameters.brightness, parameters.contrast, saturation, parameters.hue], dim=1)
    views = colours(rows[:, None] @ (pixels.float() @ columns.mT[:, None]), luma, factors)
    return torch.where(parameters.solarise[:, None, None, None] & (views >= 0.5), 1 - views, views)


def colours(views: Tensor, luma: Tensor, factors: Tensor) -> Tensor:
    """Brightness, then contrast about the mean luma, then saturation, in one affine map; clamp; then hue."""
    batch, channels, height, width = views.shape
    brightness, contrast, saturation, hue = factors.unbind(dim=1)
    mean = torch.einsum("bchw,c->b", views, luma) / (height * width)
    shift = (1 - contrast) * brightness * mean
    kept = saturation[:, None, None]
    mix = kept * torch.eye(channels, device=views.device) + (1 - kept) * luma
    matrix = (brightness * contrast)[:, None, None] * mix
    flat = torch.baddbmm(shift[:, None, None], matrix, views.flatten(2)).clamp_(0, 1)
    views = flat.view(batch, channels, height, width)
    return turn_hue(views, hue) if channels == 3 else views


def turn_hue(rgb: Tensor, turns: Tensor) -> Tensor:
    """Turn the colour wheel of RGB pictures `[batch, 3, height, width]` by `turns` `[batch]`, value and saturation
    as in HSV unchanged. Uses f(n) = v - c max(0, min(k, 4 - k, 1)) with k = (n + h) mod 6 for n = 5, 3, 1."""
    value, least = rgb.amax(dim=1), rgb.amin(dim=1)
    chroma = value - least
    red, green, blue = rgb.unbind(dim=1)
    difference = torch.where(red == value, green - blue, torch.where(green == value, blue - red, red - green))
    sextant = torch.where(red == value, 0.0, torch.where(green == value, 2.0, 4.0))
    hue = difference / chroma.clamp(min=1e-8) + sextant + 6 * turns[:, None, None]
    offsets = torch.tensor([5.0, 3.0, 1.0], device=rgb.device)[:, None, None]
    k = (hue[:, None] + offsets).remainder_(6)
    return value[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp_(0, 1)


def views(options: Augmentation, pixels: Tensor, key: Tensor, stream: int) -> Tensor:
    """One random view float32 `[batch, channels, height, width]` of every picture: `draw`, then `apply`."""
    return apply(pixels, draw(options, key, pixels.shape[2], pixels.shape[3], stream))
