"""Whether a version becomes champion: a paired comparison on the test rows that both versions know, at a level that
repeated looks do not wear out.

The same test rows judge version after version, so that sooner or later one wins by luck. Of an error of `LEVEL` in all,
the k-th challenger of a champion may therefore spend 6 / (pi^2 k^2), shares that add up to one however many follow
(alpha spending: Lan and DeMets 1983, Biometrika 70): over any number of challengers that are no better, the champion
moves with a probability below `LEVEL`. Where there is no champion, a version must beat its own random encoder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ssl_models.probing.intervals import Gain, paired

LEVEL = 0.05
"""The probability, at most, that a champion falls to versions that are no better, two-sided."""
SHARED = 0.5
"""The least share of a version's test rows that the champion must have answered, too."""
RANDOM = "random_init"
"""What a version is compared with where there is no champion."""
DECISION, PROMOTED, AGAINST = "champion.decision", "champion.promoted", "champion.against"
"""Tags of a version."""


def level(challenger: int) -> float:
    """The two-sided p at most of the `challenger`-th (from 1) to take the champion's place."""
    return LEVEL * 6 / (math.pi * challenger) ** 2


@dataclass(frozen=True)
class Decision:
    """Whether the alias moves, and why in one sentence; the `gain` of the `challenger`-th version that was compared
    with `against`, a version or `RANDOM`, where they compare."""

    promoted: bool
    reason: str
    against: str | None = None
    gain: Gain | None = None
    challenger: int = 1

    def tags(self) -> dict[str, str]:
        """As tags of the version."""
        found = {DECISION: self.reason, PROMOTED: str(self.promoted).lower()}
        if self.against and self.gain:
            found |= {AGAINST: self.against, "champion.challenger": str(self.challenger)}
            numbers = {"mean": self.gain.mean, "low": self.gain.low, "high": self.gain.high, "p": self.gain.p}
            found |= {f"champion.gain.{name}": f"{value:.6g}" for name, value in numbers.items()}
            found["champion.level"] = f"{level(self.challenger):.6g}"
        return found


def first(over_random: Gain | None, challenger: int) -> Decision:
    """Of a version where there is no champion: it must beat its own random encoder."""
    if over_random is None:
        return Decision(False, "kept back: it was not compared with a random encoder")
    return _decided(over_random, RANDOM, "its random encoder", "", challenger)


def challenge(new: Path, champion: Path | None, against: str, challenger: int) -> Decision:
    """Of a version that meets the champion, version `against`, by their predictions as Parquet files."""
    if champion is None:
        return Decision(False, f"kept back: the predictions of version {against} are gone, so nothing can be compared")
    mine, theirs = pq.read_table(new), pq.read_table(champion)
    if "id" not in theirs.schema.names:
        return Decision(False, f"kept back: the predictions of version {against} do not name their documents")
    _, here, there = np.intersect1d(mine["id"].to_numpy(), theirs["id"].to_numpy(), return_indices=True)
    same = mine["actual"].to_numpy()[here] == theirs["actual"].to_numpy()[there]
    here, there = here[same], there[same]
    if len(here) < SHARED * mine.num_rows or not len(here):
        return Decision(
            False,
            f"kept back: of its {mine.num_rows} test rows version {against} has answered {len(here)}, too few to "
            "compare them: promote it by hand if it is to be champion",
        )
    groups = mine["group"].to_numpy()[here]
    gain = paired(_correct(mine)[here], _correct(theirs)[there], groups)
    rows = f" on {len(here)} probe rows in {len(np.unique(groups))} groups"
    return _decided(gain, against, f"version {against}", rows, challenger)


def _correct(table: pa.Table) -> np.ndarray:
    return np.asarray(table["correct"].to_numpy(), np.float64)


def _decided(gain: Gain, against: str, rival: str, rows: str, challenger: int) -> Decision:
    wins = gain.mean > 0 and gain.p <= level(challenger)
    verdict = "promoted: beats" if wins else "kept back: does not beat"
    numbers = f"{gain.mean:+.4f} (95 % interval {gain.low:+.4f} to {gain.high:+.4f}, p = {gain.p:.2g}"
    needed = f"{level(challenger):.2g} is needed of challenger {challenger})"
    return Decision(wins, f"{verdict} {rival} by {numbers}; {needed}{rows}", against, gain, challenger)
