"""SimCLR: two independent views, coupled over the whole batch, probed before the projector."""

import math

import pytest
import torch

from ssl_models.objectives.contrastive import projector
from ssl_models.objectives.shared import losses
from tests.ssl_models.objectives.pictures import encoding, keys, objective, pixels, prepared, resnet, vit


def test_the_two_views_are_drawn_independently():
    views = objective("contrastive", vit(), encoding()).prepare({"pixels": pixels()}, keys())["views"]
    assert views.shape == (8, 2, 3, 16, 16)
    assert len(torch.unique(views.flatten(0, 1).flatten(1), dim=0)) == 16


def test_views_are_cropped_flipped_jittered_and_grey_and_not_blurred():
    default = objective("contrastive", vit(), encoding()).options.augment
    assert default.crop[0] < 1 and default.flip == 0.5 and default.jitter > 0 and default.grey > 0
    assert min(default.brightness, default.contrast, default.saturation, default.hue) > 0
    assert default.blur == 0  # small pictures have nothing to lose


def test_equal_projections_cost_the_logarithm_of_the_choices():
    learner = objective("contrastive", vit(), encoding())
    outcome = learner.couple({"views": torch.ones(256, 2, 8)}, keys(256))
    assert float(outcome.loss) / 512 == pytest.approx(math.log(511), abs=1e-5)


def test_the_loss_is_nt_xent_of_the_projections():
    learner = objective("contrastive", vit(), encoding(), temperature=0.2)
    batch = prepared(learner, {"pixels": pixels()}, keys())
    first, second = learner.embed(batch)["views"].unbind(1)
    expected = losses.nt_xent(first, second, 0.2)
    torch.testing.assert_close(learner(batch).loss / learner.count(batch), expected)


def test_the_probe_reads_the_encoder_and_not_the_projector():
    learner = objective("contrastive", resnet(), encoding(), projector=[64, 24]).eval()
    before = learner.features({"pixels": pixels()})["mean"]
    assert before.shape == (8, learner.encoder.width)
    torch.nn.init.zeros_(learner.projector[0].weight)
    assert torch.equal(learner.features({"pixels": pixels()})["mean"], before)


@pytest.mark.parametrize("loss", ["vicreg", "barlow_twins"])
def test_losses_without_negatives_have_three_layers_with_batch_normalisation(loss):
    layers = projector(loss, 16, ())
    kinds = [type(layer).__name__ for layer in layers]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert [layer.out_features for layer in layers if hasattr(layer, "out_features")] == [8192] * 3
    small = objective("contrastive", vit(), encoding(), loss=loss, projector=[48, 40, 32])
    batch = small.prepare({"pixels": pixels()}, keys())
    assert small.embed(batch)["views"].shape == (8, 2, 32)
    assert [layer.out_features for layer in small.projector if hasattr(layer, "out_features")] == [48, 40, 32]


def test_simclr_s_projector_has_two_layers_and_no_normalisation():
    layers = objective("contrastive", vit(), encoding()).projector
    assert [type(layer).__name__ for layer in layers] == ["Linear", "ReLU", "Linear"]
    assert [layers[0].out_features, layers[2].out_features] == [512, 128]


@pytest.mark.parametrize("collapsed", [0, 1])
def test_a_collapsed_view_finds_its_other_by_chance(collapsed):
    views = torch.randn(8, 2, 16, generator=torch.Generator().manual_seed(0))
    views[:, collapsed] = 1
    found, of = objective("contrastive", vit(), encoding()).couple({"views": views}, keys()).sums["view_accuracy"]
    assert float(found / of) == pytest.approx(1 / 8, abs=1e-6)


def test_perfect_views_are_counted_as_found():
    learner = objective("contrastive", vit(), encoding())
    found, of = learner.couple({"views": torch.eye(8)[:, None].expand(-1, 2, -1)}, keys()).sums["view_accuracy"]
    assert float(found) == float(of) == 8
