"""Span corruption: restore the spans of a text that were cut out (T5, Raffel et al. 2019, arXiv:1910.10683, section
3.1.4 and the released `random_spans_noise_mask`).

Of a row of L tokens n = round(0.15 L) are noise, in round(n / 3) spans; noise and the rest are each split at random
into that many non-empty parts, which alternate, the rest first. In the input every noise span becomes one sentinel,
and in the target every part of the rest does, so that each side holds what the other lacks. Both end in `eos`, and
the decoder starts with `pad`. So 512 inputs come from rows of 568 tokens and have 114 targets. Packed documents are
one text, as in the paper: spans fall on the `eos` between them as well.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from ssl_models.config import Backbone
from ssl_models.data import keyed
from ssl_models.data.encoding import Encoding
from ssl_models.objectives import Batch, Examples, Options, Rows
from ssl_models.objectives.shared.cross_entropy import IGNORE
from ssl_models.objectives.shared.denoising import Denoising
from ssl_models.objectives.shared.text import compact, content, listed, shifted, spanned

_NOISE, _REST = range(2)
"""Streams of `keyed`."""


class SpanCorruptionOptions(Options):
    """`models.NAME.task`."""

    density: float = Field(default=0.15, gt=0, lt=1, description="part of the tokens that is noise")
    mean_span: float = Field(default=3.0, ge=1, description="tokens in a noise span, on average")


def amounts(lengths: Tensor, options: SpanCorruptionOptions) -> tuple[Tensor, Tensor]:
    """Noise tokens and noise spans of texts of `lengths` tokens: int64 of its shape. A single token is never noise."""
    noise = (lengths.double() * options.density).round().long().clamp(min=1).minimum(lengths - 1).clamp(min=0)
    spans = (noise.double() / options.mean_span).round().long().clamp(min=1)
    return noise, spans.minimum(noise).minimum(lengths - noise)


def widths(length: int, options: SpanCorruptionOptions) -> tuple[int, int]:
    """Inputs and targets, `eos` included, that rows of `length` tokens give."""
    noise, spans = (int(amount) for amount in amounts(torch.tensor(length), options))
    return length - noise + spans + 1, noise + spans + 1


def partition(totals: Tensor, parts: Tensor, most: int, most_parts: int, keys: Tensor, stream: int) -> Tensor:
    """Random splits of `totals` `[batch, 1]` into `parts` `[batch, 1]` non-empty parts, every split as likely as
    another: int64 `[batch, most_parts]`, zeros after a row's parts. No total exceeds `most`."""
    places = torch.arange(most - 1, device=keys.device)
    order = (keyed.bits(keys, most - 1, stream) * most + places).masked_fill(
        places >= totals - 1, torch.iinfo(torch.int64).max
    )
    cuts = order.topk(most_parts - 1, largest=False, sorted=True).indices + 1
    index = torch.arange(most_parts - 1, device=keys.device)
    cuts = torch.where(index < parts - 1, cuts, totals).sort(dim=1).values
    return torch.cat([torch.zeros_like(totals), cuts, totals], dim=1).diff(dim=1)


def splice(inputs: Sequence[int], targets: Sequence[int], sentinels: Sequence[int]) -> list[int]:
    """The text that `inputs` and `targets`, without their last `eos`, were made of: spans put back for their
    sentinels."""
    known, spans, name = set(sentinels), dict[int, list[int]](), -1
    for token in targets:
        if token in known:
            name = token
        else:
            spans.setdefault(name, []).append(token)
    return [token for place in inputs for token in (spans.get(place, []) if place in known else [place])]


class SpanCorruption(Denoising):
    """An encoder-decoder that writes what its input lacks."""

    Options = SpanCorruptionOptions
    options: SpanCorruptionOptions
    start = "pad"
    sentinels: Tensor

    def __init__(self, backbone: Backbone, options: SpanCorruptionOptions, encoding: Encoding) -> None:
        super().__init__(backbone, options, encoding, positions=encoding.length + 1)
        needed = int(amounts(torch.tensor(encoding.length), options)[1])
        if needed > len(encoding.sentinels):
            raise ValueError(
                f"corpus: rows of {encoding.length} tokens need {needed} sentinels, its tokenizer has "
                f"{len(encoding.sentinels)}: shorten shard.sequence, raise mean_span, or use a tokenizer with more"
            )
        self.register_buffer("sentinels", torch.tensor(encoding.sentinels), persistent=False)

    def noise(self, present: Tensor, keys: Tensor) -> Tensor:
        """Which of the tokens that are `present` (bool `[batch, length]`) are noise: bool of the same shape."""
        length = present.shape[1]
        totals = present.sum(1, keepdim=True)
        noise, spans = amounts(totals, self.options)
        most_noise, most_spans = (int(amount) for amount in amounts(torch.tensor(length), self.options))
        cut = partition(noise, spans, most_noise, most_spans, keys, _NOISE)
        rest = partition(totals - noise, spans, length - most_noise, most_spans, keys, _REST)
        return spanned(rest.cumsum(1) + cut.cumsum(1) - cut, cut, length)

    def replace(self, tokens: Tensor, present: Tensor, replaced: Tensor, width: int, fill: int) -> Tensor:
        """`tokens` `[batch, length]` with one sentinel for each run of `replaced`, then `eos`: `[batch, width]`."""
        starts = replaced & ~shifted(replaced, False)
        numbers = (starts.cumsum(1) - 1).clamp(min=0, max=len(self.sentinels) - 1)
        values = torch.where(starts, self.sentinels[numbers], tokens)
        kept = present & (starts | ~replaced)
        last = torch.full_like(tokens[:, :1], self.encoding.eos)
        closed = torch.cat([values, last], dim=1), torch.cat([kept, torch.ones_like(kept[:, :1])], dim=1)
        return compact(*closed, width, fill)

    def prepare(self, rows: Rows, keys: Tensor) -> Batch:
        """`inputs` and `targets` of the widths that `widths` gives; `padding` where there is any."""
        tokens = rows["tokens"]
        present = content(tokens, self.encoding)
        noise = self.noise(present, keys)
        inputs, targets = widths(tokens.shape[1], self.options)
        corrupted = self.replace(tokens, present, noise, inputs, IGNORE)
        padding = corrupted == IGNORE
        batch = {
            "inputs": corrupted.masked_fill(padding, self.encoding.pad),
            "targets": self.replace(tokens, present, present & ~noise, targets, IGNORE),
        }
        return batch | {"padding": padding} if padding.any() else batch

    def features(self, rows: Rows) -> dict[str, Tensor]:
        """`mean` and `layerN.mean` of the encoder over the tokens; of a row as many as there are inputs in training, as
        no position was learned beyond."""
        tokens = rows["tokens"][:, : widths(self.encoding.length, self.options)[0]]
        return self.encoder_features(tokens, self.padding(tokens), ~self.vocabulary.special[tokens])

    @torch.no_grad()
    def examples(self, rows: Rows, keys: Tensor) -> Examples:
        """Texts, what the encoder saw of them, and what the decoder put in."""
        tokens, batch, written = self.excerpt(rows, keys)
        sentinels = self.encoding.sentinels
        corrupted = listed(batch["inputs"], content(batch["inputs"], self.encoding))
        spans = listed(written, batch["targets"] != IGNORE)
        restored = [splice(inputs, targets, sentinels) for inputs, targets in zip(corrupted, spans, strict=True)]
        original = listed(tokens, content(tokens, self.encoding))
        return self.compared_rows({"original": original, "corrupted": corrupted, "restored": restored})


OBJECTIVE = SpanCorruption
