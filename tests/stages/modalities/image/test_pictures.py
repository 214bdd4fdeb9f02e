"""Decoding: every kind of picture to upright uint8 pixels of one size, and a reason for what is none."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stages.modalities.image import pictures
from stages.modalities.image.pictures import PictureError, decode


def encoded(picture: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format, **options)
    return stream.getvalue()


def halves(width: int = 60, height: int = 40, left: Any = "red", right: Any = "blue") -> Image.Image:
    picture = Image.new("RGB", (width, height), left)
    picture.paste(right, (width // 2, 0, width, height))
    return picture


def corner(pixels: np.ndarray) -> tuple[int, ...]:
    return tuple(int(value) for value in pixels[:, 0, 0])


def test_pixels_are_channels_first_and_of_the_size_asked_for() -> None:
    pixels = decode(encoded(halves()), 20, 30, 3)
    assert pixels.shape == (3, 20, 30) and pixels.dtype == np.uint8
    assert corner(pixels) == (255, 0, 0) and tuple(pixels[:, -1, -1]) == (0, 0, 255)


def test_the_centre_is_cut_out_after_the_shorter_side_fits() -> None:
    picture = Image.new("L", (30, 10), 0)
    picture.paste(255, (10, 0, 20, 10))
    assert decode(encoded(picture), 10, 10, 1).min() == 255
    assert decode(encoded(picture.transpose(Image.Transpose.ROTATE_90)), 10, 10, 1).min() == 255


def test_a_picture_of_the_right_size_is_unchanged() -> None:
    values = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    assert (decode(pictures.encoded(values), 8, 8, 1)[0] == values).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_follows_exif(orientation: int) -> None:
    upright = Image.new("RGB", (40, 20), "black")
    upright.paste((255, 0, 0), (0, 0, 20, 10))  # the upper left is red
    stored = upright
    undo = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    for turn in undo.get(orientation, []):
        stored = stored.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = decode(encoded(stored, "JPEG", exif=exif, quality=95, subsampling=0), 20, 40, 3)
    assert np.abs(pixels.astype(int) - decode(encoded(upright), 20, 40, 3)).mean() < 4


def test_transparency_lies_on_white() -> None:
    for mode, colour in (("RGBA", (0, 0, 0, 0)), ("LA", (0, 0))):
        assert corner(decode(encoded(Image.new(mode, (9, 9), colour)), 4, 4, 3)) == (255, 255, 255)
    palette = Image.new("P", (9, 9), 1)
    palette.putpalette([0, 0, 0, 0, 200, 0])
    assert corner(decode(encoded(palette), 4, 4, 3)) == (0, 200, 0)
    assert corner(decode(encoded(palette, transparency=1), 4, 4, 3)) == (255, 255, 255)
    assert corner(decode(encoded(Image.new("L", (9, 9), 7), transparency=7), 4, 4, 3)) == (255, 255, 255)


def test_16_bits_keep_their_upper_byte() -> None:
    deep = Image.fromarray(np.full((40, 40), 200 * 256 + 99, np.uint16))
    for format in ("PNG", "TIFF"):
        assert corner(decode(encoded(deep, format), 8, 8, 1)) == (200,)


def test_cmyk_grey_and_bilevel_become_the_channels_asked_for() -> None:
    cmyk = encoded(Image.new("CMYK", (64, 64), (0, 255, 255, 0)), "JPEG")
    red = corner(decode(cmyk, 8, 8, 3))
    assert red[0] > 200 and max(red[1:]) < 60
    assert decode(cmyk, 8, 8, 1).shape == (1, 8, 8)
    assert corner(decode(encoded(Image.new("L", (9, 9), 77)), 4, 4, 3)) == (77, 77, 77)
    assert corner(decode(encoded(Image.new("1", (9, 9), 1)), 4, 4, 1)) == (255,)


def test_of_an_animation_the_first_frame_counts() -> None:
    first, second = Image.new("RGB", (9, 9), "red"), Image.new("RGB", (9, 9), "blue")
    assert corner(decode(encoded(first, "GIF", save_all=True, append_images=[second]), 4, 4, 3)) == (255, 0, 0)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_a_truncated_picture_is_refused_even_at_a_small_scale(format: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8))
    data = encoded(noise, format)
    assert pictures.check(data, 2**20) is None
    assert pictures.check(data[: len(data) * 2 // 3], 2**20) is not None


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises `width` x `height` pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [5_000, 50_000])
def test_a_decompression_bomb_is_refused_by_its_header(side: int) -> None:
    reason = pictures.check(bomb(side, side), 2**20)
    assert reason is not None and reason.startswith("picture has more than max_pixels pixels")


@pytest.mark.parametrize("data", [b"", b"hello, this is text\n" * 20, b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\x00" * 99])
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(PictureError, match="not a picture"):
        decode(data, 8, 8, 3)


def test_a_heic_is_named() -> None:
    data = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99)
    assert pictures.check(data, 2**20) == "HEIC pictures are not read: convert them to JPEG"


@pytest.mark.parametrize(("width", "height"), [(1, 5000), (5000, 1), (1, 1)])
def test_any_aspect_fills_the_row(width: int, height: int) -> None:
    assert decode(encoded(halves(width, height), "PNG"), 16, 24, 3).shape == (3, 16, 24)


@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0"]),
)
def test_no_bytes_at_all_raise_anything_but_a_reason(data: bytes, magic: bytes) -> None:
    reason = pictures.check(magic + data, 10_000)
    assert reason is None or "\n" not in reason


def test_a_huge_jpeg_is_decoded_small() -> None:
    data = encoded(halves(4000, 3000), "JPEG")
    assert max(pictures.opened(data, 32, 3).size) <= 500
    pixels = decode(data, 32, 32, 3)
    assert corner(pixels)[0] > 250 and pixels[2, 0, -1] > 250


@given(st.lists(st.binary(max_size=1500), min_size=1, max_size=5))
def test_a_bundle_gives_its_frames_back(frames: list[bytes]) -> None:
    import tarfile

    video = pictures.bundle(frames)
    assert pictures.frames(video) == frames
    with tarfile.open(fileobj=io.BytesIO(video)) as tar:
        assert len(tar.getmembers()) == len(frames)


@pytest.mark.parametrize("video", [b"", b"no tar at all" * 99, pictures.bundle([b"x" * 2000])[:1024]])
def test_a_damaged_bundle_is_refused(video: bytes) -> None:
    with pytest.raises(PictureError):
        pictures.frames(video)
