"""What `probe` in `params.yaml` may say, free of torch. A module of its own, as its defaults decide what a probe finds
and nothing that is trained.
"""

from __future__ import annotations

from pydantic import Field

from ssl_models.config import Strict


class Probe(Strict):
    """The one honest question at the end: what does a linear classifier gain from the frozen features?

    One protocol for every model, so that their numbers can be compared.
    """

    shots: tuple[int, ...] = Field(default=(1, 5, 20), description="labels per class of the label-efficiency curve")
    draws: int = Field(default=5, ge=2, description="random draws per point of the curve")
    seeds: int = Field(default=3, ge=1, description="random encoders, whose mean is what no training reaches")
    rows: int = Field(default=20_000, ge=1, description="most labelled rows used, train and test together")
    strengths: tuple[float, ...] = Field(default=(0.001, 0.01, 0.1, 1.0, 10.0), description="L2 candidates (C)")
    neighbours: int = Field(default=20, ge=1, description="k of the kNN second opinion")
    seed: int = Field(default=0, ge=0, description="of slices, draws and random encoders")
