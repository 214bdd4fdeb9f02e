"""What each trick of `ssl_models/cpu` is worth: training steps with it beside training steps without it, on this CPU.

    python -m benchmarks.cpu [--rounds 5] [--shards data/shard]

One process takes steps of the model gpt of params.yaml (or makes views), by turns as they are and with one trick taken
out; the ratio, time without over time with, is taken within a round. What can only be chosen when a process starts (the
allocator, how threads wait) is measured in processes of its own, by turns, too. Reported are the medians over the
rounds and their ranges, of seconds and of processor seconds, which hold on a shared machine. Result: results/cpu.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from ssl_models import artifact
from ssl_models.cpu import linear
from ssl_models.data import keyed
from ssl_models.data.augmentation import Augmentation
from ssl_models.data.encoding import Encoding
from ssl_models.data.shards import Shards
from ssl_models.objectives.shared import augment
from ssl_models.train import clip
from ssl_models.training import optimizer as optimizers
from ssl_models.training.batches import Batches
from ssl_models.training.learner import Learner
from ssl_models.training.parallel import World
from stages import params

STEPS = 4
"""Steps of a turn."""
ONCE = "import sys; from benchmarks.cpu import once; once(sys.argv[1], sys.argv[2] == 'kept')"


@dataclass(frozen=True)
class Spent:
    """Seconds on the clock and of the processors."""

    seconds: float
    processor: float


def stepper(shards: Path) -> tuple[Learner, Callable[[], Spent]]:
    """The learner of the model gpt of params.yaml, and what takes `STEPS` steps with it."""
    model = params.model("gpt")
    opened = Shards.open(shards / model.corpus / "shards")
    torch.manual_seed(0)
    objective = artifact.build(model, Encoding.load(shards / model.corpus / "shards" / "encoding"))
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a property
    world, settings = World(), model.train
    learner = Learner(objective.train(), world, settings, bfloat16=False, compiled=False)
    optimizer, batches = optimizers.Optimizer(objective, settings), Batches(opened.split("train"), settings, world)
    numbers: Iterator[int] = iter(range(10**9))

    def steps() -> Spent:
        began, used = time.perf_counter(), time.process_time()
        for number in (next(numbers) for _ in range(STEPS)):
            batch = learner.prepare(*batches.read(number))
            learner.gradient(number, batch, objective.count(batch).double(), settings.batch).means(world)
            clip(objective, settings.clip)
            optimizer.step(number)
            optimizer.zero_grad()
        return Spent(time.perf_counter() - began, time.process_time() - used)

    steps()
    return learner, steps


def views() -> Spent:
    """Of making `STEPS` batches of views of colour pictures."""
    pixels = torch.randint(0, 256, (256, 3, 32, 32), dtype=torch.uint8)
    began, used = time.perf_counter(), time.process_time()
    for step in range(STEPS):
        augment.views(Augmentation(), pixels, keyed.keys(0, step, torch.arange(len(pixels))), 0)
    return Spent(time.perf_counter() - began, time.process_time() - used)


def without(trick: str, learner: Learner) -> ExitStack:
    """Within, work is done without a trick."""
    stack = ExitStack()
    if trick == "side by side":
        stack.enter_context(mock.patch.object(learner, "pieces", 1))
    if trick in ("side by side", "Muon side by side"):
        in_turn: Callable[..., list[Any]] = lambda work, pieces, device: [*map(work, pieces)]  # noqa: E731
        stack.enter_context(mock.patch.object(optimizers, "side_by_side", in_turn))
    patches = {
        "oneDNN": (linear, "_ONEDNN", False),
        "transposed copies": (linear, "_NARROW", 0),
        "augment kernel": (
            augment,
            "apply",
            lambda pixels, parameters, size=None: augment.batched(pixels, parameters, *pixels.shape[2:]),
        ),
    }
    if trick in patches:
        stack.enter_context(mock.patch.object(*patches[trick]))
    return stack


TRICKS = ("side by side", "Muon side by side", "oneDNN", "transposed copies", "augment kernel")
STARTS = {"short spin": ("0", "kept"), "kept memory": ("1000", "given back")}
"""GOMP_SPINCOUNT and the allocator's habit that take a trick out; both in are 1000 and kept."""


def once(shards: str, kept: bool) -> None:
    """Print what a turn takes in this process."""
    from ssl_models.cpu import allocator

    if kept:
        allocator.keep_freed()
    print(json.dumps(vars(stepper(Path(shards))[1]())))


def started(shards: Path, spin: str, memory: str) -> Spent:
    """A turn in a process of its own."""
    command = [sys.executable, "-c", ONCE, str(shards), memory]
    environment = {**os.environ, "GOMP_SPINCOUNT": spin}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return Spent(**json.loads(done.stdout))


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shards", type=Path, default=Path("data/shard"))
    given = parser.parse_args()
    table: dict[str, dict[str, dict[str, float]]] = {}

    def report(trick: str, rounds: list[tuple[Spent, Spent]]) -> None:
        table[trick] = {}
        for kind in ("seconds", "processor"):
            ratios = sorted(getattr(out, kind) / getattr(usual, kind) for usual, out in rounds)
            ends = {"median": statistics.median(ratios), "least": ratios[0], "most": ratios[-1]}
            table[trick][kind] = {name: round(value, 3) for name, value in ends.items()}
        print(trick, table[trick], flush=True)

    learner, steps = stepper(given.shards)
    views()  # numba compiles
    for trick in TRICKS:
        work, rounds = views if trick == "augment kernel" else steps, []
        for _ in range(given.rounds):
            usual = work()
            with without(trick, learner):
                rounds.append((usual, work()))
        report(trick, rounds)
    pairs: dict[str, list[tuple[Spent, Spent]]] = {trick: [] for trick in STARTS}
    for _ in range(given.rounds):
        usual = started(given.shards, "1000", "kept")
        for trick, settings in STARTS.items():
            pairs[trick].append((usual, started(given.shards, *settings)))
    for trick, rounds in pairs.items():
        report(trick, rounds)
    result = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "rounds": given.rounds,
        "time without over time with": table,
    }
    text = json.dumps(result, indent=1) + "\n"
    (Path(__file__).parent / "results" / "cpu.json").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
