"""Rotation: which way up is this picture? (RotNet, Gidaris et al. 2018, arXiv 1803.07728)

Every picture enters in all four rotations of one batch, made by transposes and flips only, so that no resampled border
gives the answer away. Augmentation comes before the rotation, the same for all four. The loss counts four predictions
per picture.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ssl_models.config import Backbone
from ssl_models.data.augmentation import Augmentation
from ssl_models.data.encoding import Encoding
from ssl_models.models.vision import to_unit, vision_encoder
from ssl_models.objectives import Batch, Examples, Objective, Options, Outcome, Rows
from ssl_models.objectives.shared import accuracy, augment, pictures

_VIEW = 0
"""Stream of `keyed`."""
_TURNS = 4
_SPREAD = 0.01  # of the fresh head: predictions start near uniform


def rotations(pixels: Tensor) -> Tensor:
    """Square pictures `[batch, channels, side, side]` turned by 0, 90, 180 and 270 degrees against the clock: `[batch,
    4, ...]`."""
    turned = pixels.transpose(2, 3).flip(2)
    return torch.stack([pixels, turned, pixels.flip(2).flip(3), turned.flip(2).flip(3)], dim=1)


class Task(Options):
    """`models.NAME.task`."""

    augment: Augmentation | None = Field(default=None, description="before rotating, in training; null: as they are")


class Rotation(Objective):
    """An encoder and a linear head over four rotations."""

    Options = Task

    def __init__(self, backbone: Backbone, options: Task, encoding: Encoding) -> None:
        super().__init__(backbone, options, encoding)
        if encoding.height != encoding.width:
            raise ValueError(f"objective: rotation needs square pictures, not {encoding.height}x{encoding.width}")
        self.options = options
        self.encoder = vision_encoder(backbone, encoding)
        self.head = nn.Linear(self.encoder.width, _TURNS)
        nn.init.normal_(self.head.weight, std=_SPREAD)
        nn.init.zeros_(self.head.bias)

    def prepare(self, rows: Rows, keys: Tensor) -> Batch:
        """`pixels` `[batch, channels, side, side]`, augmented in training; rotated as they enter the encoder."""
        if self.options.augment is None or not self.training:
            return {"pixels": rows["pixels"]}
        return {"pixels": augment.views(self.options.augment, rows["pixels"], keys, _VIEW)}

    def count(self, batch: Batch) -> Tensor:
        """Four per picture."""
        pixels = batch["pixels"]
        return torch.tensor(float(_TURNS * len(pixels)), device=pixels.device)

    def logits(self, pixels: Tensor) -> Tensor:
        """Logits `[4 * batch, 4]` of the four rotations of each picture."""
        found: Tensor = self.head(self.encoder(rotations(pixels).flatten(0, 1)).pooled)
        return found

    def loss(self, batch: Batch) -> Outcome:
        """Cross-entropy over the four rotations."""
        logits = self.logits(batch["pixels"]).float()
        targets = torch.arange(_TURNS, device=logits.device).repeat(len(batch["pixels"]))
        right = accuracy.correct(logits.detach(), targets)
        loss = functional.cross_entropy(logits, targets, reduction="sum")
        return Outcome(loss, {"rotation_accuracy": (right, self.count(batch))})

    def features(self, rows: Rows) -> dict[str, Tensor]:
        """Of the picture the right way up."""
        return self.encoder.features(rows["pixels"])

    @torch.no_grad()
    def examples(self, rows: Rows, keys: Tensor) -> Examples:
        """The four rotations of each picture, and the same turned back by what the model took them for."""
        pixels = to_unit(self.prepare(rows, keys)["pixels"])
        turned = rotations(pixels)
        guessed = self.logits(pixels).argmax(dim=1).view(len(pixels), _TURNS)
        back = rotations(turned.flatten(0, 1))  # turning by (4 - guess) undoes the guess
        undone = back[torch.arange(len(back), device=back.device), (-guessed.flatten()) % _TURNS].view(turned.shape)
        shown = [*turned.unbind(dim=1), *undone.unbind(dim=1)]
        return Examples(pictures={"rotations_and_turned_back": pictures.tile(shown)})


OBJECTIVE = Rotation
