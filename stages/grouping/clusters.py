"""Clusters of duplicate rows: what a modality's `dedup.py` hands to the dedup stage, and the steps all of them share.

A row is known by an exact key (equal content, equal key) and by a near-signature whose meaning is its modality's own:
MinHash minima for text, a perceptual hash for pictures, both sides side by side for pairs. Locality-sensitive
hashing (Indyk & Motwani 1998) proposes pairs of rows whose signatures agree in a whole band; the modality verifies
them; union-find makes clusters. Every step is linear in the rows, whatever the sizes of buckets and clusters.

Of a cluster the first row with a label stays, so that no label is lost to a copy without one; where none has a label,
the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

from stages.params import UserError

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile with numba; keep the machine code in `__pycache__` or the user's cache, if either can be written."""
    try:
        return cast(Function, numba.njit(cache=True, nogil=True)(function))
    except RuntimeError:  # numba finds no folder to cache in
        return cast(Function, numba.njit(nogil=True)(function))


MOST_ROWS = 2**31
"""Of a corpus in dedup: pairs of rows are sorted as one number of 64 bits, half of them for each row."""


@dataclass(frozen=True)
class Sketch:
    """What a modality tells of one partition, its `path`.

    `exact` is uint64 `[rows, 2]`, equal where contents are equal; `near` is `[rows, width]`, of width 0 where
    near-duplicates are not asked for; `payload_bytes` counts the payload it was made from.
    """

    path: Path
    exact: NDArray[np.uint64]
    near: NDArray[Any]
    payload_bytes: int


@dataclass(frozen=True)
class Sketches:
    """All that dedup holds in memory of a corpus: the sketches of its partitions one after another.

    `paths` are the partitions and `ends` int64 `[partitions]` the row after the last of each; `exact` and `near` are as
    in `Sketch`; `labelled` is bool `[rows]`.
    """

    paths: tuple[Path, ...]
    ends: NDArray[np.int64]
    exact: NDArray[np.uint64]
    near: NDArray[Any]
    labelled: NDArray[np.bool_]
    payload_bytes: int


def gather(sketches: Iterable[Sketch], labelled: NDArray[np.bool_]) -> Sketches:
    """The sketches of all partitions, in source order, as one. Each is copied to its place and let go, so that none is
    held twice; `labelled` `[rows]` tells of all rows which have a label. UserError where there are too many rows."""
    if len(labelled) > MOST_ROWS:
        raise UserError(f"dedup compares at most {MOST_ROWS} rows, not {len(labelled)}: split the corpus into several")
    exact, near = np.empty((len(labelled), 2), np.uint64), np.empty((len(labelled), 0))
    paths, ends, size, start = list[Path](), list[int](), 0, 0
    for sketch in sketches:
        if not paths:
            near = np.empty((len(labelled), sketch.near.shape[1]), sketch.near.dtype)
        stop = start + len(sketch.exact)
        exact[start:stop], near[start:stop] = sketch.exact, sketch.near
        paths.append(sketch.path)
        ends.append(stop)
        size, start = size + sketch.payload_bytes, stop
    return Sketches(tuple(paths), np.array(ends, np.int64), exact, near, labelled, size)


@dataclass(frozen=True)
class Clusters:
    """For each row of all partitions, in source order: the row kept in its stead, and how like that row it is.

    `kept` is int64 `[rows]`: the row that stays of the cluster, which for a row that stays is the row itself.
    `similarity` is float64 `[rows]`, 1 for a row that stays. `exact` is bool `[rows]`: the content is that of the kept
    row.
    """

    kept: NDArray[np.int64]
    similarity: NDArray[np.float64]
    exact: NDArray[np.bool_]


def first_of_equals(keys: NDArray[np.uint64], labelled: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For each row of `keys` `[rows, 2]` the first labelled row with its key, or else the first: int64 `[rows]`."""
    first = np.arange(len(keys))
    if not len(keys):
        return first
    order = np.lexsort((~labelled, keys[:, 1], keys[:, 0]))  # stable: equal keys stay in source order
    ordered = keys[order]
    starts = np.ones(len(keys), bool)
    starts[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    first[order] = order[starts][np.cumsum(starts) - 1]
    return first


@compiled
def _pairs_in_buckets(order: Any, keys: Any, window: int) -> Any:
    count = 0
    start = 0
    for i in range(1, len(order)):
        if keys[order[i]] != keys[order[start]]:
            start = i
        count += min(i - start, window + 1)
    pairs = np.empty((count, 2), np.int64)
    count = 0
    start = 0
    for i in range(1, len(order)):
        if keys[order[i]] != keys[order[start]]:
            start = i
        if i - start > window:
            pairs[count, 0], pairs[count, 1] = order[start], order[i]
            count += 1
        for j in range(max(start, i - window), i):
            pairs[count, 0], pairs[count, 1] = order[j], order[i]
            count += 1
    return pairs


def pairs_in_buckets(keys: NDArray[np.uint64], window: int = 8) -> NDArray[np.int64]:
    """Pairs (earlier row, later row) `[pairs, 2]` of rows with the same key `[rows]`.

    A row is paired with the first row of its bucket and the `window` rows before it there: with all of them in a
    bucket of up to `window + 2`, and never more than `window + 1`, so that a popular bucket stays linear.
    """
    return cast(NDArray[np.int64], _pairs_in_buckets(np.argsort(keys, kind="stable"), keys, window))


def packed(pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pairs `[pairs, 2]` of rows, of which there are MOST_ROWS at most, as numbers `[pairs]` in the same order."""
    return pairs[:, 0] << 32 | pairs[:, 1]


def unpacked(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """The inverse of `packed`."""
    return np.stack([numbers >> 32, numbers & 0xFFFFFFFF], axis=1)


def distinct(lists: Iterable[NDArray[np.int64]]) -> NDArray[np.int64]:
    """The different pairs `[pairs, 2]` of rows among several lists of them, in order; one list is held at a time."""
    numbers = np.empty(0, np.int64)
    for pairs in lists:
        numbers = np.union1d(numbers, packed(pairs))
    return unpacked(numbers)


@compiled
def root(parent: Any, row: int) -> int:
    """The first row of `row`'s cluster; halves the path to it on the way."""
    while parent[row] != row:
        parent[row] = parent[parent[row]]
        row = parent[row]
    return row


@compiled
def join(parent: Any, a: int, b: int) -> None:
    """Make the clusters of rows `a` and `b` one, whose root is the earlier of their roots."""
    a, b = root(parent, a), root(parent, b)
    if a < b:
        parent[b] = a
    else:
        parent[a] = b


@compiled
def heads(parent: Any, labelled: Any) -> Any:
    """The row that stays of each row's cluster, the first labelled one or else the first: int64 `[rows]`."""
    head = np.arange(len(parent))
    for row in range(len(parent)):
        first = root(parent, row)
        if labelled[row] and not labelled[head[first]]:
            head[first] = row
    for row in range(len(parent)):
        head[row] = head[root(parent, row)]
    return head
