"""The 1,797 handwritten digits that scikit-learn carries (Alpaydin and Kaynak, UCI 1998), 8x8, labelled `0` to `9`.

They lie in the installed package that requirements.lock pins, so they need no network.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages import readers
from stages.modalities.image import pictures
from stages.params import UserError
from stages.readers import File, Partition, Record

MODALITIES = frozenset({"image"})
SIDE = 8
_FILE = "datasets/data/digits.csv.gz"
_DIGEST = "b47c8ad258c5ae282333c9f3b4afdca9"
_DARKEST = 16
"""Grey levels of the source run from 0 to this."""


class Options(readers.Pictures):
    """There is nothing to choose."""


def plan(source: str, options: Options) -> list[Partition]:
    """All of them: one partition. UserError where scikit-learn has them not, or has others."""
    return [Partition((File("digits", len(content())),))]


def read(partition: Partition, options: Options) -> Iterator[Record]:
    """One record for each digit."""
    pixels, labels = handwritten()
    for number, (digit, label) in enumerate(zip(pixels, labels, strict=True), start=1):
        yield Record({"image": pictures.encoded(digit)}, str(label), f"digits:{number}")


def handwritten() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pixels uint8 `[1797, 8, 8]`, ink bright on black, and which digit each is, `[1797]`."""
    table = np.array([line.split(b",") for line in gzip.decompress(content()).split()], np.float64).astype(np.int64)
    levels = np.rint(table[:, :-1] * (255 / _DARKEST)).astype(np.uint8)
    return levels.reshape(-1, SIDE, SIDE), table[:, -1]


@functools.cache
def content() -> bytes:
    """The file as scikit-learn carries it. Its folder is found without an import, which takes a second."""
    mend = "install requirements.lock"
    package = importlib.util.find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise UserError(f"the digits come with scikit-learn, which is not installed: {mend}")
    path = Path(package.submodule_search_locations[0], _FILE)
    try:
        found = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): {mend}") from None
    if hashlib.blake2b(found, digest_size=16).hexdigest() != _DIGEST:
        raise UserError(f"{path}: these are not the digits that this corpus is made of: {mend}")
    return found
