"""Next token: each token from those before it, at every position of a row (GPT-2, Radford et al. 2019; LLaMA, Touvron
et al. 2023, arXiv:2302.13971).

A row `t` gives inputs `t[:-1]` and targets `t[1:]`. With document masking, attention and positions begin anew with
every document of a packed row, and `eos` is where it begins: as a target it belongs to the document it ends, but as
an input to the next one, whose first token is thus predicted from `eos` alone, just as a text is generated from
scratch.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from ssl_models.config import Backbone
from ssl_models.data.encoding import Encoding
from ssl_models.objectives import Batch, Examples, Options, Outcome, Rows
from ssl_models.objectives.shared.cross_entropy import IGNORE, evaluate, linear_cross_entropy
from ssl_models.objectives.shared.sampling import continuation
from ssl_models.objectives.shared.text import TextObjective, compared, content, shifted

_PROMPT, _SAMPLE = 16, 96
"""Tokens of the prompt, and of the prompt with its continuation, shown to a reviewer."""
_TEMPERATURE, _LIKELIEST = 0.8, 50


class NextTokenOptions(Options):
    """`models.NAME.task`."""

    document_masking: bool = Field(default=True, description="packed documents do not see one another")


class NextToken(TextObjective):
    """A causal language model."""

    Options = NextTokenOptions
    options: NextTokenOptions

    def __init__(self, backbone: Backbone, options: NextTokenOptions, encoding: Encoding) -> None:
        super().__init__(backbone, options, encoding, structure="decoder")

    def prepare(self, rows: Rows, keys: Tensor) -> Batch:
        """`inputs`, `targets`, `documents`, each `[batch, length - 1]`. Nothing is random."""
        tokens = rows["tokens"]
        batch = {
            "inputs": tokens[:, :-1],
            "targets": tokens.masked_fill(~content(tokens, self.encoding), IGNORE)[:, 1:],
        }
        if self.options.document_masking:
            batch["documents"] = (batch["inputs"] == self.encoding.eos).long().cumsum(1)
        return batch

    def loss(self, batch: Batch) -> Outcome:
        """Cross-entropy of the next token; bits per byte of the targets' text (`eos` costs bits and has no bytes)."""
        targets, model = batch["targets"], self.transformer
        hidden = model.readout(model.decode(batch["inputs"], documents=batch.get("documents")))
        sums = {}
        if self.training:
            loss = linear_cross_entropy(hidden, model.head_weight, model.head_bias, targets)
        else:
            loss, correct = evaluate(hidden, model.head_weight, model.head_bias, targets)
            sums["accuracy"] = (correct, self.count(batch))
        if self.vocabulary.known:
            lengths = self.vocabulary.lengths[targets.clamp(min=0)] * (targets != IGNORE)
            sums["bits_per_byte"] = (loss.detach() / math.log(2), lengths.sum())
        return Outcome(loss, sums)

    def prompt(self, tokens: Tensor) -> Tensor:
        """`eos`, where a document begins, and the tokens."""
        return functional.pad(tokens, (1, 0), value=self.encoding.eos)

    def features(self, rows: Rows) -> dict[str, Tensor]:
        """`last`: of the last token; `mean` and `layerN.mean`: over the tokens.

        A document is read as in training, from an `eos` before it, and no further than inputs go there: one token less
        than a row has.
        """
        tokens, most = rows["tokens"], self.encoding.length - 1
        inputs = shifted(tokens, self.encoding.eos)[:, :most]
        counted = shifted(content(tokens, self.encoding) & (tokens != self.encoding.eos), False)[:, :most]
        trace: list[Tensor] = []
        hidden = self.transformer.decode(inputs, trace=trace)
        index = torch.arange(inputs.shape[1], device=tokens.device)
        last = (counted * index).amax(1)
        return {
            "last": hidden[torch.arange(len(tokens), device=tokens.device), last].float(),
            **self.layer_means(trace, counted),
        }

    @torch.no_grad()
    def examples(self, rows: Rows, keys: Tensor) -> Examples:
        """A continuation of the first validation row's beginning, the same prompt and the same draws each time."""
        context = self.transformer.architecture.context
        start = rows["tokens"][:1, : min(_PROMPT, context // 2)]
        written = continuation(
            self.transformer,
            self.prompt(start),
            limit=min(_SAMPLE, context) - 1 - start.shape[1],
            end=self.encoding.eos,
            vocabulary=self.encoding.vocabulary,
            temperature=_TEMPERATURE,
            likeliest=_LIKELIEST,
            generator=torch.Generator().manual_seed(0),
        )
        decode = self.vocabulary.decode
        entries = {"prompt": decode(start[0].tolist()), "continuation": decode(written[0].tolist())}
        return Examples(texts={"sample": compared("Generated", entries)})


OBJECTIVE = NextToken
