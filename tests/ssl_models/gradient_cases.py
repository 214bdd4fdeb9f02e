"""Gradients of one global batch, by this process alone or as one of several of a launcher: `python -m`."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from ssl_models import artifact
from ssl_models.config import Backbone
from ssl_models.data import keyed
from ssl_models.data.encoding import Encoding
from ssl_models.data.shards import Shards, batch_indices
from ssl_models.models import codebook
from ssl_models.objectives import Rows
from ssl_models.training.batch_norm import synchronise
from ssl_models.training.learner import EVALUATION_STEP, Learner
from ssl_models.training.parallel import World
from ssl_models.training.totals import Totals
from tests.ssl_models import corpora
from tests.ssl_models.objectives import pictures

FRAMES = 4
PROJECTOR = {"projector": [24, 24, 16]}
"""With batch normalisation."""
CORPUS = 24
"""Pictures, videos or pairs, all different."""


@dataclass(frozen=True)
class Case:
    """An objective on a batch of `rows`: 7 rows are uneven slices of two processes."""

    objective: str
    backbone: Backbone
    modality: str = "text"
    task: dict[str, Any] = field(default_factory=dict)
    rows: int = 7

    @property
    def batch_norm(self) -> bool:
        """Whether rows see each other through batch normalisation, so that micro-batches change the result."""
        with_norm = "projector" in self.task or bool(self.task.get("norm")) or self.objective == "toy_teacher"
        return self.backbone.architecture == "resnet" or with_norm


def _text(preset: str = "llama") -> Backbone:
    return Backbone(preset=preset, layers=2, width=16, heads=2)


CASES = {
    "toy_words": Case("toy_words", _text()),
    "toy_pairs": Case("toy_pairs", _text()),
    "toy_pairs_norm": Case("toy_pairs", _text(), task={"norm": True}, rows=8),
    "toy_pairs_norm_uneven": Case("toy_pairs", _text(), task={"norm": True}),
    "toy_teacher": Case("toy_teacher", _text(), task={}, rows=8),
    "next_token": Case("next_token", _text()),
    "masked_language": Case("masked_language", _text("bert")),
    "span_corruption": Case("span_corruption", _text("t5")),
    "text_infilling": Case("text_infilling", _text("bart")),
    "contrastive": Case("contrastive", pictures.vit(), "image"),
    "contrastive_norm": Case("contrastive", pictures.resnet(), "image"),
    "vicreg": Case("contrastive", pictures.vit(), "image", {"loss": "vicreg", **PROJECTOR}, rows=8),
    "barlow_twins": Case("contrastive", pictures.vit(), "image", {"loss": "barlow_twins", **PROJECTOR}, rows=8),
    "masked_pixels": Case("masked_pixels", pictures.vit("mae"), "image"),
    "masked_visual_tokens": Case("masked_visual_tokens", pictures.vit("beit"), "image"),
    "rotation": Case("rotation", pictures.vit(), "image", {"augment": {}}),
    "rotation_norm": Case("rotation", pictures.resnet(), "image"),
    "patch_position": Case("patch_position", pictures.vit(patch=1), "image"),
    "patch_position_norm": Case("patch_position", pictures.resnet(), "image"),
    "next_frame": Case("next_frame", pictures.vit("mae"), "video"),
    "clip": Case("image_text", pictures.vit("clip-vision"), "image_text"),
    "clip_norm": Case("image_text", pictures.resnet(), "image_text"),
    "siglip": Case("image_text", pictures.vit("clip-vision"), "image_text", {"loss": "siglip"}),
}


def folder(path: Path) -> Path:
    """Shards of text, and a codebook of pictures beside them."""
    corpora.text_shards(path)
    (path / "pictures").mkdir()
    codebook.fit(pictures.pixels(20), 4, 32, seed=0).save(path / "pictures")
    return path


def _rows(case: Case, shards: Path, numbers: Tensor) -> Rows:
    """The rows of these numbers: of the shards, or pictures, videos and pairs of which no two are alike."""
    if case.modality == "text":
        return Shards.open(shards).split("train").rows(numbers.numpy())
    if case.modality == "video":
        return {"pixels": torch.stack([pictures.pixels(CORPUS, seed=n) for n in range(FRAMES)], dim=1)[numbers]}
    if case.modality == "image":
        return {"pixels": pictures.pixels(CORPUS)[numbers]}
    tokens = torch.randint(
        2, pictures.VOCABULARY, (CORPUS, pictures.LENGTH), generator=torch.Generator().manual_seed(0)
    )
    tokens[torch.arange(CORPUS), 3 + torch.arange(CORPUS) % 5] = pictures.EOS
    return {"pixels": pictures.pixels(CORPUS)[numbers], "tokens": tokens[numbers]}


def learner(
    case: Case, shards: Path, world: World, bfloat16: bool
) -> tuple[Learner, Callable[[int], dict[str, Tensor]]]:
    """The case's learner, in train mode, and its batch of a step: in double precision, or in bfloat16."""
    torch.manual_seed(0)
    model = corpora.model(case.objective, case.task, batch=case.rows).model_copy(update={"backbone": case.backbone})
    if case.modality == "text":
        encoding, corpus = Encoding.load(shards / "encoding"), len(Shards.open(shards).split("train"))
    else:
        encoding, corpus = pictures.encoding(case.modality, folder=shards / "pictures", frames=FRAMES), CORPUS
    objective = artifact.build(model, encoding)
    precision = torch.float32 if bfloat16 else torch.float64
    objective.to(precision).train()
    for parameter in objective.parameters():  # asymmetric, and no gradient is zero for want of a start
        parameter.data += 0.1 * torch.randn_like(parameter)
    synchronise(objective, world, world.size)
    made = Learner(objective, world, model.train, bfloat16=bfloat16, compiled=False)
    numbers = torch.from_numpy(np.ascontiguousarray(batch_indices(0, 3, case.rows, corpus)[world.slice(case.rows)]))
    rows = _rows(case, shards, numbers)

    def prepared(step: int) -> dict[str, Tensor]:
        batch = made.prepare(rows, keyed.keys(0, step, numbers))
        return {key: value.to(precision) if value.is_floating_point() else value for key, value in batch.items()}

    return made, prepared


def gradients(
    name: str, shards: Path, world: World, micro_batch: int, pieces: int = 1, bfloat16: bool = False
) -> dict[str, Tensor]:
    """The gradient of every parameter, the loss, the buffers after the step, and the validation loss."""
    case = CASES[name]
    subject, prepared = learner(case, shards, world, bfloat16)
    subject.micro_batch, subject.pieces = micro_batch, pieces
    objective, batch = subject.objective, prepared(3)
    count = world.sum(objective.count(batch).double())
    means = subject.gradient(3, batch, count, case.rows).means(world)
    found = {"loss": torch.tensor(means.loss)} | {f"statistic {n}": value for n, value in means.statistics.items()}
    found |= {f"gradient {n}": p.grad for n, p in objective.named_parameters() if p.grad is not None}
    found |= {f"buffer {n}": b.clone() for n, b in objective.named_buffers()}
    objective.eval()
    totals = Totals(world.device)
    subject.evaluate(prepared(EVALUATION_STEP), case.rows, totals)
    found["validation"] = torch.tensor(totals.means(world).loss)
    return found


def main(shards: Path, out: Path) -> None:
    torch.set_num_threads(1)
    world = World.start()
    for name, case in CASES.items():
        for micro_batch in (8,) if case.batch_norm else (8, 2):
            found = gradients(name, shards, world, micro_batch)
            save_file({n: v.contiguous().clone() for n, v in found.items()}, out / f"{name}-{micro_batch}-{world.rank}")
    world.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
