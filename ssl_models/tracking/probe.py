"""The probe's results in the MLflow run that pretraining wrote.

The record of the training's execution names that run. Where there is no such record (a fresh clone that pulled the
model), or the store at hand has no such run, one is made for these weights, once. A store that cannot be reached costs
a warning: the results are in DVC's metrics all the same.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from ssl_models.addresses import public
from ssl_models.layout import numbers
from ssl_models.probing import report as reports
from ssl_models.probing.probe import Report
from ssl_models.tracking import description, store
from ssl_models.training.job import Tracking

PRETRAINED_BY = "pretrain.run_id"
"""Tag of a run that probes the model of another store's run."""
WEIGHTS = "pretrain.weights"
"""Tag of a run that was made for a probe: the checksum of the weights."""
FOLDER = "probe"
"""Artifacts of the probe lie in this folder of the run."""


@dataclass(frozen=True)
class Run:
    """A run in a store: what a caller needs to write more into it."""

    run_id: str
    experiment_id: str
    tracking_uri: str


@dataclass(frozen=True)
class Trained:
    """The model that is probed: its name, the checksum of its weights, and the run that trained it, where known."""

    name: str
    weights: str
    run_id: str | None = None


def log(model: Trained, report: Report | None, seconds: float, tracking: Tracking) -> Run | None:
    """Write the report of a model into its run; None, after a warning, where the store cannot be reached."""
    return _log(model, {**reports.details(report), "seconds": round(seconds, 1)}, report, tracking)


def log_file(model: Trained, content: reports.Json, tracking: Tracking) -> Run | None:
    """`log` of what `report.json` holds, without the figures: for a probe that ended long ago."""
    return _log(model, content, None, tracking)


def _log(model: Trained, content: reports.Json, drawn: Report | None, tracking: Tracking) -> Run | None:
    try:
        client, experiment = store.connect(tracking)
        run_id = _run(client, experiment, model, tracking)
        _write(client, run_id, model.name, content)
        if drawn is not None:
            _draw(client, run_id, drawn)
        return Run(run_id, str(client.get_run(run_id).info.experiment_id), str(tracking.uri))
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        said = f"warning: MLflow at {tracking.uri} does not have this probe's results: {reason}"
        print(public(said)[:400], file=sys.stderr)
        return None


def _run(client: Any, experiment: str, model: Trained, tracking: Tracking) -> str:
    """The run that trained the model, or one that was made for its weights."""
    from mlflow.exceptions import MlflowException

    if model.run_id is not None:
        try:
            if client.get_run(model.run_id).info.lifecycle_stage == "active":
                return model.run_id
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    before = client.search_runs([experiment], f"tags.`{WEIGHTS}` = '{model.weights}'", max_results=1)
    if before:
        return str(before[0].info.run_id)
    tags = {**tracking.tags, WEIGHTS: model.weights, PRETRAINED_BY: model.run_id or "unknown"}
    created = str(client.create_run(experiment, run_name=model.name, tags=tags).info.run_id)
    client.set_terminated(created, "FINISHED")
    return created


def named(content: reports.Json) -> dict[str, float]:
    """The numbers of `report.json` as metrics of the run: `probe.random_init.accuracy`; the pre-trained encoder's also
    as `probe.accuracy`."""
    shown = numbers({key: value for key, value in content.items() if key not in reports.DETAILS}, at="probe")
    prefix = "probe.pretrained."
    return shown | {f"probe.{key.removeprefix(prefix)}": shown[key] for key in shown if key.startswith(prefix)}


def _write(client: Any, run_id: str, name: str, content: reports.Json) -> None:
    import time

    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    values = named(content)
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
