"""Relative patch position: where does this patch lie beside that one? (context prediction, Doersch et al. 2015, arXiv
1505.05192)

A picture gives a 3x3 arrangement of patches with gaps of about half a patch and jitter. Encoded once each, the centre
is paired with its eight neighbours in both orders: 16 predictions of one of 8 positions. Against short cuts, colour is
taken from some patches (one channel stays, noise replaces the others), and some pictures are shrunk and enlarged again.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ssl_models.config import Backbone
from ssl_models.data import keyed
from ssl_models.data.encoding import Encoding
from ssl_models.models.vision import ConvolutionalEncoder, to_unit, vision_encoder
from ssl_models.objectives import Batch, Examples, Objective, Options, Outcome, Rows
from ssl_models.objectives.shared import accuracy, pictures

_JITTER, _CHOICE, _NOISE, _COLOUR = range(4)
"""Streams of `keyed`."""
_SIDE = 3  # patches along a side of the arrangement
_PLACES, _CENTRE = _SIDE * _SIDE, 4
_NEIGHBOURS = (
    0,
    1,
    2,
    3,
    5,
    6,
    7,
    8,
)  # class k: the second patch lies where place _NEIGHBOURS[k] is, seen from the first
_CLASSES = len(_NEIGHBOURS)
_NOISE_SPREAD = 0.01  # of a dropped channel's noise: a part of the remaining one's deviation, as in the paper
_SPREAD = 0.01


class Task(Options):
    """`models.NAME.task`."""

    drop_colour: float = Field(default=0.5, ge=0, le=1, description="probability that a patch keeps one channel only")
    resample: float = Field(default=0.33, ge=0, le=1, description="probability that a picture is shrunk and enlarged")
    hidden: int = Field(default=128, ge=1, description="width of the fusion layer")


class PatchPosition(Objective):
    """One encoder for all patches, fused late. The probe reads it on the nine patches of the plain grid."""

    Options = Task

    def __init__(self, backbone: Backbone, options: Task, encoding: Encoding) -> None:
        super().__init__(backbone, options, encoding)
        self.options = options
        self.cell = min(encoding.height, encoding.width) // _SIDE
        self.side = round(self.cell * 2 / 3)  # the rest of a cell is gap: half a patch
        if self.side < 2:
            size = f"{encoding.height}x{encoding.width}"
            raise ValueError(f"objective: pictures of {size} are too small for nine patches: at least 9x9")
        small = encoding.model_copy(update={"height": self.side, "width": self.side})
        self.encoder = vision_encoder(backbone, small)
        self.fusion = nn.Sequential(nn.Linear(2 * self.encoder.width, options.hidden), nn.ReLU())
        self.head = nn.Linear(options.hidden, _CLASSES)
        nn.init.normal_(self.head.weight, std=_SPREAD)
        nn.init.zeros_(self.head.bias)

    def patches(self, pixels: Tensor, offsets: Tensor) -> Tensor:
        """The nine patches `[batch, 9, channels, side, side]` of `pixels` `[batch, channels, height, width]`;
        `offsets` int64 `[batch, 9, 2]` are rows and columns from the corner of a patch's cell."""
        batch, channels, height, width = pixels.shape
        place = torch.arange(_PLACES, device=pixels.device)
        corner = torch.stack([place // _SIDE, place % _SIDE], dim=1) * self.cell
        margin = torch.tensor([height - _SIDE * self.cell, width - _SIDE * self.cell], device=pixels.device) // 2
        start = corner + margin + offsets
        within = torch.arange(self.side, device=pixels.device)
        row = start[..., 0, None, None] + within[:, None]
        column = start[..., 1, None, None] + within
        index = (row * width + column).view(batch, 1, -1).expand(-1, channels, -1)
        taken = pixels.flatten(2).gather(2, index)
        return taken.view(batch, channels, _PLACES, self.side, self.side).transpose(1, 2).contiguous()

    def prepare(self, rows: Rows, keys: Tensor) -> Batch:
        """`patches` float `[batch, 9, channels, side, side]` in [0, 1]."""
        pixels = self._resampled(to_unit(rows["pixels"]), keys)
        jitter = keyed.integers(keys, 2 * _PLACES, self.cell - self.side + 1, _JITTER)
        return {"patches": self._discoloured(self.patches(pixels, jitter.view(-1, _PLACES, 2)), keys)}

    def _resampled(self, pixels: Tensor, keys: Tensor) -> Tensor:
        """Pictures `[batch, channels, height, width]`, some of them without the short cut that sharpness offers."""
        small = functional.interpolate(pixels, scale_factor=0.5, mode="bilinear", antialias=True)
        coarse = functional.interpolate(small, size=pixels.shape[2:], mode="bilinear")
        chosen = keyed.uniform(keys, 1, _CHOICE)[:, 0] < self.options.resample
        return torch.where(chosen[:, None, None, None], coarse, pixels)

    def _discoloured(self, patches: Tensor, keys: Tensor) -> Tensor:
        """Patches `[batch, 9, channels, side, side]`, some of them without the short cut that colour fringes offer."""
        channels = patches.shape[2]
        if channels == 1:
            return patches
        u = keyed.uniform(keys, 2 * _PLACES, _COLOUR).view(-1, _PLACES, 2, 1)
        kept = (u[:, :, 0] * channels).long() == torch.arange(channels, device=patches.device)
        dropped = (u[:, :, 1] < self.options.drop_colour) & ~kept
        spread = (patches.flatten(3).std(dim=3) * kept).sum(dim=2) * _NOISE_SPREAD
        noise = keyed.normal(keys, patches[0].numel(), _NOISE).view_as(patches) * spread[..., None, None, None]
        return torch.where(dropped[..., None, None], (0.5 + noise).clamp(0, 1), patches)

    def count(self, batch: Batch) -> Tensor:
        """Both orders of eight pairs."""
        patches = batch["patches"]
        return torch.tensor(2.0 * _CLASSES * len(patches), device=patches.device)

    def logits(self, patches: Tensor) -> Tensor:
        """Logits `[batch, 16, 8]`: centre and neighbour for the eight neighbours, then neighbour and centre."""
        encoded = self.encoder(patches.flatten(0, 1)).pooled.view(len(patches), _PLACES, -1)
        around = encoded[:, _NEIGHBOURS]
        centre = encoded[:, _CENTRE, None].expand_as(around)
        pairs = torch.cat([torch.cat([centre, around], dim=2), torch.cat([around, centre], dim=2)], dim=1)
        found: Tensor = self.head(self.fusion(pairs))
        return found

    def targets(self, batch: int, device: torch.device) -> Tensor:
        """Classes `[batch, 16]`; seen from the neighbour, the centre lies opposite."""
        straight = torch.arange(_CLASSES, device=device)
        return torch.cat([straight, _CLASSES - 1 - straight]).expand(batch, -1)

    def loss(self, batch: Batch) -> Outcome:
        """Cross-entropy over the eight positions."""
        logits = self.logits(batch["patches"]).float().flatten(0, 1)
        targets = self.targets(len(batch["patches"]), logits.device).flatten()
        right = accuracy.correct(logits.detach(), targets)
        loss = functional.cross_entropy(logits, targets, reduction="sum")
        return Outcome(loss, {"position_accuracy": (right, self.count(batch))})

    def features(self, rows: Rows) -> dict[str, Tensor]:
        """`tiles`: the nine patches' features side by side; `mean` over them; and, of a convolutional encoder
        on the picture in one piece, `whole` and its stages."""
        pixels = to_unit(rows["pixels"])
        still = torch.full((len(pixels), _PLACES, 2), (self.cell - self.side) // 2, device=pixels.device)
        tiles = self.encoder(self.patches(pixels, still).flatten(0, 1)).pooled.view(len(pixels), _PLACES, -1).float()
        named = {"tiles": tiles.flatten(1), "mean": tiles.mean(dim=1)}
        if isinstance(self.encoder, ConvolutionalEncoder):
            whole = self.encoder.features(pixels)
            named |= {"whole": whole.pop("mean"), **whole}
        return named

    @torch.no_grad()
    def examples(self, rows: Rows, keys: Tensor) -> Examples:
        """The patches of each picture, and the confusion of the eight positions: actual downwards, predicted across."""
        patches = self.prepare(rows, keys)["patches"]
        guessed = self.logits(patches).argmax(dim=2).flatten()
        actual = self.targets(len(patches), guessed.device).flatten()
        confusion = torch.bincount(actual * _CLASSES + guessed, minlength=_CLASSES**2).view(_CLASSES, _CLASSES)
        shown = list(patches.unbind(dim=1))
        return Examples(pictures={"patches": pictures.tile(shown), "position_confusion": pictures.heat(confusion)})


OBJECTIVE = PatchPosition
