"""Duplicates among documents: exact by content id, near by MinHash-LSH over word n-grams, verified by true Jaccard.

*Exact* means the same bytes: two rows with one `id`, the hash that ingest took of the text. Nothing is normalised.

*Near* means that the sets of word n-grams (shingles) have a Jaccard similarity of at least `threshold`. Words are
runs of ASCII letters, digits, underscores and bytes from 0x80, with ASCII letters in lower case; all other ASCII,
punctuation and white space, separates. Scripts written without spaces would make one word of a sentence, so a
character from U+3000 on (lead byte 0xE3 and up: kana, Han, Hangul, emoji) begins a word of its own. A document of fewer
than n words is one shingle; one without any word is a shingle of its bytes.

MinHash (Broder 1997) is h_i(x) = a_i x + b_i mod 2**32 over 32-bit shingle hashes, in one compiled pass over the UTF-8
bytes that Arrow holds. Bands only propose pairs. A proposed pair is judged by the exact Jaccard of its two sets of
shingle hashes, since an estimate cut at the threshold would lose half the pairs that lie on it.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from ssl_models import disk
from stages.files import tables
from stages.grouping.clusters import (
    Clusters,
    Sketch,
    Sketches,
    compiled,
    distinct,
    first_of_equals,
    heads,
    join,
    pairs_in_buckets,
    root,
)
from stages.params import UserError

BATCH_ROWS = 1024
DOUBTS = 4.0  # standard errors below the threshold at which an estimate spares the exact Jaccard: loses 3 in 100,000

_FNV_OFFSET = np.uint64(0xCBF29CE484222325)
_FNV_PRIME = np.uint64(0x100000001B3)
_MIX = np.uint64(0xBF58476D1CE4E5B9)
_ROLL = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(32)


def _letters() -> NDArray[np.uint8]:
    """For each byte: 0 where it separates words, else the byte in lower case."""
    table = np.zeros(256, np.uint8)
    for byte in range(256):
        if byte >= 0x80 or chr(byte).isalnum() or chr(byte) == "_":
            table[byte] = ord(chr(byte).lower()) if byte < 0x80 else byte
    return table


_LETTERS = _letters()


class Options(BaseModel, extra="forbid", frozen=True):
    """`corpora.NAME.dedup` of text.

    Two documents of Jaccard similarity s agree in a minimum with probability s, in a band of r rows with s**r, and so
    are compared with probability 1 - (1 - s**r)**b. With 20 bands of 5 rows that is 0.9996 at s = 0.8, 0.80 at 0.6,
    0.19 at 0.4 and 0.006 at 0.2: more bands find more, more rows compare fewer in vain. (The 14 bands of 8 rows that
    are common elsewhere find 0.924 at 0.8.) Memory is 4 * bands * rows + 100 bytes a document.
    """

    near: bool = Field(default=True, description="find near-duplicates too")
    ngram: int = Field(default=5, ge=1, le=64, description="words in a shingle")
    bands: int = Field(
        default=20, ge=1, le=256, description="of `rows` hashes each; more find pairs that are less alike"
    )
    rows: int = Field(default=5, ge=1, le=64, description="minima in a band")
    threshold: float = Field(default=0.8, gt=0, le=1, description="Jaccard similarity of near-duplicates")
    seed: int = Field(default=0, ge=0, description="of the hashes")


@compiled
def _mix(x: Any) -> Any:
    x = (x ^ (x >> _SHIFT)) * _MIX
    return (x ^ (x >> _SHIFT)) * _MIX


@compiled
def _shingle(text: Any, letters: Any, ngram: int, oldest: Any, ring: Any, out: Any) -> int:
    """Write the 32-bit hashes of a document's shingles to `out` and return their number, at least 1.

    `oldest` is _ROLL**ngram, by which a word leaves the rolling hash; `ring` uint64 `[ngram]` holds the last words.
    """
    words = 0
    rolling = np.uint64(0)
    word = _FNV_OFFSET
    inside = False
    for i in range(len(text) + 1):
        letter = letters[text[i]] if i < len(text) else np.uint8(0)
        if inside and (letter == 0 or letter >= 0xE3):
            word = _mix(word)
            slot = words % ngram
            rolling = rolling * _ROLL + word
            if words >= ngram:
                rolling -= ring[slot] * oldest
            ring[slot] = word
            words += 1
            if words >= ngram:
                out[words - ngram] = np.uint32(_mix(rolling) >> _SHIFT)
            word = _FNV_OFFSET
            inside = False
        if letter != 0:
            word = (word ^ np.uint64(letter)) * _FNV_PRIME
            inside = True
    if words == 0:
        for byte in text:
            word = (word ^ np.uint64(byte)) * _FNV_PRIME
        rolling = ~word
    if words < ngram:
        out[0] = np.uint32(_mix(rolling) >> _SHIFT)
        return 1
    return words - ngram + 1


@compiled
def _lower(minima: Any, shingles: Any, factors: Any, terms: Any) -> None:
    """Lower `minima` `[hashes]` to the least factor * shingle + term mod 2**32 over `shingles`."""
    whole = len(shingles) - len(shingles) % 4
    for i in range(0, whole, 4):
        w, x, y, z = shingles[i], shingles[i + 1], shingles[i + 2], shingles[i + 3]
        for h in range(len(minima)):
            first = min(np.uint32(factors[h] * w + terms[h]), np.uint32(factors[h] * x + terms[h]))
            second = min(np.uint32(factors[h] * y + terms[h]), np.uint32(factors[h] * z + terms[h]))
            minima[h] = min(minima[h], min(first, second))
    for i in range(whole, len(shingles)):
        for h in range(len(minima)):
            minima[h] = min(minima[h], np.uint32(factors[h] * shingles[i] + terms[h]))


@compiled
def _longest(offsets: Any) -> int:
    longest = 0
    for row in range(len(offsets) - 1):
        longest = max(longest, offsets[row + 1] - offsets[row])
    return longest


@compiled
def _sign(text: Any, offsets: Any, letters: Any, ngram: int, oldest: Any, factors: Any, terms: Any, out: Any) -> None:
    """MinHash signatures `out` uint32 `[rows, hashes]` of the documents text[offsets[i]:offsets[i + 1]]."""
    shingles = np.empty(_longest(offsets) // 2 + 1, np.uint32)
    ring = np.zeros(ngram, np.uint64)
    for row in range(len(offsets) - 1):
        count = _shingle(text[offsets[row] : offsets[row + 1]], letters, ngram, oldest, ring, shingles)
        out[row] = np.uint32(0xFFFFFFFF)
        _lower(out[row], shingles[:count], factors, terms)


@compiled
def _shingles(text: Any, letters: Any, ngram: int, oldest: Any) -> Any:
    """The set of shingle hashes of one document: sorted uint32 `[shingles]`."""
    hashes = np.empty(len(text) // 2 + 1, np.uint32)
    count = _shingle(text, letters, ngram, oldest, np.zeros(ngram, np.uint64), hashes)
    hashes = np.sort(hashes[:count])
    distinct = 1
    for i in range(1, count):
        if hashes[i] != hashes[i - 1]:
            hashes[distinct] = hashes[i]
            distinct += 1
    return hashes[:distinct]


@compiled
def _band_keys(signatures: Any, start: int, stop: int) -> Any:
    """One key `[rows]` per row, equal where columns start..stop-1 of `signatures` are equal."""
    keys = np.zeros(len(signatures), np.uint64)
    for row in range(len(signatures)):
        key = np.uint64(start)
        for column in range(start, stop):
            key = _mix(key * _ROLL + np.uint64(signatures[row, column]))
        keys[row] = key
    return keys


@compiled
def _agreement(signatures: Any, pairs: Any) -> Any:
    """In how many minima the two rows of each pair agree: int64 `[pairs]`."""
    agreement = np.zeros(len(pairs), np.int64)
    for i in range(len(pairs)):
        a, b = signatures[pairs[i, 0]], signatures[pairs[i, 1]]
        for h in range(len(a)):
            agreement[i] += a[h] == b[h]
    return agreement


@compiled
def _jaccard(a: Any, b: Any) -> float:
    """Jaccard similarity of two sorted sets, neither of them empty."""
    i, j, both = 0, 0, 0
    while i < len(a) and j < len(b):
        x, y = a[i], b[j]
        both += x == y
        i += x <= y
        j += y <= x
    return both / (len(a) + len(b) - both)


@compiled
def _link(pairs: Any, sets: Any, offsets: Any, threshold: float, parent: Any) -> None:
    """Join the rows of every pair whose Jaccard similarity reaches `threshold`, unless they are joined already."""
    for i in range(len(pairs)):
        a, b = pairs[i]
        if root(parent, a) == root(parent, b):
            continue
        first, second = sets[offsets[a] : offsets[a + 1]], sets[offsets[b] : offsets[b + 1]]
        if min(len(first), len(second)) / max(len(first), len(second)) < threshold:
            continue
        if _jaccard(first, second) >= threshold:
            join(parent, a, b)


@compiled
def _similarities(kept: Any, sets: Any, offsets: Any) -> Any:
    similarities = np.ones(len(kept))
    for row in range(len(kept)):
        if kept[row] != row:
            first = sets[offsets[kept[row]] : offsets[kept[row] + 1]]
            similarities[row] = _jaccard(first, sets[offsets[row] : offsets[row + 1]])
    return similarities


def _oldest(ngram: int) -> np.uint64:
    return np.uint64(pow(int(_ROLL), ngram, 2**64))


def _bytes(column: pa.Array) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The UTF-8 bytes of a string column and the offsets `[rows + 1]` of its documents in them, without a copy."""
    width = np.int64 if pa.types.is_large_string(column.type) else np.int32
    _, offsets, data = column.buffers()
    bounds = np.frombuffer(offsets, width)[column.offset : column.offset + len(column) + 1].astype(np.int64)
    return np.frombuffer(data if data is not None else b"", np.uint8), bounds


def signatures(column: pa.Array, options: Options) -> NDArray[np.uint32]:
    """MinHash signatures uint32 `[documents, bands * rows]` of a string column.

    The share of columns in which two rows agree estimates the Jaccard similarity of their shingles, without bias.
    """
    draw = np.random.default_rng(options.seed)
    hashes = options.bands * options.rows
    factors = draw.integers(0, 2**32, hashes, dtype=np.uint32) | np.uint32(1)
    terms = draw.integers(0, 2**32, hashes, dtype=np.uint32)
    out = np.empty((len(column), hashes), np.uint32)
    if len(column):
        _sign(*_bytes(column), _LETTERS, options.ngram, _oldest(options.ngram), factors, terms, out)
    return out


def shingles(text: str, options: Options) -> NDArray[np.uint32]:
    """The set of 32-bit hashes of a document's shingles, sorted."""
    data = np.frombuffer(text.encode(), np.uint8)
    return cast(NDArray[np.uint32], _shingles(data, _LETTERS, options.ngram, _oldest(options.ngram)))


def sketch(partition: Path, options: Options) -> Sketch:
    """The content keys and, if asked for, the signatures of a partition's documents, read batch by batch."""
    width = options.bands * options.rows if options.near else 0
    exact, near, size = [np.empty((0, 2), np.uint64)], [np.empty((0, width), np.uint32)], 0
    for batch in tables.batches(partition, ["id", "text"], BATCH_ROWS):
        identities = bytes.fromhex("".join(batch.column("id").to_pylist()))
        exact.append(np.frombuffer(identities, np.uint64).reshape(-1, 2))
        text = batch.column("text")
        near.append(signatures(text, options) if options.near else np.empty((len(text), width), np.uint32))
        bounds = _bytes(text)[1]
        size += int(bounds[-1] - bounds[0])
    return Sketch(partition, np.concatenate(exact), np.concatenate(near), size)


def _candidates(rows: NDArray[np.int64], signature: NDArray[np.uint32], options: Options) -> NDArray[np.int64]:
    """Pairs `[pairs, 2]` of `rows` that agree in a band, with an estimated similarity not far below the threshold."""
    hashes = options.bands * options.rows
    spread = math.sqrt(options.threshold * (1 - options.threshold) / hashes)
    least = (options.threshold - DOUBTS * spread) * hashes

    def of(band: int) -> NDArray[np.int64]:
        keys = _band_keys(signature, band * options.rows, (band + 1) * options.rows)
        pairs = rows[pairs_in_buckets(keys[rows])]
        return cast(NDArray[np.int64], pairs[_agreement(signature, pairs) >= least])

    return distinct(map(of, range(options.bands)))


def _spill(rows: NDArray[np.int64], sketches: Sketches, options: Options, file: Any) -> NDArray[np.int64]:
    """Write the shingle sets of `rows` one after the other to `file`; their offsets in it `[len(rows) + 1]`."""
    lengths, start = [0], 0
    oldest = _oldest(options.ngram)
    for path, stop in zip(sketches.paths, sketches.ends, strict=True):
        mine = rows[np.searchsorted(rows, start) : np.searchsorted(rows, stop)] - start
        start = stop
        seen = 0
        for batch in tables.batches(path, ["text"], BATCH_ROWS) if len(mine) else ():
            text, bounds = _bytes(batch.column("text"))
            for row in mine[np.searchsorted(mine, seen) : np.searchsorted(mine, seen + len(batch))] - seen:
                document = text[bounds[row] : bounds[row + 1]]
                hashes = _shingles(document, _LETTERS, options.ngram, oldest)
                file.write(hashes.data)
                lengths.append(len(hashes))
            seen += len(batch)
    file.flush()
    return np.cumsum(np.array(lengths, np.int64))


def _verify(
    rows: NDArray[np.int64], pairs: NDArray[np.int64], sketches: Sketches, options: Options
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The row that stays of each row's cluster, and the similarity to it, where `pairs` may be alike. Pairs and what is
    found are indices into `rows`.

    The sets of shingles may outgrow memory, so they lie in a temporary file, and the system pages them in and out.
    """
    parent = np.arange(len(rows))
    with tempfile.TemporaryFile() as file:
        offsets = _spill(rows, sketches, options, file)
        sets = np.memmap(file, np.uint32, "r")
        _link(pairs, sets, offsets, options.threshold, parent)
        head = heads(parent, sketches.labelled[rows])
        return head, _similarities(head, sets, offsets)


def _near(
    rows: NDArray[np.int64], sketches: Sketches, options: Options
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Near-duplicates among `rows`, whose contents differ: the kept row of every row, and the similarity to it."""
    kept, similarity = np.arange(len(sketches.exact)), np.ones(len(sketches.exact))
    pairs = _candidates(rows, sketches.near, options)
    if not len(pairs):
        return kept, similarity
    compared, compact = np.unique(pairs, return_inverse=True)
    try:
        head, similarities = _verify(compared, compact.reshape(-1, 2), sketches, options)
    except OSError as error:
        if error.errno not in disk.FULL:
            raise
        raise UserError(f"{tempfile.gettempdir()} is full: set TMPDIR to a folder with more room") from None
    kept[compared], similarity[compared] = compared[head], similarities
    return kept, similarity


def cluster(sketches: Sketches, options: Options) -> Clusters:
    """The duplicates among all partitions."""
    exact = sketches.exact
    kept = first_of_equals(exact, sketches.labelled)
    similarity = np.ones(len(kept))
    if options.near and len(kept):
        near_kept, near_similarity = _near(np.flatnonzero(kept == np.arange(len(kept))), sketches, options)
        kept, similarity = near_kept[kept], near_similarity[kept]
    return Clusters(kept, similarity, (exact == exact[kept]).all(axis=1))
