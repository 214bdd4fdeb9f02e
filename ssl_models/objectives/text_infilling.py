"""Text infilling with sentence permutation: restore a text whose sentences were shuffled and whose words are missing
(BART, Lewis et al. 2019, arXiv:1910.13461, section 2.2).

First the sentences of every document are put in a random order. Then 30 % of the words are masked, in spans of
Poisson(3) words; each span becomes one `mask`, whatever its length, and a span of length 0 inserts one. The target is
the whole original, from `bos` to `eos`; the decoder starts with `eos`, as the released models do.

A word begins where there is white space before; a sentence ends at `.`, `!` or `?` before a word, and at a line
break. Special tokens, the `eos` of packed documents among them, are neither moved nor masked; a span that meets one
ends, and its rest is a span of its own. A row's number of masked words is 30 %, the fraction left over rounded up or
down at random.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ssl_models.config import Backbone
from ssl_models.data import keyed
from ssl_models.data.encoding import Encoding
from ssl_models.objectives import Batch, Examples, Options, Rows
from ssl_models.objectives.shared.cross_entropy import IGNORE
from ssl_models.objectives.shared.denoising import Denoising
from ssl_models.objectives.shared.text import check_mask, content, listed, shifted, spanned

_ORDER, _ROUND, _LENGTHS, _GAPS = range(4)
"""Streams of `keyed`."""


class TextInfillingOptions(Options):
    """`models.NAME.task`."""

    rate: float = Field(default=0.3, gt=0, lt=1, description="part of the words to mask")
    mean_span: float = Field(default=3.0, gt=0, le=100, description="words in a span, on average (Poisson)")
    permute: bool = Field(default=True, description="shuffle the sentences of each document")


@dataclass(frozen=True)
class Words:
    """Tokens of rows, and what they are; all `[batch, length]`. `starts`: the first token of a word."""

    tokens: Tensor
    present: Tensor
    special: Tensor
    starts: Tensor

    def reordered(self, order: Tensor) -> Words:
        """Every token, and what it is, at its place in `order` `[batch, length]`."""
        return Words(*(values.gather(1, order) for values in (self.tokens, self.present, self.special, self.starts)))


@dataclass(frozen=True)
class Spans:
    """Spans of words to mask. `covered`: bool `[batch, length]` by word; `begun` and `inserted`: how many spans of
    one word or more, and of none, begin before each word, int64 `[batch, length + 1]`."""

    covered: Tensor
    begun: Tensor
    inserted: Tensor


class TextInfilling(Denoising):
    """An encoder-decoder that writes the whole original."""

    Options = TextInfillingOptions
    options: TextInfillingOptions
    start = "eos"

    def __init__(self, backbone: Backbone, options: TextInfillingOptions, encoding: Encoding) -> None:
        super().__init__(backbone, options, encoding, positions=encoding.length + 2)
        check_mask(encoding)

    def words(self, tokens: Tensor) -> Words:
        """Where the words of `tokens` `[batch, length]` begin."""
        vocabulary, present = self.vocabulary, content(tokens, self.encoding)
        special = vocabulary.special[tokens] | ~present
        before = shifted(vocabulary.closes[tokens], True) | shifted(special, True)
        return Words(tokens, present, special, ~special & (vocabulary.opens[tokens] | before))

    def permutation(self, words: Words, keys: Tensor) -> Tensor:
        """A random order of the sentences of each document: places `[batch, length]` that tokens come from."""
        vocabulary, tokens = self.vocabulary, words.tokens
        breaks = vocabulary.breaks[tokens]
        ended = shifted(vocabulary.stops[tokens] | breaks, False)
        first = words.starts & ((ended & ~breaks) | shifted(words.special, True))
        ends = words.present & (tokens == self.encoding.eos)
        document = ends.long().cumsum(1) - ends.long()
        draw = keyed.bits(keys, tokens.shape[1], _ORDER).gather(1, first.long().cumsum(1).sub(1).clamp(min=0))
        key = (document << 33) + torch.where(ends, 1 << 32, draw)
        return key.masked_fill(~words.present, torch.iinfo(torch.int64).max).argsort(dim=1, stable=True)

    def spans(self, words: Words, keys: Tensor) -> Spans:
        """Spans that mask the words, in number `rate` of a row's; no two overlap.

        Lengths are drawn until they fill that number, the last one cut to fit, and fall between the other words at
        random.
        """
        length = words.tokens.shape[1]
        total = words.starts.sum(1, keepdim=True)
        budget = torch.floor(total.double() * self.options.rate + keyed.uniform(keys, 1, _ROUND)).long().minimum(total)
        draws = math.ceil(2 * length * self.options.rate / self.options.mean_span) + 16
        lengths = keyed.poisson(keys, draws, self.options.mean_span, _LENGTHS)
        lengths[:, -1] = length
        filled = lengths.cumsum(1) - lengths
        drawn = filled < budget
        lengths = lengths.minimum(budget - filled).clamp(min=0)
        gaps = keyed.integers(keys, draws, total - budget + 1, _GAPS).masked_fill(~drawn, length + 1)
        gaps, order = gaps.sort(dim=1)
        lengths, drawn = lengths.gather(1, order), drawn.gather(1, order)
        begin = (gaps + lengths.cumsum(1) - lengths).clamp(max=length)
        none = torch.zeros_like(begin[:, :1]).expand(-1, length + 1)
        return Spans(
            spanned(begin, lengths, length),
            none.scatter_add(1, begin, (drawn & (lengths > 0)).long()),
            none.scatter_add(1, begin, (drawn & (lengths == 0)).long()),
        )

    def infill(self, words: Words, spans: Spans) -> tuple[Tensor, Tensor]:
        """The row between `bos` and `eos` with a `mask` for every span, and which of it is padding: `[batch, length +
        2]`.

        In a row of a few words, spans of length 0 that would make it longer than `length` are left out.
        """
        length = words.tokens.shape[1]
        word = words.starts.long().cumsum(1) - 1
        own = word.clamp(min=0)
        covered = ~words.special & spans.covered.gather(1, own)
        continued = covered & (spans.begun.gather(1, own) == 0) & shifted(words.special, False)
        masks = words.starts * spans.begun.gather(1, own) + (words.starts & continued)
        kept = words.present & ~covered
        # `eos` closes the row, and insertions after its last word come before it
        closing = words.present.sum(1, keepdim=True)
        masks, kept = F.pad(masks, (0, 1)), F.pad(kept, (0, 1)).scatter(1, closing, True)
        tokens = F.pad(words.tokens, (0, 1)).scatter(1, closing, self.encoding.eos)
        place = F.pad(own, (0, 1)).scatter(1, closing, word.amax(1, keepdim=True) + 1)
        inserted = F.pad(words.starts, (0, 1)).scatter(1, closing, True) * spans.inserted.gather(1, place)
        room = length + 1 - kept.sum(1, keepdim=True) - masks.sum(1, keepdim=True)
        earlier = inserted.cumsum(1) - inserted
        masks = masks + inserted.minimum((room - earlier).clamp(min=0))
        index = 1 + masks.cumsum(1) + kept.long().cumsum(1) - 1
        size = 1 + kept.sum(1, keepdim=True) + masks.sum(1, keepdim=True)
        padding = torch.arange(length + 2, device=tokens.device) >= size
        out = torch.where(padding, self.encoding.pad, self.encoding.mask)
        out = F.pad(out, (0, 1)).scatter(1, torch.where(kept, index, length + 2), tokens)[:, : length + 2]
        out[:, 0] = self.encoding.bos
        return out, padding

    def enclosed(self, tokens: Tensor, present: Tensor, fill: int) -> Tensor:
        """`bos` tokens `eos`, then `fill`: `[batch, length + 2]`."""
        framed = F.pad(tokens.masked_fill(~present, fill), (1, 1), value=fill)
        framed[:, 0] = self.encoding.bos
        return framed.scatter(1, present.sum(1, keepdim=True) + 1, self.encoding.eos)

    def prepare(self, rows: Rows, keys: Tensor) -> Batch:
        """`inputs`, `padding` and `targets`, each `[batch, length + 2]`."""
        words = self.words(rows["tokens"])
        targets = self.enclosed(words.tokens, words.present, IGNORE)
        if self.options.permute:
            words = words.reordered(self.permutation(words, keys))
        inputs, padding = self.infill(words, self.spans(words, keys))
        return {"inputs": inputs, "padding": padding, "targets": targets}

    def prompt(self, tokens: Tensor) -> Tensor:
        """`bos`, the tokens and `eos`."""
        return F.pad(super().prompt(tokens), (1, 0), value=self.encoding.bos)

    def features(self, rows: Rows) -> dict[str, Tensor]:
        """`mean` and `layerN.mean` of the encoder over the tokens without `bos`, `eos` and padding; of a row as many as
        an infilled one has on average, where words are single tokens: far beyond them no position was learned."""
        left = 1 - self.options.rate + self.options.rate / self.options.mean_span
        text = rows["tokens"][:, : round(self.encoding.length * left)]
        present = content(text, self.encoding)
        tokens = self.enclosed(text, present, self.encoding.pad)
        seen = F.pad(present, (2, 0), value=True)
        return self.encoder_features(tokens, None if seen.all() else ~seen, seen & ~self.vocabulary.special[tokens])

    @torch.no_grad()
    def examples(self, rows: Rows, keys: Tensor) -> Examples:
        """Texts, what the encoder saw of them, and what the decoder made of that."""
        tokens, batch, written = self.excerpt(rows, keys)
        return self.compared_rows(
            {
                "original": listed(tokens, content(tokens, self.encoding)),
                "corrupted": listed(batch["inputs"], ~batch["padding"]),
                "restored": listed(written, batch["targets"] != IGNORE),
            }
        )


OBJECTIVE = TextInfilling
