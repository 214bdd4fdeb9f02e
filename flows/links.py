"""Addresses that lead a reader from Prefect to MLflow and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL

REVIEW_HOST, REVIEW_PORT = "127.0.0.1", 5000
"""Where `make review` serves the runs of a local store."""
VIEW = "probe"
"""The view of an experiment's runs that `make review` keeps in the store."""


def flow_run_page(flow_run_id: Any) -> str | None:
    """The page of a flow run; None where no server outlives the run."""
    base = PREFECT_UI_URL.value()
    return f"{base}/runs/flow-run/{flow_run_id}" if base and PREFECT_API_URL.value() else None


def mlflow_run_page(run_file: Path) -> str | None:
    """The page of the run that the file `run.json` names."""
    try:
        return mlflow_address(json.loads(run_file.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def mlflow_address(run: Any, base: str = f"http://{REVIEW_HOST}:{REVIEW_PORT}") -> str | None:
    """The page of a run, from what its `run.json` holds: on its tracking server, or at `make review`'s address."""
    try:
        run_id, experiment, server = run["run_id"], run["experiment_id"], str(run["tracking_uri"])
    except (KeyError, TypeError):
        return None
    if run_id is None:
        return None
    return f"{server.rstrip('/') if server.startswith('http') else base}/#/experiments/{experiment}/runs/{run_id}"


def ranked_runs(base: str, experiment: str) -> str:
    """MLflow's list of an experiment's runs, among its pages for training, the best probe first."""
    return f"{base}/#/experiments/{experiment}/runs?workflowType=machine_learning&viewStateShareKey={VIEW}"
