"""The probe's results in the MLflow run that pretraining wrote.

`run.json` names that run. Where the store at hand has no such run (a fresh clone that pulled the model), a new one is
made that names the old. A store that cannot be reached costs a warning: the results are in DVC's metrics all the same.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_models.probing import report as reports
from ssl_models.probing.probe import Report
from ssl_models.tracking import description, store
from ssl_models.tracking.addresses import public
from ssl_models.training.job import Tracking

PRETRAINED_BY = "pretrain.run_id"
"""Tag of a run that probes the model of another store's run."""
FOLDER = "probe"
"""Artifacts of the probe lie in this folder of the run."""


@dataclass(frozen=True)
class Run:
    """A run in a store: what a caller needs to write more into it."""

    run_id: str
    experiment_id: str
    tracking_uri: str


def read_run(path: Path) -> dict[str, str | None]:
    """What `run.json` says; empty where it is missing or holds nothing."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def log(name: str, report: Report | None, seconds: float, run_file: Path, tracking: Tracking) -> Run | None:
    """Write the report of model `name` into its run; None, after a warning, where the store cannot be reached."""
    metrics, content = reports.metrics(report, seconds), reports.details(report, seconds)
    return _log(name, metrics, content, report, run_file, tracking)


def log_files(
    name: str, metrics: reports.Json, content: reports.Json, run_file: Path, tracking: Tracking
) -> Run | None:
    """`log` of what `metrics.json` and `report.json` hold, without the figures: for a probe that ended long ago."""
    return _log(name, metrics, content, None, run_file, tracking)


def _log(
    name: str, metrics: reports.Json, content: reports.Json, drawn: Report | None, run_file: Path, tracking: Tracking
) -> Run | None:
    try:
        client, experiment = store.connect(tracking)
        run_id = _run(client, experiment, name, read_run(run_file).get("run_id"), tracking)
        _write(client, run_id, name, metrics, content)
        if drawn is not None:
            _draw(client, run_id, drawn)
        return Run(run_id, str(client.get_run(run_id).info.experiment_id), str(tracking.uri))
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        said = f"warning: MLflow at {tracking.uri} does not have this probe's results: {reason}"
        print(public(said)[:400], file=sys.stderr)
        return None


def _run(client: Any, experiment: str, name: str, remembered: str | None, tracking: Tracking) -> str:
    """The remembered run, or a new one that names it."""
    from mlflow.exceptions import MlflowException

    if remembered is not None:
        try:
            if client.get_run(remembered).info.lifecycle_stage == "active":
                return remembered
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        before = client.search_runs([experiment], f"tags.`{PRETRAINED_BY}` = '{remembered}'", max_results=1)
        if before:
            return str(before[0].info.run_id)
    tags = {**tracking.tags, PRETRAINED_BY: remembered or "unknown"}
    created = str(client.create_run(experiment, run_name=name, tags=tags).info.run_id)
    client.set_terminated(created, "FINISHED")
    return created


def numbers(content: reports.Json, at: str = "probe") -> dict[str, float]:
    """The numbers of nested metrics, named `probe.random_init.accuracy`; the pre-trained ones also `probe.accuracy`."""
    found: dict[str, float] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            found |= numbers(value, f"{at}.{key}")
        elif isinstance(value, int | float):
            found[f"{at}.{key}"] = float(value)
    prefix = f"{at}.pretrained."
    return found | {f"{at}.{key.removeprefix(prefix)}": found[key] for key in list(found) if key.startswith(prefix)}


def _write(client: Any, run_id: str, name: str, metrics: reports.Json, content: reports.Json) -> None:
    import time

    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    values = numbers(metrics)
    client.log_batch(run_id, metrics=[Metric(key, value, now, 0) for key, value in values.items()])
    client.log_dict(run_id, content, f"{FOLDER}/report.json")
    if not content.get("encoders"):
        return
    text = reports.markdown(content)
    note = client.get_run(run_id).data.tags.get(description.NOTE, "")
    client.set_tag(run_id, description.NOTE, description.with_result(note, text))
    client.log_text(run_id, f"# {name}\n\n{text}", f"{FOLDER}/report.md")


def _draw(client: Any, run_id: str, report: Report) -> None:
    client.log_figure(run_id, reports.curve_figure(report), f"{FOLDER}/label_efficiency.png")
    for file, figure in (("confusion", reports.confusion_figure(report)), ("features", reports.plane_figure(report))):
        if figure is not None:
            client.log_figure(run_id, figure, f"{FOLDER}/{file}.png")
