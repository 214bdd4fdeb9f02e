"""Encoded pictures (JPEG, PNG, ...) become uint8 pixels of one size. What every stage of pictures and video shares.

The size in the header is looked at before a pixel is decoded, so that a decompression bomb costs nothing, and a JPEG is
decoded at the smallest scale that the wanted size allows (libjpeg's draft mode): a 12-megapixel photograph costs as
little as its entropy coding. Orientation follows EXIF; of an animation the first frame counts; transparency lies on
white; 16-bit grey keeps its upper byte; embedded colour profiles are not applied.
"""

from __future__ import annotations

import functools
import io
import tarfile
import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from stages.readers import MOST_PIXELS

Pixels = NDArray[np.uint8]
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")
"""What Pillow may open: no format that runs another program or holds other files."""
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp"),
    *(".ppm", ".pgm", ".pbm", ".jp2", ".avif"),
    *(".heic", ".heif", ".jxl", ".psd", ".tga", ".svg"),
)
"""Files that are pictures. Those of the last line are not read: listed, each is rejected, and so missed by nobody."""
HEIC = (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmif1", b"ftypmsf1")
"""How HEIC begins, after 4 bytes."""
DRAFT = 2
"""A JPEG is decoded at no less than so many times the wanted size: the rest of the way is antialiased."""
STRIP = 2**20
"""Pixels of 16 bits that are made 8 bits at once."""
PROBE_SIDE = 8
"""Side of the picture decoded only to learn whether it can be."""
_ORIENTATION = 0x0112
_SIZE = slice(124, 136)
"""Of a tar's header: the bytes of the entry, in octal."""
_TURNS = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT,),
    3: (Image.Transpose.ROTATE_180,),
    4: (Image.Transpose.FLIP_TOP_BOTTOM,),
    5: (Image.Transpose.TRANSPOSE,),
    6: (Image.Transpose.ROTATE_270,),
    7: (Image.Transpose.TRANSVERSE,),
    8: (Image.Transpose.ROTATE_90,),
}


class PictureError(Exception):
    """The bytes are no picture that can be used. The message is a reason to reject them."""


def check(data: bytes, max_pixels: int) -> str | None:
    """The reason why `data` cannot be decoded in full to at most `max_pixels` pixels, or None."""
    try:
        decode(data, PROBE_SIDE, PROBE_SIDE, 3, max_pixels)
    except PictureError as error:
        return str(error)
    return None


def decode(data: bytes, height: int, width: int, channels: int, max_pixels: int = MOST_PIXELS) -> Pixels:
    """Pixels `[channels, height, width]`: scaled until both sides cover the wanted ones, the centre cut out.

    Scaling is bilinear and antialiased, in one step with the cut. `channels` is 1 (luma of ITU-R 601) or 3 (RGB).
    PictureError where `data` cannot be decoded in full.
    """
    picture = opened(data, min(height, width), channels, max_pixels)
    scale = min(picture.width / width, picture.height / height)
    left, top = (picture.width - scale * width) / 2, (picture.height - scale * height) / 2
    box = (left, top, left + scale * width, top + scale * height)
    return array(picture.resize((width, height), Image.Resampling.BILINEAR, box=box, reducing_gap=DRAFT))


def array(picture: Image.Image) -> Pixels:
    """Pixels `[channels, height, width]` of a picture of mode L or RGB."""
    values = np.asarray(picture)
    return np.ascontiguousarray(values[None] if values.ndim == 2 else values.transpose(2, 0, 1))


def opened(data: bytes, side: int, channels: int, max_pixels: int = MOST_PIXELS) -> Image.Image:
    """The upright picture, of mode L or RGB, both sides of at least `DRAFT * side` pixels or of their own length."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata; what matters raises
            return _opened(data, side, channels, max_pixels)
    except PictureError:
        raise
    except Image.DecompressionBombError:
        raise PictureError(f"picture has more than max_pixels pixels ({max_pixels})") from None
    except UnidentifiedImageError:
        heic = data[4:12] in HEIC
        reason = "HEIC pictures are not read: convert them to JPEG" if heic else "not a picture of a known format"
        raise PictureError(reason) from None
    except MemoryError:
        raise PictureError("picture needs more memory than there is") from None
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error, ...
        detail = (str(error) or type(error).__name__).splitlines()[0]
        raise PictureError(f"truncated or damaged picture ({detail})") from None


def _opened(data: bytes, side: int, channels: int, max_pixels: int) -> Image.Image:
    picture: Image.Image = Image.open(io.BytesIO(data), formats=_formats())
    if picture.width * picture.height > max_pixels:
        size = f"{picture.width}x{picture.height}, not {max_pixels}"
        raise PictureError(f"picture has more than max_pixels pixels ({size})")
    if picture.mode == "F":
        raise PictureError("pixels are floating-point numbers of unknown range")
    picture.draft(None, (DRAFT * side, DRAFT * side))
    orientation = _orientation(picture)
    picture.load()
    factor = max(1, min(picture.width, picture.height) // (DRAFT * side))
    picture = _coloured(picture, "L" if channels == 1 else "RGB", factor)
    for turn in _TURNS.get(orientation, ()):
        picture = picture.transpose(turn)
    return picture


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of FORMATS that this build of Pillow has; JPEG brings MPO with it."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _orientation(picture: Image.Image) -> int:
    """EXIF's orientation, 1 (upright) where there is none that can be read."""
    try:
        found = picture.getexif().get(_ORIENTATION, 1)
    except Exception:  # metadata is damaged in as many ways as there are cameras
        return 1
    return found if isinstance(found, int) else 1


def _coloured(picture: Image.Image, mode: str, factor: int) -> Image.Image:
    """`picture`, made `factor` times smaller by averaging, in `mode`."""
    if picture.mode.startswith("I"):  # 16 bits a pixel; Pillow calls some of them I
        values = np.empty((picture.height, picture.width), np.uint8)
        step = max(1, STRIP // picture.width)
        for top in range(0, picture.height, step):  # by strips: eight bytes a pixel of a whole one would be too many
            strip = np.asarray(picture.crop((0, top, picture.width, min(top + step, picture.height))))
            values[top : top + step] = (strip.astype(np.int64) >> 8).clip(0, 255)
        picture = Image.fromarray(values)
    transparent = picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in picture.info
    if picture.mode in ("1", "P", "PA", "La", "RGBa") or (transparent and picture.mode in ("L", "RGB")):
        picture = picture.convert("RGBA" if transparent else "RGB")
    if factor > 1:
        picture = picture.reduce(factor)
    if transparent:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    if mode == "L" and picture.mode not in ("L", "RGB", "YCbCr"):
        picture = picture.convert("RGB")  # CMYK and others have no luma of their own
    return picture.convert(mode)


def encoded(pixels: Pixels) -> bytes:
    """Pixels `[height, width]` or `[height, width, 3]` as PNG."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def as_jpeg(pixels: Pixels, quality: int) -> bytes:
    """Pixels `[channels, height, width]` as JPEG, its colour at half the resolution."""
    stream = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


# ---- frames -----------------------------------------------------------------------------------------------------


def bundle(frames: Sequence[bytes]) -> bytes:
    """The payload of a video: a tar of encoded pictures, in order."""
    blocks = []
    for number, frame in enumerate(frames):
        entry = tarfile.TarInfo(f"{number:05d}")
        entry.size = len(frame)
        blocks += [entry.tobuf(tarfile.USTAR_FORMAT), frame, bytes(-len(frame) % tarfile.BLOCKSIZE)]
    return b"".join([*blocks, bytes(2 * tarfile.BLOCKSIZE)])


def frames(video: bytes) -> list[bytes]:
    """The encoded pictures of a `bundle`; PictureError where `video` is none, or is cut short."""
    found, at = [], 0
    while header := video[at : at + tarfile.BLOCKSIZE].rstrip(b"\0"):
        try:
            size = int(header[_SIZE].rstrip(b" \0"), 8)
        except ValueError:
            raise PictureError("not a bundle of frames") from None
        at += tarfile.BLOCKSIZE
        if size < 0 or at + size > len(video):
            raise PictureError("truncated bundle of frames")
        found.append(video[at : at + size])
        at += size + -size % tarfile.BLOCKSIZE
    if not found:
        raise PictureError("video has no frame")
    return found
