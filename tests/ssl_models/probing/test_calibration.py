"""A calibrated random encoder: its batch norms know their inputs, its weights are what they were."""

import numpy as np
import torch
from torch import Tensor, nn

from ssl_models.config import Backbone
from ssl_models.data.encoding import Encoding
from ssl_models.objectives import Batch, Objective, Options, Rows
from ssl_models.probing.calibration import calibrate
from ssl_models.probing.features import Source


class Normed(Objective):
    """A batch norm over pixels that are far from mean 0 and variance 1."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__(Backbone(preset="none"), Options(), Encoding(modality="image"))
        self.layer, self.norm = nn.Conv2d(1, 3, 1), norm

    def prepare(self, rows: Rows, keys: Tensor) -> Batch:
        return rows

    def count(self, batch: Batch) -> Tensor:
        return torch.tensor(1.0)

    def features(self, rows: Rows) -> dict[str, Tensor]:
        return {"mean": self.norm(self.layer(rows["pixels"].float())).flatten(1)}


def source(rows: int = 96) -> Source:
    values = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (rows, 1, 4, 4), np.uint8))
    return Source(lambda at: {"pixels": values[at]}, np.arange(rows))


def test_statistics_are_those_of_the_rows_and_the_same_again() -> None:
    encoder = Normed(nn.BatchNorm2d(3))
    weights = encoder.layer.weight.clone()
    assert calibrate(encoder, source())
    first = encoder.norm.running_var.clone()
    assert calibrate(encoder, source()) and torch.equal(first, encoder.norm.running_var)
    found = encoder.features(source().read(np.arange(96)))["mean"].view(96, 3, -1)
    assert found.mean(dim=(0, 2)).abs().max() < 1e-3 and (found.std(dim=(0, 2)) - 1).abs().max() < 0.02
    assert torch.equal(weights, encoder.layer.weight)
    assert not encoder.norm.training and encoder.norm.momentum == 0.1


def test_an_encoder_without_batch_norm_is_left_alone() -> None:
    assert not calibrate(Normed(nn.Identity()), source())
