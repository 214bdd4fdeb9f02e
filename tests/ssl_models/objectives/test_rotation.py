"""RotNet: all four rotations of every picture, by flips and transposes only."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssl_models.objectives.rotation import rotations
from tests.ssl_models.objectives.pictures import encoding, keys, mean_loss, objective, pixels, resnet, train, vit


@given(st.integers(1, 9), st.integers(1, 3))
def test_the_four_rotations_are_exact(side, channels):
    picture = torch.rand(2, channels, side, side)
    turned = rotations(picture)
    for turns in range(4):
        assert torch.equal(turned[:, turns], torch.rot90(picture, turns, dims=(2, 3)))


def test_every_picture_enters_in_all_four_rotations():
    rotation = objective("rotation", vit(), encoding())
    batch = rotation.prepare({"pixels": pixels()}, keys())
    assert rotation.logits(batch["pixels"]).shape == (32, 4)
    assert float(rotation.count(batch)) == 32
    assert torch.equal(batch["pixels"], pixels())


def test_augmentation_comes_before_the_rotation():
    rotation = objective("rotation", vit(), encoding(), augment={"flip": 0.0})
    batch = rotation.prepare({"pixels": pixels()}, keys())
    assert batch["pixels"].shape == (8, 3, 16, 16) and batch["pixels"].dtype == torch.float32
    assert (batch["pixels"] * 255 - pixels()).abs().amax(dim=(1, 2, 3)).min() > 5  # a view
    one = rotation.logits(batch["pixels"][:1])
    turned = rotation.logits(torch.rot90(batch["pixels"][:1], 1, dims=(2, 3)))
    torch.testing.assert_close(turned, one.roll(-1, dims=0), atol=1e-5, rtol=1e-4)  # the same view in all four


@pytest.mark.parametrize("backbone", [resnet(), vit()])
def test_a_fresh_head_costs_ln_4(backbone):
    assert mean_loss(objective("rotation", backbone, encoding()), {"pixels": pixels()}) == pytest.approx(
        math.log(4), abs=0.03
    )


def test_what_is_the_same_from_all_sides_cannot_be_told():
    rotation = objective("rotation", resnet(), encoding()).eval()
    plain = torch.full((4, 3, 16, 16), 90, dtype=torch.uint8)
    right, of = rotation(rotation.prepare({"pixels": plain}, keys(4))).sums["rotation_accuracy"]
    assert float(right / of) == 0.25


def test_it_learns_which_side_is_bright():
    rows = {"pixels": torch.arange(0, 256, 16, dtype=torch.uint8).view(1, 1, 16, 1).expand(8, 3, 16, 16).contiguous()}
    rotation = objective("rotation", vit(), encoding())
    train(rotation, rows, 60)
    assert mean_loss(rotation, rows) < 0.2
