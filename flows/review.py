"""The MLflow UI on every run so far: `make review`. It listens on 127.0.0.1 unless told otherwise."""

from __future__ import annotations

import argparse
import os
import sys

from flows.links import REVIEW_HOST, REVIEW_PORT, ranked_runs
from ssl_models import tracking
from stages import provenance
from stages.params import UserError


def server_command(host: str, port: int) -> list[str]:
    """The MLflow server; its store comes from MLFLOW_BACKEND_STORE_URI, since everyone can read a command line."""
    artifacts = provenance.project() / provenance.STORE / "artifacts"
    address = ["--host", host, "--port", str(port), "--workers", "1"]
    return [sys.executable, "-m", "mlflow", "server", *address, "--artifacts-destination", artifacts.as_uri()]


def rankings(uri: str, base: str) -> list[str]:
    """For each experiment, the address of its runs, the best probe first."""
    from mlflow import MlflowClient

    with tracking.created(uri):
        experiments = MlflowClient(tracking_uri=uri).search_experiments()
    named = sorted((e.name, str(e.experiment_id)) for e in experiments if e.name != "Default")
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
        print(f"the runs are on a server: open {tracking.public(uri)}")
        return
    tracking.quiet()
    base = f"http://{given.host}:{given.port}"
    for line in rankings(uri, base):
        print(line)
    print(f"{'everything':20} {base}", flush=True)
    command = server_command(given.host, given.port)
    os.execve(command[0], command, {**os.environ, "MLFLOW_BACKEND_STORE_URI": uri})


if __name__ == "__main__":
    main()
