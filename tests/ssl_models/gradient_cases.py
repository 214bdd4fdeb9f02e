"""Gradients of one global batch, by this process alone or as one of several: `python -m`, RANK and WORLD_SIZE."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ssl_models import artifact, keyed
from ssl_models.config import Backbone
from ssl_models.encoding import Encoding
from ssl_models.gradient import EVALUATION_STEP, Learner, Totals
from ssl_models.parallel import World, synchronise
from ssl_models.shards import Shards, batch_indices
from tests.ssl_models import corpora

PRESETS = {"next_token": "llama", "masked_language": "bert", "span_corruption": "t5", "text_infilling": "bart"}
TOYS = {
    "toy_words": ("toy_words", {}, 7),
    "toy_pairs": ("toy_pairs", {}, 7),
    "toy_pairs_norm": ("toy_pairs", {"norm": True}, 8),
    "toy_pairs_norm_uneven": ("toy_pairs", {"norm": True}, 7),
}


def cases() -> dict[str, tuple[str, dict[str, object], int]]:
    """Name to (objective, task options, rows in the batch); language tasks as far as they exist."""
    folder = Path(artifact.__file__).parent / "objectives"
    return TOYS | {name: (name, {}, 7) for name in PRESETS if (folder / f"{name}.py").exists()}


def gradients(case: str, shards: Path, world: World, micro_batch: int) -> dict[str, Tensor]:
    """The gradient of every parameter, the loss, the buffers after the step, and the validation loss."""
    name, task, rows = cases()[case]
    torch.manual_seed(0)
    model = corpora.model(name, dict(task), batch=rows)
    backbone = Backbone(preset=PRESETS.get(name, "llama"), layers=2, width=16, heads=2)
    model = model.model_copy(update={"backbone": backbone})
    objective = artifact.build(model, Encoding.load(shards / "encoding")).double()
    for parameter in objective.parameters():  # asymmetric, and no gradient is zero for want of a start
        parameter.data += 0.1 * torch.randn_like(parameter)
    synchronise(objective, world)
    learner = Learner(objective, world, model.train, bfloat16=False, compiled=False)
    learner.micro_batch = micro_batch
    split = Shards.open(shards).split("train")
    numbers = torch.from_numpy(batch_indices(0, 3, rows, len(split))[world.slice(rows)])
    batch = learner.prepare(split.rows(numbers.numpy()), keyed.keys(0, 3, numbers))
    batch = {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}
    objective.train()
    count = world.sum(objective.count(batch).double())
    found = {"loss": torch.tensor(learner.gradient(3, batch, count, rows).means(world).loss)}
    found |= {f"gradient {n}": p.grad for n, p in objective.named_parameters() if p.grad is not None}
    found |= {f"buffer {n}": b.clone() for n, b in objective.named_buffers()}
    objective.eval()
    totals = Totals(world.device)
    batch = learner.prepare(split.rows(numbers.numpy()), keyed.keys(0, EVALUATION_STEP, numbers))
    batch = {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}
    learner.evaluate(batch, rows, totals)
    found["validation"] = torch.tensor(totals.means(world).loss)
    return found


def main(shards: Path, out: Path) -> None:
    world = World.start()
    for case in cases():
        for micro_batch in (8, 2):
            if "norm" in case and micro_batch != 8:
                continue
            found = gradients(case, shards, world, micro_batch)
            save_file({n: v.contiguous().clone() for n, v in found.items()}, out / f"{case}-{micro_batch}-{world.rank}")
    world.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
