"""Small pictures, videos and pairs, and objectives on them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssl_models.artifact import build
from ssl_models.config import Backbone, Model, Train
from ssl_models.data import keyed
from ssl_models.data.encoding import Encoding
from ssl_models.objectives import Batch, Objective, Rows

SIDE = 16
VIT = {"layers": 2, "width": 16, "heads": 2, "patch": 4}
LENGTH, VOCABULARY, EOS = 9, 30, 1


def vit(preset: str = "vit", **fields: Any) -> Backbone:
    return Backbone.model_validate({"preset": preset, **VIT, **fields})


def resnet(**fields: Any) -> Backbone:
    return Backbone.model_validate({"architecture": "resnet", "preset": "resnet18", "width": 4, **fields})


def encoding(modality: str = "image", channels: int = 3, folder: Path = Path(), **fields: Any) -> Encoding:
    text = {"length": LENGTH, "vocabulary": VOCABULARY, "eos": EOS} if modality == "image_text" else {}
    sizes = {"channels": channels, "height": SIDE, "width": SIDE, "mean": (0.5,) * channels, "std": (0.3,) * channels}
    return Encoding.model_validate({"modality": modality, "folder": folder, **sizes, **text, **fields})


def pixels(batch: int = 8, channels: int = 3, side: int = SIDE, seed: int = 0) -> Tensor:
    """Smooth pictures, all different: coarse noise enlarged."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, channels, 4, 4, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1)
    return (fine * 255).round().to(torch.uint8)


def keys(batch: int = 8, step: int = 0) -> Tensor:
    return keyed.keys(0, step, torch.arange(batch))


def objective(name: str, backbone: Backbone, data: Encoding, **task: Any) -> Objective:
    torch.manual_seed(0)
    return build(Model(corpus="x", objective=name, backbone=backbone, task=task, train=Train(steps=1, batch=8)), data)


def prepared(learner: Objective, rows: Rows, keys: Tensor) -> Batch:
    """What the trainer hands to an objective."""
    return {**learner.prepare(rows, keys), "keys": keys}


def mean_loss(learner: Objective, rows: dict[str, Tensor], step: int = 0) -> float:
    """The loss per predicted item on one batch."""
    batch = prepared(learner, rows, keys(len(rows["pixels"]), step))
    return float(learner(batch).loss.detach() / learner.count(batch))


def train(learner: Objective, rows: dict[str, Tensor], steps: int, rate: float = 3e-3) -> None:
    """Fit one batch."""
    optimizer = torch.optim.Adam(learner.parameters(), rate)
    for step in range(steps):
        batch = prepared(learner, rows, keys(len(rows["pixels"]), step))
        (learner(batch).loss / learner.count(batch)).backward()
        optimizer.step()
        optimizer.zero_grad()
