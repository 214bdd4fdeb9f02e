"""How sure a number is: the interval of an accuracy, and the paired comparison of two encoders.

Accuracies carry Wilson's interval; two encoders are compared on the same rows by a paired bootstrap, because their
errors fall on the same hard rows and separate intervals would hide a real difference.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

NORMAL_95 = 1.959963984540054
"""The 0.975 quantile of the standard normal distribution."""


def wilson(correct: int, rows: int) -> tuple[float, float]:
    """The 95 % interval of a proportion (E. B. Wilson 1927): (low, high); (0, 1) where there are no rows."""
    if rows == 0:
        return 0.0, 1.0
    share, square = correct / rows, NORMAL_95**2
    centre = (share + square / (2 * rows)) / (1 + square / rows)
    half = NORMAL_95 / (1 + square / rows) * np.sqrt(share * (1 - share) / rows + square / (4 * rows**2))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


@dataclass(frozen=True)
class Gain:
    """How much better one is than the other on the same rows: mean difference, its 95 % interval, two-sided p."""

    mean: float
    low: float
    high: float
    p: float

    @property
    def significant(self) -> bool:
        """True where the whole interval lies above zero."""
        return self.low > 0


def paired_bootstrap(better: ArrayLike, than: ArrayLike, resamples: int = 2000, seed: int = 0) -> Gain:
    """The mean of `better - than`, two arrays `[rows]` of scores (1 for correct, 0 for wrong) of the same rows in the
    same order, with a percentile interval over resampled rows; p counts resamples on the far side of zero, never 0."""
    first, second = np.asarray(better, np.float64), np.asarray(than, np.float64)
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(f"paired scores must be of the same rows, at least one: {first.shape} and {second.shape}")
    difference = first - second
    values, counts = np.unique(difference, return_counts=True)
    # Resampling n rows with replacement is one multinomial draw over the distinct differences: three for 0/1 scores.
    drawn = np.random.default_rng(seed).multinomial(len(difference), counts / len(difference), size=resamples)
    means = drawn @ values / len(difference)
    low, high = np.quantile(means, [0.025, 0.975])
    tail = min(np.sum(means <= 0), np.sum(means >= 0)) + 1
    return Gain(float(difference.mean()), float(low), float(high), min(1.0, 2 * float(tail) / (resamples + 1)))
