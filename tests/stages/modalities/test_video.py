"""Clips of frames to memory-mapped rows; moving digits, whose held-out digits are in no training sequence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from ssl_models.data.encoding import Encoding
from ssl_models.data.shards import Shards
from stages import dedup, ingest, shard, tokenize
from stages.files import tables
from stages.grouping.clusters import gather
from stages.modalities.image import pictures
from stages.modalities.video import dedup as video_dedup
from stages.modalities.video import ingest as video_ingest
from stages.modalities.video import tokenize as video_tokenize
from stages.params import UserError
from stages.readers import Pictures, Record, moving_digits
from stages.readers.digits import SIDE, handwritten

STAGES = (ingest.run, dedup.run, tokenize.run, shard.run)


def corpus(root: Path, **sections: Any) -> None:
    entry = {
        "modality": "video",
        "ingest": {"reader": "moving_digits", "source": "raw", "sequences": 1, "frames": 4, "pool": 15},
        "dedup": {},
        "tokenize": {"size": 20, "channels": 1, "frames": 4},
        "shard": {"validation": 0.1, "probe": 0.4},
        **sections,
    }
    (root / "params.yaml").write_text(json.dumps({"corpora": {"tiny": entry}}))


def rows(root: Path, stage: str) -> list[dict[str, Any]]:
    files = tables.partitions(root / "data" / stage / "tiny/rows")
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def clip(seed: int, frames: int = 6, side: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, side, side), np.uint8)


def bundle(frames: np.ndarray) -> bytes:
    return pictures.bundle([pictures.encoded(frame) for frame in frames])


def test_moving_digits_become_rows_of_frames(tmp_path: Path, run_stages: Callable[..., None]) -> None:
    corpus(tmp_path)
    run_stages(tmp_path, *STAGES)
    encoding = Encoding.load(tmp_path / "data/shard/tiny/shards/encoding")
    assert (encoding.modality, encoding.frames, encoding.channels, encoding.height) == ("video", 4, 1, 20)
    shards = Shards.open(tmp_path / "data/shard/tiny/shards")
    assert shards.split("train").rows([0, 1])["pixels"].shape == (2, 4, 1, 20, 20)
    assert shards.manifest.labels == tuple("0123456789")
    first = rows(tmp_path, "ingest")[0]
    encoded = {row["id"]: row["pixels"] for row in rows(tmp_path, "tokenize")}
    true = np.stack([pictures.decode(frame, 20, 20, 1) for frame in pictures.frames(first["video"])])
    assert encoded[first["id"]] == true.tobytes()


def test_every_handwritten_digit_is_in_one_pool_of_its_class() -> None:
    _, labels = handwritten()
    pools = moving_digits.dealt(labels, 6, seed=0)
    assert sorted(number for pool in pools for number in pool) == list(range(1797))
    assert all(len(set(labels[pool])) == 1 and len(pool) >= 6 for pool in pools)


def test_digits_of_a_group_are_in_no_other_group() -> None:
    """Found again in the pixels: the first frame of each sequence shows digits of its own pool only."""
    pixels, labels = handwritten()
    known = {digit.tobytes(): number for number, digit in enumerate(pixels)}
    options = moving_digits.Options(frames=2, sequences=2, side=64)
    pools = moving_digits.dealt(labels, options.pool, options.seed)
    found = [record for part in moving_digits.plan("", options) for record in moving_digits.read(part, options)]
    assert len(found) == 2 * len(pools)
    seen = 0
    for record in found[::10]:
        pool = pools[int(record.group.rpartition("/")[2])]
        assert {str(labels[digit]) for digit in pool} == {record.label}
        frame = pictures.decode(pictures.frames(record.payload["video"])[0], 64, 64, 1)[0]
        windows = np.lib.stride_tricks.sliding_window_view(frame, (SIDE, SIDE)).reshape(-1, SIDE * SIDE)
        shown = {known[window.tobytes()] for window in windows if window.tobytes() in known}
        assert shown <= set(pool)
        seen += len(shown)
    assert seen > 1.5 * len(found[::10])  # two in each, but where they overlap


def test_digits_stay_inside_and_move_by_their_speed() -> None:
    options = moving_digits.Options(frames=60, side=24, speed=(2.0, 2.0))
    block = np.full((1, SIDE, SIDE), 255, np.uint8)
    frames = moving_digits.sequence(block, options, np.random.default_rng(3))
    assert (frames.reshape(60, -1) == 255).sum(axis=1).tolist() == [SIDE * SIDE] * 60
    corners = np.array([np.argwhere(frame)[0] for frame in frames])
    steps = np.abs(np.diff(corners, axis=0)).max(axis=1)
    assert steps.max() <= 3 and steps.mean() > 0.8
    assert len({tuple(corner) for corner in corners}) > 10


def test_no_group_is_on_two_sides(tmp_path: Path, run_stages: Callable[..., None]) -> None:
    corpus(tmp_path, ingest={"reader": "moving_digits", "source": "raw", "sequences": 2, "frames": 2})
    run_stages(tmp_path, *STAGES[:1])
    assert len({row["group"] for row in rows(tmp_path, "ingest")}) * 2 == len(rows(tmp_path, "ingest"))


def test_a_clip_is_near_only_if_every_sampled_frame_is(tmp_path: Path) -> None:
    from PIL import Image

    def smooth(seed: int) -> Image.Image:
        values = np.random.default_rng(seed).integers(0, 256, (8, 8), np.uint8)
        return Image.fromarray(values).resize((96, 96), Image.Resampling.BICUBIC)

    def frames(seeds: list[int], side: int = 96) -> bytes:
        return pictures.bundle([pictures.encoded(np.asarray(smooth(seed).resize((side, side)))) for seed in seeds])

    videos = [frames([1, 2, 3, 4]), frames([1, 2, 3, 4], 48), frames([1, 2, 3, 5]), frames([1, 2, 3, 4])]
    schema = tables.rows_schema(video_ingest.FIELDS)
    found = [{"id": tables.content_id({"video": video}), "video": video} for video in videos]
    path = tmp_path / "part-00000.parquet"
    import pyarrow as pa

    tables.write_parquet(path, pa.Table.from_pylist(found, schema=schema))
    options = video_dedup.Options(frames=4)
    for labelled, kept, exact in (([], [0, 0, 2, 0], [0, 2, 3]), ([1, 3], [1, 1, 2, 1], [1, 2])):
        sketches = gather([video_dedup.sketch(path, options)], np.isin(np.arange(4), labelled))
        clusters = video_dedup.cluster(sketches, options)
        assert clusters.kept.tolist() == kept
        assert np.flatnonzero(clusters.exact).tolist() == exact


def test_frames_are_the_first_or_every_second() -> None:
    video = clip(0)
    for every, chosen in ((1, video[:3]), (2, video[::2])):
        options = video_tokenize.Options(size=12, channels=1, frames=3, every=every)
        assert (video_tokenize.decoded(bundle(video), options)[:, 0] == chosen).all()
    assert video_tokenize.decoded(bundle(video), video_tokenize.Options(size=12, frames=7)) is None


def test_frames_kept_as_jpeg_are_refused(tmp_path: Path, run_stages: Callable[..., None]) -> None:
    corpus(tmp_path, tokenize={"size": 20, "channels": 1, "frames": 4, "jpeg": 90})
    with pytest.raises(UserError, match=r"corpora\.tiny\.tokenize: jpeg: only single pictures can be kept as JPEG"):
        run_stages(tmp_path, tokenize.run)


def frame_folders(root: Path, lengths: dict[str, int]) -> None:
    for number, (name, length) in enumerate(lengths.items()):
        folder = root / "raw" / name
        folder.mkdir(parents=True)
        for frame, pixels in enumerate(clip(number, length)):
            (folder / f"frame{frame}.png").write_bytes(pictures.encoded(pixels))


def test_clips_too_short_for_a_row_are_left_out_and_counted(tmp_path: Path, run_stages: Callable[..., None]) -> None:
    frame_folders(tmp_path, {f"v{number}": 8 for number in range(8)})
    reader = {"reader": "frame_folders", "source": "raw", "frames": 4}
    corpus(tmp_path, ingest=reader, tokenize={"size": 12, "channels": 1, "frames": 4, "every": 1})
    run_stages(tmp_path, *STAGES)
    assert len(rows(tmp_path, "tokenize")) == 16
    corpus(tmp_path, ingest=reader, tokenize={"size": 12, "channels": 1, "frames": 5})
    with pytest.raises(UserError, match="ask for fewer frames"):
        run_stages(tmp_path, tokenize.run)


@pytest.mark.parametrize(
    ("video", "reason"),
    [
        (b"", "video has no frame"),
        (b"not a bundle of anything" * 100, "not a bundle of frames"),
        (pictures.bundle([pictures.encoded(clip(0)[0]), b"no picture"]), "a frame cannot be used (frame 2: not a"),
    ],
)
def test_a_bundle_with_a_fault_is_rejected(video: bytes, reason: str) -> None:
    found = video_ingest.check(Record({"video": video}, None, "x"), Pictures())
    assert found is not None and found.startswith(reason)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("modality", "reader", "encoded"),
    [
        ("video", {"reader": "moving_digits", "frames": 2, "sequences": 3}, {"size": 20, "frames": 2, "channels": 1}),
        ("image_text", {"reader": "captioned_digits", "pictures": 2}, {"size": 20, "caption": {"vocabulary": 400}}),
    ],
)
def test_one_worker_and_two_write_the_same_bytes(
    tmp_path: Path, run_stages: Callable[..., None], modality: str, reader: dict[str, Any], encoded: dict[str, Any]
) -> None:
    written = []
    for workers in (1, 2):
        root = tmp_path / str(workers)
        root.mkdir()
        corpus(root, modality=modality, ingest={**reader, "source": "raw"}, tokenize=encoded)
        run_stages(root, *STAGES, workers=workers)
        data = [path for path in sorted((root / "data").rglob("*")) if path.is_file()]
        written.append({str(path.relative_to(root)): path.read_bytes() for path in data})
    assert written[0] == written[1]
