"""What a probe reads was trained: no parameter reaches the features that the loss does not reach, in any objective.

Row by row of each parameter, as a table of positions may be trained but for its last ones.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ssl_models import objectives
from ssl_models.config import Backbone
from ssl_models.data.encoding import Encoding
from ssl_models.models import codebook
from ssl_models.objectives import Objective, Rows
from tests.ssl_models import texts
from tests.ssl_models.objectives import pictures

ROWS, STEPS = 12, 3
NEGLIGIBLE = 1e-9
"""Part of a parameter's largest gradient that may be rounding: a bias of the keys changes no attention."""


def text(preset: str) -> Backbone:
    return Backbone.model_validate({"preset": preset, **texts.SMALL})


CASES = {
    "next_token-gpt2": ("next_token", text("gpt2"), "text"),
    "next_token-llama": ("next_token", text("llama"), "text"),
    "masked_language": ("masked_language", text("bert"), "text"),
    "span_corruption-t5": ("span_corruption", text("t5"), "text"),
    "span_corruption-bart": ("span_corruption", text("bart"), "text"),
    "text_infilling-bart": ("text_infilling", text("bart"), "text"),
    "text_infilling-t5": ("text_infilling", text("t5"), "text"),
    "contrastive-resnet": ("contrastive", pictures.resnet(), "image"),
    "contrastive-vit": ("contrastive", pictures.vit(), "image"),
    "masked_pixels-mae": ("masked_pixels", pictures.vit("mae"), "image"),
    "masked_pixels-vit": ("masked_pixels", pictures.vit(), "image"),
    "masked_visual_tokens": ("masked_visual_tokens", pictures.vit("beit"), "image"),
    "rotation-resnet": ("rotation", pictures.resnet(), "image"),
    "rotation-vit": ("rotation", pictures.vit(), "image"),
    "patch_position-resnet": ("patch_position", pictures.resnet(), "image"),
    "patch_position-vit": ("patch_position", pictures.vit(patch=1), "image"),
    "next_frame-mae": ("next_frame", pictures.vit("mae"), "video"),
    "next_frame-vit": ("next_frame", pictures.vit(), "video"),
    "image_text-vit": ("image_text", pictures.vit("clip-vision"), "image_text"),
    "image_text-resnet": ("image_text", pictures.resnet(), "image_text"),
}


def test_every_objective_is_tried() -> None:
    modules = {path.stem for path in Path(objectives.__path__[0]).glob("*.py")} - {"__init__"}
    assert {name for name, *_ in CASES.values()} == modules


def data(modality: str, folder: Path) -> tuple[Encoding, Rows]:
    if modality == "text":
        encoding = texts.plain(vocabulary=60, sentinels=20)
        return encoding, {"tokens": texts.random_rows(encoding, ROWS, document=1000)}
    encoding = pictures.encoding(modality, folder=folder, frames=4)
    frames = torch.stack([pictures.pixels(ROWS, seed=seed) for seed in range(4)], dim=1)
    rows = {"pixels": frames if modality == "video" else frames[:, 0]}
    if modality == "image_text":
        rows["tokens"] = torch.randint(2, 30, (ROWS, pictures.LENGTH), generator=torch.Generator().manual_seed(0))
    return encoding, rows


def rows_of(gradient: Tensor) -> Tensor:
    """Which rows of a parameter have a gradient: bool."""
    size = gradient.abs().flatten(min(1, gradient.ndim - 1) if gradient.ndim else 0)
    size = size.amax(dim=1) if size.ndim == 2 else size
    return size > NEGLIGIBLE * size.max()


def gradients(objective: Objective) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}
    objective.zero_grad()
    return found


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_that_features_read_has_received_a_gradient(case: str, tmp_path: Path) -> None:
    name, backbone, modality = CASES[case]
    codebook.fit(pictures.pixels(20), 4, 32, seed=0).save(tmp_path)
    encoding, rows = data(modality, tmp_path)
    objective = pictures.objective(name, backbone, encoding).double().train()
    for parameter in objective.parameters():  # no gradient is zero for want of a start
        parameter.data += 0.05 * torch.randn_like(parameter)
    for step in range(STEPS):
        batch = pictures.prepared(objective, rows, pictures.keys(ROWS, step))
        objective(batch).loss.backward()
    trained = {name: rows_of(gradient) for name, gradient in gradients(objective).items()}
    objective.eval()
    torch.manual_seed(1)
    for values in objective.features(rows).values():
        (values * torch.randn_like(values)).sum().backward(retain_graph=True)
    untrained = {}
    for name, gradient in gradients(objective).items():
        missing = rows_of(gradient) & ~trained.get(name, torch.zeros(1, dtype=torch.bool))
        if missing.any():
            untrained[name] = missing.nonzero().flatten().tolist()
    assert untrained == {}
