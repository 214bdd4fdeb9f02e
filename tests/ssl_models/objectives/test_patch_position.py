"""Context prediction: nine patches with gaps and jitter, both orders, and chance without the arrangement."""

import math

import pytest
import torch

from tests.ssl_models.objectives.pictures import encoding, keys, mean_loss, objective, pixels, resnet, train, vit


def learner(backbone=None, **task):
    return objective("patch_position", backbone or resnet(), encoding(height=24, width=24), **task)


def test_patches_come_from_their_cells_with_jitter_and_a_gap_of_about_half_a_patch():
    task = learner(drop_colour=0, resample=0)
    # every pixel says where it is: red its row, green its column
    place = torch.arange(24, dtype=torch.uint8)
    picture = torch.stack([place[:, None].expand(24, 24), place[None].expand(24, 24), torch.zeros(24, 24)]).byte()
    patches = task.prepare({"pixels": picture.expand(200, -1, -1, -1)}, keys(200))["patches"] * 255
    assert task.cell == 8 and task.side == 5
    for number in range(9):
        row, column = patches[:, number, 0].round(), patches[:, number, 1].round()
        top, left = row[:, 0, 0], column[:, 0, 0]
        assert torch.equal(row, top[:, None, None] + torch.arange(5.0)[:, None].expand(200, 5, 5))
        assert torch.equal(column, left[:, None, None] + torch.arange(5.0).expand(200, 5, 5))
        assert set(top.tolist()) == {8 * (number // 3) + jitter for jitter in range(4)}
        assert set(left.tolist()) == {8 * (number % 3) + jitter for jitter in range(4)}


def test_both_orders_are_asked_and_are_opposites():
    targets = learner().targets(1, torch.device("cpu"))[0]
    offsets = [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]
    for forward, back in zip(targets[:8].tolist(), targets[8:].tolist(), strict=True):
        assert offsets[back] == tuple(-step for step in offsets[forward])


def test_patches_meet_only_after_the_one_encoder() -> None:
    task = learner().eval()
    torch.nn.init.normal_(task.head.weight)
    patches = task.prepare({"pixels": pixels(2, side=24)}, keys(2))["patches"]
    before = task.logits(patches)
    for place, pair in ((0, 0), (8, 7)):
        changed = patches.clone()
        changed[:, place] = 1 - changed[:, place]
        moved = (task.logits(changed) - before).abs().amax(dim=(0, 2)) > 1e-5
        assert moved.nonzero().flatten().tolist() == [pair, 8 + pair]
    swapped = patches.clone()
    swapped[:, [0, 8]] = patches[:, [8, 0]]
    torch.testing.assert_close(task.logits(swapped)[:, [0, 7]], before[:, [7, 0]])  # one encoder, whatever the place


@pytest.mark.parametrize("backbone", [resnet(), vit(patch=1)])
def test_a_fresh_head_costs_ln_8(backbone):
    rows = {"pixels": pixels(side=24)}
    assert mean_loss(learner(backbone), rows) == pytest.approx(math.log(8), abs=0.02)


def test_colour_is_dropped_to_one_channel_and_noise():
    rows = {"pixels": pixels(64, side=24)}
    patches = learner(drop_colour=1.0, resample=0).prepare(rows, keys(64))["patches"]
    spread = (patches - 0.5).flatten(3).square().mean(dim=3).sqrt().sort(dim=2).values
    assert (spread[..., 1] < 0.02 * patches.flatten(3).std(dim=3).amax(dim=2) + 1e-6).all()  # two channels of each
    assert (spread[..., 1] > 0).all()
    kept = (patches - 0.5).abs().amax(dim=(3, 4)).argmax(dim=2)
    shares = torch.bincount(kept.flatten(), minlength=3) / kept.numel()
    assert (shares - 1 / 3).abs().max() < 0.1
    assert (kept != kept[:, :1]).any(dim=1).all()  # each patch for itself


def test_some_pictures_are_shrunk_and_enlarged():
    noise = torch.randint(0, 256, (200, 3, 24, 24), dtype=torch.uint8)
    plain = learner(drop_colour=0, resample=0).prepare({"pixels": noise}, keys(200))["patches"]
    some = learner(drop_colour=0, resample=0.33).prepare({"pixels": noise}, keys(200))["patches"]
    changed = (plain != some).flatten(1).any(dim=1)
    assert 0.2 < float(changed.float().mean()) < 0.47


def test_it_learns_an_arrangement_and_falls_to_chance_when_patches_are_shuffled():
    ramp = torch.linspace(0, 255, 24)
    picture = torch.stack([ramp[:, None].expand(24, 24), ramp[None].expand(24, 24), ramp[:, None].expand(24, 24)])
    rows = {"pixels": picture.byte().expand(16, -1, -1, -1).contiguous()}
    task = learner(vit(patch=5, width=32), drop_colour=0, resample=0)
    train(task, rows, 60, rate=5e-3)
    task.eval()
    batch = task.prepare(rows, keys(16, step=99))
    right, of = task(batch).sums["position_accuracy"]
    assert float(right / of) > 0.8
    generator = torch.Generator().manual_seed(0)
    right = of = 0.0
    for _ in range(30):
        order = torch.rand(16, 9, generator=generator).argsort(dim=1)
        shuffled = batch["patches"].gather(1, order.view(16, 9, 1, 1, 1).expand_as(batch["patches"]))
        hits, count = task({"patches": shuffled}).sums["position_accuracy"]
        right, of = right + float(hits), of + float(count)
    assert right / of == pytest.approx(0.125, abs=0.03)
