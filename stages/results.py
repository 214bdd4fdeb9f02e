"""One table of every probed model: what `make run` ends with.

It reads what DVC shows, so that it also draws the table of another revision:

    dvc metrics show --json data/linear-probe/*/metrics.json | python -m stages.results
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

COLUMNS = {
    "pretrained": "pretrained.accuracy",
    "95 % interval": "",
    "random init": "random_init.accuracy",
    "gain": "gain.random_init",
    "raw input": "raw_input.accuracy",
    "kNN": "knn.accuracy",
    "shuffled": "shuffled_labels.accuracy",
    "majority": "majority.accuracy",
    "5 labels": "pretrained.labels_5",
    "raw, 5": "raw_input.labels_5",
}
"""Heading and metric. `gain` is paired on the test rows, with a `*` where its 95 % interval lies above 0."""


def main() -> None:
    """Read DVC's JSON from standard input and print the table."""
    shown = json.load(sys.stdin)
    files = {path: entry for revision in shown.values() for path, entry in revision.get("data", {}).items()}
    rows = [["model", *COLUMNS]]
    for path, entry in sorted(files.items()):
        rows.append([Path(path).parent.name, *_cells(entry.get("data") or {})])
    print("\n".join(_aligned(rows)))


def _cells(metrics: dict[str, Any]) -> Iterable[str]:
    for heading, key in COLUMNS.items():
        if heading == "95 % interval":
            low, high = _value(metrics, "pretrained.low"), _value(metrics, "pretrained.high")
            yield "-" if low is None or high is None else f"{low:.3f}-{high:.3f}"
            continue
        value = _value(metrics, key)
        text = "-" if value is None else f"{value:+.3f}" if heading == "gain" else f"{value:.3f}"
        beyond = heading == "gain" and (_value(metrics, "gain.random_init_low") or 0.0) > 0.0
        yield text + ("*" if beyond else "")


def _value(metrics: dict[str, Any], key: str) -> float | None:
    found: Any = metrics
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return float(found) if isinstance(found, int | float) else None


def _aligned(rows: list[list[str]]) -> Iterable[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *cells in rows:
        numbers = "  ".join(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        yield f"{name.ljust(widths[0])}  {numbers}"


if __name__ == "__main__":
    main()
