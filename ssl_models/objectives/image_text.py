"""Image-text matching: a picture and its caption find each other in the batch (CLIP, Radford et al. 2021, arXiv
2103.00020; with `loss: siglip` the sigmoid loss of Zhai et al. 2023, arXiv 2303.15343).

Two encoders with linear projections; the text feature is read at the end-of-text token of a causal transformer. The
whole global batch is coupled, whatever micro-batches and processes it is made in. The loss counts one prediction per
pair. The scale is learned and not decayed.

Equal captions are one target of the recall, in both directions. CLIP's loss is the paper's (and open_clip's), which
knows each picture's own caption alone: over equal captions its gradient adds up to that of a target spread evenly over
their pictures, and only its least value is not zero. The sigmoid loss judges every pair by itself, and would call the
same picture and words right once and wrong as often as they are repeated; so pairs of equal captions are right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from ssl_models.config import Backbone
from ssl_models.data.augmentation import Augmentation
from ssl_models.data.encoding import Encoding
from ssl_models.models.presets import resolve
from ssl_models.models.transformer import Transformer
from ssl_models.models.vision import vision_encoder
from ssl_models.objectives import Batch, Embeddings, Examples, Objective, Options, Outcome, Rows
from ssl_models.objectives.shared import accuracy, augment, losses, pictures

_CLIP_START, _CLIP_MOST = math.log(1 / 0.07), math.log(100)
_SIGLIP_START, _SIGLIP_BIAS = math.log(10), -10.0
_RECALLS = (1, 5)
_VIEW = 0
"""Stream of `keyed`."""


class Text(Options):
    """The text encoder's size: overrides of the preset `clip-text`."""

    layers: int = Field(default=2, ge=1, description="blocks")
    width: int = Field(default=128, ge=1, description="of a token's vector")
    heads: int = Field(default=4, ge=1, description="of attention")
    mlp: Literal["quick_gelu", "gelu"] = Field(default="quick_gelu", description="activation")
    mlp_width: int = Field(default=0, ge=0, description="0: 4 x `width`")
    context: int = Field(default=0, ge=0, description="most tokens of a caption; 0: the rows' length")
    vocabulary: int = Field(default=0, ge=0, description="0: the tokenizer's; larger pads the table")


class Task(Options):
    """`models.NAME.task`."""

    loss: Literal["clip", "siglip"] = Field(default="clip", description="softmax over the batch, or a sigmoid per pair")
    width: int = Field(default=128, ge=1, description="of the space that both project into")
    text: Text = Field(default=Text(), description="the text encoder")
    augment: Augmentation | None = Field(default=None, description="of pictures; a flip may make a caption wrong")
    prompts: tuple[str, ...] = Field(default=("{}",), min_length=1, description="zero-shot: {} is the class name")


class ImageText(Objective):
    """Two encoders, two projections, and the scale between them."""

    Options = Task
    whole_batch = True

    def __init__(self, backbone: Backbone, options: Task, encoding: Encoding) -> None:
        super().__init__(backbone, options, encoding)
        if encoding.modality != "image_text":
            raise ValueError(f"objective: this objective needs pairs of image and text, not {encoding.modality}")
        self.options, self.encoding = options, encoding
        self.image = vision_encoder(backbone, encoding)
        text = Backbone(preset="clip-text", **options.text.model_dump())
        self.text = Transformer(resolve(text, vocabulary=encoding.vocabulary, context=encoding.length))
        self.image_projection = nn.Linear(self.image.width, options.width, bias=False)
        self.text_projection = nn.Linear(options.text.width, options.width, bias=False)
        for projection in (self.image_projection, self.text_projection):
            nn.init.normal_(projection.weight, std=projection.in_features**-0.5)
        sigmoid = options.loss == "siglip"
        self.scale = nn.Parameter(torch.tensor([_SIGLIP_START if sigmoid else _CLIP_START]))
        if sigmoid:
            self.bias = nn.Parameter(torch.tensor([_SIGLIP_BIAS]))

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Normalised embeddings `[batch, width]` of pictures."""
        encoded = self.image(pixels)
        return functional.normalize(
            self.image_projection(encoded.pooled if encoded.cls is None else encoded.cls), dim=1
        )

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Normalised embeddings `[batch, width]` of captions `[batch, length]`, read at the first `eos`, or at the
        last token of a caption that was cut off."""
        end = self._last(tokens)
        hidden = self.text.decode(tokens)
        return functional.normalize(
            self.text_projection(hidden[torch.arange(len(tokens), device=tokens.device), end]), dim=1
        )

    def _last(self, tokens: Tensor) -> Tensor:
        """The place that captions `[batch, length]` are read at: int64 `[batch]`."""
        ends = tokens == self.encoding.eos
        return torch.where(ends.any(dim=1), ends.long().argmax(dim=1), tokens.shape[1] - 1)

    def prepare(self, rows: Rows, keys: Tensor) -> Batch:
        """Pictures, augmented where the task says so, and captions as they are."""
        pixels = rows["pixels"]
        if self.options.augment is not None and self.training:
            pixels = augment.views(self.options.augment, pixels, keys, _VIEW)
        return {"pixels": pixels, "tokens": rows["tokens"]}

    def count(self, batch: Batch) -> Tensor:
        """Pairs."""
        return torch.tensor(float(len(batch["tokens"])), device=batch["tokens"].device)

    def embed(self, batch: Batch) -> Embeddings:
        """`image` and `text`, each `[batch, width]`, and `caption` `[batch, length]`: its tokens up to where it is
        read, by which equal captions are known."""
        tokens = batch["tokens"]
        read = torch.arange(tokens.shape[1], device=tokens.device) <= self._last(tokens)[:, None]
        captions = tokens.masked_fill(~read, -1).float()
        return {"image": self.encode_image(batch["pixels"]), "text": self.encode_text(tokens), "caption": captions}

    def couple(self, embeddings: Embeddings, keys: Tensor) -> Outcome:
        """The loss of all pairs, times their number, with the recall among them."""
        captions = torch.unique(embeddings["caption"].detach(), dim=0, return_inverse=True)[1]
        right = captions[:, None] == captions
        image, text = embeddings["image"], embeddings["text"]
        count = torch.tensor(float(len(image)), device=image.device)
        if self.options.loss == "siglip":
            loss = losses.siglip(image, text, self.scale.exp(), self.bias, right)
        else:
            loss = losses.clip(image, text, self.scale.exp())
        return Outcome(loss * count, {name: (hits, count) for name, hits in self._recalls(image, text, right).items()})

    def after_step(self, step: int, steps: int, statistics: dict[str, Tensor]) -> None:
        """CLIP's scale stays at most 100, "which we found necessary to prevent training instability"."""
        if self.options.loss == "clip":
            self.scale.clamp_(max=_CLIP_MOST)

    @torch.no_grad()
    def _recalls(self, image: Tensor, text: Tensor, right: Tensor) -> dict[str, Tensor]:
        """Pictures that have a `right` caption among the k most similar of the batch, and the reverse; ties are broken
        at random."""
        similar = image.detach() @ text.detach().T
        return {
            f"{name}_recall_{k}": accuracy.recalled(scores, right, k)
            for name, scores in (("image_to_text", similar), ("text_to_image", similar.T))
            for k in _RECALLS
        }

    def class_embeddings(self, names: Sequence[str]) -> Tensor:
        """Embeddings `[classes, width]` of class names in the prompts, averaged over the prompts (Radford et al.,
        section 3.1.4). ValueError without the encoding's tokenizer."""
        path = self.encoding.folder / "tokenizer.json"
        if not Path(path).exists():
            raise ValueError(f"{path}: is missing, and zero-shot prompts need it; run tokenize again")
        tokenizer, e = Tokenizer.from_file(str(path)), self.encoding
        tokenizer.no_padding()
        tokenizer.no_truncation()
        embedded = torch.zeros(len(names), self.options.width, device=self.scale.device)
        for prompt in self.options.prompts:
            rows = torch.full((len(names), e.length), e.pad)
            for row, name in zip(rows, names, strict=True):
                ids = tokenizer.encode(prompt.replace("{}", name), add_special_tokens=False).ids[: e.length - 1]
                row[: len(ids) + 1] = torch.tensor([*ids, e.eos])
            embedded += self.encode_text(rows.to(self.scale.device))
        return functional.normalize(embedded, dim=1)

    def zero_shot(self, names: Sequence[str]) -> Callable[[Rows], Tensor]:
        """The class whose embedding is most similar to the picture's."""
        classes = self.class_embeddings(names)
        return lambda rows: (self.encode_image(rows["pixels"]) @ classes.T).argmax(dim=1)

    def features(self, rows: Rows) -> dict[str, Tensor]:
        """The picture's: the image encoder before its projection, and `projected`."""
        pixels = rows["pixels"]
        return {**self.image.features(pixels), "projected": self.encode_image(pixels).float()}

    @torch.no_grad()
    def examples(self, rows: Rows, keys: Tensor) -> Examples:
        """The retrieval grid: for the caption of each picture in the first column, the pictures found for it, best
        first; and the similarities of all pairs."""
        pixels = rows["pixels"]
        image, text = self.encode_image(pixels), self.encode_text(rows["tokens"])
        scores = text @ image.T
        order = scores.argsort(dim=1, descending=True)[:, :5]
        shown = [torch.cat([pixels[i : i + 1], pixels[order[i]]]) for i in range(len(pixels))]
        similar = (scores * self.scale.exp()).softmax(dim=1)
        return Examples(pictures={"retrieval": pictures.tile(shown), "similarity": pictures.heat(similar)})


OBJECTIVE = ImageText
