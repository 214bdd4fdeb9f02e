"""MAE: the encoder sees visible patches only, the loss masked ones only."""

import pytest
import torch

from ssl_models.models.vision import patchify, sine_cosine_2d, unpatchify
from tests.ssl_models.objectives.pictures import encoding, keys, objective, pixels, vit


def learner(**task):
    return objective("masked_pixels", vit("mae"), encoding(), **{"augment": None, **task})


def test_three_quarters_are_masked_each_picture_in_its_own_way():
    mae = learner()
    order = mae.prepare({"pixels": pixels()}, keys())["order"]
    assert mae.visible == 4
    assert torch.equal(order.sort(dim=1).values, torch.arange(16).expand(8, -1))
    assert len(torch.unique(order[:, :4].sort(dim=1).values, dim=0)) > 4


def test_visible_patches_carry_no_gradient():
    mae = learner()
    batch = mae.prepare({"pixels": pixels()}, keys())
    predicted = mae.predict(batch).detach().requires_grad_()
    mae.error(predicted, batch).backward()
    size = predicted.grad.abs().amin(dim=2)
    visible, masked = batch["order"][:, :4], batch["order"][:, 4:]
    assert (predicted.grad.abs().sum(dim=2).gather(1, visible) == 0).all()
    assert (size.gather(1, masked) >= 0).all() and (predicted.grad.abs().sum(2).gather(1, masked) > 0).all()


def test_predictions_do_not_depend_on_the_pixels_of_masked_patches():
    mae = learner().eval()
    batch = mae.prepare({"pixels": pixels()}, keys())
    masked = torch.ones(8, 16, dtype=torch.bool).scatter_(1, batch["order"][:, :4], False)
    other = torch.where(masked[..., None], patchify(pixels(seed=9), 4), patchify(pixels(), 4))
    changed = {**batch, "pixels": unpatchify(other, 4, 16, 16)}
    assert not torch.equal(changed["pixels"], batch["pixels"])
    assert torch.equal(mae.predict(changed), mae.predict(batch))


def test_a_visible_patch_does_matter():
    mae = learner().eval()
    batch = mae.prepare({"pixels": pixels()}, keys())
    assert not torch.equal(mae.predict({**batch, "pixels": pixels(seed=9)}), mae.predict(batch))


@pytest.mark.parametrize("channels", [1, 3])
def test_predicting_zero_costs_the_biased_variance(channels):
    mae = objective("masked_pixels", vit("mae"), encoding(channels=channels), augment=None)
    torch.nn.init.zeros_(mae.head.weight)
    rows = {"pixels": torch.randint(0, 256, (8, channels, 16, 16), dtype=torch.uint8)}
    batch = mae.prepare(rows, keys())
    n = 4 * 4 * channels
    assert float(mae(batch).loss.detach() / mae.count(batch)) == pytest.approx((n - 1) / n, abs=1e-3)


def test_features_are_the_class_token_and_the_mean_of_all_patches():
    mae = learner().eval()
    features = mae.features({"pixels": pixels()})
    encoded = mae.encoder(pixels())
    assert features.keys() >= {"cls", "mean"} and encoded.tokens.shape[1] == 16
    torch.testing.assert_close(features["mean"], encoded.tokens.mean(dim=1))
    torch.testing.assert_close(features["cls"], encoded.cls)


def test_targets_are_normalised_patch_by_patch():
    targets = learner().targets(pixels())
    torch.testing.assert_close(targets.mean(2), torch.zeros(8, 16), atol=1e-4, rtol=0)
    torch.testing.assert_close(targets.var(2), torch.ones(8, 16), atol=1e-2, rtol=0)


def test_a_plain_picture_has_a_finite_loss():
    mae = learner()
    batch = mae.prepare({"pixels": torch.full((2, 3, 16, 16), 7, dtype=torch.uint8)}, keys(2))
    assert mae(batch).loss.isfinite()


def test_mask_tokens_and_positions_go_back_in_order():
    mae = learner().eval()
    batch = mae.prepare({"pixels": pixels()}, keys())
    shuffled = batch["order"].clone()
    shuffled[:, :4] = shuffled[:, :4].flip(1)
    shuffled[:, 4:] = shuffled[:, 4:].flip(1)
    torch.testing.assert_close(mae.predict({**batch, "order": shuffled}), mae.predict(batch), atol=1e-5, rtol=1e-4)


def test_pictures_are_cropped_and_flipped_and_nothing_else():
    mae = learner(augment={})
    options = mae.options.augment
    assert (options.crop, options.aspect, options.flip) == ((0.2, 1.0), (3 / 4, 4 / 3), 0.5)
    plain = torch.arange(3, dtype=torch.uint8).view(1, 3, 1, 1).expand(8, 3, 16, 16) * 100
    seen = mae.prepare({"pixels": plain}, keys())["pixels"]
    torch.testing.assert_close(seen * 255, plain.float(), atol=1e-3, rtol=0)
    assert objective("masked_pixels", vit("mae"), encoding()).options.augment == options


def test_targets_are_of_the_crop_that_the_encoder_sees():
    mae = learner(augment={"crop": (0.2, 0.4)})
    batch = mae.prepare({"pixels": pixels()}, keys())
    expected = (mae.predict(batch) - mae.targets(batch["pixels"])) ** 2
    masked = batch["order"][:, mae.visible :]
    torch.testing.assert_close(mae(batch).loss, expected.mean(2).gather(1, masked).sum())
    assert (mae.targets(batch["pixels"]) - mae.targets(pixels())).abs().mean() > 0.1


def test_positions_are_fixed_and_two_dimensional():
    table = sine_cosine_2d(3, 5, 16).view(3, 5, 16)
    assert torch.equal(table[0, :, :8], table[2, :, :8])  # the first half tells the column
    assert torch.equal(table[:, 0, 8:], table[:, 4, 8:])  # the second the row
    assert "encoder.fixed" not in dict(learner().named_parameters())
