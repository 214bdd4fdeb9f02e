"""The MLflow UI on every run so far: `make review`. It listens on 127.0.0.1 unless told otherwise."""

from __future__ import annotations

import argparse
import os
import sys

from flows.links import REVIEW_HOST, REVIEW_PORT
from ssl_models import tracking
from stages import provenance
from stages.params import UserError

RANKING = "metrics.`probe.accuracy`"
"""What run lists are sorted by, best first."""


def server_command(host: str, port: int, store: str) -> list[str]:
    """The MLflow server on the store at `store`: SQLite or another database."""
    artifacts = provenance.STORE.absolute() / "artifacts"
    address = ["--host", host, "--port", str(port), "--workers", "1"]
    stores = ["--backend-store-uri", store, "--artifacts-destination", artifacts.as_uri()]
    return [sys.executable, "-m", "mlflow", "server", *address, *stores]


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
    with tracking.created(uri):
        pass
    print(f"http://{given.host}:{given.port}", flush=True)
    command = server_command(given.host, given.port, uri)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
