"""Video files, decoded by PyAV (FFmpeg) into clips of frames: MP4, WebM, AVI, animated GIF and whatever else it reads.

A file is streamed: of a film of any length, one clip is in memory. Its clips follow each other, at the frame rate of
the file or at `rate`, until `clips` of them are made; what is left at its end is no clip. Frames are kept as PNG,
without loss, their shorter side made `side` pixels at most. All clips of a file are one group; the folder below the
source that it lies in is its class.

FFmpeg knows formats that are lists of other files and addresses (HLS, DASH, concat), which it would open: only formats
that hold their own video are read. It decodes in one thread, so that damage looks alike on every machine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from PIL import Image
from pydantic import Field

from stages import readers
from stages.files import sources, streams
from stages.modalities.image import pictures
from stages.params import UserError
from stages.readers import Partition, Record, Reject

MODALITIES = frozenset({"video"})
SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv", ".gif")


FORMATS = "mov,matroska,webm,avi,mpeg,mpegts,mpegvideo,asf,flv,ogg,gif"
"""Of SUFFIXES, as FFmpeg names their demuxers."""
_SLACK = 2
"""Frames that a sound file may lack of the number in its header, cut away by an edit list."""
MOST_CLIPS = 2**40
"""Of a file, for what a damaged header says."""
_LITTLE = 1e-6
"""Seconds by which a frame may come before its time."""


class Options(readers.Pictures):
    """How videos are cut into clips."""

    frames: int = Field(default=16, ge=2, le=1024, description="in a clip")
    rate: float | None = Field(default=None, gt=0, le=1000, description="frames a second; default: those of the file")
    clips: int | None = Field(default=None, ge=1, description="of a file, at most: its first ones")
    side: int = Field(default=256, ge=8, le=4096, description="of a kept frame, the shorter one, at most")
    class_folders: bool = Field(default=True, description="the class is the folder below the source")
    files: str | None = Field(default=None, description="glob of the files to take from the folder, relative to it")


def plan(source: str, options: Options) -> list[Partition]:
    """Whole files, small ones grouped."""
    files = sources.listing(source, SUFFIXES, options.files)
    root = sources.root(source)
    return [dataclasses.replace(part, root=root) for part in sources.partitions(files)]


def read(partition: Partition, options: Options) -> Iterator[Record | Reject]:
    """One Record for every clip; a Reject for a file without one, and for what follows damage."""
    try:
        import av
    except ImportError:
        raise UserError("the reader `video` needs PyAV: pip install av") from None

    for file in partition.files:
        folders = PurePosixPath(file.path.removeprefix(partition.root).lstrip("/")).parts[:-1]
        label = folders[0] if options.class_folders and folders else None
        clips, held, start = 0, list[bytes](), 0.0
        told = _Told()
        if file.size == 0:
            yield Reject(file.path, "empty file")
            continue
        with streams.opened(file.path) as stream:
            try:
                for moment, frame in _frames(stream, av, options, told):
                    start = start if held else moment
                    held.append(frame)
                    if len(held) == options.frames:
                        yield Record({"video": pictures.bundle(held)}, label, f"{file.path}:{start:.3f}s", file.path)
                        clips, held = clips + 1, []
                        if clips == options.clips:
                            break
            except (av.FFmpegError, pictures.PictureError, OSError, ValueError, ArithmeticError, MemoryError) as error:
                detail = (str(error) or type(error).__name__).splitlines()[0]
                rows = max(1, told.clips(options) - clips)
                yield Reject(file.path, f"not a video that can be decoded, or damaged ({detail})", rows=rows)
                continue
        if not clips:
            yield Reject(file.path, f"video is shorter than a clip ({len(held)} frames, not {options.frames})")


@dataclasses.dataclass
class _Told:
    """What a file's header says of its length."""

    frames: int = 0
    seconds: float = 0.0

    def clips(self, options: Options) -> int:
        """How many clips that makes."""
        frames = self.frames if options.rate is None else min(int(self.seconds * options.rate), self.frames)
        count = min(frames // options.frames, MOST_CLIPS)
        return count if options.clips is None else min(count, options.clips)


def _frames(stream: streams.Reading, av: Any, options: Options, told: _Told) -> Iterator[tuple[float, bytes]]:
    """(seconds from the beginning, PNG) of the frames, at most `rate` a second."""
    limits = {"format_whitelist": FORMATS, "max_pixels": str(options.max_pixels), "threads": "1"}
    with av.open(stream, options=limits, metadata_errors="replace") as container:
        if not container.streams.video:
            raise pictures.PictureError("it has no video stream")
        video = container.streams.video[0]
        told.frames = video.frames
        told.seconds = float(video.duration * video.time_base) if video.duration and video.time_base else 0.0
        if video.codec_context is None:
            raise pictures.PictureError("its codec is not known")
        if not 0 < video.codec_context.width * video.codec_context.height <= options.max_pixels:
            raise pictures.PictureError(f"frames have more than max_pixels pixels ({options.max_pixels}), or none")
        video.codec_context.options = {"max_pixels": str(options.max_pixels)}
        video.codec_context.thread_count = 1
        seen, begun, due = 0, None, 0.0
        for frame in container.decode(video):
            if frame.width * frame.height > options.max_pixels:
                raise pictures.PictureError(f"frames have more than max_pixels pixels ({options.max_pixels})")
            moment = frame.time if frame.time is not None else seen / float(video.average_rate or 1)
            begun = moment if begun is None else begun
            seen += 1
            if options.rate is None or moment - begun >= due - _LITTLE:
                due += 0 if options.rate is None else 1 / options.rate
                yield moment - begun, _png(frame, options.side)
        if seen + _SLACK < video.frames:
            raise pictures.PictureError(f"it ends after {seen} of {video.frames} frames")


def _png(frame: Any, side: int) -> bytes:
    """A frame upright, its shorter side at most `side` pixels, as PNG."""
    picture = frame.to_image()
    if frame.rotation:
        picture = picture.rotate(frame.rotation, expand=True)
    scale = side / min(picture.size)
    if scale < 1:
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=pictures.DRAFT)
    return pictures.encoded(np.asarray(picture))
