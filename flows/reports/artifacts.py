"""What a flow run shows beside its graph, as Prefect artifacts: the stages with their durations, the metrics with their
change against the last commit, links to MLflow, loss curves, and how far long stages have come.
"""

from __future__ import annotations

import base64
import csv
import io
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from flows.execution.graph import Node
from flows.reports import records
from flows.reports.links import mlflow_address
from flows.reports.records import Numbers
from ssl_models.layout import markdown, numbers
from ssl_models.tracking.execution import REPORT
from stages.results import provenance

PROGRESS_SECONDS = 5.0
"""Between updates of a stage's progress; a stage that is over before has none."""
COLUMNS = {
    "linear-probe": {
        "pretrained.accuracy": "accuracy",
        "pretrained.low": "low",
        "pretrained.high": "high",
        "random_init.accuracy": "random init",
        "raw_input.accuracy": "raw input",
        "shuffled_labels.accuracy": "shuffled labels",
        "majority.accuracy": "majority",
    },
    "pretrain": {
        "validation_loss": "validation loss",
        "loss": "loss",
        "bits_per_byte": "bits per byte",
        "samples_per_second": "samples a second",
        "seconds": "seconds",
    },
}
"""Numbers shown of a kind of stage, with their headings; of any other kind, those of DATA_COLUMNS. Seconds and rates
are the execution's, where this machine has its record; the rest is the report's."""
DATA_COLUMNS = {
    name: name.replace("_", " ") for name in ("rows_in", "rows_out", "rejects", "duplicates", "bytes_in", "seconds")
}


@dataclass(frozen=True)
class StageResult:
    """How one stage of a run ended."""

    result: str
    seconds: float = 0.0
    message: str = ""


def publish(nodes: Sequence[Node], outcomes: dict[str, StageResult]) -> None:
    """Create every artifact of a run that has ended."""
    rows = stage_rows(nodes, outcomes)
    create_table_artifact(rows, key="stages", description=f"{len(nodes)} stages")
    if text := metrics_markdown(nodes):
        create_markdown_artifact(text, key="metrics", description="Results, with their change against the last commit")
    for node in nodes:
        ran = node.name in outcomes and outcomes[node.name].result == "Completed"
        curve = Path(f"data/pretrain/{node.instance}/loss.csv")
        if node.kind == "pretrain" and ran and (picture := loss_curve(curve, node.instance)):
            text = f"![loss of {node.instance}]({picture})"
            create_markdown_artifact(text, key=f"loss-{slug(node.instance)}", description=f"Loss of {node.instance}")


def slug(name: str) -> str:
    """A name as Prefect allows it in a key: lower case, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def stage_rows(nodes: Sequence[Node], outcomes: dict[str, StageResult]) -> list[dict[str, str]]:
    """The stage table."""
    rows = []
    for node in nodes:
        outcome = outcomes.get(node.name, StageResult("Not run"))
        took = f"{outcome.seconds:.1f}" if outcome.seconds else ""
        why = "; ".join(node.reasons)
        rows.append({"stage": node.name, "result": outcome.result, "seconds": took, "why it ran": why})
    return rows


def metrics_markdown(nodes: Sequence[Node]) -> str:
    """One table for each kind of stage, the models' first; a change against HEAD stands in brackets."""
    files = {node.name: path for node in nodes for path in node.records if Path(path).name == REPORT}
    before = records.committed(list(files.values()))
    tables = []
    for kind in ("linear-probe", "pretrain", "shard", "tokenize", "dedup", "ingest"):
        rows = []
        for node in nodes:
            if node.kind == kind and node.name in files:
                path = files[node.name]
                rows.append((node, records.current(path), before.get(path, {})))
        if table := _table(kind, rows):
            tables.append(table)
    return "\n\n".join(tables)


def _table(kind: str, rows: Sequence[tuple[Node, Numbers, Numbers]]) -> str:
    columns = COLUMNS.get(kind, DATA_COLUMNS)
    executions = {node.name: provenance.execution(node.kind, node.instance) for node, _, _ in rows}
    taken = {name: numbers(record.model_dump()) if record else {} for name, record in executions.items()}
    shown = [(node, now | taken[node.name], before) for node, now, before in rows]
    known = [name for name in columns if any(name in now for _, now, _ in shown)]
    if not known:
        return ""
    linked = kind in COLUMNS
    lines = []
    for node, now, before in shown:
        cells = [_cell(now.get(name), before.get(name)) for name in known]
        address = mlflow_address(executions[node.name])
        lines.append([node.instance, *cells, *([f"[run]({address})" if address else ""] if linked else [])])
    header = [kind, *(columns[name] for name in known), *(["MLflow"] if linked else [])]
    return markdown(header, lines, right=[False, *(True for _ in known)])


def _cell(now: float | None, before: float | None) -> str:
    if now is None:
        return ""
    text = f"{now:,.0f}" if now == int(now) and abs(now) >= 2 else f"{now:.4g}"
    return text if before is None or before == now else f"{text} ({now - before:+.4g})"


def loss_curve(path: Path, name: str) -> str | None:
    """The curve in a `loss.csv` as a small PNG in a data address; None where there is none to draw."""
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
        columns = {
            column: [(float(row["step"]), float(row[column])) for row in rows if row.get(column)]
            for column in ("loss", "validation_loss")
        }
    except (OSError, ValueError, KeyError):
        return None
    if not columns["loss"]:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3), dpi=80, layout="constrained")
    axes = figure.add_subplot()
    for column, points in columns.items():
        if points:
            axes.plot(*zip(*points, strict=True), label=column, marker="o" if column != "loss" else None)
    axes.set(xlabel="step", ylabel="loss", title=name)
    axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return "data:image/png;base64," + base64.b64encode(picture.getvalue()).decode()


class StageProgress:
    """A progress artifact fed from a stage's own lines: `gpt: step 50/150, ...`. To be used inside its task.

    Where the server does not take it, the stage goes on without.
    """

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._name, self._clock = name, clock
        self._last = clock()
        self._artifact: UUID | None = None
        self._refused = False

    def line(self, text: str) -> None:
        """Look for `done/total` in a line of output."""
        found = re.search(r"\b(\d+)/(\d+)\b", text)
        now = self._clock()
        if found is None or not int(found[2]) or now - self._last < PROGRESS_SECONDS:
            return
        self._last = now
        self._show(min(100.0, 100 * int(found[1]) / int(found[2])))

    def done(self) -> None:
        """The stage has completed."""
        if self._artifact is not None:
            self._show(100.0)

    def _show(self, percent: float) -> None:
        if self._refused:
            return
        try:
            if self._artifact is None:
                key = f"progress-{slug(self._name)}"
                self._artifact = _identifier(create_progress_artifact(percent, key=key, description=self._name))
            else:
                update_progress_artifact(self._artifact, percent)
        except Exception:
            self._refused = True


def _identifier(value: Any) -> UUID:
    assert isinstance(value, UUID)
    return value
