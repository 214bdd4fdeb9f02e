"""Video files through PyAV: clips, frame rates, sizes, and files that are none or are cut short."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.modalities.image import pictures
from stages.readers import Record, Reject, video

av = pytest.importorskip("av")


def write(path: Path, frames: int = 40, width: int = 64, height: int = 48, rate: int = 10) -> None:
    """A film whose frame `n` has the grey level 5 * n."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"movflags": "faststart"} if path.suffix == ".mp4" else {}) as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt, stream.time_base = width, height, "yuv420p", Fraction(1, rate)
        stream.bit_rate = 4_000_000
        for number in range(frames):
            pixels = np.full((height, width, 3), 5 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def read(source: Any, **options: Any) -> list[Record | Reject]:
    chosen = video.Options(**options)
    return [item for part in video.plan(str(source), chosen) for item in video.read(part, chosen)]


def greys(record: Record) -> list[int]:
    """The number of each frame, by its grey level."""
    frames = pictures.frames(record.payload["video"])
    return [round(pictures.decode(frame, 8, 8, 1).mean() / 5) for frame in frames]


@pytest.mark.parametrize("suffix", ["mp4", "avi", "mkv"])
def test_a_film_becomes_clips_of_its_frames_in_order(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"walk/film.{suffix}"
    write(file)
    found = read(tmp_path, frames=16)
    assert [greys(record) for record in found] == [list(range(16)), list(range(16, 32))]
    assert {(record.label, record.group) for record in found} == {("walk", str(file))}
    assert [record.source for record in found] == [f"{file}:0.000s", f"{file}:1.600s"]


def test_frames_are_taken_at_the_rate_and_as_many_clips_as_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "film.mp4")
    (first, second) = read(tmp_path, frames=4, rate=5, clips=2)
    assert greys(first) == [0, 2, 4, 6] and greys(second) == [8, 10, 12, 14]
    assert first.label is None
    assert greys(read(tmp_path, frames=4, rate=1000)[0]) == [0, 1, 2, 3]


def test_frames_are_kept_small(tmp_path: Path) -> None:
    write(tmp_path / "film.mp4", frames=4)
    (record,) = read(tmp_path, frames=4, side=24)
    assert pictures.opened(pictures.frames(record.payload["video"])[0], 24, 3).size == (32, 24)


def test_what_is_no_film_or_too_short_is_rejected(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", frames=5)
    (tmp_path / "b.mp4").write_bytes(b"no film at all" * 100)
    (tmp_path / "c.mp4").write_bytes(b"")
    write(tmp_path / "d.avi", frames=40)
    (large,) = read(tmp_path / "d.avi", max_pixels=64 * 48 - 1)
    assert large.reason.startswith("not a video that can be decoded, or damaged (frames have more than max_pixels")
    short, none, empty, *_ = read(tmp_path, frames=16)
    assert short.reason == "video is shorter than a clip (5 frames, not 16)"
    assert none.reason.startswith("not a video that can be decoded")
    assert empty.reason == "empty file"


def test_of_a_truncated_film_the_whole_clips_are_kept(tmp_path: Path) -> None:
    write(tmp_path / "film.mp4")
    content = (tmp_path / "film.mp4").read_bytes()
    (tmp_path / "film.mp4").write_bytes(content[: int(len(content) * 0.7)])
    *clips, reject = read(tmp_path, frames=8)
    assert clips and all(isinstance(clip, Record) for clip in clips)
    assert isinstance(reject, Reject) and reject.reason.startswith("not a video that can be decoded, or damaged")
