"""BEiT: block masks, a frozen codebook of the same pixels, cross-entropy on masked patches."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_models.data import keyed
from ssl_models.models import codebook
from ssl_models.objectives.masked_visual_tokens import block_masks
from tests.ssl_models.objectives.pictures import encoding, keys, objective, pixels, vit


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoding")
    codebook.fit(pixels(40), 4, 64, seed=0).save(folder)
    return folder


def test_masks_cover_about_75_of_196_patches_in_blocks():
    masks = block_masks(keys(2000), 14, 14, 75 / 196, 0)
    counts = masks.sum(dim=1)
    assert counts.max() <= 75 and counts.min() >= 16
    assert counts.float().mean() > 68
    grid = masks.view(-1, 14, 14).float()
    alike = (grid[:, 1:] == grid[:, :-1]).float().mean()  # of scattered masks only 0.53 of neighbours were alike
    assert alike > 0.8
    rates = masks.float().mean(dim=0)
    assert rates.min() > 0.02 and rates.max() < 0.8


def test_a_block_has_about_16_patches_and_an_aspect_of_0_3_to_its_inverse():
    grid = block_masks(keys(2000), 14, 14, 16 / 196, 0).view(-1, 14, 14)
    height, width = grid.any(dim=2).sum(dim=1), grid.any(dim=1).sum(dim=1)
    solid = height * width == grid.sum(dim=(1, 2))  # one block, but for single patches that happen to lengthen it
    assert solid.float().mean() > 0.5
    ratio = (height / width)[solid]
    assert ratio.min() >= 2 / 8 and ratio.max() <= 8 / 2
    assert (ratio > 2).any() and (ratio < 0.5).any()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.floats(0.05, 0.95), st.integers(0))
def test_masks_of_any_grid_hide_something_and_no_more_than_asked(rows, columns, ratio, seed):
    masks = block_masks(keyed.keys(seed, 0, torch.arange(7)), rows, columns, ratio, 0)
    counts = masks.sum(dim=1)
    assert counts.min() >= 1 and counts.max() <= max(1, round(ratio * rows * columns))


def test_a_fresh_head_costs_the_logarithm_of_the_codebook(folder):
    beit = objective("masked_visual_tokens", vit("beit"), encoding(folder=folder))
    batch = beit.prepare({"pixels": pixels()}, keys())
    assert float(beit(batch).loss.detach() / beit.count(batch)) == pytest.approx(math.log(64), abs=0.02)


def test_only_masked_patches_are_predicted_and_their_pixels_are_not_seen(folder):
    beit = objective("masked_visual_tokens", vit("beit"), encoding(folder=folder)).eval()
    batch = beit.prepare({"pixels": pixels()}, keys())
    masked = batch["masked"]
    logits = beit.logits(batch)
    assert logits.shape == (8, round(0.4 * 16), 64)
    found = [row[hit.gather(0, place)] for row, hit, place in zip(logits, masked, batch["positions"], strict=True)]
    assert len(torch.cat(found)) == int(beit.count(batch)) == int(masked.sum())
    expected = torch.nn.functional.cross_entropy(torch.cat(found), batch["codes"][masked], reduction="sum")
    torch.testing.assert_close(beit(batch).loss, expected)
    hidden = batch["masked"].view(8, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    other = torch.where(hidden, pixels(seed=5), batch["pixels"])
    assert torch.equal(beit.logits({**batch, "pixels": other}), beit.logits(batch))


def test_the_codebook_is_frozen_and_reads_the_same_pixels(folder):
    beit = objective("masked_visual_tokens", vit("beit"), encoding(folder=folder))
    before = beit.centres.clone()
    batch = beit.prepare({"pixels": pixels()}, keys())
    beit(batch).loss.backward()
    torch.optim.SGD(beit.parameters(), 1.0).step()
    assert torch.equal(beit.centres, before) and "centres" not in dict(beit.named_parameters())
    assert torch.equal(batch["codes"], codebook.load(folder).encode(batch["pixels"]))


def test_codes_are_of_the_crop_that_the_encoder_sees(folder):
    beit = objective("masked_visual_tokens", vit("beit"), encoding(folder=folder))
    batch = beit.prepare({"pixels": pixels()}, keys())
    assert batch["pixels"].shape == pixels().shape and batch["pixels"].max() <= 1
    assert torch.equal(batch["codes"], codebook.load(folder).encode(batch["pixels"]))
    assert not torch.equal(batch["codes"], codebook.load(folder).encode(pixels()))


def test_pictures_are_cropped_flipped_and_jittered_as_in_beit_s_code(folder):
    a = objective("masked_visual_tokens", vit("beit"), encoding(folder=folder)).options.augment
    assert (a.crop, a.aspect, a.flip) == ((0.08, 1.0), (3 / 4, 4 / 3), 0.5)
    assert (a.jitter, a.brightness, a.contrast, a.saturation, a.hue) == (1, 0.4, 0.4, 0.4, 0)
    assert a.grey == a.blur == a.solarise == 0


def test_use_and_perplexity_are_reported(folder):
    beit = objective("masked_visual_tokens", vit("beit"), encoding(folder=folder))
    metrics = beit.examples({"pixels": pixels()}, keys()).metrics
    assert 1 <= metrics["codebook_perplexity"] <= metrics["codes_used"] <= 64


def test_the_architecture_is_beit_s(folder):
    beit = objective("masked_visual_tokens", vit("beit"), encoding(folder=folder))
    names = {name for name, _ in beit.named_parameters()}
    assert "encoder.biases.0.table" in names and "encoder.positions" not in names
    assert beit.encoder.architecture.layer_scale == 0.1


def test_a_codebook_of_other_patches_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="patch: the codebook has patches of 4 pixels, the backbone of 2"):
        objective("masked_visual_tokens", vit("beit", patch=2), encoding(folder=folder))
    with pytest.raises(ValueError, match="ask for a codebook in tokenize"):
        objective("masked_visual_tokens", vit("beit"), encoding(folder=tmp_path))
