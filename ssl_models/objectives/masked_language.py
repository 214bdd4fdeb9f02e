"""Masked language modelling: a bidirectional encoder restores the tokens that were hidden from it (BERT, Devlin et al.
2018, arXiv:1810.04805, section 3.1 and appendix A.1).

15 % of a row's ordinary tokens are selected, a fraction left over being rounded up or down at random; of these 80 %
become `mask`, 10 % a random ordinary token, and 10 % stay. The loss is on all that were selected, and only their
hidden states meet the head. A row is `cls`, its tokens, `sep`; packed documents see one another, as in RoBERTa's
FULL-SENTENCES (Liu et al. 2019, arXiv:1907.11692), for `cls` speaks for the whole row.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ssl_models.config import Backbone
from ssl_models.cpu.linear import linear
from ssl_models.data import keyed
from ssl_models.data.encoding import Encoding
from ssl_models.objectives import Batch, Examples, Options, Outcome, Rows
from ssl_models.objectives.shared.cross_entropy import IGNORE, evaluate, linear_cross_entropy
from ssl_models.objectives.shared.text import TextObjective, check_mask, content, listed

STANDARD_RATE = 0.15
"""The rate of every evaluation, so that losses of models trained at other rates can be compared."""
_MASKED, _REPLACED = 0.8, 0.1
_SELECT, _ROUND, _KIND, _REPLACE = range(4)
"""Streams of `keyed`."""


class MaskedLanguageOptions(Options):
    """`models.NAME.task`."""

    rate: float = Field(default=STANDARD_RATE, gt=0, le=1, description="part of the tokens to predict, in training")


class MaskedLanguage(TextObjective):
    """A bidirectional encoder."""

    Options = MaskedLanguageOptions
    options: MaskedLanguageOptions

    def __init__(self, backbone: Backbone, options: MaskedLanguageOptions, encoding: Encoding) -> None:
        super().__init__(backbone, options, encoding, structure="encoder", positions=encoding.length + 2)
        check_mask(encoding)

    def enclosed(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """`cls` tokens `sep`, and which of them are no padding: both `[batch, length + 2]`."""
        present = content(tokens, self.encoding)
        framed = F.pad(tokens.masked_fill(~present, self.encoding.pad), (1, 1), value=self.encoding.pad)
        framed[:, 0] = self.encoding.cls
        framed.scatter_(1, present.sum(1, keepdim=True) + 1, self.encoding.sep)
        return framed, F.pad(present, (2, 0), value=True)

    def select(self, candidates: Tensor, keys: Tensor, rate: float) -> tuple[Tensor, Tensor]:
        """A random part `rate` of each row's `candidates` bool `[batch, length]`: positions, and which of them count,
        both `[batch, selected]`."""
        length = candidates.shape[1]
        exact = candidates.sum(1, keepdim=True).double() * rate
        wanted = torch.floor(exact + keyed.uniform(keys, 1, _ROUND))
        order = (keyed.bits(keys, length, _SELECT) * length + torch.arange(length, device=keys.device)).masked_fill(
            ~candidates, torch.iinfo(torch.int64).max
        )
        positions = order.topk(math.ceil(length * rate), largest=False).indices
        return positions, torch.arange(positions.shape[1], device=keys.device) < wanted

    def prepare(self, rows: Rows, keys: Tensor) -> Batch:
        """`inputs` `[batch, length + 2]`; `positions`, `targets` `[batch, selected]`; `padding` where there is any."""
        tokens, present = self.enclosed(rows["tokens"])
        candidates = present & ~self.vocabulary.special[tokens]
        positions, counted = self.select(candidates, keys, self.options.rate if self.training else STANDARD_RATE)
        original = tokens.gather(1, positions)
        kind = keyed.uniform(keys, positions.shape[1], _KIND)
        ordinary = self.vocabulary.ordinary
        shown = ordinary[keyed.integers(keys, positions.shape[1], len(ordinary), _REPLACE)]
        shown = torch.where(kind < _MASKED, self.encoding.mask, shown)
        shown = torch.where((kind < _MASKED + _REPLACED) & counted, shown, original)
        batch = {
            "inputs": tokens.scatter(1, positions, shown),
            "positions": positions,
            "targets": original.masked_fill(~counted, IGNORE),
        }
        return batch if present.all() else batch | {"padding": ~present}

    def _selected(self, batch: Batch) -> Tensor:
        """What the head reads of the selected positions: `[batch, selected, width]`."""
        hidden = self.transformer.encode(batch["inputs"], padding=batch.get("padding"))
        index = batch["positions"][..., None].expand(-1, -1, hidden.shape[-1])
        return self.transformer.readout(hidden.gather(1, index))

    def loss(self, batch: Batch) -> Outcome:
        """Cross-entropy of the selected tokens."""
        model, targets = self.transformer, batch["targets"]
        selected = self._selected(batch)
        if self.training:
            return Outcome(linear_cross_entropy(selected, model.head_weight, model.head_bias, targets))
        loss, correct = evaluate(selected, model.head_weight, model.head_bias, targets)
        return Outcome(loss, {"mask_accuracy": (correct, self.count(batch))})

    def features(self, rows: Rows) -> dict[str, Tensor]:
        """`cls`; `mean` and `layerN.mean` over the tokens without `cls`, `sep` and padding."""
        tokens, present = self.enclosed(rows["tokens"])
        trace: list[Tensor] = []
        hidden = self.transformer.encode(tokens, padding=None if present.all() else ~present, trace=trace)
        counted = present & ~self.vocabulary.special[tokens]
        return {"cls": hidden[:, 0].float(), **self.layer_means(trace, counted)}

    @torch.no_grad()
    def examples(self, rows: Rows, keys: Tensor) -> Examples:
        """Rows, what the model saw of them, and its guesses in the places it had to fill."""
        few = {"tokens": rows["tokens"][:3]}
        batch = self.prepare(few, keys[:3])
        logits = linear(self._selected(batch), self.transformer.head_weight, self.transformer.head_bias)
        shown = batch["inputs"].gather(1, batch["positions"])
        guessed = torch.where(batch["targets"] != IGNORE, logits.argmax(-1), shown)
        restored = batch["inputs"].scatter(1, batch["positions"], guessed)
        present = content(few["tokens"], self.encoding)
        inner = F.pad(present, (1, 1))
        return self.compared_rows(
            {
                "original": listed(few["tokens"], present),
                "corrupted": listed(batch["inputs"], inner),
                "restored": listed(restored, inner),
            }
        )


OBJECTIVE = MaskedLanguage
