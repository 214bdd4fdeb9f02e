"""Training pictures a second: our contrastive objective against lightly's SimCLR example and the same loop with PIL.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.train_image [--peer PYTHON] [--batch 64] [--seconds 15] [--rounds 3]

All train a ResNet-18 with the stem for small pictures on the same 32x32 photographs, in the same batches, from uint8
pictures in memory to updated weights, on all cores. Ours is the path of `ssl_models.train`: views of the whole batch,
`gradient.py`, clipping, AdamW, deterministic algorithms. The others are a DataLoader with one worker process per core,
two passes of the encoder and SGD; `pil` is written here on our network, `lightly` (with `--peer`, the Python of an
environment made by `pip install torch==2.13.0 lightly`) takes transform, loss and projector from lightly and the
network from torchvision. Each is a process that waits while the others have their turn; ratios are of medians. Results
go to benchmarks/results/train_image.json with machine and date.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.augment import WITHOUT_OPERATORS, machine, photographs

RESULTS = Path(__file__).parent / "results" / "train_image.json"
SIDE, PICTURES = 32, 2048
START = (
    WITHOUT_OPERATORS
    + """
import itertools, random, time, numpy, torch
from torch import nn
path, batch, cores = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(cores); torch.manual_seed(0)
def report(step):
    for line in sys.stdin:
        step()
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < float(line):
            step(); count += batch
        print(count / (time.perf_counter() - start), flush=True)
"""
)
OURS = """
from ssl_models import artifact
from ssl_models.data import keyed
from ssl_models.config import Backbone, Model, Train
from ssl_models.data.encoding import Encoding
from ssl_models.training.learner import Learner
from ssl_models.training.optimizer import Optimizer
from ssl_models.training.parallel import World
from ssl_models.train import clip
torch.use_deterministic_algorithms(True, warn_only=True)
torch.utils.deterministic.fill_uninitialized_memory = False
pictures = torch.from_numpy(numpy.load(path).transpose(0, 3, 1, 2).copy())
train = Train(steps=10**6, batch=batch)
model = Model(corpus="photographs", objective="contrastive", train=train,
              backbone=Backbone(architecture="resnet", preset="resnet18", stem="small"))
side = pictures.shape[2]
encoding = Encoding(modality="image", channels=3, height=side, width=side, mean=(0.5,) * 3, std=(0.25,) * 3)
objective, world = artifact.build(model, encoding), World.start()
learner, optimizer = Learner(objective.train(), world, train, False, False), Optimizer(objective, train)
def rows(number):
    chosen = torch.randperm(len(pictures))[:batch]
    return learner.prepare({"pixels": pictures[chosen]}, keyed.keys(0, number, chosen))
learner.micro_batch = learner.fit(rows(0), batch)
print("micro-batch", learner.micro_batch, file=sys.stderr)
numbers = itertools.count()
def step():
    number = next(numbers)
    views = rows(number)
    learner.gradient(number, views, objective.count(views), batch).means(world)
    clip(objective, train.clip); optimizer.step(number); optimizer.zero_grad()
report(step)
"""
LOOP = """
class Views(torch.utils.data.Dataset):
    def __init__(self): self.pictures = [Image.fromarray(one) for one in numpy.load(path)]
    def __len__(self): return len(self.pictures)
    def __getitem__(self, index): return [view(self.pictures[index]) for _ in range(2)]
loader = torch.utils.data.DataLoader(Views(), batch, shuffle=True, drop_last=True, num_workers=cores)
optimizer = torch.optim.SGD(model.parameters(), lr=0.06)
batches = itertools.chain.from_iterable(itertools.repeat(loader))
def step():
    first, second = next(batches)
    loss = criterion(model(first), model(second))
    loss.backward(); optimizer.step(); optimizer.zero_grad(); loss.item()
report(step)
"""
PIL = (
    """
from PIL import Image
from benchmarks.augment import pil_view
from ssl_models.data.augmentation import Augmentation
from ssl_models.objectives.shared.losses import nt_xent
from ssl_models.config import Backbone
from ssl_models.models.presets import resolve_resnet
from ssl_models.models.resnet import ResNet
options = Augmentation()
def view(picture): return torch.from_numpy(pil_view(picture, options, random))
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = ResNet(resolve_resnet(Backbone(architecture="resnet", preset="resnet18", stem="small")), 3)
        self.projector = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 128))
    def forward(self, pixels): return self.projector(self.encoder.features(pixels))
model = Model()
def criterion(first, second): return nt_xent(first, second, 0.5)
"""
    + LOOP
)
LIGHTLY = (
    """
import torchvision
from PIL import Image
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms.simclr_transform import SimCLRViewTransform
view = SimCLRViewTransform(numpy.load(path).shape[1], cj_strength=0.5, gaussian_blur=0.0)
network = torchvision.models.resnet18()
network.conv1, network.maxpool, network.fc = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity(), nn.Identity()
model, criterion = nn.Sequential(network, SimCLRProjectionHead(512, 512, 128)), NTXentLoss()
"""
    + LOOP
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", help="Python of an environment with lightly")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    texts = {"ours": (sys.executable, OURS), "pil": (sys.executable, PIL)}
    if arguments.peer:
        texts["lightly"] = (arguments.peer, LIGHTLY)
    cores = len(os.sched_getaffinity(0))
    rates: dict[str, list[float]] = {name: [] for name in texts}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pictures.npy"
        np.save(path, photographs(PICTURES, SIDE))
        values = [str(path), str(arguments.batch), str(cores)]
        programs = {
            name: subprocess.Popen(
                [python, "-c", START + text, *values], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            for name, (python, text) in texts.items()
        }
        for _ in range(arguments.rounds):
            for name, program in programs.items():
                assert program.stdin is not None and program.stdout is not None
                print(arguments.seconds, file=program.stdin, flush=True)
                rates[name].append(float(program.stdout.readline()))
                print(f"{name}: {rates[name][-1]:.1f} pictures a second", flush=True)
        for program in programs.values():
            program.communicate(timeout=60)
    medians = {name: round(statistics.median(found), 1) for name, found in rates.items()}
    result = {
        "machine": machine(),
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "unit": "training pictures a second, two views each",
        "network": f"ResNet-18, small stem, {SIDE}x{SIDE}",
        "batch": arguments.batch,
        "parallel": f"ours: {cores} threads; the others: {cores} threads and {cores} worker processes",
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
        "results": medians,
        **{f"ratio_to_{name}": round(medians["ours"] / medians[name], 2) for name in medians if name != "ours"},
    }
    print(json.dumps(result, indent=1))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
