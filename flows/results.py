"""One table of every probed model, with its change since a commit: `make results`, and what `make run` ends with.

    python -m flows.results [--since REVISION]

It reads the reports that the probes have written, and what the trainings took from `.runs/`, where they ran here.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from flows.reports import records
from flows.reports.records import Numbers
from ssl_models import layout
from ssl_models.tracking.execution import REPORT
from stages.results import provenance

COLUMNS = {
    "pretrained": "pretrained.accuracy",
    "change": "",
    "95 % interval": "",
    "random init": "random_init.accuracy",
    "gain": "gain.random_init",
    "raw input": "raw_input.accuracy",
    "kNN": "knn.accuracy",
    "shuffled": "shuffled_labels.accuracy",
    "majority": "majority.accuracy",
    "5 labels": "pretrained.labels_5",
    "raw, 5": "raw_input.labels_5",
    "seconds": "",
}
"""Heading and number. `change` is that of `pretrained` since the commit, where there is one; `gain` is paired on the
test rows, with a `*` where its 95 % interval lies above 0; `seconds` are those of the training steps."""


def main() -> None:
    """Print the table, as many of its columns as a terminal has room for."""
    parser = argparse.ArgumentParser(prog="python -m flows.results", description="The table of every probed model.")
    parser.add_argument(
        "--since", default="HEAD", metavar="REVISION", help="the commit to compare with (default: HEAD)"
    )
    since = parser.parse_args().since
    paths = sorted(map(str, (provenance.DATA / "linear-probe").glob(f"*/{REPORT}")))
    if not paths:
        sys.exit("error: no model has been probed yet: run dvc repro")
    before = records.committed(paths, since)
    rows = [row(Path(path).parent.name, records.current(path), before.get(path, {})) for path in paths]
    header = ["model", *COLUMNS]
    ends = itertools.accumulate(width + layout.GAP for width in layout.widths(header, rows))
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    fitting = max(2, sum(end - layout.GAP <= room for end in ends))
    print("\n".join(layout.console(header[:fitting], [cells[:fitting] for cells in rows], right=True)))
    print(f"accuracy of a linear probe, and its change since {since}")
    print("gain over random init, * where its 95 % interval lies above 0")
    if fitting < len(header):
        print("a wider terminal also shows: " + "; ".join(header[fitting:]))


def row(model: str, now: Numbers, before: Numbers) -> list[str]:
    """The cells of a model: its name, and one for each of COLUMNS."""
    return [model, *_cells(model, now, before)]


def _cells(model: str, now: Numbers, before: Numbers) -> Iterator[str]:
    for heading, key in COLUMNS.items():
        value = now.get(key)
        if heading == "95 % interval":
            low, high = now.get("pretrained.low"), now.get("pretrained.high")
            yield "-" if low is None or high is None else f"{low:.3f}-{high:.3f}"
        elif heading == "change":
            yield _change(now.get(COLUMNS["pretrained"]), before.get(COLUMNS["pretrained"]))
        elif heading == "seconds":
            training = provenance.execution("pretrain", model)
            yield f"{training.seconds:.1f}" if training else ""
        elif heading == "gain" and value is not None:
            yield f"{value:+.3f}" + ("*" if now.get("gain.random_init_low", 0.0) > 0.0 else "")
        else:
            yield "-" if value is None else f"{value:.3f}"


def _change(now: float | None, before: float | None) -> str:
    return "" if now is None or before is None or now == before else f"{now - before:+.3f}"


if __name__ == "__main__":
    main()
