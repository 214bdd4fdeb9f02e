"""What a model entry of `params.yaml` may say, as typed and validated data.

Free of torch, so that the data stages can validate the whole file in milliseconds. Fields hold what is
*computed* (and so re-run when edited); where it runs is `compute.yaml`'s.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Strict(BaseModel):
    """Immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Backbone(BaseModel):
    """The encoder: an architecture (a module of `ssl_models.models`), a preset of it, and any of the preset's own
    fields to override (`layers`, `width`, ...). `ssl_models.models.presets` validates all three."""

    model_config = ConfigDict(extra="allow", frozen=True)

    architecture: Literal["transformer", "resnet"] = Field(
        default="transformer", description="a module of ssl_models/models"
    )
    preset: str = Field(description="the sizes and kinds of a known model, which further keys override")

    @property
    def overrides(self) -> dict[str, Any]:
        """The fields given beside `architecture` and `preset`."""
        return dict(self.model_extra or {})


class Train(Strict):
    """Optimisation of one model. The batch is global: micro-batches and processes follow from the hardware."""

    steps: int = Field(ge=1, description="of the optimizer")
    batch: int = Field(ge=1, description="rows in the global batch, over all processes")
    normalisation_batch: int | None = Field(
        default=None,
        ge=2,
        description="rows whose statistics batch normalisation shares; default: the whole batch, as in the papers",
    )
    optimizer: Literal["adamw", "muon"] = Field(
        default="adamw", description="AdamW, or Muon for the matrices of blocks and AdamW for the rest"
    )
    learning_rate: float = Field(default=1e-3, gt=0, description="peak rate of AdamW")
    muon_learning_rate: float = Field(default=0.02, gt=0, description="peak rate of Muon, for matrices")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="of AdamW")
    beta2: float = Field(default=0.95, ge=0, lt=1, description="of AdamW")
    weight_decay: float = Field(default=0.1, ge=0, description="on weights of two or more dimensions")
    clip: float = Field(default=1.0, ge=0, description="largest global gradient norm; 0 switches clipping off")
    schedule: Literal["cosine", "wsd", "constant"] = Field(
        default="cosine",
        description="of the learning rate after the warm-up: down a cosine, stable and then linear down, or constant",
    )
    warmup: float = Field(default=0.05, ge=0, description="fraction of the steps; from 1 on, a number of steps")
    decay: float = Field(default=0.2, gt=0, le=1, description="last fraction of the steps, schedule wsd only")
    final: float = Field(default=0.1, ge=0, le=1, description="last rate as a fraction of the peak")
    evaluate_every: int = Field(default=100, ge=1, description="steps between evaluations")
    validation_rows: int = Field(default=512, ge=1, description="rows evaluated each time, the same ones")
    seed: int = Field(default=0, ge=0, description="of weights, order, corruption and dropout")

    @model_validator(mode="after")
    def _divides(self) -> Train:
        if self.normalisation_batch is not None and self.batch % self.normalisation_batch:
            raise ValueError(f"normalisation_batch: {self.normalisation_batch} does not divide a batch of {self.batch}")
        return self

    @property
    def warmup_steps(self) -> int:
        """Steps over which the learning rate rises."""
        return round(self.warmup if self.warmup >= 1 else self.warmup * self.steps)

    @property
    def stable_steps(self) -> int:
        """First steps whose learning rates do not depend on how many there are in all: a longer training has them in
        common with this one. All of `constant`, those of `wsd` before its decay, none of `cosine`."""
        if self.schedule == "cosine":
            return 0
        decay = round(self.decay * self.steps) if self.schedule == "wsd" else 0
        return min(self.steps, max(self.warmup_steps, self.steps - decay))


class Model(Strict):
    """One entry of `models`: a corpus, a pretext task, a backbone, and how long to train."""

    corpus: str = Field(description="an entry of corpora")
    objective: str = Field(description="a module of ssl_models/objectives")
    backbone: Backbone
    task: dict[str, Any] = Field(default_factory=dict, description="options of the objective, validated by it")
    train: Train = Field(description="optimisation of the model")
    init_from: str | None = Field(default=None, description="a Hugging Face or Pretext model folder to start from")
