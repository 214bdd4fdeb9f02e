import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssl_models.data.manifest import FILE
from ssl_models.data.shards import Jpegs, Shards, batch_indices, order
from stages.modalities.image.pictures import as_jpeg

ROWS = st.integers(1, 5000)
SEED = st.integers(0, 2**40)


@given(SEED, st.integers(0, 1000), ROWS)
def test_an_epoch_has_every_row_exactly_once(seed, epoch, rows):
    assert np.array_equal(np.sort(order(seed, epoch, rows)), np.arange(rows))


@given(SEED, st.integers(0, 10**7), st.integers(1, 300), ROWS)
def test_a_step_can_be_asked_for_alone(seed, step, batch, rows):
    positions = np.arange(step * batch, (step + 1) * batch)
    whole = {epoch: order(seed, epoch, rows) for epoch in range(positions[0] // rows, positions[-1] // rows + 1)}
    expected = [whole[position // rows][position % rows] for position in positions.tolist()]
    assert batch_indices(seed, step, batch, rows).tolist() == expected


@given(SEED, st.integers(1, 64), st.integers(1, 200))
def test_the_steps_of_an_epoch_hold_it_whatever_the_batch(seed, batch, rows):
    steps = -(-rows // batch)
    seen = np.concatenate([batch_indices(seed, step, batch, rows) for step in range(steps)])
    assert sorted(seen[:rows].tolist()) == list(range(rows))


def test_epochs_and_seeds_differ():
    assert not np.array_equal(order(0, 0, 100), order(0, 1, 100))
    assert not np.array_equal(order(0, 0, 100), order(1, 0, 100))


def test_every_order_of_few_rows_is_reached_about_equally():
    counts = np.unique([order(seed, 0, 3) @ [9, 3, 1] for seed in range(6000)], return_counts=True)[1]
    assert len(counts) == 6 and counts.min() > 850 and counts.max() < 1150


def test_a_position_of_a_huge_split_costs_no_permutation():
    found = batch_indices(0, 12345, 64, 10**12)
    assert len(set(found.tolist())) == 64 and found.max() < 10**12 and found.max() > 10**11


def test_no_rows_is_an_error():
    with pytest.raises(ValueError, match="no rows"):
        batch_indices(0, 0, 8, 0)


def test_rows_come_in_the_order_asked_for(tiny_text_shards):
    split = Shards.open(tiny_text_shards).split("train")
    everything = split.rows(range(len(split)))["tokens"]
    wanted = [3, 0, len(split) - 1, 3]
    assert everything.dtype == torch.int64 and everything.shape == (len(split), 32)
    assert torch.equal(split.rows(wanted)["tokens"], everything[wanted])


def test_rows_gather_across_files(tiny_text_shards):
    split = Shards.open(tiny_text_shards).split("train")
    halves = type(split)(
        "train", split.columns, (split.files[0], split.files[0]), np.array([0, len(split), 2 * len(split)])
    )
    wanted = np.array([len(split) + 2, 1, 2, len(split)])
    assert torch.equal(halves.rows(wanted)["tokens"], split.rows(wanted % len(split))["tokens"])


def test_columns_are_views_of_the_file(tiny_text_shards):
    split = Shards.open(tiny_text_shards).split("train")
    assert not split.files[0]["tokens"].flags.owndata and not split.files[0]["tokens"].flags.writeable


def test_only_the_probe_has_labels(tiny_text_shards):
    shards = Shards.open(tiny_text_shards)
    assert set(shards.split("validation").rows([0])) == {"tokens"}
    assert set(shards.split("probe").rows([0])) == {"tokens", "label", "test", "group", "id"}


@pytest.mark.parametrize("index", [-1, 10**6])
def test_a_row_that_is_not_there_is_an_index_error(tiny_text_shards, index):
    with pytest.raises(IndexError, match="train: row numbers"):
        Shards.open(tiny_text_shards).split("train").rows([index])


def test_a_row_that_is_no_jpeg_of_its_size_is_named(tmp_path):
    picture = as_jpeg(np.full((3, 8, 8), 100, np.uint8), 90)
    rows = [picture, picture[: len(picture) // 3], as_jpeg(np.zeros((3, 8, 16), np.uint8), 90), b""]
    ends = np.cumsum([0, *map(len, rows)])
    jpegs = Jpegs(tmp_path / "part-00000.arrow", ends, np.frombuffer(b"".join(rows), np.uint8), (3, 8, 8))
    assert jpegs[np.array([0, 0])].tolist() == np.full((2, 3, 8, 8), 100).tolist()
    for row in (1, 2, 3):
        with pytest.raises(ValueError, match=rf"part-00000\.arrow: row {row} is not a JPEG of \[3, 8, 8\]"):
            jpegs[np.array([0, row])]


@pytest.fixture
def copied(tiny_text_shards, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_text_shards, tmp_path / "shards"))


def test_intact_shards_verify(tiny_text_shards):
    Shards.open(tiny_text_shards).verify()


def test_one_flipped_bit_is_found_and_named(copied):
    path = copied / "train/part-00000.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"train/part-00000\.arrow: differs from its checksum"):
        Shards.open(copied).verify()


@pytest.mark.parametrize("keep", [0, 7, 100, 0.5, -1])
def test_a_file_cut_short_is_named(copied, keep):
    path = copied / "train/part-00000.arrow"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=r"train/part-00000\.arrow: .*run the shard stage again"):
        Shards.open(copied).split("train")


def test_a_missing_file_is_named(copied):
    (copied / "probe/part-00000.arrow").unlink()
    with pytest.raises(ValueError, match=r"probe/part-00000\.arrow: is missing"):
        Shards.open(copied).split("probe")
    with pytest.raises(ValueError, match=r"probe/part-00000\.arrow: is missing"):
        Shards.open(copied).verify()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"modality": "smell"}'])
def test_a_broken_manifest_is_named(copied, content):
    (copied / FILE).write_text(content)
    with pytest.raises(ValueError, match=r"manifest\.json: .*run the shard stage again"):
        Shards.open(copied)


def test_no_manifest_is_a_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        Shards.open(tmp_path)
