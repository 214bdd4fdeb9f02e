"""A small objective with all that is not a weight: a teacher, a centre made of statistics, batch normalisation."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ssl_models.config import Backbone
from ssl_models.data.encoding import Encoding
from ssl_models.objectives import Batch, Objective, Outcome, Rows


class ToyTeacher(Objective):
    centre: Tensor

    def __init__(self, backbone: Backbone, options: Any, encoding: Encoding) -> None:
        super().__init__(backbone, options, encoding)
        self.student = nn.Sequential(nn.Embedding(encoding.vocabulary, 8), nn.Flatten(), nn.LazyBatchNorm1d())
        self.student(torch.zeros(2, encoding.length, dtype=torch.long))
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.head = nn.Linear(8 * encoding.length, 8 * encoding.length)
        self.register_buffer("centre", torch.zeros(8 * encoding.length))

    def prepare(self, rows: Rows, keys: Tensor) -> Batch:
        return {"tokens": rows["tokens"]}

    def count(self, batch: Batch) -> Tensor:
        return torch.tensor(float(len(batch["tokens"])))

    def loss(self, batch: Batch) -> Outcome:
        with torch.no_grad():
            wanted = self.teacher(batch["tokens"])
        error = self.head(self.student(batch["tokens"])) - (wanted - self.centre)
        return Outcome((error**2).sum(), statistics={"outputs": wanted.sum(0), "rows": self.count(batch)})

    def after_step(self, step: int, steps: int, statistics: dict[str, Tensor]) -> None:
        self.centre.lerp_(statistics["outputs"] / statistics["rows"], 0.1)
        for followed, weight in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            followed.lerp_(weight, 0.1)

    def features(self, rows: Rows) -> dict[str, Tensor]:
        return {"mean": self.student(rows["tokens"])}


OBJECTIVE = ToyTeacher
