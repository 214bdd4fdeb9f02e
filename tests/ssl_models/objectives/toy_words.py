"""A small per-row objective: predict every other token from its neighbour, with dropout and a count that varies."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ssl_models.config import Backbone
from ssl_models.data import keyed
from ssl_models.data.encoding import Encoding
from ssl_models.objectives import Batch, Examples, Objective, Options, Outcome, Rows


class ToyOptions(Options):
    dropout: float = 0.0
    explode_at: float = 0.0
    wait: float = 0.0


class ToyWords(Objective):
    Options = ToyOptions

    def __init__(self, backbone: Backbone, options: Any, encoding: Encoding) -> None:
        super().__init__(backbone, options, encoding)
        if encoding.modality != "text":
            raise ValueError(f"objective toy_words needs text, not {encoding.modality}")
        self.options = options
        self.embedding = nn.Embedding(encoding.vocabulary, 16)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Dropout(options.dropout))])
        self.head = nn.Linear(16, encoding.vocabulary)
        self.unused = nn.Parameter(torch.ones(3, 3))

    def prepare(self, rows: Rows, keys: Tensor) -> Batch:
        tokens = rows["tokens"]
        keep = keyed.uniform(keys, tokens.shape[1] - 1, 0) < keyed.uniform(keys, 1, 1)
        return {"tokens": tokens, "keep": keep}

    def count(self, batch: Batch) -> Tensor:
        return batch["keep"].sum().float()

    def loss(self, batch: Batch) -> Outcome:
        if self.options.wait:
            import time

            time.sleep(self.options.wait)
        x = self.embedding(batch["tokens"][:, :-1])
        for block in self.blocks:
            x = x + block(x)
        logits, target = self.head(x)[batch["keep"]], batch["tokens"][:, 1:][batch["keep"]]
        loss = functional.cross_entropy(logits, target, reduction="sum")
        if self.options.explode_at:
            loss = loss * float("nan")
        right = (logits.argmax(-1) == target).sum().float()
        return Outcome(loss, {"accuracy": (right.detach(), torch.tensor(float(len(target))))})

    def features(self, rows: Rows) -> dict[str, Tensor]:
        return {"mean": self.embedding(rows["tokens"]).mean(1)}

    def examples(self, rows: Rows, keys: Tensor) -> Examples:
        picture = torch.zeros(4, 4, 3, dtype=torch.uint8)
        return Examples(texts={"sample": str(rows["tokens"][0].tolist())}, pictures={"square": picture})


OBJECTIVE = ToyWords
