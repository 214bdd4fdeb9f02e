"""Two handwritten digits bounce in a frame: moving-digits sequences after Srivastava et al. 2015 (arXiv 1502.04681),
made of scikit-learn's digits and so in need of no network.

As there, each digit starts anywhere, moves with a constant velocity in a random direction, and is reflected by the
walls; where two overlap, the brighter pixel shows. Two things differ, so that the probe's question is well put and its
answer honest. Both digits of a sequence are of one class, which is the label: `3` is a sequence of two different
handwritten threes. And the digits are dealt into pools of a few of one class, each digit into one pool; a sequence
draws its digits from one pool, and the pool is its group. As groups are never split between train, validation and the
probe's parts, no digit of a held-out sequence is ever seen in training, however the corpus is split.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from stages import readers
from stages.modalities.image import pictures
from stages.readers import File, Partition, Record
from stages.readers.digits import SIDE, content, handwritten

MODALITIES = frozenset({"video"})
CLASSES = 10
DIGITS = 2
"""In a sequence."""


class Options(readers.Pictures):
    """How many sequences of what."""

    frames: int = Field(default=10, ge=2, le=1024, description="in a sequence")
    side: int = Field(default=20, ge=2 * SIDE, le=256, description="of a frame, in pixels; a digit has 8")
    speed: tuple[float, float] = Field(default=(1.0, 2.5), description="least and largest, in pixels a frame")
    pool: int = Field(default=6, ge=DIGITS, le=100, description="digits of one class that share a group")
    sequences: int = Field(default=6, ge=1, le=10_000, description="of each pool")
    seed: int = Field(default=0, ge=0, description="of the draws")

    @model_validator(mode="after")
    def _speed_is_a_range(self) -> Options:
        if not 0 < self.speed[0] <= self.speed[1] <= self.side - SIDE:
            raise ValueError(f"speed: must rise from above 0 to at most {self.side - SIDE}, the way from wall to wall")
        return self


def plan(source: str, options: Options) -> list[Partition]:
    """A partition for each round through the pools."""
    file = File("moving-digits", len(content()) // options.sequences)
    return [Partition((file,), turn, turn + 1) for turn in range(options.sequences)]


def read(partition: Partition, options: Options) -> Iterator[Record]:
    """One sequence of each pool."""
    pixels, labels = handwritten()
    turn = partition.start
    for number, pool in enumerate(dealt(labels, options.pool, options.seed)):
        random = np.random.Generator(np.random.Philox(np.random.SeedSequence([options.seed, number, turn])))
        chosen = pool[random.permutation(len(pool))[:DIGITS]]
        frames = [pictures.encoded(frame) for frame in sequence(pixels[chosen], options, random)]
        group = f"moving-digits/{number:04d}"
        yield Record({"video": pictures.bundle(frames)}, str(labels[pool[0]]), f"{group}:{turn + 1}", group)


def dealt(labels: NDArray[np.int64], size: int, seed: int) -> list[NDArray[np.int64]]:
    """Pools of at least `size` digits of one class, every digit in just one: their numbers, the classes in turn."""
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed])))
    of_class = []
    for digit in range(CLASSES):
        mine = random.permutation(np.flatnonzero(labels == digit))
        of_class.append(np.array_split(mine, max(1, len(mine) // size)))
    most = max(map(len, of_class))
    return [pools[turn] for turn in range(most) for pools in of_class if turn < len(pools)]


def sequence(digits: NDArray[np.uint8], options: Options, random: np.random.Generator) -> NDArray[np.uint8]:
    """Frames uint8 `[frames, side, side]` of bouncing `digits` `[digits, SIDE, SIDE]`."""
    room = options.side - SIDE
    start = random.uniform(0, room, (len(digits), 2))
    angle = random.uniform(0, 2 * np.pi, len(digits))
    speed = random.uniform(*options.speed, len(digits))
    velocity = speed[:, None] * np.stack([np.sin(angle), np.cos(angle)], axis=1)
    frames = np.zeros((options.frames, options.side, options.side), np.uint8)
    for number, frame in enumerate(frames):
        unfolded = (start + number * velocity) % (2 * room)
        places = np.rint(np.minimum(unfolded, 2 * room - unfolded)).astype(int)  # reflected by the walls
        for digit, (top, left) in zip(digits, places, strict=True):
            here = frame[top : top + SIDE, left : left + SIDE]
            np.maximum(here, digit, out=here)
    return frames
