"""How sure a number is: the interval of an accuracy, and the paired comparison of two encoders on the same rows.

Rows of one group (a file, a video) are alike, so it is groups that a repetition would draw anew, and their number, not
that of the rows, that decides how sure a mean is. Its variance is the jackknife's that leaves out a group at a time
(CR3: Bell and McCaffrey 2002, Survey Methodology 28; MacKinnon, Nielsen and Webb 2023, Journal of Applied Econometrics
38), read with Student's t on one degree of freedom less than the groups are worth: their number where they are equally
large, fewer where they are not (Carter, Schnepel and Steigerwald 2017, Review of Economics and Statistics 99). That
holds with few and uneven groups, where percentiles of resampled groups are too narrow. An accuracy's interval is
Wilson's at the effective number of rows (Franco, Little, Louis and Slud 2019, Journal of Survey Statistics and
Methodology 7): it stays in [0, 1]. Where every row is its own group, both are what rows alone give.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit

LEVEL = 0.05
"""What an interval may miss, both sides together."""
FEWEST_GROUPS = 6
"""With fewer groups not even a difference of one sign in all of them is told from chance: 2 * 0.5**5 > 0.05."""


def wilson(share: float, rows: float, quantile: float) -> tuple[float, float]:
    """The interval of a proportion (E. B. Wilson 1927) of `rows` rows, or as many as they are worth, at a `quantile` of
    the normal distribution, or of Student's: (low, high); (0, 1) where there are no rows."""
    if rows == 0:
        return 0.0, 1.0
    square = quantile**2
    centre = (share + square / (2 * rows)) / (1 + square / rows)
    half = quantile / (1 + square / rows) * float(np.sqrt(share * (1 - share) / rows + square / (4 * rows**2)))
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True)
class Mean:
    """A mean over rows, its `variance` and the degrees of `freedom` of that; `worth`: how many groups of equal size
    these are worth. `freedom` is 0 where groups are too few to tell."""

    value: float
    variance: float
    freedom: float
    worth: float

    @property
    def quantile(self) -> float:
        """How many standard errors the interval reaches to either side."""
        return float(stdtrit(self.freedom, 1 - LEVEL / 2))


def mean(scores: NDArray[np.float64], groups: ArrayLike) -> Mean:
    """The mean of `scores` `[draws, rows]`, whose columns belong to `groups` `[rows]`.

    Where there are draws (of labels, of random encoders), they are drawn anew, too: the variances of both add up, which
    errs on the safe side (Owen 2007, Annals of Applied Statistics 1), and so do their degrees of freedom, as
    Satterthwaite has it.
    """
    draws, rows = scores.shape
    of_group = np.unique(np.asarray(groups), return_inverse=True)[1]
    sizes = np.bincount(of_group)
    sums = np.bincount(of_group, scores.mean(axis=0))
    value, count = float(sums.sum() / rows), len(sizes)
    worth = rows**2 / float(np.square(sizes).sum())
    if count < FEWEST_GROUPS:
        return Mean(value, np.inf, 0.0, worth)
    without = (sums.sum() - sums) / (rows - sizes)
    between_groups = (count - 1) / count * float(np.square(without - value).sum())
    freedom = max(1.0, worth - 1)
    if draws == 1:
        return Mean(value, between_groups, freedom, worth)
    between_draws = float(scores.mean(axis=1).var(ddof=1)) / draws
    variance = between_groups + between_draws
    share = between_draws / variance if variance else 0.0
    return Mean(value, variance, 1 / ((1 - share) ** 2 / freedom + share**2 / (draws - 1)), worth)


def _drawn(scores: ArrayLike) -> NDArray[np.float64]:
    return np.atleast_2d(np.asarray(scores, np.float64))


def proportion(correct: ArrayLike, groups: ArrayLike) -> tuple[float, float]:
    """The 95 % interval of the share of `correct`, `[rows]` or `[draws, rows]` of 0 and 1 or their means: (low, high);
    (0, 1) below `FEWEST_GROUPS` groups."""
    scores = _drawn(correct)
    found = mean(scores, groups)
    if not found.freedom:
        return 0.0, 1.0
    spread = found.value * (1 - found.value)
    worth = found.worth
    if spread > 0:
        worth = min(float(scores.shape[1]), spread / found.variance) if found.variance else float(scores.shape[1])
    return wilson(found.value, worth, found.quantile)


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


def paired(better: ArrayLike, than: ArrayLike, groups: ArrayLike) -> Gain:
    """The mean of `better - than`, scores (1 for correct, 0 for wrong) `[rows]` or `[draws, rows]` of the same rows in
    the same order, which belong to `groups` `[rows]`. The interval is (-1, 1), and p is 1, below `FEWEST_GROUPS`."""
    first, second = _drawn(better), _drawn(than)
    if first.shape[1] != second.shape[1] or not first.shape[1]:
        raise ValueError(f"paired scores must be of the same rows, at least one: {first.shape} and {second.shape}")
    found = mean(first - second, groups)
    if not found.freedom:
        return Gain(found.value, -1.0, 1.0, 1.0)
    # Where all groups agree, as of equal encoders, there is no variance to see: a group on either side is made up, as
    # Agresti and Min 2005 (Statistics in Medicine 24) do with rows.
    error = float(np.sqrt(found.variance)) or 1 / (found.worth + 2)
    half = found.quantile * error
    p = 2 * float(stdtr(found.freedom, -abs(found.value) / error))
    return Gain(found.value, max(-1.0, found.value - half), min(1.0, found.value + half), p)
