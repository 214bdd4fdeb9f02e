"""The arithmetic of `ssl_models.augment` on a CPU: one pass over each sample, compiled by numba.

Same parameters, same result as the batched tensor operations (a test holds them together to 1e-5). Tensor operations
write every intermediate to memory, which on a CPU costs several times the arithmetic; here a sample stays in the
cache. The kernel releases the GIL and samples are split over threads; no sample's result depends on the split.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

_compiled: Any = numba.njit(nogil=True, fastmath=True, cache=True, error_model="numpy")


@_compiled  # type: ignore[untyped-decorator]  # numba has no types
def _resize(source: Any, top: Any, down: Any, left: Any, across: Any, line: Any, view: Any) -> None:
    """Resize a plane `source` `[h, w]` to `view` `[height, width]`. Row y is the sum over t of `down[t, y]` times row
    top[y] + t, made in `line`; its pixel x is the sum over t of `across[t, x]` times line[left[x] + t]."""
    for y in range(view.shape[0]):
        for j in range(source.shape[1]):
            line[j] = down[0, y] * source[top[y], j]
        for t in range(1, down.shape[0]):
            weight = down[t, y]
            if weight != 0:
                for j in range(source.shape[1]):
                    line[j] += weight * source[top[y] + np.uint32(t), j]
        for x in range(view.shape[1]):
            view[y, x] = across[0, x] * line[left[x]]
        for t in range(1, across.shape[0]):
            for x in range(view.shape[1]):
                view[y, x] += across[t, x] * line[left[x] + np.uint32(t)]


@_compiled  # type: ignore[untyped-decorator]  # numba has no types
def _bands(matrix: Any, first: Any, room: Any) -> Any:
    """The non-zero stretch of each row of `matrix` `[size, source]`: where it begins into `first`, and its values
    `[taps, size]`, padded with zeros to the longest, as a part of `room`."""
    longest = 1
    for x in range(matrix.shape[0]):
        begin, end = 0, matrix.shape[1]
        while matrix[x, begin] == 0:
            begin += 1
        while matrix[x, end - 1] == 0:
            end -= 1
        first[x] = begin
        longest = max(longest, end - begin)
    for x in range(matrix.shape[0]):
        for t in range(longest):
            at = first[x] + t
            room[t, x] = matrix[x, at] if at < matrix.shape[1] else 0
    return room[:longest]


@_compiled  # type: ignore[untyped-decorator]  # numba has no types
def _turn(red: Any, green: Any, blue: Any, turns: Any) -> None:
    """`augment.turn_hue` of one row of pixels, in place."""
    six, tiny, zero, one = np.float32(6), np.float32(1e-8), np.float32(0), np.float32(1)
    for j in range(red.shape[0]):
        r, g, b = red[j], green[j], blue[j]
        value = max(r, max(g, b))
        chroma = value - min(r, min(g, b))
        difference = g - b if r == value else (b - r if g == value else r - g)
        sextant = zero if r == value else (np.float32(2) if g == value else np.float32(4))
        hue = difference / max(chroma, tiny) + sextant + six * turns
        k = hue + np.float32(5)
        k -= six * np.floor(k / six)
        red[j] = value - chroma * max(zero, min(one, min(k, np.float32(4) - k)))
        k = hue + np.float32(3)
        k -= six * np.floor(k / six)
        green[j] = value - chroma * max(zero, min(one, min(k, np.float32(4) - k)))
        k = hue + one
        k -= six * np.floor(k / six)
        blue[j] = value - chroma * max(zero, min(one, min(k, np.float32(4) - k)))


@_compiled  # type: ignore[untyped-decorator]  # numba has no types
def _colour(view: Any, luma: Any, brightness: Any, contrast: Any, saturation: Any, turns: Any, invert: bool) -> None:
    """Colours of one view `[channels, height, width]` in place, as `augment.colours` does."""
    channels, height, width = view.shape
    zero, one = np.float32(0), np.float32(1)
    mean = 0.0
    for c in range(channels):
        total = 0.0
        for y in range(height):
            part: Any = zero
            for x in range(width):
                part += view[c, y, x]
            total += part
        mean += luma[c] * total / (height * width)
    scale = brightness * contrast
    shift = np.float32((one - contrast) * brightness * mean)
    keep, mix = scale * saturation, scale * (one - saturation)
    grey = np.empty(width, dtype=np.float32)
    for y in range(height):
        grey[:] = shift
        for c in range(channels):
            share = mix * luma[c]
            for x in range(width):
                grey[x] += share * view[c, y, x]
        for c in range(channels):
            for x in range(width):
                view[c, y, x] = max(zero, min(one, keep * view[c, y, x] + grey[x]))
        if channels == 3 and turns != 0 and saturation != 0:
            _turn(view[0, y], view[1, y], view[2, y], turns)
        if invert:
            for c in range(channels):
                for x in range(width):
                    if view[c, y, x] >= np.float32(0.5):
                        view[c, y, x] = one - view[c, y, x]


@_compiled  # type: ignore[untyped-decorator]  # numba has no types
def _samples(
    pixels: Any, rows: Any, columns: Any, luma: Any, factors: Any, invert: Any, out: Any, begin: int, end: int
) -> None:
    """Views of the samples begin..end-1. `factors` `[batch, 4]`: brightness, contrast, saturation, hue."""
    line = np.zeros(2 * pixels.shape[3], dtype=np.float32)  # a shorter band's zero weights may reach beyond the end
    top, left = np.empty(rows.shape[1], dtype=np.uint32), np.empty(columns.shape[1], dtype=np.uint32)
    tall = np.empty((rows.shape[2], rows.shape[1]), dtype=np.float32)
    wide = np.empty((columns.shape[2], columns.shape[1]), dtype=np.float32)
    for b in range(begin, end):
        down, across = _bands(rows[b], top, tall), _bands(columns[b], left, wide)
        for c in range(pixels.shape[1]):
            _resize(pixels[b, c], top, down, left, across, line, out[b, c])
        _colour(out[b], luma, factors[b, 0], factors[b, 1], factors[b, 2], factors[b, 3], invert[b])


def apply(pixels: Tensor, rows: Tensor, columns: Tensor, luma: Tensor, factors: Tensor, invert: Tensor) -> Tensor:
    """Views float32 `[batch, channels, height, width]` of `pixels` `[batch, channels, h, w]`, from `rows`
    `[batch, height, h]`, `columns` `[batch, width, w]`, `luma` `[channels]`, `factors` `[batch, 4]` (brightness,
    contrast, saturation, hue in turns) and `invert` bool `[batch]`; split over as many threads as torch uses."""
    batch, channels = pixels.shape[:2]
    views = torch.empty(batch, channels, rows.shape[1], columns.shape[1])
    arrays = [one.contiguous().numpy() for one in (pixels.float(), rows, columns, luma, factors, invert)]
    workers = max(1, min(torch.get_num_threads(), batch))
    edges = [batch * worker // workers for worker in range(workers + 1)]
    with ThreadPoolExecutor(workers) as pool:
        parts = pairwise(edges)
        list(pool.map(lambda part: _samples(*arrays, views.numpy(), *part), parts))
    return views
