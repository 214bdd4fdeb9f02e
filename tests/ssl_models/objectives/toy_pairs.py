"""A small whole-batch objective: two noisy views of a row find each other, through batch normalisation where asked."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ssl_models.config import Backbone
from ssl_models.data import keyed
from ssl_models.data.encoding import Encoding
from ssl_models.objectives import Batch, Embeddings, Objective, Options, Outcome, Rows


class ToyOptions(Options):
    norm: bool = False


class ToyPairs(Objective):
    Options = ToyOptions
    whole_batch = True

    def __init__(self, backbone: Backbone, options: Any, encoding: Encoding) -> None:
        super().__init__(backbone, options, encoding)
        self.table = nn.Embedding(encoding.vocabulary, 8)
        self.norm = nn.BatchNorm1d(8) if options.norm else nn.Identity()
        self.project = nn.Linear(8, 4)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def prepare(self, rows: Rows, keys: Tensor) -> Batch:
        length = rows["tokens"].shape[1]
        weights = torch.stack([keyed.uniform(keys, length, stream) for stream in (0, 1)], dim=1)
        return {"tokens": rows["tokens"], "weights": weights}

    def count(self, batch: Batch) -> Tensor:
        return torch.tensor(2.0 * len(batch["tokens"]))

    def embed(self, batch: Batch) -> Embeddings:
        pooled = torch.einsum("bvl,blw->bvw", batch["weights"], self.table(batch["tokens"]))
        normal = self.norm(pooled.flatten(0, 1)).view_as(pooled)
        return {"pairs": functional.normalize(self.project(normal), dim=-1)}

    def couple(self, embeddings: Embeddings, keys: Tensor) -> Outcome:
        left, right = embeddings["pairs"].unbind(1)
        logits = self.scale.exp() * left @ right.T
        target = torch.arange(len(logits))
        both = functional.cross_entropy(logits, target, reduction="sum") + functional.cross_entropy(
            logits.T, target, reduction="sum"
        )
        return Outcome(both, {"similarity": ((left * right).sum().detach(), torch.tensor(float(len(left))))})

    def features(self, rows: Rows) -> dict[str, Tensor]:
        return {"mean": self.table(rows["tokens"]).mean(1)}


OBJECTIVE = ToyPairs
