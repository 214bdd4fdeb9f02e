"""Addresses that lead a reader from Prefect to MLflow and back."""

from __future__ import annotations

from typing import Any

from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL

from ssl_models.tracking.execution import Execution

REVIEW_HOST, REVIEW_PORT = "127.0.0.1", 5000
"""Where `make review` serves the runs of a local store."""
VIEW = "probe"
"""The view of an experiment's runs that `make review` keeps in the store."""


def flow_run_page(flow_run_id: Any) -> str | None:
    """The page of a flow run; None where no server outlives the run."""
    base = PREFECT_UI_URL.value()
    return f"{base}/runs/flow-run/{flow_run_id}" if base and PREFECT_API_URL.value() else None


def mlflow_address(execution: Execution | None, base: str = f"http://{REVIEW_HOST}:{REVIEW_PORT}") -> str | None:
    """The page of the MLflow run of an execution: on its tracking server, or at `make review`'s address."""
    if execution is None or execution.run_id is None:
        return None
    server = execution.tracking_uri or ""
    place = f"experiments/{execution.experiment_id}/runs/{execution.run_id}"
    return f"{server.rstrip('/') if server.startswith('http') else base}/#/{place}"


def ranked_runs(base: str, experiment: str) -> str:
    """MLflow's list of an experiment's runs, among its pages for training, the best probe first."""
    return f"{base}/#/experiments/{experiment}/runs?workflowType=machine_learning&viewStateShareKey={VIEW}"
