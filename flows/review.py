"""The MLflow UI on every run so far: `make review`. It listens on 127.0.0.1 unless told otherwise.

A reviewer's first question is which run is best, and against what: each experiment gets a shared view of its runs that
answers it, and its address is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys

from flows.reports.links import REVIEW_HOST, REVIEW_PORT, VIEW, ranked_runs
from ssl_models.addresses import public
from ssl_models.tracking import store
from stages.params import UserError
from stages.results import provenance

BEST = "metrics.`probe.accuracy`"
COLUMNS = {
    BEST: 118,
    "metrics.`probe.gain.random_init`": 172,
    "metrics.`probe.random_init.accuracy`": 200,
    "metrics.`probe.raw_input.accuracy`": 192,
}
"""Columns of the view, with their width in pixels."""


def view() -> str:
    """The tag that MLflow reads a shared view from: sorted by the probe's accuracy, beside its baselines."""
    columns = list(COLUMNS)
    shown = {"selectedColumns": columns, "columnOrder": columns, "columnWidths": COLUMNS}
    return json.dumps({"orderByKey": BEST, "orderByAsc": False, **shown})


def server_command(host: str, port: int) -> list[str]:
    """The MLflow server; its store comes from MLFLOW_BACKEND_STORE_URI, since everyone can read a command line."""
    artifacts = provenance.project() / provenance.STORE / "artifacts"
    address = ["--host", host, "--port", str(port), "--workers", "1"]
    return [sys.executable, "-m", "mlflow", "server", *address, "--artifacts-destination", artifacts.as_uri()]


def allowed_hosts(host: str, port: int) -> dict[str, str]:
    """What MLflow reads the names from under which a server on this machine's own interface may be asked for.

    Its default lets in every name that begins like a private address: one such as `10.evil.example`, once it leads to
    127.0.0.1, would hand the runs to another's page. Where others are let in, their names are unknown, and it stays.
    """
    if host not in ("127.0.0.1", "localhost"):
        return {}
    return {"MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(f"{name}:{port}" for name in ("127.0.0.1", "localhost"))}


def rankings(uri: str, base: str) -> list[str]:
    """For each experiment, the address of its runs, the best probe first; the view is put into the store."""
    from mlflow import MlflowClient

    with store.created(uri):
        client = MlflowClient(tracking_uri=uri)
        named = sorted((e.name, str(e.experiment_id)) for e in client.search_experiments() if e.name != "Default")
        for _, identifier in named:
            client.set_experiment_tag(identifier, f"mlflow.sharedViewState.{VIEW}", view())
    return [f"{name:20} {ranked_runs(base, identifier)}" for name, identifier in named]


def main() -> None:
    """Start the MLflow server in this process's place, or name the server that `compute.yaml` points to."""
    parser = argparse.ArgumentParser(prog="python -m flows.review", description=__doc__)
    parser.add_argument("--host", default=REVIEW_HOST)
    parser.add_argument("--port", type=int, default=REVIEW_PORT)
    given = parser.parse_args()
    try:
        uri = provenance.tracking_uri()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if uri.startswith("http"):
        print(f"the runs are on a server: open {public(uri)}")
        return
    store.quiet()
    base = f"http://{given.host}:{given.port}"
    for line in rankings(uri, base):
        print(line)
    print(f"{'everything':20} {base}", flush=True)
    command = server_command(given.host, given.port)
    settings = {**allowed_hosts(given.host, given.port), **os.environ, "MLFLOW_BACKEND_STORE_URI": uri}
    os.execve(command[0], command, settings)


if __name__ == "__main__":
    main()
