"""The pretext tasks, one module each, found by the module's name (`models.NAME.objective`).

An objective is the whole learner: the backbone, the head, and the rule that makes labels out of unlabelled rows. A
module defines one subclass of `Objective` and names it in `OBJECTIVE`. The trainer calls, for every global batch:

    batch = objective.prepare(rows, keys)  # on the device, vectorised; `keys` are its only randomness
    count = objective.count(batch)         # predicted items, summed over micro-batches and processes
    outcome = objective(micro)             # `loss`: a SUM over predicted items, divided by the global count
    objective.after_step(step, ...)        # once the weights have changed: what follows them, such as a teacher

so that neither micro-batches nor processes change a gradient. An objective whose loss couples the rows of the whole
batch (NT-Xent, CLIP) sets `whole_batch` and has `embed` and `couple` in the place of `loss`. Parameters are read
through `objective(...)` alone, which may be wrapped (compiled, sharded), and change in the optimizer and in
`after_step` alone; what else a model remembers is a buffer or a parameter that requires no gradient, and lies in the
`state_dict`.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from ssl_models.config import Backbone
from ssl_models.data.encoding import Encoding

Rows = dict[str, Tensor]
"""Clean rows of a shard on the device. text: `tokens` int64 `[batch, length]`; image: `pixels` uint8 `[batch, channels,
height, width]`; video: `pixels` uint8 `[batch, frames, channels, height, width]`; image_text: `pixels` and `tokens`.
Rows of the probe split of a text corpus are padded with `encoding.pad`."""

Batch = dict[str, Tensor]
"""What `prepare` made of rows; every tensor has the batch as its first dimension and splits into micro-batches, and
otherwise any size of its own: views of several sizes are several tensors. The trainer adds the rows' `keys`."""

Embeddings = dict[str, Tensor]
"""What `embed` makes of a micro-batch, and of all of them, in order, what `couple` gets: `[batch, ...]` by name."""

Part = Literal["loss", "embed", "couple"]
"""What an objective is called for."""


class Options(BaseModel):
    """Options of one objective (`models.NAME.task`): subclass and add fields; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass
class Outcome:
    """`loss`: scalar sum over predicted items. `sums`: further metrics by name, each a pair of detached scalars
    (numerator, denominator), summed over micro-batches and processes before they are divided. `statistics`: detached
    tensors of any shape by name, summed alike and handed to `after_step` (DINO's centre)."""

    loss: Tensor
    sums: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    statistics: dict[str, Tensor] = field(default_factory=dict)


class Objective(nn.Module, ABC):
    """One pretext task on one backbone. Built on the CPU, moved and parallelised from outside."""

    Options: ClassVar[type[Options]] = Options
    whole_batch: ClassVar[bool] = False
    scheduled: ClassVar[bool] = False
    """Whether `after_step` looks at `steps`: a longer training then differs from its first step on, so that a finished
    one cannot be extended."""

    @abstractmethod
    def __init__(self, backbone: Backbone, options: Any, encoding: Encoding) -> None:
        """Raise ValueError with one sentence where the three do not fit together."""
        super().__init__()

    @abstractmethod
    def prepare(self, rows: Rows, keys: Tensor) -> Batch:
        """Corrupt or augment `rows`; `keys` int64 `[batch]` come from `ssl_models.data.keyed.keys`."""

    @abstractmethod
    def count(self, batch: Batch) -> Tensor:
        """Number of predicted items: scalar float tensor on the batch's device, no gradient."""

    def forward(self, batch: Batch, part: Part = "loss") -> Outcome | Embeddings:
        """What training asks of the parameters: the outcome of a micro-batch, its embeddings, or, of those of a global
        batch with their `keys`, the outcome."""
        if part == "embed":
            return self.embed(batch)
        if part == "couple":
            return self.couple({name: value for name, value in batch.items() if name != "keys"}, batch["keys"])
        return self.loss(batch)

    def loss(self, batch: Batch) -> Outcome:
        """The summed loss of one micro-batch."""
        if not self.whole_batch:
            raise TypeError(f"{type(self).__name__} must define loss, or set whole_batch and define embed and couple")
        return self.couple(self.embed(batch), batch["keys"])

    def embed(self, batch: Batch) -> Embeddings:
        """whole_batch only: embeddings of one micro-batch; rows do not see each other in it."""
        raise TypeError(f"{type(self).__name__} does not couple the whole batch")

    def couple(self, embeddings: Embeddings, keys: Tensor) -> Outcome:
        """whole_batch only: the summed loss of the embeddings of all processes, in the order of the global batch, whose
        `keys` int64 `[global batch]` are its only randomness. Every process computes it alike."""
        raise TypeError(f"{type(self).__name__} does not couple the whole batch")

    def after_step(self, step: int, steps: int, statistics: dict[str, Tensor]) -> None:
        """Called, without gradient, when the optimizer has taken step `step` (from 0) of `steps`, never for a step that
        was skipped; `statistics` are the outcomes', summed over the global batch. Every process computes it alike."""

    @abstractmethod
    def features(self, rows: Rows) -> dict[str, Tensor]:
        """Frozen features of clean rows for the probe, by name (`cls`, `mean`, `layer3.mean`): float `[batch, width]`.
        Never augmented, never corrupted; the probe chooses among them on its training part."""

    def raw(self, rows: Rows) -> Tensor:
        """The raw-input baseline: float `[batch, values]`. Default: pixels in [0, 1], or counts of tokens (sparse)."""
        if "pixels" in rows:
            return rows["pixels"].flatten(1).float() / 255
        raise TypeError("text objectives define raw: a bag of tokens")

    def zero_shot(self, names: Sequence[str]) -> Callable[[Rows], Tensor] | None:
        """A classifier made of the classes' names alone, without a label: clean rows to indices into `names`, int64
        `[batch]`. Default: None, as the objective reads no names. Called in eval mode, without gradient."""
        return None

    @torch.no_grad()
    def examples(self, rows: Rows, keys: Tensor) -> Examples:
        """What a reviewer looks at in MLflow, made of a few validation rows: texts and pictures. Default: nothing."""
        return Examples()


@dataclass
class Examples:
    """`texts`: Markdown or plain text by name. `pictures`: uint8 `[height, width, 3]` by name. `metrics`: numbers by
    name that are too costly for every step (perplexity of a codebook, baseline of copying the last frame)."""

    texts: dict[str, str] = field(default_factory=dict)
    pictures: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


def find(name: str) -> type[Objective]:
    """The class of the module `ssl_models.objectives.NAME`; KeyError where there is none."""
    try:
        module = importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise
        raise KeyError(name) from None
    found: type[Objective] = module.OBJECTIVE
    return found
