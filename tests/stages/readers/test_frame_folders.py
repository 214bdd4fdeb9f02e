"""Folders of frames: order by number, clips, classes, groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stages.modalities.image import pictures
from stages.readers import Record, Reject, frame_folders


def read(source: Any, **options: Any) -> list[Record | Reject]:
    chosen = frame_folders.Options(**options)
    return [item for part in frame_folders.plan(str(source), chosen) for item in frame_folders.read(part, chosen)]


def write(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"frame{number}.png").write_bytes(b"%d" % number)


def numbers(record: Record) -> list[int]:
    return [int(frame) for frame in pictures.frames(record.payload["video"])]


def test_frames_follow_their_numbers_and_clips_each_other(tmp_path: Path) -> None:
    write(tmp_path / "walk/one", 13)
    write(tmp_path / "run/two", 6)
    run, first, second = read(tmp_path, frames=6)
    assert numbers(run) == numbers(first) == list(range(6)) and numbers(second) == list(range(6, 12))
    assert [record.label for record in (run, first, second)] == ["run", "walk", "walk"]
    assert first.group == second.group == f"{tmp_path}/walk/one"
    assert second.source == f"{tmp_path}/walk/one/frame6.png"


def test_frames_and_clips_may_be_fewer(tmp_path: Path) -> None:
    write(tmp_path / "one", 13)
    first, second = read(tmp_path, frames=3, every=2, clips=2)
    assert numbers(first) == [0, 2, 4] and numbers(second) == [6, 8, 10]
    assert first.label is None


def test_faults_are_rejects(tmp_path: Path) -> None:
    write(tmp_path / "long", 4)
    write(tmp_path / "short", 1)
    (tmp_path / "long/frame1.png").write_bytes(b"")
    empty, good, short = read(tmp_path, frames=2)
    assert empty == Reject(f"{tmp_path}/long/frame1.png", "empty file")
    assert numbers(good) == [2, 3]
    assert short == Reject(f"{tmp_path}/short", "video is shorter than a clip (1 frames, not 2)")


def test_a_clip_that_leaps_over_missing_frames_is_rejected(tmp_path: Path) -> None:
    write(tmp_path / "one", 14)
    (tmp_path / "one/frame5.png").unlink()
    first, leaps, last = read(tmp_path, frames=4)
    assert numbers(first) == [0, 1, 2, 3] and numbers(last) == [9, 10, 11, 12]
    assert leaps == Reject(
        f"{tmp_path}/one/frame4.png", f"frames are missing in the clip (after {tmp_path}/one/frame4.png)"
    )
    assert [type(item) for item in read(tmp_path, frames=2, every=2)] == [Record, Reject, Record]


def test_names_that_count_time_and_not_frames_have_no_gaps(tmp_path: Path) -> None:
    for moment in (0, 33, 67, 101, 133):
        (tmp_path / f"{moment:04d}.png").write_bytes(b"%d" % moment)
    assert [numbers(record) for record in read(tmp_path, frames=2)] == [[0, 33], [67, 101]]


def test_a_video_is_never_cut_between_partitions(tmp_path: Path, monkeypatch: Any) -> None:
    for name in "abcde":
        write(tmp_path / name, 7)
    monkeypatch.setattr(frame_folders, "PARTITION_BYTES", 10)
    plan = frame_folders.plan(str(tmp_path), frame_folders.Options())
    assert [len(part.files) for part in plan] == [7] * 5
