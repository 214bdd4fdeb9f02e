"""Pairs of picture and caption to rows; captioned digits, whose held-out compositions are in no training pair."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer

from ssl_models.data.encoding import Encoding
from ssl_models.data.shards import Shards
from stages import dedup, ingest, shard, tokenize
from stages.files import tables
from stages.grouping.clusters import gather
from stages.modalities.image import pictures
from stages.modalities.image_text import dedup as pair_dedup
from stages.modalities.image_text import ingest as pair_ingest
from stages.modalities.image_text import shard as pair_shard
from stages.modalities.image_text import tokenize as pair_tokenize
from stages.readers import Pictures, Record, captioned_digits
from stages.readers.digits import SIDE, handwritten

STAGES = (ingest.run, dedup.run, tokenize.run, shard.run)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The captioned digits, one picture of each composition, through every data stage."""
    root = tmp_path_factory.mktemp("pairs")
    entry = {
        "modality": "image_text",
        "ingest": {"reader": "captioned_digits", "source": "raw", "pictures": 2},
        "dedup": {},
        "tokenize": {"size": 20, "channels": 1, "caption": {"vocabulary": 512}},
        "shard": {"sequence": 10, "validation": 0.1, "probe": 0.3},
    }
    (root / "params.yaml").write_text(json.dumps({"corpora": {"tiny": entry}}))
    return root


def rows(root: Path, stage: str) -> list[dict[str, Any]]:
    files = tables.partitions(root / "data" / stage / "tiny/rows")
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def test_pairs_become_rows_of_pixels_and_tokens(project: Path, run_stages: Callable[..., None]) -> None:
    run_stages(project, *STAGES)
    shards = Shards.open(project / "data/shard/tiny/shards")
    encoding = Encoding.load(project / "data/shard/tiny/shards/encoding")
    assert (encoding.modality, encoding.length, encoding.height) == ("image_text", 10, 20)
    tokenizer = Tokenizer.from_file(str(project / "data/shard/tiny/shards/encoding/tokenizer.json"))
    captions = {row["text"] for row in rows(project, "ingest")}
    assert len(captions) == 200
    sides, written = {}, {}
    for split, found in parts(shards).items():
        assert found["pixels"].shape[1:] == (1, 20, 20) and found["tokens"].shape[1:] == (10,)
        ends = (found["tokens"] == encoding.eos).sum(dim=1)
        assert ends.min() == ends.max() == 1
        sides[split] = {tokenizer.decode(row.tolist()).strip() for row in found["tokens"]}
        written[split] = set.union(*(handwriting(picture) for picture in found["pixels"][:, 0].numpy()))
    assert set.union(*sides.values()) == captions
    for one, other in itertools.combinations(sides, 2):  # a held-out pair has its composition and its digits alone
        assert not sides[one] & sides[other] and not written[one] & written[other]
    probe = shards.split("probe").rows(range(len(shards.split("probe"))))
    names = [shards.manifest.labels[label] for label in probe["label"]]
    assert [tokenizer.decode(row.tolist()).split()[0] for row in probe["tokens"]] == names


def parts(shards: Shards) -> dict[str, dict[str, torch.Tensor]]:
    """The rows of train and validation, and of both parts of the probe."""
    rows = {name: shards.split(name).rows(range(len(shards.split(name)))) for name in ("train", "validation", "probe")}
    probe = rows.pop("probe")
    for test in (0, 1):
        rows[f"probe {test}"] = {name: values[probe["test"] == test] for name, values in probe.items()}
    return rows


@functools.cache
def numbered() -> dict[bytes, int]:
    return {digit.tobytes(): number for number, digit in enumerate(handwritten()[0])}


def handwriting(picture: np.ndarray) -> set[int]:
    """The numbers of the handwritten digits that a picture `[side, side]` shows."""
    numbers = numbered()
    windows = np.lib.stride_tricks.sliding_window_view(picture, (SIDE, SIDE)).reshape(-1, SIDE, SIDE)
    found = {numbers[window.tobytes()] for window in windows if window.tobytes() in numbers}
    assert len(found) == 2
    return found


def test_every_handwritten_digit_has_one_place_in_one_composition() -> None:
    _, labels = handwritten()
    places = captioned_digits.dealt(labels, seed=0)
    assert len(places) == 400 and min(map(len, places.values())) >= 4
    numbers = np.concatenate(list(places.values()))
    assert sorted(numbers) == list(range(1797))


def test_the_picture_is_what_the_caption_says() -> None:
    pixels, labels = handwritten()
    options = captioned_digits.Options(pictures=1)
    found = [record for part in captioned_digits.plan("", options) for record in captioned_digits.read(part, options)]
    assert len(found) == 200 == len({record.group for record in found})
    for record in found[::17]:
        picture = pictures.decode(record.payload["image"], 20, 20, 1)[0]
        words = record.payload["text"].split()
        assert record.label == words[0]
        halves = (picture[:10], picture[10:]) if "above" in words else (picture[:, :10], picture[:, 10:])
        for half, name in zip(halves, (words[0], words[-1]), strict=True):
            windows = np.lib.stride_tricks.sliding_window_view(half, (SIDE, SIDE)).reshape(-1, SIDE * SIDE)
            digit = captioned_digits.NAMES.index(name)
            mine = pixels[labels == digit].reshape(-1, SIDE * SIDE)
            assert (windows[:, None] == mine[None]).all(axis=2).any()


def test_a_pair_is_a_duplicate_only_if_both_sides_are(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    one, other = (
        pictures.encoded(np.kron(random.integers(0, 256, (8, 8)), np.ones((8, 8))).astype(np.uint8)) for _ in "ab"
    )
    half = pictures.encoded(pictures.decode(one, 32, 32, 1)[0])
    pairs = [
        (one, "A cat sits on the mat"),
        (one, "a dog runs in the park"),  # another caption
        (other, "A cat sits on the mat"),  # another picture
        (half, "a cat sits on the mat."),  # near on both sides
        (one, "A cat sits on the mat"),  # the same pair
    ]
    found = [{"id": tables.content_id({"i": a, "t": b}), "image": a, "text": b} for a, b in pairs]
    path = tmp_path / "part-00000.parquet"
    tables.write_parquet(path, pa.Table.from_pylist(found, schema=tables.rows_schema(pair_ingest.FIELDS)))
    for near, kept in ((True, [0, 1, 2, 0, 0]), (False, [0, 1, 2, 3, 0])):
        options = pair_dedup.Options(near=near)
        clusters = pair_dedup.cluster(gather([pair_dedup.sketch(path, options)], np.zeros(5, bool)), options)
        assert clusters.kept.tolist() == kept
        assert clusters.exact.tolist() == [True, True, True, not near, True]


@pytest.mark.parametrize("codec", [None, "jpeg"])
def test_a_long_caption_is_cut_and_still_ends(codec: str | None) -> None:
    sizes = {"vocabulary": 99, "eos": 7, "pad": 0, "length": 4, "channels": 1, "height": 1, "width": 2}
    encoding = Encoding.model_validate({"modality": "image_text", "codec": codec, **sizes})
    assert pair_shard.columns(encoding)["pixels"].codec == codec and not pair_shard.columns(encoding)["tokens"].codec
    batch = pa.record_batch(
        {
            "pixels": pa.array([b"ab", b"cd", b"ef"], pair_tokenize.fields(encoding)[0].type),
            "tokens": pa.array([[1, 2, 3, 4, 5], [6], [1, 2, 3]], pa.list_(pa.uint16())),
        }
    )
    found = pair_shard.values(batch, encoding)
    assert found["tokens"].lengths.tolist() == [4, 2, 4]
    assert found["tokens"].values.tolist() == [1, 2, 3, 7, 6, 7, 1, 2, 3, 7]
    assert found["pixels"].values.tobytes() == b"abcdef" and found["pixels"].lengths.tolist() == [2, 2, 2]


def test_a_picture_without_a_caption_is_rejected() -> None:
    picture = pictures.encoded(np.zeros((9, 9), np.uint8))
    for payload, reason in (
        ({"image": picture}, "picture has no caption: name its column or file in ingest.text"),
        ({"image": picture, "text": " "}, "empty text"),
        ({"image": b"x", "text": "a cat"}, "not a picture of a known format"),
    ):
        assert pair_ingest.check(Record(payload, None, "x"), Pictures()) == reason
    assert pair_ingest.check(Record({"image": picture, "text": "a cat"}, None, "x"), Pictures()) is None
