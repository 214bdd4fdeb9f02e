"""What the pretext tasks on text share: padding, compaction of corrupted rows, named features, the bag of tokens.

Everything works on whole batches `[batch, length]` at once; rows that get shorter keep a fixed width and are padded, so
that shapes never depend on the data.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from ssl_models.config import Backbone
from ssl_models.data.encoding import Encoding
from ssl_models.data.vocabulary import Vocabulary
from ssl_models.models.presets import resolve
from ssl_models.models.transformer import Transformer
from ssl_models.objectives import Batch, Examples, Objective, Outcome, Rows
from ssl_models.objectives.shared.cross_entropy import IGNORE

_SWEEP = 6
"""Most layers whose features are handed to the probe; of deeper models, as many at even distances."""


def content(tokens: Tensor, encoding: Encoding) -> Tensor:
    """Which of `tokens` `[batch, length]` are no padding: bool of the same shape.

    Padding is the run of `pad` at a row's end. Where an imported tokenizer pads with `eos`, the first of the run is the
    document's own.
    """
    later = (tokens != encoding.pad).flip(1).cummax(1).values.flip(1)
    if encoding.pad == encoding.eos:
        later = later | shifted(later, True)
    return later


def shifted(values: Tensor, first: int | bool) -> Tensor:
    """`values` `[batch, length]` moved one place to the right, `first` before them."""
    return torch.cat([torch.full_like(values[:, :1], first), values[:, :-1]], dim=1)


def compact(values: Tensor, kept: Tensor, width: int, fill: int) -> Tensor:
    """The `values` `[batch, length]` that are `kept`, in order and without gaps: `[batch, width]`, the rest is `fill`.

    Whatever does not fit into `width` is dropped.
    """
    place = (kept.long().cumsum(1) - 1).clamp(max=width)
    out = values.new_full((len(values), width + 1), fill)
    return out.scatter_(1, torch.where(kept, place, width), values)[:, :width]


def spanned(starts: Tensor, lengths: Tensor, width: int) -> Tensor:
    """Which of `width` places the spans `[batch, spans]` cover: bool `[batch, width]`. Spans of length 0 cover none."""
    edges = starts.new_zeros((len(starts), width + 1))
    edges.scatter_add_(1, starts.clamp(max=width), torch.ones_like(starts))
    edges.scatter_add_(1, (starts + lengths).clamp(max=width), -torch.ones_like(starts))
    return edges.cumsum(1)[:, :width] > 0


def listed(ids: Tensor, kept: Tensor) -> list[list[int]]:
    """The `ids` `[rows, ...]` that are `kept`, row by row."""
    return [row[chosen].tolist() for row, chosen in zip(ids, kept, strict=True)]


def check_mask(encoding: Encoding) -> None:
    """ValueError where the corpus's tokenizer has no mask token of its own."""
    if encoding.mask in (encoding.pad, encoding.eos):
        raise ValueError(
            "corpus: its tokenizer has no mask token, which this task needs; add one to its tokenizer.json and "
            "name it as mask_token in special_tokens_map.json, or leave corpora.NAME.tokenize.tokenizer out"
        )


def fenced(text: str) -> str:
    """`text` as a block of Markdown, whatever it holds."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def compared(title: str, texts: dict[str, str]) -> str:
    """Markdown: `title`, and under it each of `texts` by its name."""
    return "\n\n".join([f"### {title}", *(f"**{name}**\n\n{fenced(text)}" for name, text in texts.items())]) + "\n"


class TextObjective(Objective):
    """A pretext task whose backbone is one `Transformer` (the attribute `transformer`) over one corpus's tokens."""

    def __init__(
        self, backbone: Backbone, options: Any, encoding: Encoding, *, structure: str, positions: int = 0
    ) -> None:
        """`structure`: what the task needs. `positions`: the most it feeds at once; default: the rows' length."""
        super().__init__(backbone, options, encoding)
        if encoding.modality != "text" or encoding.length < 2:
            raise ValueError(f"corpus: a language task needs rows of text, not of {encoding.modality}")
        architecture = resolve(backbone, vocabulary=encoding.vocabulary, context=positions or encoding.length)
        if architecture.structure != structure:
            raise ValueError(
                f"preset: {backbone.preset} is of structure {architecture.structure}; this task needs {structure}"
            )
        self.options, self.encoding = options, encoding
        self.vocabulary = Vocabulary(encoding)
        self.transformer = Transformer(architecture)

    @abstractmethod
    def loss(self, batch: Batch) -> Outcome:
        """The summed loss of one micro-batch."""

    def prompt(self, tokens: Tensor) -> Tensor:
        """Clean ids `[batch, tokens]` as the model reads them before it writes. ValueError where it writes nothing."""
        raise ValueError("this model reads text and does not write any")

    def count(self, batch: Batch) -> Tensor:
        """Tokens to predict."""
        return (batch["targets"] != IGNORE).sum().float()

    def raw(self, rows: Rows) -> Tensor:
        """A bag of tokens: sparse counts `[batch, vocabulary]`."""
        return self.vocabulary.bag(rows["tokens"])

    def padding(self, tokens: Tensor) -> Tensor | None:
        """Which of `tokens` `[batch, length]` are padding, bool; None where none is, and attention needs no mask."""
        padding = ~content(tokens, self.encoding)
        return padding if padding.any() else None

    def compared_rows(self, versions: dict[str, list[list[int]]]) -> Examples:
        """A text for a reviewer per row: ids of every row, without its padding, by the version's name."""
        rows = zip(*versions.values(), strict=True)
        return Examples(
            texts={
                f"row{number}": compared(
                    f"Row {number}",
                    {name: self.vocabulary.decode(ids) for name, ids in zip(versions, row, strict=True)},
                )
                for number, row in enumerate(rows)
            }
        )

    def layer_means(self, trace: list[Tensor], counted: Tensor) -> dict[str, Tensor]:
        """`mean` of the last layer and `layerN.mean` of those before it, over the tokens `counted` `[batch, tokens]`.

        `trace` is what `Transformer` appended: the input and every block's output, each `[batch, tokens, width]`.
        """
        weight = counted.float() / counted.sum(1, keepdim=True).clamp(min=1)
        blocks = len(trace) - 1
        layers = sorted({round(blocks * part / _SWEEP) for part in range(1, _SWEEP + 1)} - {0, blocks})
        means = {"mean": trace[-1]} | {f"layer{layer}.mean": trace[layer] for layer in layers}
        return {name: torch.einsum("btw,bt->bw", hidden.float(), weight) for name, hidden in means.items()}
