"""`make schedule`: a Prefect server and a worker on this machine, with the deployments of `prefect.yaml`, until Ctrl-C.

Both listen on 127.0.0.1 unless told otherwise, and both end with this process. Where PREFECT_API_URL names a server of
the user's own, that one is used and only the worker is started here.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from types import FrameType
from typing import Any

from flows import environment
from flows.server import PATIENCE_SECONDS, ServerError, address, end, start, wait

POOL = "pretext"
END_SECONDS = 25.0
"""For running flows to be cancelled when the schedule ends."""
UNFINISHED = ("RUNNING", "PENDING", "CANCELLING")


class Stop(BaseException):
    """Ctrl-C or SIGTERM."""


@dataclass(frozen=True)
class NextRun:
    """A run that is due."""

    deployment: str
    start: datetime


@contextmanager
def server(host: str, port: int) -> Iterator[None]:
    """A Prefect server that flows started by hand find."""
    api = os.environ["PREFECT_API_URL"] = address(host, port)
    process = start("prefect", "server", "start", "--host", host, "--port", str(port))
    try:
        wait(lambda: environment.answers(api), "the Prefect server has not started", process)
        environment.remember_server(api)
        yield
    finally:
        environment.forget_server()
        end(process)


class Client:
    """What this module asks of the Prefect API."""

    def __init__(self) -> None:
        from prefect.client.orchestration import get_client

        self._client = get_client(sync_client=True)

    def make_pool(self) -> None:
        """The work pool, with one run at a time: two would train the same stages in the same working tree."""
        from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
        from prefect.exceptions import ObjectAlreadyExists
        from prefect.workers.process import ProcessWorker

        template = ProcessWorker.get_default_base_job_template()
        try:
            self._client.create_work_pool(
                WorkPoolCreate(name=POOL, type="process", base_job_template=template, concurrency_limit=1)
            )
        except ObjectAlreadyExists:
            self._client.update_work_pool(POOL, WorkPoolUpdate(concurrency_limit=1))

    def worker_online(self) -> bool:
        """Whether a worker polls the pool."""
        pool = self._client.read_work_pool(POOL)
        return pool.status is not None and pool.status.value == "READY"

    def _runs(self, *states: str, limit: int = 200) -> list[Any]:
        from prefect.client.schemas.filters import (
            FlowRunFilter,
            FlowRunFilterState,
            FlowRunFilterStateType,
            WorkPoolFilter,
            WorkPoolFilterName,
        )
        from prefect.client.schemas.objects import StateType
        from prefect.client.schemas.sorting import FlowRunSort

        types = FlowRunFilterStateType(any_=[StateType(state) for state in states])
        return list(
            self._client.read_flow_runs(
                flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=types)),
                work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL])),
                sort=FlowRunSort.EXPECTED_START_TIME_ASC,
                limit=limit,
            )
        )

    def next_runs(self) -> list[NextRun]:
        """The next run of each deployment, the first first."""
        names = {deployment.id: deployment.name for deployment in self._client.read_deployments()}
        found: dict[str, NextRun] = {}
        for run in self._runs("SCHEDULED"):
            name = names.get(run.deployment_id)
            if name is not None and run.next_scheduled_start_time is not None:
                found.setdefault(name, NextRun(name, run.next_scheduled_start_time))
        return list(found.values())

    def bury(self) -> int:
        """Runs that a killed server or machine has left unfinished are marked as crashed; how many there were.

        They would otherwise hold the one slot of their deployment for ever.
        """
        from prefect.states import Crashed

        left = self._runs(*UNFINISHED)
        for run in left:
            self._client.set_flow_run_state(run.id, Crashed(message="its server or worker was ended"), force=True)
        return len(left)

    def cancel_all(self) -> None:
        """Cancel what runs, and wait until it has ended."""
        from prefect.states import Cancelling

        for run in self._runs("RUNNING", "PENDING"):
            self._client.set_flow_run_state(run.id, Cancelling(message="the schedule is being ended"))
        deadline = time.monotonic() + END_SECONDS
        while self._runs(*UNFINISHED) and time.monotonic() < deadline:
            time.sleep(0.5)


def deploy() -> None:
    """Create or update the deployments of `prefect.yaml`."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise ServerError(f"prefect.yaml: cannot be deployed: {said[-500:]}")


def announce(client: Client, ui: str) -> None:
    """Say what is due and where to watch it."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (due := client.next_runs()) and time.monotonic() < deadline:
        time.sleep(0.5)
    now = datetime.now(UTC)
    for run in due:
        hours = max(0.0, (run.start - now).total_seconds()) / 3600
        print(f"{run.deployment:12} next {run.start.astimezone():%Y-%m-%d %H:%M:%S %Z}, in {hours:.1f} h")
    print(f"Prefect: {ui}\nCtrl-C ends the server and the worker.", flush=True)


def keep(own: bool) -> None:
    """Deploy, start a worker, and watch it until it ends or this process is stopped."""
    client = Client()
    if own and (left := client.bury()):
        print(f"{left} unfinished {'run' if left == 1 else 'runs'} of an earlier server marked as crashed")
    client.make_pool()
    deploy()
    worker = start("prefect", "worker", "start", "--pool", POOL, "--type", "process", "--name", POOL)
    try:
        wait(client.worker_online, "the worker has not started", worker)
        announce(client, os.environ["PREFECT_API_URL"].removesuffix("/api"))
        status = worker.wait()
        raise ServerError(f"the worker ended with status {status}")
    except Stop:
        print("ending: running flows are being cancelled", flush=True)
        client.cancel_all()
    finally:
        end(worker)


def _stop(number: int, frame: FrameType | None) -> None:
    for again in (signal.SIGINT, signal.SIGTERM):
        signal.signal(again, signal.SIG_IGN)
    raise Stop


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m flows.schedule", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address of the Prefect server (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=4200)
    given = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        if "PREFECT_API_URL" in os.environ:
            keep(own=False)
        else:
            with server(given.host, given.port):
                keep(own=True)
    except ServerError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except Stop:
        pass


if __name__ == "__main__":
    main()
