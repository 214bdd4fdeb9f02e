"""What is looked at every `evaluate_every` steps: the loss on the same validation rows under the same keys, and what
tells learning from collapse while there is still time to stop: the features' effective rank and, with labels, nearest
neighbours."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ssl_models.data import keyed
from ssl_models.data.manifest import PROBE_COLUMNS
from ssl_models.data.shards import Shards, Split
from ssl_models.objectives import Examples, Rows
from ssl_models.training.batches import on
from ssl_models.training.learner import EVALUATION_STEP, Learner
from ssl_models.training.totals import Means, Totals

WATCHED = 128
"""Rows whose features are watched during training: enough to see a trend, cheap enough to see it often."""
SHOWN = 8
"""Validation rows that examples are made of."""


class Evaluation:
    """The fixed rows of one corpus, and what is measured on them."""

    def __init__(self, learner: Learner, shards: Shards, validation: Split) -> None:
        self._learner, self._validation = learner, validation
        self._rows = min(learner.train.validation_rows, len(validation))
        self._watched, self._labels = _watched(shards, validation)

    def loss(self) -> Means:
        """The validation loss and the objective's metrics, in eval mode; every process takes its slice."""
        learner, world = self._learner, self._learner.world
        totals = Totals(world.device)
        batch = learner.train.batch
        chunks = range(0, self._rows, batch)
        if learner.objective.whole_batch and self._rows >= batch:
            chunks = range(
                0, self._rows - batch + 1, batch
            )  # its loss depends on the number of rows: full batches only
        for start in chunks:
            rows = min(batch, self._rows - start)
            part = world.slice(rows)
            index = torch.arange(start + part.start, start + part.stop)
            held = on(self._learner.world, self._validation.rows(index.numpy()))
            keys = keyed.keys(learner.train.seed, EVALUATION_STEP, index.to(world.device))
            learner.evaluate(learner.prepare(held, keys) if len(index) else {}, rows, totals)
        return totals.means(world)

    def watch(self) -> dict[str, float]:
        """`rank_me` of the first kind of features, and `knn_accuracy` where the corpus has labels."""
        from ssl_models.probing import geometry

        learner = self._learner
        step = max(1, min(learner.micro_batch // learner.pieces, WATCHED))

        def first_features(number: int) -> Tensor:
            some = slice(number * step, (number + 1) * step)
            rows = on(learner.world, {name: value[some] for name, value in self._watched.items()})
            with learner.autocast():
                named = learner.objective.features(rows)
            return named[next(iter(named))].float().cpu()

        with torch.no_grad():
            watched = len(next(iter(self._watched.values())))
            features = torch.cat(learner.passes(first_features, math.ceil(watched / step)))
        measured = {"rank_me": geometry.rank_me(features)}
        if self._labels is not None:
            measured["knn_accuracy"] = geometry.knn_accuracy(features, self._labels)
        return measured

    @torch.no_grad()
    def examples(self) -> Examples:
        """What the objective makes of a few validation rows."""
        index = torch.arange(min(SHOWN, self._rows))
        rows = on(self._learner.world, self._validation.rows(index.numpy()))
        keys = keyed.keys(self._learner.train.seed, EVALUATION_STEP, index.to(self._learner.world.device))
        with self._learner.autocast():
            return self._learner.objective.examples(rows, keys)


def _watched(shards: Shards, validation: Split) -> tuple[Rows, Tensor | None]:
    """A few rows of the probe's *training* part with their labels; without labels, validation rows."""
    if shards.manifest.splits["probe"].rows if "probe" in shards.manifest.splits else 0:
        probe = shards.split("probe")
        first = probe.rows(range(min(len(probe), 8 * WATCHED)))
        training = (first["test"] == 0).nonzero().flatten()[:WATCHED]
        if len(training) >= 2:
            kept = {name: value[training] for name, value in first.items()}
            return {n: v for n, v in kept.items() if n not in PROBE_COLUMNS}, kept["label"]
    return validation.rows(range(min(len(validation), WATCHED))), None
