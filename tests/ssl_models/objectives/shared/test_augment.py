"""Views of a batch are what the same operations make of one picture, and depend on their key alone."""

import colorsys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from ssl_models.cpu import augment_kernel
from ssl_models.data import augmentation, keyed
from ssl_models.data.augmentation import Augmentation
from ssl_models.objectives.shared import augment

EVERYTHING = Augmentation(blur=0.5, solarise=0.5, hue=0.5)


def pictures(batch: int, channels: int, height: int, width: int) -> torch.Tensor:
    generator = np.random.default_rng(batch + channels + height + width)
    return torch.from_numpy(generator.integers(0, 256, (batch, channels, height, width), dtype=np.uint8))


def keys(batch: int, seed: int = 0) -> torch.Tensor:
    return keyed.keys(seed, 5, torch.arange(batch))


def everywhere(batch: int, rows: int, columns: int, /, **changed: float | torch.Tensor) -> augmentation.Parameters:
    tensors = {name: value * torch.ones(batch) for name, value in changed.items()}
    return replace(augmentation.identity(batch, rows, columns), **tensors)


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 5),
    st.sampled_from([1, 3]),
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(1, 24),
    st.integers(0),
)
def test_the_kernel_does_what_the_batched_operations_do(batch, channels, height, width, size, seed):
    pixels = pictures(batch, channels, height, width)
    drawn = augmentation.draw(EVERYTHING, keys(batch, seed), height, width, 0)
    with pytest.MonkeyPatch.context() as patch:
        kernel = augment.apply(pixels, drawn, (size, size))
        patch.setattr(augment_kernel, "apply", augment.batched)
        batched = augment.apply(pixels, drawn, (size, size))
    # solarise is a jump at 0.5: a value on it may fall to either side, but not away from it
    both = torch.stack([kernel, 1 - kernel])
    assert (both - batched).abs().amin(0).max() < 1e-4
    assert ((kernel - batched).abs() > 1e-4).float().mean() < 0.01
    assert kernel.shape == (batch, channels, size, size)
    assert kernel.min() >= 0 and kernel.max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [8, 16, 33])
def test_a_view_depends_on_its_key_alone(channels, side):
    pixels = pictures(9, channels, side, side)
    together = augment.views(EVERYTHING, pixels, keys(9), 0)
    for chosen in ([3], [8, 2, 5]):
        assert torch.equal(augment.views(EVERYTHING, pixels[chosen], keys(9)[chosen], 0), together[chosen])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(augment.views(EVERYTHING, pixels, keys(9), 0), together)
    finally:
        torch.set_num_threads(threads)


def test_other_keys_and_other_streams_give_other_views():
    pixels = pictures(1, 3, 16, 16).expand(32, -1, -1, -1)
    first, second = (augment.views(Augmentation(), pixels, keys(32), stream) for stream in (0, 2))
    assert len(torch.unique(torch.cat([first, second]).flatten(1), dim=0)) == 64


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_identity_parameters_change_nothing(channels, batched, monkeypatch):
    if batched:
        monkeypatch.setattr(augment_kernel, "apply", augment.batched)
    pixels = pictures(4, channels, 8, 12)
    views = augment.apply(pixels, augmentation.identity(4, 8, 12))
    torch.testing.assert_close(views, pixels / 255, atol=1e-6, rtol=0)
    torch.testing.assert_close(augment.apply(pixels / 255, augmentation.identity(4, 8, 12)), views, atol=1e-6, rtol=0)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_a_crop_is_torch_s_antialiased_resize_of_the_part(data):
    height, width = data.draw(st.integers(1, 30)), data.draw(st.integers(2, 30))
    h, w = data.draw(st.integers(1, height)), data.draw(st.integers(2, width))  # torch 2.13 errs at a width of 1
    top, left = data.draw(st.integers(0, height - h)), data.draw(st.integers(0, width - w))
    size = (data.draw(st.integers(1, 30)), data.draw(st.integers(2, 30)))
    pixels = pictures(1, 3, height, width)
    views = augment.apply(pixels, everywhere(1, height, width, top=top, left=left, height=h, width=w), size)
    part = pixels[:, :, top : top + h, left : left + w].float() / 255
    expected = functional.interpolate(part, size=size, mode="bilinear", antialias=True, align_corners=False)
    torch.testing.assert_close(views, expected, atol=1e-4, rtol=0)


def test_flip_mirrors():
    pixels = pictures(2, 3, 8, 8)
    mirrored = replace(augmentation.identity(2, 8, 8), flip=torch.tensor([True, False]))
    views = augment.apply(pixels, mirrored)
    torch.testing.assert_close(views[0], pixels[0].flip(2) / 255)
    torch.testing.assert_close(views[1], pixels[1] / 255)


@pytest.mark.parametrize("sigma", [0.4, 1.0, 1.7])
def test_blur_is_a_convolution_with_a_gaussian(sigma):
    pixels = pictures(2, 1, 40, 40)
    views = augment.apply(pixels, everywhere(2, 40, 40, sigma=sigma))
    reach = int(4 * sigma)
    line = torch.exp(-(torch.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    kernel = line[:, None] * line / line.sum() ** 2
    expected = functional.conv2d(pixels.float() / 255, kernel[None, None])
    torch.testing.assert_close(views[:, :, reach:-reach, reach:-reach], expected, atol=1e-5, rtol=0)


def test_blur_leaves_a_plain_picture_alone_up_to_its_border():
    plain = torch.full((1, 3, 12, 12), 100, dtype=torch.uint8)
    torch.testing.assert_close(augment.apply(plain, everywhere(1, 12, 12, sigma=2.0)), plain / 255)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("turns", [-0.5, -0.2, 0.1, 0.37])
def test_hue_is_colorsys_s(turns, batched, monkeypatch):
    if batched:
        monkeypatch.setattr(augment_kernel, "apply", augment.batched)
    pixels = pictures(1, 3, 12, 12)
    pixels[0, :, 0, :6] = torch.tensor([0, 255, 0, 128, 255, 9])  # greys
    pixels[0, :, 1, 0] = torch.tensor([200, 200, 10])  # two equal channels
    views = augment.apply(pixels, everywhere(1, 12, 12, hue=turns))
    for rgb, turned in zip(pixels[0].flatten(1).T / 255, views[0].flatten(1).T, strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*rgb.tolist())
        expected = colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value)
        torch.testing.assert_close(turned, torch.tensor(expected), atol=1e-5, rtol=0)


def test_brightness_contrast_and_saturation_are_blends():
    pixels = pictures(3, 3, 10, 10) // 4 + 64  # dark enough that nothing is clamped
    unit = pixels.float() / 255
    luma = torch.einsum("bchw,c->bhw", unit, torch.tensor([0.299, 0.587, 0.114]))[:, None]
    mean = luma.mean(dim=(2, 3), keepdim=True)
    for name, other in (("brightness", torch.zeros(())), ("contrast", mean), ("saturation", luma)):
        for factor in (0.6, 1.0, 1.3):
            views = augment.apply(pixels, everywhere(3, 10, 10, **{name: factor}))
            torch.testing.assert_close(views, (factor * unit + (1 - factor) * other).clamp(0, 1), atol=1e-5, rtol=0)


def test_grey_pictures_have_equal_channels_and_their_luma():
    pixels = pictures(2, 3, 8, 8)
    views = augment.views(Augmentation(grey=1, jitter=0, crop=(1, 1), aspect=(1, 1), flip=0), pixels, keys(2), 0)
    luma = torch.einsum("bchw,c->bhw", pixels / 255, torch.tensor([0.299, 0.587, 0.114]))
    torch.testing.assert_close(views, luma[:, None].expand_as(views), atol=1e-5, rtol=0)


def test_solarise_inverts_bright_pixels_only():
    pixels = torch.tensor([[[[0, 100, 127, 128, 200, 255]]]], dtype=torch.uint8)
    views = augment.apply(pixels, replace(augmentation.identity(1, 1, 6), solarise=torch.tensor([True])))
    torch.testing.assert_close(views.flatten() * 255, torch.tensor([0.0, 100, 127, 127, 55, 0]), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": (0.5, 0.2)}, r"crop: \[0.5, 0.2\] is no range"),
        ({"crop": (0.5, 1.5)}, "crop: 1.5 of the area is more than the whole"),
        ({"sigma": (0, 1)}, r"sigma: \[0.0, 1.0\] is no range"),
    ],
)
def test_impossible_ranges_are_one_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**options)


def test_drawn_parameters_keep_to_their_ranges_and_rates():
    many = keys(20_000)
    options = Augmentation(crop=(0.2, 0.8), blur=0.3, solarise=0.1)
    drawn = augmentation.draw(options, many, 64, 64, 0)
    assert ((drawn.top >= 0) & (drawn.top + drawn.height <= 64)).all()
    assert ((drawn.left >= 0) & (drawn.left + drawn.width <= 64)).all()
    area = drawn.height * drawn.width / 64**2
    assert area.min() > 0.18 and area.max() < 0.83
    assert abs(float(area.mean()) - 0.5) < 0.01
    ratio = (drawn.width / drawn.height).log()
    assert ratio.abs().max() < 0.35 and abs(float(ratio.mean())) < 0.01
    for rate, hits in (
        (0.5, drawn.flip),
        (0.3, drawn.sigma > 0),
        (0.1, drawn.solarise),
        (0.2, drawn.saturation == 0),
        (0.8, drawn.brightness != 1),
    ):
        assert abs(float(hits.float().mean()) - rate) < 4 * (rate * (1 - rate) / 20_000) ** 0.5
    assert drawn.brightness.min() >= 0.6 and drawn.brightness.max() <= 1.4
    assert drawn.hue.abs().max() <= 0.1
