"""Pictures from a user's folder to memory-mapped rows: what is kept, what is rejected and why, what is a duplicate."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ssl_models.config import Train
from ssl_models.data.encoding import Encoding
from ssl_models.data.shards import Shards
from ssl_models.models import codebook
from ssl_models.training.batches import Batches
from ssl_models.training.parallel import World
from stages import dedup, ingest, shard, tokenize
from stages.files import tables
from stages.modalities.image import dedup as image_dedup
from stages.modalities.image import ingest as image_ingest
from stages.modalities.image import pictures
from stages.modalities.image import tokenize as image_tokenize
from stages.params import UserError, options
from stages.readers import digits
from tests.ssl_models.objectives.pictures import objective, vit

STAGES = (ingest.run, dedup.run, tokenize.run, shard.run)
Run = Callable[..., None]


def noise(width: int, height: int, seed: int = 0, cells: int = 8) -> Image.Image:
    """A smooth random picture, as photographs are smooth."""
    values = np.random.default_rng(seed).integers(0, 256, (cells, cells, 3), np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


def corpus(root: Path, modality: str = "image", **sections: Any) -> None:
    """`params.yaml` of `root` with the one corpus `tiny`."""
    entry: dict[str, Any] = {
        "modality": modality,
        "ingest": {"reader": "image_folder", "source": "raw", "max_reject_fraction": 1.0},
        "dedup": {},
        "tokenize": {"size": 16},
        "shard": {"validation": 0.2, "probe": 0.5},
    }
    for name, section in sections.items():
        entry[name] = {**entry[name], **section} if name in ("ingest", "shard") else section
    (root / "params.yaml").write_text(json.dumps({"corpora": {"tiny": entry}}))


def metrics(root: Path, stage: str) -> dict[str, Any]:
    return json.loads((root / "data" / stage / "tiny/report.json").read_text())


def table(root: Path, name: str) -> list[dict[str, Any]]:
    path = root / "data" / name
    files = tables.partitions(path) if path.is_dir() else [path]
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def a_users_folder(raw: Path) -> dict[str, str]:
    """Good pictures of every kind in the class folders `cat` and `dog`, and bad ones: their reasons, by name."""
    for number, (name, size) in enumerate(zip(("cat", "dog") * 6, (32, 50, 64, 100, 200, 640) * 2, strict=True)):
        folder = raw / name
        folder.mkdir(parents=True, exist_ok=True)
        noise(size, size * 3 // 4, number).save(folder / f"{number}.JPG", quality=90)
    noise(4000, 3000, 90).save(raw / "dog/large.jpg", quality=60)
    noise(64, 64, 91).convert("CMYK").save(raw / "cat/cmyk.jpg")
    noise(64, 64, 92).convert("L").save(raw / "cat/grey.png")
    Image.fromarray(np.asarray(noise(64, 64, 93).convert("L")).astype(np.uint16) * 257).save(raw / "cat/deep.png")
    noise(64, 64, 94).convert("P").save(raw / "dog/palette.png")
    noise(64, 64, 95).save(raw / "dog/animated.gif", save_all=True, append_images=[noise(64, 64, 96)])
    noise(64, 64, 97).convert("RGBA").save(raw / "dog/alpha.webp")
    large = (raw / "dog/large.jpg").read_bytes()
    (raw / "cat/cut.jpg").write_bytes(large[: len(large) // 2])
    small = (raw / "cat/grey.png").read_bytes()
    (raw / "cat/cut.png").write_bytes(small[: len(small) // 2])
    (raw / "cat/notes.jpg").write_text("these are my notes\n")
    (raw / "dog/empty.jpg").write_bytes(b"")
    Image.new("1", (20_000, 20_000)).save(raw / "dog/bomb.png")  # 400 megapixels in a few kilobytes
    (raw / "Thumbs.db").write_bytes(b"\0" * 100)
    return {
        "cat/cut.jpg": "truncated or damaged picture",
        "cat/cut.png": "truncated or damaged picture",
        "cat/notes.jpg": "not a picture of a known format",
        "dog/empty.jpg": "empty file",
        "dog/bomb.png": "picture has more than max_pixels pixels",
    }


def test_a_users_folder_of_every_kind_of_picture(tmp_path: Path, run_stages: Run) -> None:
    bad = a_users_folder(tmp_path / "raw")
    corpus(tmp_path)
    run_stages(tmp_path, *STAGES)
    rejected = {
        row["source"].removeprefix("raw/"): row["reason"] for row in table(tmp_path, "ingest/tiny/rejects.parquet")
    }
    assert {name: reason.partition(" (")[0] for name, reason in rejected.items()} == bad
    rows = table(tmp_path, "ingest/tiny/rows")
    assert len(rows) == 19
    assert {row["label"] for row in rows} == {"cat", "dog"}
    assert all(row["source"].startswith(f"raw/{row['label']}/") for row in rows)
    counts = metrics(tmp_path, "ingest")
    assert counts["rows_in"] == counts["rows_out"] + counts["rejects"] == 24
    shards = Shards.open(tmp_path / "data/shard/tiny/shards")
    found = {name: len(shards.split(name)) for name in ("train", "validation", "probe")}
    assert sum(found.values()) == 19 and min(found.values()) > 0
    probe = shards.split("probe").rows([0])
    assert probe["pixels"].shape == (1, 3, 16, 16) and str(probe["pixels"].dtype) == "torch.uint8"
    assert sorted(probe) == ["group", "id", "label", "pixels", "test"]


def test_rows_hold_the_pixels_of_their_pictures_in_order(tmp_path: Path, run_stages: Run) -> None:
    for number in range(6):
        (tmp_path / "raw").mkdir(exist_ok=True)
        noise(40, 30, number).save(tmp_path / f"raw/{number}.png")
    corpus(tmp_path, tokenize={"height": 12, "width": 20, "channels": 1})
    run_stages(tmp_path, *STAGES[:3])
    rows, encoded = table(tmp_path, "dedup/tiny/rows"), table(tmp_path, "tokenize/tiny/rows")
    encoding = Encoding.load(tmp_path / "data/tokenize/tiny/encoding")
    assert (encoding.modality, encoding.channels, encoding.height, encoding.width) == ("image", 1, 12, 20)
    assert [row["id"] for row in rows] == [row["id"] for row in encoded]
    pixels = np.stack([np.frombuffer(row["pixels"], np.uint8) for row in encoded])
    assert all(
        (pictures.decode(row["image"], 12, 20, 1).ravel() == values).all()
        for row, values in zip(rows, pixels, strict=True)
    )
    assert encoding.mean == pytest.approx((pixels.mean() / 255,), abs=1e-6)
    assert encoding.std == pytest.approx((pixels.std() / 255,), abs=1e-6)


def kept(root: Path, run_stages: Run, classes: bool = True, **options: Any) -> tuple[Shards, dict[str, bytes]]:
    """The shards of 40 pictures, in two classes or none, with these options of tokenize; the bytes of their files."""
    for number in range(40):
        (root / f"raw/{number % 2}").mkdir(parents=True, exist_ok=True)
        noise(120, 90, number, cells=5).save(root / f"raw/{number % 2}/{number}.png")
    corpus(root, ingest={"class_folders": classes}, tokenize={"size": 48, **options})
    run_stages(root, *STAGES)
    folder = root / "data/shard/tiny/shards"
    written = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.*"))}
    return Shards.open(folder), written


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_kept_as_jpeg_are_read_as_the_same_rows(tmp_path: Path, run_stages: Run, channels: int) -> None:
    plain, _ = kept(tmp_path / "uint8", run_stages, channels=channels)
    small, written = kept(tmp_path / "jpeg", run_stages, channels=channels, jpeg=90)
    small.verify()
    assert small.manifest.columns["pixels"].codec == "jpeg" and plain.manifest.columns["pixels"].codec is None
    for name in plain.manifest.splits:
        rows = np.random.default_rng(0).permutation(len(plain.split(name)))
        one, other = plain.split(name).rows(rows), small.split(name).rows(rows)
        assert len(rows) and one.keys() == other.keys()
        assert other["pixels"].shape == (len(rows), channels, 48, 48) and other["pixels"].dtype == one["pixels"].dtype
        error = (one["pixels"].double() - other["pixels"].double()).square().mean(dim=(1, 2, 3))
        assert (10 * (255**2 / error).log10()).min() > 35  # dB, of every picture
        assert all(torch.equal(one[column], other[column]) for column in one if column != "pixels")
    assert small.manifest.splits["train"].bytes < plain.manifest.splits["train"].bytes * (
        0.35 if channels == 3 else 0.6
    )
    assert kept(tmp_path / "jpeg", run_stages, channels=channels, jpeg=90)[1] == written


def test_a_model_learns_from_pictures_kept_as_jpeg(tmp_path: Path, run_stages: Run) -> None:
    shards, _ = kept(tmp_path, run_stages, classes=False, jpeg=80)
    assert shards.manifest.splits["probe"].rows == 0
    learner = objective("masked_pixels", vit("mae", patch=8), Encoding.load(shards.folder / "encoding"))
    settings = Train(steps=30, batch=16)
    batches = Batches(shards.split("train"), settings, World())
    optimizer = torch.optim.Adam(learner.parameters(), 3e-3)
    losses = []
    for step in range(settings.steps):
        batch = learner.prepare(*batches.take(step))
        loss = learner(batch).loss / learner.count(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    batches.close()
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])


def copies(original: Image.Image) -> dict[str, bytes]:
    """One picture in many encodings and sizes."""
    found = {}
    for name, (picture, format, more) in {
        "bmp": (original, "BMP", {}),
        "jpeg": (original, "JPEG", {"quality": 50}),
        "half": (original.resize((original.width // 2, original.height // 2)), "PNG", {}),
        "webp": (original, "WEBP", {"quality": 60}),
    }.items():
        stream = io.BytesIO()
        picture.save(stream, format, **more)
        found[name] = stream.getvalue()
    return found


def test_copies_in_other_formats_and_sizes_are_duplicates(tmp_path: Path, run_stages: Run) -> None:
    (tmp_path / "raw").mkdir()
    for number in range(30):
        noise(200, 150, number, cells=12).save(tmp_path / f"raw/{number:02d}-original.png")
    for number in range(10):
        for name, data in copies(noise(200, 150, number, cells=12)).items():
            suffix = {"jpeg": "jpg", "half": "png"}.get(name, name)
            (tmp_path / f"raw/{number:02d}-{name}.{suffix}").write_bytes(data)
    corpus(tmp_path)
    run_stages(tmp_path, *STAGES[:2])
    gone = table(tmp_path, "dedup/tiny/duplicates.parquet")
    kept = {row["id"]: row["source"] for row in table(tmp_path, "dedup/tiny/rows")}
    assert len(kept) == 30 and len(gone) == 40
    for row in gone:
        assert Path(kept[row["kept"]]).name[:2] == Path(row["source"]).name[:2]
        assert row["similarity"] > 0.97
    exact = {Path(row["source"]).suffix for row in gone if row["kind"] == "exact"}
    assert ".png" in exact or ".bmp" in exact
    assert ".jpg" not in exact


def test_no_handwritten_digit_is_taken_for_another() -> None:
    pixels, _ = digits.handwritten()
    found = [image_dedup.signature(pictures.encoded(digit)) for digit in pixels[:600]]
    near = np.stack([signature for _, signature in found])
    every = np.stack(np.triu_indices(len(near), 1), axis=1)
    assert (image_dedup.differing_bits(near[:, :8], every) <= 4).any()  # the hash alone would drop some
    assert not image_dedup.compare(near, every, image_dedup.Options())[1].any()


@given(st.integers(0, 2**32), st.integers(0, 10))
def test_all_pairs_within_the_distance_are_proposed(seed: int, distance: int) -> None:
    random = np.random.default_rng(seed)
    base = random.integers(0, 256, (20, 8), np.uint8)
    flipped = np.unpackbits(base, axis=1)
    for row in flipped:
        row[random.permutation(64)[: random.integers(0, distance + 1)]] ^= 1
    hashes = np.concatenate([base, np.packbits(flipped, axis=1)])
    found = {tuple(pair) for pair in image_dedup.candidates(hashes, distance).tolist()}
    assert {(row, row + 20) for row in range(20)} <= found
    every = np.array(sorted(found))
    assert (image_dedup.differing_bits(hashes, every) <= distance).all()


def test_the_codebook_is_the_one_that_its_module_trains(tmp_path: Path, run_stages: Run) -> None:
    corpus(
        tmp_path,
        ingest={"reader": "digits"},
        tokenize={"size": 8, "channels": 1, "codebook": 16, "patch": 4, "sample": 100},
    )
    run_stages(tmp_path, *STAGES[:3])
    folder = tmp_path / "data/tokenize/tiny/encoding"
    book = codebook.load(folder)
    assert Encoding.load(folder).codebook == len(book.centres) == 16 and book.side == 4
    found = metrics(tmp_path, "tokenize")["codebook"]
    assert found["entries"] == 16 and 8 <= found["used"] <= 16 and 1 < found["perplexity"] <= found["used"]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "give either size, or both height and width"),
        ({"size": 8, "height": 8}, "give either size, or both height and width"),
        ({"size": 8, "channels": 2}, "channels: must be 1 or 3"),
        ({"size": 10, "codebook": 8, "patch": 4}, "patch: 4 does not divide 10x10 pixels"),
        ({"size": 0}, "size: must be greater than or equal to 4"),
        ({"size": 8, "jpeg": 101}, "jpeg: must be less than or equal to 100"),
        ({"size": 8, "keep": "jpeg"}, "keep: no such key"),
    ],
)
def test_options_that_do_not_fit_are_one_sentence(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        options(image_tokenize.Options, given, "corpora.tiny.tokenize")
    assert "\n" not in str(caught.value)


def test_pictures_read_as_text_are_one_sentence(tmp_path: Path, run_stages: Run) -> None:
    (tmp_path / "raw").mkdir()
    noise(9, 9).save(tmp_path / "raw/a.png")
    corpus(tmp_path, modality="text")
    with pytest.raises(UserError, match="image_folder reads image, image_text, not text"):
        run_stages(tmp_path, ingest.run)


@pytest.mark.slow
def test_one_worker_and_two_write_the_same_bytes(
    tmp_path: Path, run_stages: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    for workers in (1, 2):
        root = tmp_path / str(workers)
        for name in ("a", "b"):
            (root / "raw" / name).mkdir(parents=True)
            for number in range(20):
                noise(120, 90, number + 20 * (name == "b"), cells=60).save(root / f"raw/{name}/{number}.png")
        monkeypatch.setattr("stages.files.sources.partitions.__defaults__", (None, 200_000))
        corpus(root, tokenize={"size": 16, "codebook": 8, "patch": 4, "jpeg": 90})
        run_stages(root, *STAGES, workers=workers)
        data = root / "data"
        written.append(
            {str(path.relative_to(data)): path.read_bytes() for path in sorted(data.rglob("*")) if path.is_file()}
        )
    assert sum(name.startswith("ingest/tiny/rows") for name in written[0]) > 3
    assert written[0] == written[1]


def test_the_sample_is_the_smallest_ids_whatever_the_partitions(tmp_path: Path) -> None:
    found = []
    for number in range(30):
        image = pictures.encoded(np.full((8, 8), number, np.uint8))
        found.append({"id": tables.content_id({"image": image}), "image": image})
    schema = tables.rows_schema(image_ingest.FIELDS)
    drawn = []

    def decode(data: bytes) -> np.ndarray:
        return pictures.decode(data, 8, 8, 1)

    for cut in (7, 20):
        paths = []
        for number, rows in enumerate((found[:cut], found[cut:])):
            paths.append(tmp_path / f"{cut}-{number}.parquet")
            tables.write_parquet(paths[-1], pa.Table.from_pylist(rows, schema=schema))
        drawn.append(image_tokenize.sample(paths, "image", decode, 5))
    assert (drawn[0] == drawn[1]).all()
    smallest = sorted(found, key=lambda row: row["id"])[:5]
    assert [pixels.max() for pixels in drawn[0]] == [decode(row["image"]).max() for row in smallest]
