"""What every pretext task on pictures promises, each tried on each backbone that it takes."""

from pathlib import Path

import pytest
import torch

from ssl_models import artifact
from ssl_models.config import Model, Train
from ssl_models.models import codebook
from ssl_models.models.vision import regridded, vision_encoder
from tests.ssl_models.objectives.pictures import encoding, keys, objective, pixels, prepared, resnet, vit

CASES = {
    "contrastive-resnet": ("contrastive", resnet(), "image", {}),
    "contrastive-vit": ("contrastive", vit(), "image", {}),
    "vicreg": ("contrastive", vit(), "image", {"loss": "vicreg", "projector": [24, 24, 16]}),
    "barlow-twins": ("contrastive", vit(), "image", {"loss": "barlow_twins", "projector": [24, 24, 16]}),
    "masked-pixels": ("masked_pixels", vit("mae"), "image", {}),
    "masked-pixels-learned": ("masked_pixels", vit(), "image", {"normalise": False}),
    "masked-visual-tokens": ("masked_visual_tokens", vit("beit"), "image", {}),
    "rotation-resnet": ("rotation", resnet(), "image", {}),
    "rotation-vit": ("rotation", vit(), "image", {"augment": {}}),
    "patch-position-resnet": ("patch_position", resnet(), "image", {}),
    "patch-position-vit": ("patch_position", vit(patch=1), "image", {}),
    "next-frame": ("next_frame", vit("mae"), "video", {}),
    "image-text-vit": ("image_text", vit("clip-vision"), "image_text", {}),
    "image-text-resnet": ("image_text", resnet(), "image_text", {"loss": "siglip"}),
}


@pytest.fixture(scope="module")
def book(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("encoding")
    codebook.fit(pixels(20), 4, 32, seed=0).save(folder)
    return folder


def rows_of(modality: str, batch: int = 6) -> dict[str, torch.Tensor]:
    if modality == "video":
        return {"pixels": torch.stack([pixels(batch, seed=frame) for frame in range(4)], dim=1)}
    if modality == "image":
        return {"pixels": pixels(batch)}
    tokens = torch.randint(2, 30, (batch, 9), generator=torch.Generator().manual_seed(0))
    tokens[:, 6], tokens[:, 7:] = 1, 0
    return {"pixels": pixels(batch), "tokens": tokens}


def built(case: str, folder: Path):
    name, backbone, modality, task = CASES[case]
    learner = objective(name, backbone, encoding(modality, folder=folder, frames=4), **task)
    return learner, rows_of(modality)


def chunk(batch: dict[str, torch.Tensor], rows: slice) -> dict[str, torch.Tensor]:
    return {name: value[rows] for name, value in batch.items()}


def gradients(learner) -> list[torch.Tensor]:
    found = [p.grad.clone() for p in learner.parameters() if p.grad is not None]
    learner.zero_grad()
    return found


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_learns(case, book):
    learner, rows = built(case, book)
    for parameter in learner.head.parameters() if hasattr(learner, "head") else ():
        torch.nn.init.normal_(parameter, std=0.1)  # a head at zero passes nothing on
    learner(prepared(learner, rows, keys(6))).loss.backward()
    assert [name for name, p in learner.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("case", CASES)
def test_micro_batches_add_up_to_the_gradient_of_the_whole(case, book):
    learner, rows = built(case, book)
    learner.double()  # rounding is not the question
    for module in learner.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()  # statistics of a batch are the trainer's to exchange
    batch = prepared(learner, rows, keys(6))
    parts = [slice(0, 1), slice(1, 4), slice(4, 6)]
    assert sum(float(learner.count(chunk(batch, part))) for part in parts) == float(learner.count(batch))
    learner(batch).loss.backward()
    whole = gradients(learner)
    if learner.whole_batch:
        embedded = [learner(chunk(batch, part), "embed") for part in parts]
        everyone = {name: torch.cat([part[name] for part in embedded]) for name in embedded[0]}
        learner({**everyone, "keys": batch["keys"]}, "couple").loss.backward()
    else:
        for part in parts:
            learner(chunk(batch, part)).loss.backward()
    for one, other in zip(whole, gradients(learner), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * (1 + float(one.abs().max())))


@pytest.mark.parametrize("name", ["masked_pixels", "masked_visual_tokens", "rotation", "image_text"])
def test_pictures_are_augmented_in_training_alone_and_unless_switched_off(name, book):
    backbone = {"masked_pixels": vit("mae"), "masked_visual_tokens": vit("beit")}.get(name, vit())
    modality = "image_text" if name == "image_text" else "image"
    rows = rows_of(modality)
    for augment in ({}, None):
        learner = objective(name, backbone, encoding(modality, folder=book), augment=augment)
        seen = {mode: learner.train(mode).prepare(rows, keys(6))["pixels"] for mode in (True, False)}
        assert torch.equal(seen[False], rows["pixels"])
        apart = (seen[True].float() * (1 if augment is None else 255) - rows["pixels"]).abs().amax(dim=(1, 2, 3))
        assert bool((apart > 5).all()) == (augment is not None)


@pytest.mark.parametrize("case", CASES)
def test_a_row_is_corrupted_by_its_key_whatever_stands_beside_it(case, book):
    learner, rows = built(case, book)
    whole = learner.prepare(rows, keys(6))
    part = learner.prepare(chunk(rows, slice(2, 5)), keys(6)[2:5])
    for name, value in whole.items():
        assert len(value) == 6
        torch.testing.assert_close(part[name], value[2:5], rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_features_are_one_finite_row_per_sample_and_never_corrupted(case, book):
    learner, rows = built(case, book)
    learner.eval()
    with torch.inference_mode():
        named = learner.features(rows)
        again = learner.features(chunk(rows, slice(1, 3)))
    for name, values in named.items():
        assert values.dtype == torch.float32 and values.ndim == 2 and len(values) == 6
        assert values.isfinite().all()
        torch.testing.assert_close(again[name], values[1:3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_examples_are_pictures(case, book):
    learner, rows = built(case, book)
    learner.eval()
    found = learner.examples(rows, keys(6))
    assert found.pictures
    for picture in found.pictures.values():
        assert picture.dtype == torch.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    assert learner.examples(chunk(rows, slice(0, 1)), keys(1)).pictures.keys() == found.pictures.keys()


@pytest.mark.parametrize("case", CASES)
def test_saved_and_loaded_it_has_the_same_features(case, book, tmp_path):
    name, backbone, modality, task = CASES[case]
    learner, rows = built(case, book)
    model = Model(corpus="x", objective=name, backbone=backbone, task=task, train=Train(steps=1, batch=8))
    artifact.save(learner, model, encoding(modality, folder=book, frames=4), tmp_path / "model")
    loaded = artifact.load(tmp_path / "model")
    learner.eval()
    with torch.inference_mode():
        for key, value in learner.features(rows).items():
            torch.testing.assert_close(loaded.features(rows)[key], value)


@pytest.mark.parametrize(
    ("name", "backbone", "data", "task", "message"),
    [
        ("masked_pixels", resnet(), encoding(), {}, "architecture: this objective masks patches"),
        ("masked_pixels", vit("beit"), encoding(), {}, "positions: this objective drops patches"),
        ("masked_pixels", vit(patch=16), encoding(), {}, "task.ratio: 0.75 of 1 patches"),
        ("contrastive", vit(patch=5), encoding(), {}, "patch: patches of 5 pixels do not tile pictures of 16x16"),
        ("contrastive", vit("bert", patch=0), encoding(), {}, "preset: pictures need a preset for patches"),
        ("contrastive", vit(), encoding("text", channels=0), {}, "objective: this objective needs pictures"),
        ("rotation", vit(), encoding(height=8), {}, "objective: rotation needs square pictures, not 8x16"),
        ("patch_position", resnet(), encoding(height=8), {}, "objective: pictures of 8x16 are too small"),
        ("next_frame", vit(), encoding(), {}, "objective: the next frame needs video"),
        ("image_text", vit(), encoding(), {}, "objective: this objective needs pairs of image and text"),
        ("contrastive", vit(), encoding(), {"augment": {"blurr": 1}}, "task.augment.blurr: no such key"),
    ],
)
def test_what_does_not_fit_is_one_sentence(name, backbone, data, task, message):
    with pytest.raises(ValueError, match=message):
        objective(name, backbone, data, **task)


@pytest.mark.parametrize("preset", ["vit", "mae", "beit"])
def test_a_vit_reads_pictures_of_other_sizes_by_interpolated_positions(preset):
    torch.manual_seed(0)
    encoder = vision_encoder(vit(preset), encoding()).eval()
    for parameter in encoder.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    with torch.no_grad():
        small, own, large = (encoder(pixels(2, side=side)) for side in (8, 16, 32))
    assert [part.tokens.shape[1] for part in (small, own, large)] == [4, 16, 64]
    assert all(part.tokens.isfinite().all() for part in (small, large))


def test_positions_of_another_grid_lie_between_those_of_the_own():
    ramp = torch.arange(5.0)[:, None].expand(5, 4).reshape(-1, 1)
    assert regridded(ramp, (5, 4), (5, 4)) is ramp
    finer = regridded(ramp, (5, 4), (10, 8)).view(10, 8)
    expected = torch.tensor([1.25, 1.75, 2.25, 2.75])[:, None].expand(4, 8)
    torch.testing.assert_close(finer[3:7], expected, rtol=0, atol=0.1)
