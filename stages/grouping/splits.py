"""Who goes to train, validation and probe. A group (a file, a video, a cluster of near-duplicates) is never split.

Groups are numbered, and taken, in the order of a keyed hash of their name, so that a corpus that grows keeps nearly all
of its held-out groups. The probe is filled class by class, the rarest first, for both of its parts, then validation;
the rest trains. Where groups are few and large, the held-out fractions come as near as whole groups allow.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ssl_models.config import Strict

TRAIN, VALIDATION, PROBE_TRAIN, PROBE_TEST = range(4)
MOST_HELD_OUT = 0.5
"""Share of all rows that giving every class to both parts of the probe may take."""
OVERSHOOT = 0.5
"""A group may exceed what is still wanted by this share of itself: then it comes nearer to the mark than leaving it."""

Ints = npt.NDArray[np.int64]


class Fractions(Strict):
    """How much is held out; every modality's shard options begin with these."""

    validation: float = Field(default=0.02, gt=0, le=0.5, description="of the tokens (text) or rows")
    probe: float = Field(default=0.25, ge=0, le=0.5, description="of the labelled rows")
    test: float = Field(default=0.5, gt=0, lt=1, description="of the probe rows: its test part")
    probe_rows: int = Field(default=20_000, ge=2, description="labelled rows in the probe, about, at most")
    group_rows: int | None = Field(
        default=None,
        ge=1,
        description="labelled rows of a group in the probe, at most: more of one say little",
    )
    seed: int = Field(default=0, ge=0, description="of the hash that deals groups out")


@dataclass(frozen=True)
class Ragged:
    """The numbers of some documents one after another, and how many are each document's."""

    values: npt.NDArray[Any]
    lengths: Ints


@dataclass(frozen=True)
class Groups:
    """What the assignment knows of `n` groups, numbered in the order of their keys: rows and size (tokens, or rows) of
    each, and `label_pairs` `[pairs, 3]`: group, class, labelled rows of that class in it."""

    rows: Ints
    size: Ints
    label_pairs: Ints
    classes: int


def keys(names: Iterable[str], seed: int) -> npt.NDArray[np.uint64]:
    """A 64-bit keyed hash of each name. Groups whose hashes collide (one pair in 10**9 groups, about) stay together."""
    key = seed.to_bytes(8, "big")
    return np.array(
        [int.from_bytes(hashlib.blake2b(name.encode(), key=key, digest_size=8).digest(), "big") for name in names],
        np.uint64,
    )


def assign(groups: Groups, fractions: Fractions, least: int = 1) -> npt.NDArray[np.uint8]:
    """The split of each group: `[n]` of the four constants above.

    Validation and train are at least `least` in size, where whole groups allow it.
    """
    split = np.full(len(groups.rows), TRAIN, np.uint8)
    _hold_probe(split, groups, fractions)
    _hold_validation(split, groups, fractions, least)
    return split


def beyond(groups: Ints, ids: Ints, most: int) -> npt.NDArray[np.bool_]:
    """Which rows are more than `most` of their group, `[rows]`: those of the smallest `ids`, which are hashes, stay."""
    order = np.lexsort((ids, groups))
    sorted_groups = groups[order]
    starts = np.flatnonzero(np.diff(sorted_groups, prepend=-1))
    place = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    found = np.zeros(len(order), bool)
    found[order] = place >= most
    return found


def _hold_validation(split: npt.NDArray[np.uint8], groups: Groups, fractions: Fractions, least: int) -> None:
    """Take training groups until validation has its share; the last training group stays."""
    free = np.flatnonzero((split == TRAIN) & (groups.size > 0))
    wanted = max(fractions.validation * float(groups.size.sum()), float(least))
    left = int(groups.size[free].sum())
    taken = 0
    for group in free:
        size = int(groups.size[group])
        if taken >= wanted:
            return
        if size - (wanted - taken) <= OVERSHOOT * size and left - size >= least:
            split[group] = VALIDATION
            taken, left = taken + size, left - size
    if taken == 0 and len(free) > 1:
        split[free[groups.size[free].argmin()]] = VALIDATION


def _hold_probe(split: npt.NDArray[np.uint8], groups: Groups, fractions: Fractions) -> None:
    """Fill both parts of the probe; give all back where one part would stay empty."""
    pairs = groups.label_pairs
    labelled = int(pairs[:, 2].sum())
    if not labelled or fractions.probe == 0:
        return
    share = min(fractions.probe, fractions.probe_rows / labelled)
    per_class = np.bincount(pairs[:, 1], pairs[:, 2], groups.classes)
    wanted = np.stack([share * (1 - fractions.test) * per_class, share * fractions.test * per_class])
    probe = _Probe(split, groups, wanted)
    sorted_pairs = pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))]
    starts = np.searchsorted(sorted_pairs[:, 1], np.arange(groups.classes + 1))
    of_class = [sorted_pairs[starts[c] : starts[c + 1], 0] for c in range(groups.classes)]
    rarest_first = sorted((c for c in range(groups.classes) if len(of_class[c])), key=lambda c: (len(of_class[c]), c))
    for c in rarest_first:
        if len(of_class[c]) > 1:
            probe.cover(c, of_class[c])
    for c in rarest_first:
        probe.fill(c, of_class[c])
    if not ((split == PROBE_TRAIN).any() and (split == PROBE_TEST).any()):
        split[(split == PROBE_TRAIN) | (split == PROBE_TEST)] = TRAIN


class _Probe:
    """The two parts of the probe as they fill: `have` and `wanted` are `[2, classes]` labelled rows."""

    def __init__(self, split: npt.NDArray[np.uint8], groups: Groups, wanted: npt.NDArray[np.float64]) -> None:
        self.split, self.groups, self.wanted = split, groups, wanted
        self.have = np.zeros_like(wanted)
        self.room = wanted.sum(axis=1)  # of each part, over all classes: kept, as there may be as many as groups
        self.most = MOST_HELD_OUT * float(groups.rows.sum())
        self.free = len(split)
        self.held = 0
        by_group = groups.label_pairs[np.argsort(groups.label_pairs[:, 0], kind="stable")]
        self.starts = np.searchsorted(by_group[:, 0], np.arange(len(split) + 1))
        self.by_group = by_group

    def cover(self, c: int, candidates: Ints) -> None:
        """One group with class `c` for each part, where that leaves most of the corpus to train on."""
        for part in (1, 0):
            if self.have[part, c]:
                continue
            for group in candidates:
                if self._is_free(group) and self.held + self.groups.rows[group] <= self.most:
                    self._take(int(group), part)
                    break

    def fill(self, c: int, candidates: Ints) -> None:
        """Groups with class `c` until both parts have their share of it; the test part first, so that it hardly changes
        when the corpus grows."""
        for group in candidates:
            missing = self.wanted[:, c] - self.have[:, c]
            if missing.max() <= 0:
                return
            if not self._is_free(group):
                continue
            classes, rows = self._labels(int(group))
            for part in (1, 0):
                if (
                    rows.sum() - self.room[part] <= OVERSHOOT * rows.sum()
                    and 0 < rows[classes == c].sum() <= 2 * missing[part]
                ):
                    self._take(int(group), part)
                    break

    def _is_free(self, group: int) -> bool:
        """Still in train, and not needed there: two groups always stay, to train on and to validate."""
        return bool(self.split[group] == TRAIN) and self.free > 2

    def _labels(self, group: int) -> tuple[Ints, Ints]:
        """The classes of a group and its labelled rows of each."""
        mine = self.by_group[self.starts[group] : self.starts[group + 1]]
        return mine[:, 1], mine[:, 2]

    def _take(self, group: int, part: int) -> None:
        classes, rows = self._labels(group)
        self.split[group] = (PROBE_TRAIN, PROBE_TEST)[part]
        self.have[part, classes] += rows
        self.room[part] -= rows.sum()
        self.held += int(self.groups.rows[group])
        self.free -= 1
