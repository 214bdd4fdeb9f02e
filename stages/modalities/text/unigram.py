"""Train a Unigram language model of word pieces (Kudo 2018, "Subword Regularization"), the same bytes in every run.

The trainer of `tokenizers` sums in the order of a hash map that differs from process to process, so two runs give two
vocabularies. This one follows SentencePiece's recipe in a fixed order: seeds are the frequent substrings of words,
expectation-maximisation gives their probabilities, and pruning drops the quarter whose loss the likelihood feels least
until the wanted number is left. Single characters stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

LONGEST = 16
"""Characters in a piece, at most."""
LONGEST_WORD = 256
"""A longer word is cut, so that one pathological document costs no more than others."""
CHARACTERS = 2_000_000
"""Of distinct words learned from, the most frequent first: rarer words would not change which pieces pay."""
SEEDS = 10
"""Candidates per wanted piece."""
COVERAGE = 0.9995
"""Share of all characters that must be pieces themselves; rarer ones are spelled in bytes."""
KEPT = 0.75
"""Share of the pieces that survives a round of pruning."""
STEPS = 2
"""Expectation-maximisation steps in a round."""
UNKNOWN = -25.0
"""Log-probability of a character that is no piece."""

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Hashes = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]
Text = npt.NDArray[np.uint32]


def train(words: Mapping[str, int], size: int, always: str = "") -> list[tuple[str, float]]:
    """At most `size` pieces and their log-probabilities, likeliest first, from words and their counts.

    The characters of `always` are pieces even where the words have none of them.
    """
    text, starts, counts = _flattened(words)
    alphabet = _alphabet(text, starts, counts, size, always)
    where, length, frequency = _seeds(text, starts, counts, alphabet, SEEDS * size)
    text = np.concatenate([text, alphabet])  # so that every piece is a span of the text
    singles = len(alphabet)
    where = np.concatenate([np.arange(len(text) - singles, len(text)), where])
    length = np.concatenate([np.ones(singles, np.int64), length])
    scores = np.log(np.concatenate([np.maximum(_occurrences(text[:-singles], starts, counts, alphabet), 1), frequency]))
    scores -= np.logaddexp.reduce(scores)
    while True:
        hashes = _hash_spans(text, where, length)
        for _ in range(STEPS):
            keys, slots = _table(hashes)
            expected = _expect(text, starts, counts, keys, slots, scores)
            expected[:singles] = np.maximum(expected[:singles], 0.5)
            scores = _log_probabilities(np.maximum(expected, 1e-6))
        if len(where) <= size:
            break
        loss = expected * (scores - _without(text, where, length, keys, slots, scores))
        loss[:singles] = np.inf
        keep = max(size, int(KEPT * len(where)))
        chosen = np.sort(np.argsort(-loss, kind="stable")[:keep])
        where, length, scores = where[chosen], length[chosen], scores[chosen]
    pieces = [
        text[start : start + size_].tobytes().decode("utf-32-le") for start, size_ in zip(where, length, strict=True)
    ]
    return [(pieces[i], float(scores[i])) for i in np.argsort(-scores, kind="stable")]


def _flattened(words: Mapping[str, int]) -> tuple[Text, Ints, Ints]:
    """Code points of the most frequent words one after another, where each begins (and the end), and their counts."""
    ranked = sorted(words, key=lambda word: (-words[word], word))
    ends = np.cumsum([min(len(word), LONGEST_WORD) for word in ranked], dtype=np.int64)
    ranked = ranked[: int(np.searchsorted(ends, CHARACTERS)) + 1]
    text = np.frombuffer("".join(word[:LONGEST_WORD] for word in ranked).encode("utf-32-le"), np.uint32)
    starts = np.concatenate([[0], ends[: len(ranked)]]).astype(np.int64)
    return text, starts, np.array([words[word] for word in ranked], np.int64)


def _occurrences(text: Text, starts: Ints, counts: Ints, characters: Text) -> Ints:
    """How often each of the sorted `characters` occurs."""
    weights = np.repeat(counts, np.diff(starts))
    index = np.searchsorted(characters, text)
    index[index == len(characters)] = 0
    known = characters[index] == text
    return np.bincount(index[known], weights[known], len(characters)).astype(np.int64)


def _alphabet(text: Text, starts: Ints, counts: Ints, size: int, always: str) -> Text:
    """The characters that are pieces, sorted: those of `always`, then the most frequent up to `COVERAGE` and `size`."""
    characters = np.unique(text)
    found = _occurrences(text, starts, counts, characters)
    ranked = np.argsort(-found, kind="stable")
    needed = int(np.searchsorted(np.cumsum(found[ranked]), COVERAGE * found.sum())) + 1
    reserved = np.array(sorted(map(ord, set(always))), np.uint32)
    room = max(size - len(reserved), 0)
    frequent = characters[ranked[:needed]]
    return np.union1d(reserved, frequent[~np.isin(frequent, reserved)][:room]).astype(np.uint32)


def _seeds(text: Text, starts: Ints, counts: Ints, alphabet: Text, most: int) -> tuple[Ints, Ints, Ints]:
    """Substrings of words that occur at least twice, the ones that cover most text: place, length, frequency."""
    known = np.isin(text, alphabet)
    hashes, where, length, weight = _substrings(text, starts, counts, known)
    order = np.argsort(hashes, kind="stable")
    hashes = hashes[order]
    first = (
        np.flatnonzero(np.concatenate([[True], hashes[1:] != hashes[:-1]])) if len(hashes) else np.zeros(0, np.int64)
    )
    frequency = np.add.reduceat(weight[order], first) if len(first) else np.zeros(0, np.int64)
    where, length = where[order][first], length[order][first]
    repeated = np.flatnonzero(frequency >= 2)
    where, length, frequency = where[repeated], length[repeated], frequency[repeated]
    best = np.lexsort((where, length, -frequency * length))[:most]
    return where[best], length[best], frequency[best]


def _log_probabilities(expected: Floats) -> Floats:
    """Digamma(expected) - digamma(sum): the variational estimate, which starves rare pieces (as SentencePiece does)."""
    return _digamma(expected) - _digamma(expected.sum(keepdims=True))


def _digamma(x: Floats) -> Floats:
    """By recurrence up to 6, then the asymptotic series."""
    shift = np.zeros_like(x)
    x = x.copy()
    while (small := x < 6).any():
        shift[small] -= 1 / x[small]
        x[small] += 1
    square = 1 / (x * x)
    tail = square * (1 / 12 - square * (1 / 120 - square * (1 / 252 - square / 240)))
    return shift + np.log(x) - 0.5 / x - tail


_PRIME = np.uint64(0x9E3779B97F4A7C15)


@numba.njit(cache=True, inline="always")
def _roll(state: Any, character: Any) -> Any:
    """One more character of a substring's 64-bit hash."""
    state = (state ^ np.uint64(character + np.uint32(1))) * _PRIME
    return state ^ (state >> np.uint64(29))


@numba.njit(cache=True)
def _substrings(
    text: Text, starts: Ints, counts: Ints, known: npt.NDArray[np.bool_]
) -> tuple[Hashes, Ints, Ints, Ints]:
    """Every substring of 2..LONGEST known characters of every word: hash, place, length, count of the word."""
    total = 0
    for word in range(len(counts)):
        for start in range(starts[word], starts[word + 1]):
            end = start
            while end < min(starts[word + 1], start + LONGEST) and known[end]:
                end += 1
            total += max(end - start - 1, 0)
    hashes, where = np.empty(total, np.uint64), np.empty(total, np.int64)
    length, weight = np.empty(total, np.int64), np.empty(total, np.int64)
    at = 0
    for word in range(len(counts)):
        for start in range(starts[word], starts[word + 1]):
            state, end = _PRIME, start
            while end < min(starts[word + 1], start + LONGEST) and known[end]:
                state = _roll(state, text[end])
                end += 1
                if end - start > 1:
                    hashes[at], where[at], length[at], weight[at] = state, start, end - start, counts[word]
                    at += 1
    return hashes, where, length, weight


@numba.njit(cache=True)
def _hash_spans(text: Text, where: Ints, length: Ints) -> Hashes:
    hashes = np.empty(len(where), np.uint64)
    for i in range(len(where)):
        state = _PRIME
        for at in range(where[i], where[i] + length[i]):
            state = _roll(state, text[at])
        hashes[i] = state
    return hashes


@numba.njit(cache=True)
def _table(hashes: Hashes) -> tuple[Hashes, Ints]:
    """Open addressing: the hash in each slot, and the number of its piece (-1: free)."""
    size = 4
    while size < 3 * len(hashes):
        size *= 2
    keys, slots = np.zeros(size, np.uint64), np.full(size, -1, np.int64)
    for piece in range(len(hashes)):
        slot = np.int64(hashes[piece] & np.uint64(size - 1))
        while slots[slot] >= 0:
            slot = (slot + 1) % size
        keys[slot], slots[slot] = hashes[piece], piece
    return keys, slots


@numba.njit(cache=True, inline="always")
def _find(state: Any, keys: Hashes, slots: Ints) -> Any:
    slot = np.int64(state & np.uint64(len(keys) - 1))
    while slots[slot] >= 0 and keys[slot] != state:
        slot = (slot + 1) % len(keys)
    return slots[slot]


@numba.njit(cache=True, inline="always")
def _logaddexp(a: float, b: float) -> float:
    high, low = max(a, b), min(a, b)
    return high if low == -np.inf else high + np.log1p(np.exp(low - high))


@numba.njit(cache=True)
def _expect(text: Text, starts: Ints, counts: Ints, keys: Hashes, slots: Ints, scores: Floats) -> Floats:
    """How often each piece is expected in the words, over all their segmentations: forward-backward on each word."""
    expected = np.zeros(len(scores))
    forward, backward = np.empty(LONGEST_WORD + 1), np.empty(LONGEST_WORD + 1)
    edges = np.empty((LONGEST_WORD, LONGEST), np.int64)
    for word in range(len(counts)):
        first, size = starts[word], starts[word + 1] - starts[word]
        forward[: size + 1], backward[: size + 1] = -np.inf, -np.inf
        forward[0], backward[size] = 0.0, 0.0
        for start in range(size):
            state = _PRIME
            for width in range(min(LONGEST, size - start)):
                state = _roll(state, text[first + start + width])
                piece = _find(state, keys, slots)
                edges[start, width] = piece
                if piece >= 0 or width == 0:
                    score = scores[piece] if piece >= 0 else UNKNOWN
                    to = start + width + 1
                    forward[to] = _logaddexp(forward[to], forward[start] + score)
        for start in range(size - 1, -1, -1):
            for width in range(min(LONGEST, size - start)):
                piece = edges[start, width]
                if piece >= 0 or width == 0:
                    score = scores[piece] if piece >= 0 else UNKNOWN
                    backward[start] = _logaddexp(backward[start], score + backward[start + width + 1])
        for start in range(size):
            for width in range(min(LONGEST, size - start)):
                piece = edges[start, width]
                if piece >= 0:
                    path = forward[start] + scores[piece] + backward[start + width + 1] - forward[size]
                    expected[piece] += counts[word] * np.exp(path)
    return expected


@numba.njit(cache=True)
def _without(text: Text, where: Ints, length: Ints, keys: Hashes, slots: Ints, scores: Floats) -> Floats:
    """Log-probability of each piece's best spelling by other pieces; minus infinity for a single character."""
    others = np.full(len(where), -np.inf)
    best = np.empty(LONGEST + 1)
    for piece in range(len(where)):
        size = length[piece]
        best[: size + 1] = -np.inf
        best[0] = 0.0
        for start in range(size):
            state = _PRIME
            for width in range(size - start):
                state = _roll(state, text[where[piece] + start + width])
                if width + 1 < size:
                    found = _find(state, keys, slots)
                    if found >= 0:
                        best[start + width + 1] = max(best[start + width + 1], best[start] + scores[found])
        others[piece] = best[size] if size > 1 else -np.inf
    return others
