"""What each trick of `ssl_models/cpu` is worth: training with it beside training without it, on the CPU at hand.

    python -m benchmarks.cpu [--rounds 5] [--shards data/shard]

Each trick is taken out by a line of Python (or a variable of the environment) in a process of its own, which trains
the model of params.yaml that the trick is for. In every round each model also trains as it is, and the ratio, time
without over time with, is taken within the round; reported are the medians over the rounds and their ranges, of seconds
and of processor seconds, which hold on a shared machine, too. Result: benchmarks/results/cpu.json.
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
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from ssl_models.training.job import Compute, Job
from stages import params

ROOT = Path(__file__).parents[1]
WARM, STEPS = 4, 24
"""Steps that are not timed, and all steps."""

TRAIN = """
import sys, time
from pathlib import Path
WITHOUT
from ssl_models import train
from ssl_models.training import progress
from ssl_models.training.job import Job
from ssl_models.training.parallel import World
from ssl_models.training.signals import Signals
class Stamps(progress.Progress):
    def step(self, done, loss, rate):
        print("stamp", done, time.perf_counter(), time.process_time())
train.Progress = Stamps
train.run(Job.load(Path(sys.argv[1])), World.start(), Signals())
"""


@dataclass(frozen=True)
class Trick:
    """A trick, the model it is measured on, and what takes it out."""

    model: str
    without: str = ""
    environment: dict[str, str] = field(default_factory=dict)


TRICKS = {
    "side by side": Trick(
        "gpt", "import ssl_models.training.learner as m; m.PIECES = 1\n"
        "import ssl_models.training.optimizer as o; o.side_by_side = lambda work, pieces, device: [*map(work, pieces)]"
    ),
    "Muon side by side": Trick(
        "gpt",
        "import ssl_models.training.optimizer as o; o.side_by_side = lambda work, pieces, device: [*map(work, pieces)]",
    ),
    "short spin": Trick("gpt", environment={"GOMP_SPINCOUNT": "0"}),
    "kept memory": Trick("gpt", "from ssl_models.cpu import allocator; allocator.keep_freed = lambda: None"),
    "oneDNN": Trick("gpt", "from ssl_models.cpu import linear; linear._ONEDNN = False"),
    "transposed copies": Trick("gpt", "from ssl_models.cpu import linear; linear._NARROW = 0"),
    "RMSNorm": Trick("gpt", "from torch import nn; from ssl_models.cpu import rms_norm as r; "
                     "r.RMSNorm.forward = nn.RMSNorm.forward"),
    "AdamW on one thread": Trick(
        "gpt", "import torch; from ssl_models.training import optimizer as o; "
        "o.OneThreadAdamW.step = torch.optim.AdamW.step"
    ),
    "augment kernel": Trick(
        "simclr", "from ssl_models.objectives.shared import augment as a\n"
        "a.apply = lambda pixels, parameters, size=None: a.batched(pixels, parameters, *pixels.shape[2:])"
    ),
}  # fmt: skip


def spent(trick: Trick, shards: Path, out: bool) -> tuple[float, float]:
    """Seconds and processor seconds of the timed steps, with the trick or, `out`, without."""
    model = params.model(trick.model)
    train = model.train.model_copy(update={"steps": STEPS, "evaluate_every": STEPS, "validation_rows": 8})
    environment = {**os.environ, "GOMP_SPINCOUNT": "1000", **(trick.environment if out else {})}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Job(
            name=trick.model,
            model=model.model_copy(update={"train": train}),
            shards=(shards / model.corpus / "shards").absolute(),
            output=folder / "output",
            checkpoints=folder / "checkpoints",
            compute=Compute(checkpoint_seconds=3600),
        ).save(folder / "job.json")
        code = TRAIN.replace("WITHOUT", trick.without if out else "")
        done = subprocess.run(
            [sys.executable, "-c", code, str(folder / "job.json")],
            cwd=ROOT, env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
    stamps = {
        int(s[1]): (float(s[2]), float(s[3])) for s in map(str.split, done.stdout.splitlines()) if s[:1] == ["stamp"]
    }
    return stamps[STEPS - 1][0] - stamps[WARM][0], stamps[STEPS - 1][1] - stamps[WARM][1]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shards", type=Path, default=Path("data/shard"))
    given = parser.parse_args()
    ratios: dict[str, list[tuple[float, float]]] = {name: [] for name in TRICKS}
    for _ in range(given.rounds):
        usual = {trick.model: spent(trick, given.shards, False) for trick in TRICKS.values()}
        for name, trick in TRICKS.items():
            without = spent(trick, given.shards, True)
            ratios[name].append((without[0] / usual[trick.model][0], without[1] / usual[trick.model][1]))
            print(f"{name:22}" + "".join(f" {ratio:6.2f}" for ratio in ratios[name][-1]), flush=True)
    table = {
        name: {
            kind: {
                "median": round(statistics.median(each), 3),
                "least": round(min(each), 3),
                "most": round(max(each), 3),
            }
            for kind, each in zip(("seconds", "processor"), zip(*rounds, strict=True), strict=True)
        }
        for name, rounds in ratios.items()
    }
    result = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "rounds": given.rounds,
        "time without over time with": table,
    }
    text = json.dumps(result, indent=1)
    (ROOT / "benchmarks" / "results" / "cpu.json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
