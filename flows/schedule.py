"""`make schedule`: a Prefect server and a worker on this machine, with the deployments of `prefect.yaml`, until Ctrl-C.

Both listen on 127.0.0.1 unless told otherwise, both end with this process, and one that ends before is started anew: a
schedule goes on. Where PREFECT_API_URL names a server of the user's own, that one is used and only the worker is
started here.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from types import FrameType
from typing import Any

import httpx

from flows import environment
from flows.execution import run_log
from flows.server import PATIENCE_SECONDS, ServerError, address, end, start, wait

POOL = "pretext"
END_SECONDS = 25.0
"""For running flows to be cancelled when the schedule ends."""
UNFINISHED = ("RUNNING", "PENDING", "CANCELLING")
LOOK_SECONDS = 1.0
"""Between looks at whether the server and the worker live."""
MOST_ENDS, WITHIN_SECONDS = 5, 600.0
"""A server or worker that has ended so often in so short a time will not do better the next time."""


class Stop(BaseException):
    """Ctrl-C or SIGTERM."""


@dataclass(frozen=True)
class NextRun:
    """A run that is due."""

    deployment: str
    start: datetime


class Client:
    """What this module asks of the Prefect API."""

    def __init__(self) -> None:
        from prefect.client.orchestration import get_client

        self._client = get_client(sync_client=True)

    def make_pool(self) -> None:
        """The work pool, without a limit: runs take turns by locks that cannot leak (`flows.execution.turns`)."""
        from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
        from prefect.exceptions import ObjectAlreadyExists
        from prefect.workers.process import ProcessWorker

        template = ProcessWorker.get_default_base_job_template()
        try:
            self._client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template))
        except ObjectAlreadyExists:
            self._client.update_work_pool(POOL, WorkPoolUpdate(concurrency_limit=None))

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
        """Mark as crashed what a killed worker, server or machine has left unfinished; how many runs there were."""
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


def announce(client: Client) -> None:
    """Say what is due."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (due := client.next_runs()) and time.monotonic() < deadline:
        time.sleep(0.5)
    now = datetime.now(UTC)
    for run in due:
        hours = max(0.0, (run.start - now).total_seconds()) / 3600
        print(f"{run.deployment:12} next {run.start.astimezone():%Y-%m-%d %H:%M:%S %Z}, in {hours:.1f} h")


def say_where(ui: str, own: bool) -> None:
    """Print the pages' address and, in a terminal, the password they ask for; elsewhere, only where it lies."""
    print(f"Prefect: {ui}")
    if own and environment.PASSWORDS[1] in os.environ:
        known = os.environ[environment.PASSWORDS[1]] == environment.password()
        shown = os.environ[environment.PASSWORDS[1]] if sys.stdout.isatty() else None
        where = f"in {environment.password_file()}" if known else f"as {environment.PASSWORDS[1]} says"
        print(f"password: {shown or where}")
    print("Ctrl-C ends the server and the worker.", flush=True)


class Keeper:
    """The server, where it is ours, and the worker: started, watched, started anew, and ended."""

    def __init__(self, server: Callable[[], subprocess.Popen[bytes]] | None) -> None:
        self._start_server = server
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._ends: dict[str, list[float]] = {"server": [], "worker": []}

    def keep(self) -> None:
        """Deploy, start what is needed, and watch it until this process is stopped, or it ends too often."""
        try:
            if self._start_server is not None:
                self._running["server"] = self._start_server()
            client = Client()
            client.make_pool()
            self._worker(client)
            deploy()
            announce(client)
            say_where(os.environ["PREFECT_API_URL"].removesuffix("/api"), self._start_server is not None)
            while True:
                time.sleep(LOOK_SECONDS)
                self._look(client)
        except Stop:
            if "worker" in self._running:
                print("ending: running flows are being cancelled", flush=True)
                client.cancel_all()
        except httpx.HTTPError as error:
            raise ServerError(f"the Prefect server does not answer: {error}") from None
        finally:
            for process in reversed(self._running.values()):
                end(process)

    def _worker(self, client: Client) -> None:
        if self._start_server is not None and (left := client.bury()):
            print(
                f"{left} unfinished {'run' if left == 1 else 'runs'} marked as crashed: the worker had ended",
                flush=True,
            )
        command = ("prefect", "worker", "start", "--pool", POOL, "--type", "process", "--name", POOL)
        self._running["worker"] = worker = start("worker", *command)
        wait(client.worker_online, "the worker has not started", worker)

    def _look(self, client: Client) -> None:
        for name, process in list(self._running.items()):
            run_log.rotate(name)
            status = process.poll()
            if status is None:
                continue
            now = time.monotonic()
            self._ends[name] = [then for then in self._ends[name] if now - then < WITHIN_SECONDS] + [now]
            if len(self._ends[name]) >= MOST_ENDS:
                raise ServerError(
                    f"the {name} ended again and again, last with status {status}: see {run_log.service(name)}"
                )
            print(f"the {name} ended with status {status}; it is started anew", flush=True)
            if name == "server":
                assert self._start_server is not None
                self._running[name] = self._start_server()
            else:
                self._worker(client)


def start_server(host: str, port: int) -> subprocess.Popen[bytes]:
    """Start a Prefect server that flows started by hand find, and wait until it answers."""
    api = os.environ["PREFECT_API_URL"]
    process = start("server", "prefect", "server", "start", "--host", host, "--port", str(port))
    try:
        wait(lambda: environment.answers(api), "the Prefect server has not started", process)
    except BaseException:
        end(process)
        raise
    return process


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
            Keeper(None).keep()
            return
        api = os.environ["PREFECT_API_URL"] = address(given.host, given.port)
        environment.guard(api)
        environment.remember_server(api)
        try:
            Keeper(lambda: start_server(given.host, given.port)).keep()
        finally:
            environment.forget_server()
    except ServerError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except Stop:
        pass


if __name__ == "__main__":
    main()
