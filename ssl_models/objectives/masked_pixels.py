"""Masked pixels: an encoder sees a quarter of the patches, a light decoder restores the rest (MAE, He et al. 2021,
arXiv 2111.06377).

Positions are added before masking. The target is each patch normalised by its own mean and unbiased variance; the loss
is the squared error, averaged over a patch's values and counted once per masked patch. Visible patches carry no loss.
In training pictures are cropped and flipped at random, as the paper's are, and targets are of the same crop.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from ssl_models.config import Backbone
from ssl_models.data import keyed
from ssl_models.data.augmentation import Augmentation
from ssl_models.data.encoding import Encoding
from ssl_models.models.presets import resolve
from ssl_models.models.transformer import Stack
from ssl_models.models.vision import patch_encoder, patchify, sine_cosine_2d, to_unit, unpatchify
from ssl_models.objectives import Batch, Examples, Objective, Options, Outcome, Rows
from ssl_models.objectives.shared import augment, pictures

_ORDER, _VIEW = 0, 1
"""Streams of `keyed`; a view uses two."""
_EPSILON = 1e-6  # beside a patch's variance, as in MAE's code
_SPREAD = 0.02


class Crops(Augmentation):
    """The paper's augmentation (appendix A.1): a random resized crop and a flip, colours as they are."""

    crop: tuple[float, float] = Field(default=(0.2, 1.0), description="fraction of the area kept")
    jitter: float = Field(default=0.0, ge=0, le=1, description="probability of the four strengths below")
    grey: float = Field(default=0.0, ge=0, le=1, description="probability of losing all colour")


class Decoder(Options):
    """The decoder's size: overrides of the preset `mae-decoder`."""

    layers: int = Field(default=2, ge=1, description="blocks")
    width: int = Field(default=128, ge=4, description="of a token's vector")
    heads: int = Field(default=4, ge=1, description="of attention")
    mlp_width: int = Field(default=0, ge=0, description="0: 4 x `width`")


class Task(Options):
    """`models.NAME.task`."""

    ratio: float = Field(default=0.75, gt=0, lt=1, description="part of the patches that is masked")
    normalise: bool = Field(default=True, description="targets normalised patch by patch; else pixels as they are seen")
    decoder: Decoder = Field(default=Decoder(), description="it is thrown away after pre-training")
    augment: Crops | None = Field(default=Crops(), description="of pictures, in training; null: as they are")


class MaskedPixels(Objective):
    """A ViT on visible patches, and the decoder that is thrown away after pre-training."""

    Options = Task
    fixed: Tensor

    def __init__(self, backbone: Backbone, options: Task, encoding: Encoding) -> None:
        super().__init__(backbone, options, encoding)
        self.options = options
        self.encoder = encoder = patch_encoder(backbone, encoding)
        if encoder.architecture.positions == "relative":
            raise ValueError("positions: this objective drops patches, so positions must be sincos or learned")
        self.visible = int(encoder.patches * (1 - options.ratio))  # rounded as MAE's code does
        if not 0 < self.visible < encoder.patches:
            raise ValueError(f"task.ratio: {options.ratio} of {encoder.patches} patches masks none or all of them")
        a = encoder.architecture
        shared = {"patch": encoder.patch, "mlp": a.mlp, "norm_eps": a.norm_eps}
        small = resolve(Backbone.model_validate({"preset": "mae-decoder", **shared, **options.decoder.model_dump()}))
        self.narrow = nn.Linear(encoder.width, small.width)
        self.mask = nn.Parameter(torch.randn(small.width) * _SPREAD)
        self.decoder = Stack(small)
        self.head = nn.Linear(small.width, encoder.values)
        for layer in (self.narrow, self.head):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        positions = sine_cosine_2d(encoder.rows, encoder.columns, small.width)
        self.register_buffer("fixed", torch.cat([torch.zeros(1, small.width), positions]))

    def prepare(self, rows: Rows, keys: Tensor) -> Batch:
        """`pixels`, cropped and flipped in training, and `order` int64 `[batch, patches]`: the first `visible` ones are
        seen."""
        pixels = rows["pixels"]
        if self.options.augment is not None and self.training:
            pixels = augment.views(self.options.augment, pixels, keys, _VIEW)
        return {"pixels": pixels, "order": keyed.permutation(keys, self.encoder.patches, _ORDER)}

    def count(self, batch: Batch) -> Tensor:
        """Masked patches."""
        order = batch["order"]
        return torch.tensor(float(len(order) * (self.encoder.patches - self.visible)), device=order.device)

    def targets(self, pixels: Tensor) -> Tensor:
        """What the decoder should predict: `[batch, patches, values]`."""
        target = patchify(self.encoder.normalise(pixels), self.encoder.patch)
        if self.options.normalise:
            target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + _EPSILON).sqrt()
        return target

    def predict(self, batch: Batch) -> Tensor:
        """Predictions for every patch, in the picture's order: `[batch, patches, values]`."""
        order = batch["order"]
        seen = order[:, : self.visible, None]
        patches = self.encoder.place(self.encoder.project(batch["pixels"]))
        encoded = self.encoder.run(patches.gather(1, seen.expand(-1, -1, patches.shape[2])))
        assert encoded.cls is not None
        tokens = self.narrow(encoded.tokens)
        full = self.mask.to(tokens.dtype).expand(len(order), self.encoder.patches, -1)
        full = full.scatter(1, seen.expand(-1, -1, tokens.shape[2]), tokens)
        x = torch.cat([self.narrow(encoded.cls)[:, None], full], dim=1) + self.fixed
        predicted: Tensor = self.head(self.decoder(x)[:, 1:])
        return predicted

    def error(self, predicted: Tensor, batch: Batch) -> Tensor:
        """Sum over masked patches of the mean squared error of `predicted` `[batch, patches, values]`."""
        error = ((predicted.float() - self.targets(batch["pixels"])) ** 2).mean(dim=-1)
        return error.gather(1, batch["order"][:, self.visible :]).sum()

    def loss(self, batch: Batch) -> Outcome:
        """The loss on masked patches."""
        return Outcome(self.error(self.predict(batch), batch))

    def features(self, rows: Rows) -> dict[str, Tensor]:
        """`mean` over all patches, none masked, and `cls`."""
        return self.encoder.features(rows["pixels"])

    @torch.no_grad()
    def examples(self, rows: Rows, keys: Tensor) -> Examples:
        """Pictures, what the encoder saw of them, and the restored ones."""
        batch = self.prepare(rows, keys)
        height, width = batch["pixels"].shape[-2:]
        patch, normalise = self.encoder.patch, self.encoder.normalise
        clean = patchify(to_unit(batch["pixels"]), patch)
        predicted = self.predict(batch).float()
        if self.options.normalise:  # a patch's own mean and spread are not predicted: lent for the picture
            true = patchify(normalise(batch["pixels"]), patch)
            predicted = predicted * (true.var(-1, keepdim=True) + _EPSILON).sqrt() + true.mean(-1, keepdim=True)
        predicted = patchify(normalise.undo(unpatchify(predicted, patch, height, width)), patch)
        hidden = torch.ones(clean.shape[:2], dtype=torch.bool, device=clean.device)
        hidden.scatter_(1, batch["order"][:, : self.visible], False)
        seen = torch.where(hidden[..., None], 0.5, clean)
        restored = torch.where(hidden[..., None], predicted, clean)
        shown = [unpatchify(part, patch, height, width) for part in (clean, seen, restored)]
        return Examples(pictures={"original_masked_restored": pictures.tile(shown)})


OBJECTIVE = MaskedPixels
