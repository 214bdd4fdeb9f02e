"""The encoder of pictures that all objectives on pictures share: a ViT, which is a preset of the one transformer, or a
ResNet.

A ViT's parts are methods of their own (`patchify`, `project`, `place`, `run`), as masked objectives step in between.
Patches are flattened in the order (row, column, channel), as MAE's reference code does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ssl_models.config import Backbone
from ssl_models.data.encoding import Encoding
from ssl_models.models.presets import resolve, resolve_resnet
from ssl_models.models.resnet import ResNet
from ssl_models.models.transformer import Stack, norm, sine_cosine

_SPREAD = 0.02  # standard deviation of [CLS] and learned positions, as in ViT, MAE and BEiT
_GRID = 2  # quarters of a picture are kept apart along each side
_SPECIAL_BIASES = 3  # BEiT: [CLS] to patch, patch to [CLS], [CLS] to itself


def patchify(pixels: Tensor, side: int) -> Tensor:
    """Pictures `[batch, channels, height, width]` as patches `[batch, patches, side * side * channels]`, row by row."""
    batch, channels, height, width = pixels.shape
    grid = pixels.reshape(batch, channels, height // side, side, width // side, side)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, side * side * channels)


def unpatchify(patches: Tensor, side: int, height: int, width: int) -> Tensor:
    """The inverse of `patchify`, for pictures of `height` x `width`."""
    batch = len(patches)
    grid = patches.reshape(batch, height // side, width // side, side, side, -1)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, height, width)


def sine_cosine_2d(rows: int, columns: int, width: int) -> Tensor:
    """MAE's fixed positions of a grid: `[rows * columns, width]`; the first half encodes the column, the second the
    row."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.cat([sine_cosine(column.flatten(), width // 2), sine_cosine(row.flatten(), width // 2)], dim=1)


Grid = tuple[int, int]
"""Rows and columns of patches."""


def regridded(table: Tensor, grid: Grid, wanted: Grid) -> Tensor:
    """What a `table` `[rows * columns, width]` says of the places of a grid, for another one: interpolated, as in DINO
    (Caron et al. 2021, arXiv 2104.14294)."""
    if grid == wanted:
        return table
    picture = table.view(*grid, -1).permute(2, 0, 1)[None]
    return functional.interpolate(picture, wanted, mode="bicubic")[0].flatten(1).mT


class GridBias(nn.Module):
    """BEiT's relative position bias of one layer: a learned number per head and offset on the grid, with [CLS]
    apart."""

    index: Tensor

    def __init__(self, rows: int, columns: int, heads: int) -> None:
        super().__init__()
        self.grid = (rows, columns)
        self.table = nn.Parameter(torch.zeros((2 * rows - 1) * (2 * columns - 1) + _SPECIAL_BIASES, heads))
        self.register_buffer("index", self._index(rows, columns), persistent=False)

    @staticmethod
    def _index(rows: int, columns: int) -> Tensor:
        """The row of the table for each pair of [CLS] and patches."""
        offsets = (2 * rows - 1) * (2 * columns - 1)
        place = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")).flatten(1)
        away = place[:, :, None] - place[:, None, :] + torch.tensor([rows - 1, columns - 1])[:, None, None]
        index = torch.empty(rows * columns + 1, rows * columns + 1, dtype=torch.int64)
        index[1:, 1:] = away[0] * (2 * columns - 1) + away[1]
        index[0, :], index[:, 0], index[0, 0] = offsets, offsets + 1, offsets + 2
        return index

    def forward(self, grid: Grid) -> Tensor:
        """`[1, heads, 1 + patches, 1 + patches]` for a grid of any size."""
        table: Tensor = self.table
        index = self.index
        if grid != self.grid:
            spans = [(2 * rows - 1, 2 * columns - 1) for rows, columns in (self.grid, grid)]
            table = torch.cat([regridded(table[:-_SPECIAL_BIASES], *spans), table[-_SPECIAL_BIASES:]])
            index = self._index(*grid).to(index.device)
        return table[index].permute(2, 0, 1)[None]


@dataclass
class Encoded:
    """`tokens` `[batch, tokens, width]`: patches, or places of a ResNet's last map; `cls` `[batch, width]`, ViT
    only."""

    tokens: Tensor
    cls: Tensor | None

    @property
    def pooled(self) -> Tensor:
        """The mean of the tokens: `[batch, width]`."""
        return self.tokens.mean(dim=1)

    def named(self) -> dict[str, Tensor]:
        """The features a probe reads, in float32."""
        named = {"mean": self.pooled.float()}
        return named if self.cls is None else {**named, "cls": self.cls.float()}


class _Normalise(nn.Module):
    """Pixels to zero mean and unit variance over the corpus, channel by channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, encoding: Encoding) -> None:
        super().__init__()
        shape = (encoding.channels, 1, 1)
        mean = encoding.mean or (0.5,) * encoding.channels
        std = encoding.std or (0.5,) * encoding.channels
        self.register_buffer("mean", torch.tensor(mean).view(shape), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(shape).clamp(min=1e-3), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8, or float in [0, 1], `[..., channels, height, width]`, to float of the same shape."""
        return (to_unit(pixels) - self.mean) / self.std

    def undo(self, normalised: Tensor) -> Tensor:
        """The inverse, to float in [0, 1] where it was so."""
        return normalised * self.std + self.mean


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 pixels as float32 in [0, 1]; float as it is."""
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels


class VisionEncoder(nn.Module):
    """Pictures to `Encoded`; `width` is that of its features."""

    width: int

    def features(self, pixels: Tensor) -> dict[str, Tensor]:
        """What a probe reads of pictures `[batch, channels, height, width]`, by name, in float32."""
        encoded: Encoded = self(pixels)
        return encoded.named()


class ConvolutionalEncoder(VisionEncoder):
    """A ResNet on normalised pixels."""

    def __init__(self, backbone: Backbone, encoding: Encoding) -> None:
        super().__init__()
        self.normalise = _Normalise(encoding)
        self.network = ResNet(resolve_resnet(backbone), encoding.channels)
        self.width = self.network.width

    def forward(self, pixels: Tensor) -> Encoded:
        """Pictures `[batch, channels, height, width]`, uint8 or float in [0, 1]."""
        return Encoded(self.network(self.normalise(pixels)).flatten(2).mT, None)

    def features(self, pixels: Tensor) -> dict[str, Tensor]:
        """`mean` of the last map, and `layerN.grid`: each stage's map averaged over quarters of the picture. Tasks
        that need little of the last stage leave their best features in the middle (Gidaris et al. 2018, table 1)."""
        maps: list[Tensor] = []
        mean = self.network(self.normalise(pixels), maps).mean(dim=(2, 3))
        grids = {f"layer{n + 1}.grid": functional.adaptive_avg_pool2d(x, _GRID).flatten(1) for n, x in enumerate(maps)}
        return {name: values.float() for name, values in {"mean": mean, **grids}.items()}


class PatchEncoder(VisionEncoder):
    """A ViT on normalised pixels: patches, [CLS] first, positions fixed, learned, or relative in every layer."""

    fixed: Tensor

    def __init__(self, backbone: Backbone, encoding: Encoding) -> None:
        super().__init__()
        a = resolve(backbone)
        if a.structure != "encoder" or not a.patch:
            raise ValueError(f"preset: pictures need a preset for patches (vit, mae, beit), not {a.preset!r}")
        if encoding.height % a.patch or encoding.width % a.patch:
            raise ValueError(
                f"patch: patches of {a.patch} pixels do not tile pictures of {encoding.height}x{encoding.width}; "
                "set backbone.patch to a common divisor"
            )
        if a.positions == "rotary":
            raise ValueError("positions: pictures have learned, sincos, relative or no positions, not rotary ones")
        self.architecture, self.width, self.patch = a, a.width, a.patch
        self.rows, self.columns = encoding.height // a.patch, encoding.width // a.patch
        self.patches = self.rows * self.columns
        self.values = a.patch * a.patch * encoding.channels
        self.normalise = _Normalise(encoding)
        self.embedding = nn.Linear(self.values, a.width, bias=a.patch_bias)
        nn.init.xavier_uniform_(self.embedding.weight)
        if a.patch_bias:
            nn.init.zeros_(self.embedding.bias)
        self.cls = nn.Parameter(torch.randn(a.width) * _SPREAD)
        if a.positions == "learned":
            self.positions = nn.Parameter(torch.randn(self.patches + 1, a.width) * _SPREAD)
        elif a.positions == "sincos":
            fixed = torch.cat([torch.zeros(1, a.width), sine_cosine_2d(self.rows, self.columns, a.width)])
            self.register_buffer("fixed", fixed)  # saved: a model from elsewhere brings its own
        elif a.positions == "relative":
            self.biases = nn.ModuleList(GridBias(self.rows, self.columns, a.heads) for _ in range(a.layers))
        self.norm = norm(a) if a.embedding_norm else nn.Identity()
        self.stack = Stack(a)

    def project(self, pixels: Tensor) -> Tensor:
        """Embedded patches `[batch, patches, width]`, not yet placed."""
        embedded: Tensor = self.embedding(patchify(self.normalise(pixels), self.patch))
        return embedded

    def _position(self) -> Tensor | None:
        kind = self.architecture.positions
        return self.positions if kind == "learned" else self.fixed if kind == "sincos" else None

    def place(self, patches: Tensor, grid: Grid | None = None) -> Tensor:
        """`patches` `[batch, patches, width]`, of a picture of the corpus's size or on `grid`, with their positions
        added."""
        position = self._position()
        own = (self.rows, self.columns)
        return patches if position is None else patches + regridded(position[1:], own, grid or own)

    def run(self, patches: Tensor, grid: Grid | None = None) -> Encoded:
        """Any placed patches `[batch, some, width]` with [CLS] before them, through the transformer. Relative positions
        need all patches of a picture of the corpus's size or on `grid`."""
        position = self._position()
        cls = self.cls if position is None else self.cls + position[0]
        x = torch.cat([cls.expand(len(patches), 1, -1), patches], dim=1)
        biases = None
        if self.architecture.positions == "relative":
            biases = [bias(grid or (self.rows, self.columns)) for bias in self.biases]
        x = self.stack(self.norm(x), biases=biases)
        return Encoded(x[:, 1:], x[:, 0])

    def forward(self, pixels: Tensor) -> Encoded:
        """Pictures `[batch, channels, height, width]`, uint8 or float in [0, 1], of any size that patches tile: where
        it is not the corpus's, positions are interpolated."""
        grid = (pixels.shape[-2] // self.patch, pixels.shape[-1] // self.patch)
        return self.run(self.place(self.project(pixels), grid), grid)


def vision_encoder(backbone: Backbone, encoding: Encoding) -> VisionEncoder:
    """The encoder that `backbone` describes for pictures of `encoding`; ValueError where they do not fit together."""
    if not encoding.channels:
        raise ValueError(f"objective: this objective needs pictures, and the corpus is {encoding.modality}")
    if backbone.architecture == "resnet":
        return ConvolutionalEncoder(backbone, encoding)
    return PatchEncoder(backbone, encoding)


def patch_encoder(backbone: Backbone, encoding: Encoding) -> PatchEncoder:
    """As `vision_encoder`, for objectives that mask patches and so need a ViT."""
    encoder = vision_encoder(backbone, encoding)
    if not isinstance(encoder, PatchEncoder):
        raise ValueError("architecture: this objective masks patches and needs a transformer, not a resnet")
    return encoder
