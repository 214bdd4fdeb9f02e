"""One table of every probed model: what `make run` ends with.

It reads what DVC shows, so that it also draws the table of another revision:

    dvc metrics show --json data/linear-probe/*/metrics.json | python -m flows.results
"""

from __future__ import annotations

import itertools
import json
import shutil
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
GAP = 2
"""Spaces between columns."""


def main() -> None:
    """Read DVC's JSON from standard input and print the table, as many of its columns as a terminal has room for."""
    try:
        shown = json.load(sys.stdin)
    except ValueError:
        sys.exit("error: standard input is not what `dvc metrics show --json` prints: see its message above")
    files = {path: entry for revision in shown.values() for path, entry in revision.get("data", {}).items()}
    probed = {Path(path).parent.name: entry["data"] for path, entry in sorted(files.items()) if entry.get("data")}
    if not probed:
        sys.exit("error: no model has been probed yet: run dvc repro")
    rows = [["model", *COLUMNS], *([name, *_cells(metrics)] for name, metrics in probed.items())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else sum(widths) + GAP * len(widths)
    fitting = max(2, sum(end - GAP <= room for end in itertools.accumulate(width + GAP for width in widths)))
    for name, *cells in rows:
        numbers = (cell.rjust(width + GAP) for cell, width in zip(cells, widths[1:fitting], strict=False))
        print(name.ljust(widths[0]) + "".join(numbers))
    print("accuracy of a linear probe; gain over random init, * where its 95 % interval lies above 0")
    if fitting < len(widths):
        print("a wider terminal also shows: " + "; ".join(list(COLUMNS)[fitting - 1 :]))


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


if __name__ == "__main__":
    main()
