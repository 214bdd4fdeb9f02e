"""Pictures of two handwritten digits with a caption that says which, and how they lie: `three above seven`.

Made of scikit-learn's digits, so in need of no network. A composition is an ordered pair of classes and a relation
(`to the left of`, `above`): 200 in all, and each is a group. Every handwritten digit is dealt to just one place of one
composition. As groups are never split between train, validation and the probe's parts, no held-out picture's
composition was ever seen in training, nor either of its handwritten digits: zero-shot answers are compositional or
wrong. What training does see is each word, each class in both places, and other digits of the same writers: who wrote
which is not known. With the fractions of params.yaml, 90 compositions train, 10 validate, and 20 and 80 are the
probe's parts: only among so many is a difference of 0.05 told apart. The label is the first digit's name, the left or
upper one.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from stages import readers
from stages.modalities.image import pictures
from stages.readers import File, Partition, Record
from stages.readers.digits import SIDE, content, handwritten

MODALITIES = frozenset({"image_text", "image"})
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
RELATIONS = ("to the left of", "above")


class Options(readers.Pictures):
    """How many pictures, and how large."""

    side: int = Field(default=20, ge=2 * SIDE + 2, le=256, description="of a picture, in pixels; a digit has 8")
    pictures: int = Field(default=16, ge=1, le=10_000, description="of each of the 200 compositions")
    seed: int = Field(default=0, ge=0, description="of the draws")


def plan(source: str, options: Options) -> list[Partition]:
    """All of them: one partition."""
    return [Partition((File("captioned-digits", len(content())),))]


def read(partition: Partition, options: Options) -> Iterator[Record]:
    """The pictures, the compositions in turn within each round."""
    pixels, labels = handwritten()
    places = dealt(labels, options.seed)
    for turn in range(options.pictures):
        for number, (first, second, relation) in enumerate(np.ndindex(len(NAMES), len(NAMES), len(RELATIONS))):
            random = np.random.Generator(np.random.Philox(np.random.SeedSequence([options.seed, number, turn])))
            mine = [random.choice(places[place, number]) for place in (0, 1)]
            picture = composed(pixels[mine], relation == 1, options.side, random)
            caption = f"{NAMES[first]} {RELATIONS[relation]} {NAMES[second]}"
            group = f"captioned-digits/{caption}"
            payload: dict[str, str | bytes] = {"image": pictures.encoded(picture), "text": caption}
            yield Record(payload, NAMES[first], f"captioned-digits:{number + 1}:{turn + 1}", group)


def dealt(labels: NDArray[np.int64], seed: int) -> dict[tuple[int, int], NDArray[np.int64]]:
    """The digits of each place (0: first, 1: second) of each composition: every digit in just one of them."""
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed])))
    numbers = np.arange(len(NAMES) ** 2 * len(RELATIONS)).reshape(len(NAMES), len(NAMES), len(RELATIONS))
    found: dict[tuple[int, int], NDArray[np.int64]] = {}
    for digit in range(len(NAMES)):
        wanted = [(0, int(n)) for n in numbers[digit].ravel()] + [(1, int(n)) for n in numbers[:, digit].ravel()]
        mine = random.permutation(np.flatnonzero(labels == digit))
        found.update(zip(wanted, np.array_split(mine, len(wanted)), strict=True))
    return found


def composed(digits: NDArray[np.uint8], above: bool, side: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """Picture uint8 `[side, side]`: two digits beside or `above` each other, each anywhere in its half."""
    half = side // 2
    picture = np.zeros((side, side), np.uint8)
    for number, digit in enumerate(digits):
        along = number * half + int(random.integers(0, half - SIDE + 1))
        across = int(random.integers(0, side - SIDE + 1))
        top, left = (along, across) if above else (across, along)
        picture[top : top + SIDE, left : left + SIDE] = digit
    return picture
