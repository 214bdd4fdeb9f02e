"""The MLflow UI on every run so far: `make review`. It listens on 127.0.0.1 unless told otherwise."""

from __future__ import annotations

import argparse
import os
import sys

from ssl_models import tracking
from stages.params import load_compute


def main() -> None:
    """Start the MLflow server in this process's place, or name the server that `compute.yaml` points to."""
    parser = argparse.ArgumentParser(prog="python -m flows.review", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=5000)
    given = parser.parse_args()
    uri = tracking.store_uri(load_compute().tracking_uri)
    if uri.startswith("http"):
        print(f"compute.yaml: tracking_uri is a server; open {uri}")
        return
    print(f"http://{given.host}:{given.port}", flush=True)
    address = ["--host", given.host, "--port", str(given.port), "--workers", "1"]
    store = ["--backend-store-uri", uri, "--artifacts-destination", str(tracking.artifact_root())]
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "server", *address, *store])


if __name__ == "__main__":
    main()
