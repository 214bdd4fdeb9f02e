"""Randomness that is a pure function of (seed, step, sample), computed on the device for a whole batch at once.

Corruption and augmentation draw from here and from nothing else, so a run resumes, re-shards over another number of
processes, or splits into micro-batches without changing a single mask. Draws come from a counter hashed with the
32-bit finalizer of MurmurHash3 (public domain, A. Appleby), applied twice, in int64 arithmetic that every device has.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def _mix(x: Tensor) -> Tensor:
    """MurmurHash3 fmix32 on int64 tensors holding 32-bit values."""
    x = x ^ (x >> 16)
    x = (x * 0x85EBCA6B) & _MASK
    x = x ^ (x >> 13)
    x = (x * 0xC2B2AE35) & _MASK
    return x ^ (x >> 16)


def keys(seed: int, step: int, samples: Tensor) -> Tensor:
    """One 32-bit key per sample: int64 `[batch]` from the row indices `samples` `[batch]`."""
    low, high = samples & _MASK, samples >> 32
    start = torch.full_like(samples, (seed * 0x9E3779B1 + 0x7F4A7C15) & _MASK)
    return _mix(_mix(_mix(_mix(start) ^ (step & _MASK)) ^ low) ^ high)


def bits(key: Tensor, count: int, stream: int) -> Tensor:
    """32 random bits for each of `count` draws per sample: int64 `[batch, count]`. Streams are independent."""
    counter = torch.arange(count, device=key.device) * 0x9E3779B1 + stream * 0x85EBCA77 + 1
    mixed = _mix(counter & _MASK)
    return _mix(_mix(key[:, None] ^ mixed) + key[:, None] & _MASK)


def uniform(key: Tensor, count: int, stream: int) -> Tensor:
    """Float32 `[batch, count]`, uniform on [0, 1) in steps of 2**-24."""
    return (bits(key, count, stream) >> 8).to(torch.float32) * 2.0**-24


def integers(key: Tensor, count: int, high: int | Tensor, stream: int) -> Tensor:
    """Int64 `[batch, count]`, uniform on 0..high-1 (bias below high / 2**32); `high` may be one per sample, `[batch,
    1]`."""
    return (bits(key, count, stream) * high) >> 32


def permutation(key: Tensor, count: int, stream: int) -> Tensor:
    """Int64 `[batch, count]`: an independent random order of 0..count-1 for every sample."""
    return bits(key, count, stream).argsort(dim=1, stable=True)


def normal(key: Tensor, count: int, stream: int) -> Tensor:
    """Float32 `[batch, count]`, standard normal by the Box-Muller transform."""
    pairs = (count + 1) // 2
    draws = (bits(key, 2 * pairs, stream).to(torch.float64) + 0.5) * 2.0**-32
    radius = torch.sqrt(-2.0 * torch.log(draws[:, :pairs]))
    angle = 2.0 * torch.pi * draws[:, pairs:]
    both = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)
    return both[:, :count].to(torch.float32)


def poisson(key: Tensor, count: int, rate: float, stream: int) -> Tensor:
    """Int64 `[batch, count]`, Poisson of mean `rate` (0 < rate <= 100), by inversion of the distribution function."""
    if not 0 < rate <= 100:
        raise ValueError(f"a Poisson rate must lie above 0 and not above 100, not {rate}")
    largest = math.ceil(rate + 12 * math.sqrt(rate) + 12)
    at_most, cumulative, probability = [], 0.0, math.exp(-rate)
    for value in range(largest):
        cumulative += probability
        at_most.append(cumulative)
        probability *= rate / (value + 1)
    draws = (bits(key, count, stream).to(torch.float64) + 0.5) * 2.0**-32
    return torch.bucketize(draws, torch.tensor(at_most, dtype=torch.float64, device=key.device), right=True)
