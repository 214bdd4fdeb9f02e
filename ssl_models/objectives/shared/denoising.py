"""What the denoising tasks share: an encoder reads the corrupted row, a decoder writes the target token by token."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from ssl_models.config import Backbone
from ssl_models.data.encoding import Encoding
from ssl_models.objectives import Batch, Outcome, Rows
from ssl_models.objectives.shared.cross_entropy import IGNORE, evaluate, linear_cross_entropy
from ssl_models.objectives.shared.text import TextObjective, shifted

EXCERPT_ROWS, EXCERPT = 3, 64
"""Rows, and tokens of each, that are restored for a reviewer."""


class Denoising(TextObjective):
    """A pretext task on an encoder-decoder. `prepare` makes `inputs` `[batch, ...]` and `targets` `[batch, ...]`
    (`IGNORE` beyond their end), and `padding` of the inputs where there is any."""

    start: ClassVar[Literal["pad", "eos"]]
    """The special token that the decoder begins with."""

    def __init__(self, backbone: Backbone, options: Any, encoding: Encoding, *, positions: int) -> None:
        super().__init__(backbone, options, encoding, structure="encoder-decoder", positions=positions)
        self.begin: int = getattr(encoding, self.start)

    def decoder_inputs(self, targets: Tensor) -> Tensor:
        """`targets` one place to the right, the decoder's first token before them."""
        return shifted(targets.masked_fill(targets == IGNORE, self.encoding.pad), self.begin)

    def loss(self, batch: Batch) -> Outcome:
        """Cross-entropy of the targets, each from the corrupted row and the targets before it."""
        model, targets, padding = self.transformer, batch["targets"], batch.get("padding")
        memory = model.encode(batch["inputs"], padding=padding)
        hidden = model.decode(self.decoder_inputs(targets), memory=memory, memory_padding=padding)
        hidden = model.readout(hidden)
        if self.training:
            return Outcome(linear_cross_entropy(hidden, model.head_weight, model.head_bias, targets))
        loss, correct = evaluate(hidden, model.head_weight, model.head_bias, targets)
        return Outcome(loss, {"accuracy": (correct, self.count(batch))})

    def prompt(self, tokens: Tensor) -> Tensor:
        """The tokens and `eos`."""
        return functional.pad(tokens, (0, 1), value=self.encoding.eos)

    def encoder_features(self, tokens: Tensor, padding: Tensor | None, counted: Tensor) -> dict[str, Tensor]:
        """`mean` and `layerN.mean` of the encoder over the tokens `counted`; all `[batch, tokens]`."""
        trace: list[Tensor] = []
        self.transformer.encode(tokens, padding=padding, trace=trace)
        return self.layer_means(trace, counted)

    def excerpt(self, rows: Rows, keys: Tensor) -> tuple[Tensor, Batch, Tensor]:
        """The beginning of a few rows, the batch made of it, and the decoder's likeliest targets."""
        tokens = rows["tokens"][:EXCERPT_ROWS, :EXCERPT]
        batch = self.prepare({"tokens": tokens}, keys[:EXCERPT_ROWS])
        return tokens, batch, self.greedy(batch)

    def greedy(self, batch: Batch) -> Tensor:
        """The likeliest token after the likeliest token: ids of the targets' shape."""
        model, padding, width = self.transformer, batch.get("padding"), batch["targets"].shape[1]
        memory = model.encode(batch["inputs"], padding=padding)
        cache = model.cache(width)
        written = [torch.full_like(batch["inputs"][:, :1], self.begin)]
        for _ in range(width):
            hidden = model.decode(written[-1], memory=memory, memory_padding=padding, cache=cache)
            written.append(model.logits(hidden)[..., : self.encoding.vocabulary].argmax(-1))
        return torch.cat(written[1:], dim=1)
