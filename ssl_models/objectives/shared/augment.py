"""Random views of a whole batch of pictures at once, on the device, every sample with parameters of its own.

The geometry (crop, resize, flip, blur) is linear and separable, so it is two small matrices per sample and one batched
matrix product for each axis; brightness, contrast, saturation and grey are one affine map of the colours. Only hue and
solarise touch single pixels. Compared with a pipeline of PIL operations, blur comes before the colours, and colours are
clamped to [0, 1] once rather than after every operation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_models.data.augmentation import LUMA, REACH, Augmentation, Parameters, draw


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
        from ssl_models.cpu import augment_kernel  # numba takes half a second to import

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
