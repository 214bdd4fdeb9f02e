"""The MLflow store at an address: a connection that is quick, quiet and safe to make from several processes."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ssl_models.training.job import Tracking

SQLITE = "sqlite:///"
KIND = {"mlflow.experimentKind": "custom_model_development"}
"""MLflow's pages for training, rather than those for applications of language models."""


def quiet() -> None:
    """Before MLflow is imported: no telemetry, no password on the console, no request that hangs for minutes."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # it prints the password, too
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")


@contextmanager
def created(uri: str) -> Iterator[None]:
    """Around the first use of a SQLite store: its migration must not run twice at the same time."""
    if not uri.startswith(SQLITE):
        yield
        return
    folder = Path(uri.removeprefix(SQLITE)).parent
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def connect(tracking: Tracking) -> tuple[Any, str]:
    """An `MlflowClient` and the id of the experiment, made where there was none."""
    quiet()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    assert tracking.uri is not None
    with created(tracking.uri):
        client = MlflowClient(tracking_uri=tracking.uri, registry_uri=tracking.uri)
        experiment = client.get_experiment_by_name(tracking.experiment)
        if experiment is not None:
            return client, str(experiment.experiment_id)
        try:
            return client, str(
                client.create_experiment(tracking.experiment, artifact_location=tracking.artifacts, tags=KIND)
            )
        except MlflowException:  # another job made it a moment ago
            experiment = client.get_experiment_by_name(tracking.experiment)
            if experiment is None:
                raise
            return client, str(experiment.experiment_id)
