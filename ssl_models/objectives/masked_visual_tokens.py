"""Masked visual tokens: a ViT names the code of every masked patch (BEiT, Bao et al. 2021, arXiv 2106.08254).

All positions enter, masked ones as a learned [M]; masks are blocks, about 40 % of the patches. The targets are indices
in the codebook that the tokenize stage trained and froze (k-means on patches, not DALL-E's), of the same pixels that
the encoder sees: in training a random crop, flipped and jittered as in BEiT's code. Cross-entropy on masked positions
only, counted once per masked patch.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ssl_models.config import Backbone
from ssl_models.data import keyed
from ssl_models.data.augmentation import Augmentation
from ssl_models.data.encoding import Encoding
from ssl_models.models import codebook
from ssl_models.models.vision import Encoded, patch_encoder, patchify, to_unit, unpatchify
from ssl_models.objectives import Batch, Examples, Objective, Options, Outcome, Rows
from ssl_models.objectives.shared import accuracy, augment, pictures
from ssl_models.objectives.shared.cross_entropy import IGNORE

_BLOCKS, _VIEW = 0, 1
"""Streams of `keyed`; a view uses two."""
_ASPECT = 0.3  # blocks are between 0.3 and 1 / 0.3 times as high as wide
_SMALLEST, _REFERENCE = 16, 196  # a block has at least 16 of 196 patches; of smaller grids the same part
_TRIALS = 16  # blocks drawn for a picture; the first that still fit are taken
_SPREAD = 0.02


def most_masked(patches: int, ratio: float) -> int:
    """The most of `patches` that are masked; at least one."""
    return max(1, round(ratio * patches))


def block_masks(keys: Tensor, rows: int, columns: int, ratio: float, stream: int) -> Tensor:
    """Blockwise masks bool `[batch, rows * columns]`, at most round(`ratio` * patches) of each masked and at least
    one."""
    patches = rows * columns
    most = most_masked(patches, ratio)
    least = min(most, max(1, min(_SMALLEST, round(patches * _SMALLEST / _REFERENCE))))
    u = keyed.uniform(keys, 4 * _TRIALS, stream).view(-1, _TRIALS, 4)
    row = torch.arange(rows, device=keys.device)[None, :, None]
    column = torch.arange(columns, device=keys.device)[None, None, :]
    mask = torch.zeros(len(keys), rows, columns, dtype=torch.bool, device=keys.device)
    for trial in range(_TRIALS):
        left_over = most - mask.sum(dim=(1, 2))
        area = least + u[:, trial, 0] * (left_over - least).clamp(min=0)
        aspect = torch.exp(math.log(_ASPECT) * (2 * u[:, trial, 1] - 1))
        height = torch.round((area * aspect).sqrt()).clamp(1, rows)
        width = torch.round((area / aspect).sqrt()).clamp(1, columns)
        top = torch.floor(u[:, trial, 2] * (rows - height + 1))[:, None, None]
        left = torch.floor(u[:, trial, 3] * (columns - width + 1))[:, None, None]
        block = (row >= top) & (row < top + height[:, None, None])
        block = block & (column >= left) & (column < left + width[:, None, None])
        added = (block & ~mask).sum(dim=(1, 2))
        mask = mask | (block & (added <= left_over)[:, None, None])
    bare = ~mask.flatten(1).any(dim=1)  # on tiny grids every block may be too large
    anywhere = torch.floor(u[:, 0, 2] * patches).long()[:, None] == torch.arange(patches, device=keys.device)
    return mask.flatten(1) | (bare[:, None] & anywhere)


class Crops(Augmentation):
    """The augmentation of BEiT's code: a random resized crop, a flip, and always some brightness, contrast and
    saturation."""

    jitter: float = Field(default=1.0, ge=0, le=1, description="probability of the four strengths below")
    hue: float = Field(default=0.0, ge=0, le=0.5, description="largest turn of the colour wheel, in full turns")
    grey: float = Field(default=0.0, ge=0, le=1, description="probability of losing all colour")


class Task(Options):
    """`models.NAME.task`."""

    ratio: float = Field(default=0.4, gt=0, lt=1, description="part of the patches that is masked, at most")
    augment: Crops | None = Field(default=Crops(), description="of pictures, in training; null: as they are")


class MaskedVisualTokens(Objective):
    """A ViT, and a linear head over the codebook."""

    Options = Task
    centres: Tensor

    def __init__(self, backbone: Backbone, options: Task, encoding: Encoding) -> None:
        super().__init__(backbone, options, encoding)
        self.options = options
        self.encoder = patch_encoder(backbone, encoding)
        book = codebook.load(encoding.folder)
        if book.side != self.encoder.patch:
            raise ValueError(
                f"patch: the codebook has patches of {book.side} pixels, the backbone of {self.encoder.patch}; "
                "set backbone.patch or tokenize.patch to the other's"
            )
        self.register_buffer("centres", book.centres)
        self.mask = nn.Parameter(torch.randn(self.encoder.width) * _SPREAD)
        self.head = nn.Linear(self.encoder.width, len(book.centres))
        nn.init.normal_(self.head.weight, std=_SPREAD / 10)
        nn.init.zeros_(self.head.bias)

    @property
    def codebook(self) -> codebook.Codebook:
        """The frozen codebook; it travels with the weights."""
        return codebook.Codebook(self.centres, self.encoder.patch)

    def prepare(self, rows: Rows, keys: Tensor) -> Batch:
        """`pixels`, augmented in training; `masked` bool and `codes` int64 `[batch, patches]`; `positions` int64
        `[batch, most masked]` of the masked patches, and of others where fewer are masked than may be."""
        masked = block_masks(keys, self.encoder.rows, self.encoder.columns, self.options.ratio, _BLOCKS)
        most = most_masked(masked.shape[1], self.options.ratio)
        pixels = rows["pixels"]
        if self.options.augment is not None and self.training:
            pixels = augment.views(self.options.augment, pixels, keys, _VIEW)
        return {
            "pixels": pixels,
            "masked": masked,
            "codes": self.codebook.encode(pixels),
            "positions": (~masked).byte().argsort(dim=1, stable=True)[:, :most],
        }

    def count(self, batch: Batch) -> Tensor:
        """Masked patches."""
        return batch["masked"].sum().float()

    def logits(self, batch: Batch) -> Tensor:
        """Logits `[batch, most masked, codes]` of the patches at `positions`."""
        masked = batch["masked"]
        patches = torch.where(masked[..., None], self.mask, self.encoder.project(batch["pixels"]))
        tokens = self.encoder.run(self.encoder.place(patches)).tokens
        index = batch["positions"][..., None].expand(-1, -1, tokens.shape[-1])
        found: Tensor = self.head(tokens.gather(1, index))
        return found

    def loss(self, batch: Batch) -> Outcome:
        """Cross-entropy on masked patches."""
        targets = batch["codes"].masked_fill(~batch["masked"], IGNORE).gather(1, batch["positions"])
        logits = self.logits(batch).float()
        right = accuracy.correct(logits.detach(), targets)
        loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum")
        return Outcome(loss, {"mask_accuracy": (right, self.count(batch))})

    def features(self, rows: Rows) -> dict[str, Tensor]:
        """`mean` over all patches, none masked. [CLS] is no feature: the loss reads patches alone, so nothing trained
        what it gathers in the last layer."""
        encoded: Encoded = self.encoder(rows["pixels"])
        return {"mean": encoded.pooled.float()}

    @torch.no_grad()
    def examples(self, rows: Rows, keys: Tensor) -> Examples:
        """Pictures, what was seen of them, their codes' patches, and the patches of the predicted codes; and how many
        codes these pictures use."""
        batch = self.prepare(rows, keys)
        height, width = batch["pixels"].shape[-2:]
        clean = to_unit(batch["pixels"])
        codes = batch["codes"]
        guessed = codes.scatter(1, batch["positions"], self.logits(batch).argmax(dim=2))
        predicted = torch.where(batch["masked"], guessed, codes)
        seen = patchify(clean, self.encoder.patch).masked_fill(batch["masked"][..., None], 0.5)
        shown = [clean, unpatchify(seen, self.encoder.patch, height, width)]
        shown += [self.codebook.decode(each, height, width) for each in (codes, predicted)]
        use = codebook.usage(codes, len(self.centres))
        return Examples(
            pictures={"original_masked_codes_predicted": pictures.tile(shown)},
            metrics={"codes_used": float(use.used), "codebook_perplexity": use.perplexity},
        )


OBJECTIVE = MaskedVisualTokens
