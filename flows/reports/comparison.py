"""The table that ends a sweep: the probe's results, each compared with the best one on the same rows.

Two encoders err on the same hard rows, so that their separate intervals overlap long before nothing is told apart: what
counts is the interval of their difference, row by row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ssl_models.layout import markdown
from ssl_models.probing.intervals import Gain, paired

Point = dict[str, str]
"""Values of keys of `params.yaml`."""


@dataclass(frozen=True)
class Result:
    """One model of one experiment. Accuracies are the probe's; `predictions` its table of the test rows, as Arrow."""

    experiment: str
    model: str
    point: Point
    metrics: Mapping[str, float] = field(default_factory=dict)
    page: str | None = None
    failure: str | None = None
    predictions: Any = None

    def metric(self, name: str) -> float | None:
        """`accuracy`, `low` or `high` of the pre-trained encoder; None where there is none."""
        return self.metrics.get(f"pretrained.{name}")


def gain(best: Result, other: Result) -> Gain | None:
    """How much better `best` is than `other` on the same rows; None where they were not asked about the same."""
    first, second = best.predictions, other.predictions
    if first is None or second is None:
        return None
    same = [(table.schema.metadata or {}).get(b"probe_rows") for table in (first, second)]
    if same[0] != same[1] or any(not first[name].equals(second[name]) for name in ("row", "actual")):
        return None
    return paired(first["correct"].to_numpy(), second["correct"].to_numpy(), first["group"].to_numpy())


def judged(best: Result, other: Result) -> str:
    """What can be said of a result beside the best one."""
    if other is best:
        return "best"
    found = gain(best, other)
    if found is None:
        return "other test rows"
    numbers = f"{-found.mean:+.3f} ({-found.high:+.3f} to {-found.low:+.3f})"
    return f"worse: {numbers}" if found.significant else f"not told apart: {numbers}"


def table(results: Sequence[Result]) -> str:
    """Results in Markdown, the best first, the failed ones last."""
    keys = list(dict.fromkeys(key for result in results for key in result.point))
    order = sorted(results, key=lambda result: -(result.metric("accuracy") or -1.0))
    header = ["experiment", "model", *keys, "accuracy", "95 % interval", "beside the best", "MLflow"]
    lines = []
    for result in order:
        values = [result.point.get(key, "") for key in keys]
        accuracy, low, high = (result.metric(name) for name in ("accuracy", "low", "high"))
        if accuracy is None:
            row = ["failed" if result.failure else "no labels", "", ""]
        else:
            interval = f"{low:.3f}-{high:.3f}" if low is not None and high is not None else ""
            row = [f"{accuracy:.3f}", interval, judged(order[0], result)]
        link = f"[run]({result.page})" if result.page else ""
        lines.append([result.experiment, result.model, *values, *row, link])
    return markdown(header, lines)
