"""A frozen encoder stays what it was, and its features are those of every row, in order."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import issparse
from torch import Tensor, nn

from ssl_models.config import Backbone
from ssl_models.data.encoding import Encoding
from ssl_models.objectives import Batch, Objective, Options, Rows
from ssl_models.probing.features import LARGEST_RAW, Source, classify, extract, extract_raw, fingerprint, frozen
from tests.ssl_models import texts


class Pixels(Objective):
    """Features of pixels: their mean and what a linear layer makes of them."""

    def __init__(self, backbone: Any, options: Any, encoding: Any, mutates: str = "") -> None:
        super().__init__(backbone, options, encoding)
        self.mutates = mutates
        self.layer = nn.Linear(4, 3)
        self.register_buffer("seen", torch.zeros(1))
        self.register_buffer("hidden", torch.zeros(1), persistent=False)

    def prepare(self, rows: Rows, keys: Tensor) -> Batch:
        return rows

    def count(self, batch: Batch) -> Tensor:
        return torch.tensor(1.0)

    def features(self, rows: Rows) -> dict[str, Tensor]:
        assert not self.training and torch.is_inference_mode_enabled() and "label" not in rows
        if self.mutates:
            getattr(self, self.mutates).add_(1)
        flat = rows["pixels"].flatten(1).float()
        return {"mean": flat.mean(1, keepdim=True), "layer": self.layer(flat[:, :4])}


def pixels(mutates: str = "") -> Pixels:
    return Pixels(Backbone(preset="none"), Options(), Encoding(modality="image"), mutates)


def reader(values: np.ndarray) -> Any:
    def read(indices: np.ndarray) -> Rows:
        rows = {"pixels": torch.from_numpy(values[indices]), "label": torch.zeros(len(indices), dtype=torch.int64)}
        return {**rows, "test": torch.zeros(len(indices), dtype=torch.uint8)}

    return read


def some(rows: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (rows, *shape), np.uint8)


def test_features_are_of_every_row_in_order(tmp_path: Path) -> None:
    values, wanted = some(150, 1, 2, 2), np.array([7, 3, *range(20, 149)])
    found = extract(pixels(), Source(reader(values), wanted), tmp_path)
    assert list(found) == ["mean", "layer"]
    assert found["mean"].dtype == np.float32
    np.testing.assert_allclose(found["mean"][:, 0], values[wanted].reshape(len(wanted), -1).mean(1), rtol=1e-6)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("hooked", [False, True])
def test_batches_are_encoded_side_by_side_unless_a_hook_looks_on(
    hooked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, workers = pixels(), list[threading.Thread]()
    if hooked:
        objective.layer.register_forward_hook(lambda module, inputs, output: None)
    features = Pixels.features

    def watched(self: Pixels, rows: Rows) -> dict[str, Tensor]:
        workers.append(threading.current_thread())
        return features(self, rows)

    monkeypatch.setattr(Pixels, "features", watched)
    extract(objective, Source(reader(some(192, 1, 2, 2)), np.arange(192)), tmp_path)
    first, second, *others = (worker is threading.current_thread() for worker in workers)
    assert first and second  # in turn, to see whether the first leaves a trace
    assert all(others) if hooked else not any(others)


@pytest.mark.parametrize("mutates", ["seen", "hidden"])
def test_an_encoder_that_changes_a_buffer_is_an_error(mutates: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="changed a parameter or a buffer"):
        extract(pixels(mutates), Source(reader(some(3, 1, 2, 2)), np.arange(3)), tmp_path)


def test_the_fingerprint_sees_every_bit() -> None:
    module = nn.BatchNorm1d(3)
    before = fingerprint(module)
    assert before == fingerprint(nn.BatchNorm1d(3))
    module.running_var[1] += 1e-7
    assert fingerprint(module) != before


def test_training_goes_on_where_it_was() -> None:
    module = pixels()
    with frozen(module):
        assert not module.training
    assert module.training


def test_large_pictures_are_averaged_for_the_raw_baseline(tmp_path: Path) -> None:
    values = np.repeat(np.repeat(some(3, 3, 64, 32), 4, axis=2), 4, axis=3)  # 256 x 128
    raw = extract_raw(pixels(), Source(reader(values), np.arange(3)), tmp_path)
    assert raw.shape[0] == 3 and LARGEST_RAW // 4 < raw.shape[1] <= LARGEST_RAW
    assert raw.mean() == pytest.approx(values.mean() / 255, abs=0.01)


def test_videos_are_averaged_in_space_alone(tmp_path: Path) -> None:
    values = some(2, 5, 1, 64, 64)
    raw = extract_raw(pixels(), Source(reader(values), np.arange(2)), tmp_path)
    frames = raw.reshape(2, 5, -1).mean(2)
    np.testing.assert_allclose(frames, values.reshape(2, 5, -1).mean(2) / 255, atol=0.01)


def test_small_pictures_are_their_pixels(tmp_path: Path) -> None:
    values = some(4, 1, 8, 8)
    raw = extract_raw(pixels(), Source(reader(values), np.arange(4)), tmp_path)
    np.testing.assert_allclose(raw, values.reshape(4, -1) / 255, rtol=1e-6)


@pytest.mark.parametrize("name", sorted(texts.PRESETS))
def test_texts_of_like_length_are_read_together_and_no_feature_changes(name: str, tmp_path: Path) -> None:
    encoding = texts.plain()
    generator = np.random.default_rng(1)
    tokens = texts.random_rows(encoding, 90, document=1000)
    lengths = np.concatenate([[encoding.length, 1], generator.integers(1, encoding.length, 88)])
    for row, length in zip(tokens, lengths, strict=True):
        row[length:] = encoding.pad
        row[length - 1] = encoding.eos
    objective = texts.build(name, encoding)
    rows = np.arange(90)
    for folder in ("plain", "sorted"):
        (tmp_path / folder).mkdir()
    plain = Source(lambda at: {"tokens": tokens[at]}, rows)
    together = Source(lambda at: {"tokens": tokens[at]}, rows, lengths)
    expected, found = extract(objective, plain, tmp_path / "plain"), extract(objective, together, tmp_path / "sorted")
    for key, values in expected.items():
        np.testing.assert_allclose(found[key], values, atol=1e-5, err_msg=key)
    bags = [extract_raw(objective, source, tmp_path) for source in (plain, together)]
    assert abs(bags[0] - bags[1]).max() == 0
    assert issparse(bags[0]) or bags[0].shape[1] < 1024


def test_an_objective_that_reads_no_names_has_no_zero_shot() -> None:
    assert classify(pixels(), Source(reader(some(4, 1, 2, 2)), np.arange(4)), ["dark", "bright"]) is None


def test_zero_shot_asks_frozen_for_every_row_of_the_part_in_order() -> None:
    class Named(Pixels):
        def zero_shot(self, names: Sequence[str]) -> Callable[[Rows], Tensor]:
            bright = names.index("bright")
            return lambda rows: torch.where(self.features(rows)["mean"][:, 0] > 127, bright, 1 - bright)

    values = some(200, 1, 2, 2)
    odd = np.arange(200) % 2 == 1
    named = Named(Backbone(preset="none"), Options(), Encoding(modality="image"))
    found = classify(named, Source(reader(values), np.arange(200)).part(odd), ["dark", "bright"])
    assert found is not None
    np.testing.assert_array_equal(found, values[odd].mean(axis=(1, 2, 3)) > 127)
