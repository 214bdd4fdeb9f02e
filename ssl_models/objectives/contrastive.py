"""Contrastive views: two random views of a picture find each other in the batch (SimCLR, Chen et al. 2020, arXiv
2002.05709).

Both views are drawn independently and pass the encoder in one batch; the loss sees the projections of the whole global
batch, and the probe reads the encoder before the projector. `loss` may also name a loss without negatives: VICReg
(Bardes et al. 2021) or Barlow Twins (Zbontar et al. 2021), each with its own projector: SimCLR's two layers, or three
wide ones with batch normalisation. The loss counts two predictions per picture: each view looks for the other.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ssl_models.config import Backbone
from ssl_models.data.augmentation import Augmentation
from ssl_models.data.encoding import Encoding
from ssl_models.models.vision import Encoded, vision_encoder
from ssl_models.objectives import Batch, Embeddings, Examples, Objective, Options, Outcome, Rows
from ssl_models.objectives.shared import accuracy, augment, losses, pictures

_FIRST, _SECOND = 0, 2
"""Streams of `keyed`; a view uses two."""
PROJECTORS = {"nt_xent": (512, 128), "vicreg": (8192, 8192, 8192), "barlow_twins": (8192, 8192, 8192)}
"""Widths of a projector's layers: SimCLR's at a small size, and those of the other two papers."""


class Task(Options):
    """`models.NAME.task`."""

    loss: Literal["nt_xent", "vicreg", "barlow_twins"] = Field(
        default="nt_xent", description="NT-Xent (SimCLR), VICReg or Barlow Twins"
    )
    temperature: float = Field(default=0.5, gt=0, description="of NT-Xent")
    projector: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(), description="widths of the projector's layers; empty: as in the loss's paper"
    )
    augment: Augmentation = Field(default=Augmentation(), description="of the two views")


def projector(loss: str, width: int, widths: tuple[int, ...]) -> nn.Sequential:
    """Linear layers of `widths`, by default PROJECTORS', on an encoder's `width`, with ReLU between them. VICReg and
    Barlow Twins have batch normalisation before it, and no biases, which that makes idle."""
    layers: list[nn.Module] = []
    *hidden, out = widths or PROJECTORS[loss]
    normed = loss != "nt_xent"
    for wide in hidden:
        norm = [nn.BatchNorm1d(wide)] if normed else []
        layers += [nn.Linear(width, wide, bias=not normed), *norm, nn.ReLU()]
        width = wide
    return nn.Sequential(*layers, nn.Linear(width, out, bias=not normed))


class Contrastive(Objective):
    """An encoder, and a projector that is thrown away after pre-training."""

    Options = Task
    whole_batch = True

    def __init__(self, backbone: Backbone, options: Task, encoding: Encoding) -> None:
        super().__init__(backbone, options, encoding)
        self.options = options
        self.encoder = vision_encoder(backbone, encoding)
        self.projector = projector(options.loss, self.encoder.width, options.projector)

    def prepare(self, rows: Rows, keys: Tensor) -> Batch:
        """`views` float `[batch, 2, channels, height, width]`."""
        both = [augment.views(self.options.augment, rows["pixels"], keys, stream) for stream in (_FIRST, _SECOND)]
        return {"views": torch.stack(both, dim=1)}

    def count(self, batch: Batch) -> Tensor:
        """Two per picture."""
        views = batch["views"]
        return torch.tensor(2.0 * len(views), device=views.device)

    def embed(self, batch: Batch) -> Embeddings:
        """`views` `[batch, 2, out]`: the projections of both, which share the statistics of batch normalisation."""
        views = batch["views"]
        projected: Tensor = self.projector(self.encoder(views.flatten(0, 1)).pooled)
        return {"views": projected.view(len(views), 2, -1)}

    def couple(self, embeddings: Embeddings, keys: Tensor) -> Outcome:
        """The loss of all projections, times two per picture."""
        first, second = embeddings["views"].unbind(dim=1)
        count = torch.tensor(2.0 * len(first), device=first.device)
        if self.options.loss == "nt_xent":
            loss = losses.nt_xent(first, second, self.options.temperature)
        else:
            loss = losses.vicreg(first, second) if self.options.loss == "vicreg" else losses.barlow_twins(first, second)
        with torch.no_grad():
            similar = functional.normalize(first, dim=1) @ functional.normalize(second, dim=1).T
            right = accuracy.correct(similar, torch.arange(len(first), device=first.device))
        return Outcome(loss * count, {"view_accuracy": (right, count / 2)})

    def features(self, rows: Rows) -> dict[str, Tensor]:
        """The encoder's output before the projector: what the loss shapes, and what the paper probes."""
        encoded: Encoded = self.encoder(rows["pixels"])
        return encoded.named()

    @torch.no_grad()
    def examples(self, rows: Rows, keys: Tensor) -> Examples:
        """Each picture with two of its views and its nearest neighbours among the others."""
        pixels = rows["pixels"]
        views = self.prepare(rows, keys)["views"]
        features = functional.normalize(self.encoder(pixels).pooled, dim=1)
        similar = (features @ features.T).fill_diagonal_(-torch.inf)
        order = similar.argsort(dim=1, descending=True)[:, : min(4, len(pixels) - 1)]
        shown = [torch.stack([pixels[i], *pixels[order[i]]]) for i in range(len(pixels))]
        drawn = pictures.tile([pixels, views[:, 0], views[:, 1]])
        return Examples(pictures={"views": drawn, "nearest_neighbours": pictures.tile(shown)})


OBJECTIVE = Contrastive
