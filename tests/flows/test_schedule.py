"""`make schedule` as a user sees it: a real server and worker, a schedule seconds away, a cancellation by the API."""

from __future__ import annotations

import json
import signal
import socket
import stat
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.flows.conftest import Project, answers, api, end, free_port, make_project, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SOON = """
name: pretext
deployments:
  - name: soon
    entrypoint: flows/pipeline.py:pipeline
    parameters: {targets: [pretrain@m]}
    schedules: [{interval: 20, anchor_date: "2026-01-01T00:00:00+00:00"}]
    work_pool: {name: pretext}
"""


class Schedule:
    """A running `flows.schedule` in a project."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}/api"
        self.process = project.start("flows.schedule", "--port", str(self.port), PRETEXT_PROCESS="schedule")

    def said(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.read()

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        return api(self.address, path, body, (self.project.root / ".prefect/password").read_text())

    def runs(self, *states: str) -> list[dict[str, Any]]:
        wanted = {"flow_runs": {"state": {"type": {"any_": list(states)}}}, "sort": "START_TIME_DESC"}
        return self.ask("/flow_runs/filter", wanted)

    def run(self, identifier: str) -> dict[str, Any]:
        return self.ask(f"/flow_runs/{identifier}")

    def kill(self, *words: str) -> None:
        """`kill -9` to the process with these words on its command line, not to the leash that holds it."""
        (found,) = [
            process
            for process in self.project.processes()
            if set(words) <= set(process.cmdline()) and "flows.execution.leash" not in process.cmdline()
        ]
        found.kill()

    def training(self) -> str:
        """Wait for a training; the run that it belongs to."""
        pid = self.project.root / "notes/pretrain-m.pid"
        pid.unlink(missing_ok=True)
        wait_for(lambda: _text(pid), 240, "a run trains")
        return wait_for(lambda: self.runs("RUNNING"), 10, "it is known to")[0]["id"]


@pytest.fixture
def schedule(tmp_path: Path) -> Iterator[Schedule]:
    project = make_project(tmp_path / "project", tmp_path / "home")
    (project.root / "prefect.yaml").write_text(SOON)
    project.write_params({"m": "0"})
    running = Schedule(project)
    try:
        yield running
    finally:
        end(running.process)
        for process in project.processes():
            process.kill()


def test_a_scheduled_run_completes_is_cancelled_by_the_api_and_all_ends_with_ctrl_c(schedule: Schedule) -> None:
    project = schedule.project
    wait_for(lambda: answers(f"{schedule.address}/health"), 120, "the server answers")
    done = wait_for(lambda: schedule.runs("COMPLETED"), 150, "a scheduled run has completed")[-1]
    assert done["deployment_id"] and done["auto_scheduled"]
    assert done["state"]["message"].startswith("2 stages ran")
    shown = schedule.ask("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [done["id"]]}}})
    assert {"stages", "metrics", "loss-m"} <= {artifact["key"] for artifact in shown}

    with pytest.raises(urllib.error.HTTPError, match="401"):  # without the password
        api(schedule.address, "/flow_runs/filter", {})
    assert stat.S_IMODE((project.root / ".prefect/password").stat().st_mode) == 0o600
    password = (project.root / ".prefect/password").read_text()
    assert origins_answered(schedule.address) == [f"http://127.0.0.1:{schedule.port}"]
    assert not any(password in " ".join(process.cmdline()) for process in project.processes())
    logs = [path for path in (project.root / ".prefect/logs").iterdir() if path.is_file()]
    assert {"server.log", "worker.log"} < {path.name for path in logs}
    assert not any(password in path.read_text() for path in logs)

    listening = {
        connection.laddr.ip
        for process in project.processes()
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}

    found = project.flow("shard@c")
    assert found.returncode == 0 and f":{schedule.port}/" in found.stdout + found.stderr  # the server is found

    (project.root / "notes/pretrain-m.pid").unlink()
    project.write_params({"m": "100"})
    pid = int(wait_for(lambda: _text(project.root / "notes/pretrain-m.pid"), 60, "training has started"))
    (run,) = schedule.runs("RUNNING")
    state = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
    assert schedule.ask(f"/flow_runs/{run['id']}/set_state", state)["status"] == "ACCEPT"
    wait_for(lambda: not psutil.pid_exists(pid), 15, "the training process has ended")
    wait_for(lambda: schedule.runs("CANCELLED"), 15, "the run is cancelled")
    assert schedule.runs("CANCELLED")[0]["state_name"] == "Cancelled"

    (project.root / "notes/pretrain-m.pid").unlink()
    wait_for(lambda: _text(project.root / "notes/pretrain-m.pid"), 60, "the next run trains")
    schedule.process.send_signal(signal.SIGINT)
    assert schedule.process.wait(60) == 0
    said = schedule.said()
    assert "soon " in said and f"http://127.0.0.1:{schedule.port}" in said
    wait_for(lambda: not project.processes(), 15, "no process is left")


def origins_answered(address: str) -> list[str]:
    """Of three origins, those to whose pages a browser would give this server's answers."""
    port = urllib.parse.urlsplit(address).port
    found = []
    for origin in ("https://evil.example", "http://127.0.0.1:1", f"http://127.0.0.1:{port}"):
        request = urllib.request.Request(f"{address}/health", headers={"Origin": origin})
        with urllib.request.urlopen(request, timeout=20) as answer:
            if answer.headers.get("Access-Control-Allow-Origin") is not None:
                found.append(origin)
    return found


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_the_schedule_goes_on_after_a_kill_of_its_worker_of_a_run_and_of_its_server(schedule: Schedule) -> None:
    project = schedule.project
    project.write_params({"m": "1000"})
    wait_for(lambda: answers(f"{schedule.address}/health"), 120, "the server answers")
    wait_for(lambda: _text(project.root / ".prefect/password"), 10, "there is a password")

    first = schedule.training()
    left_out = wait_for(lambda: schedule.runs("CANCELLED"), 120, "a run that is due meanwhile is left out")[0]
    name = schedule.run(first)["name"]
    assert left_out["state_name"] == "Skipped"
    assert left_out["state"]["message"].startswith(f"left out: the run {name} (since 2")

    pending = schedule.runs("SCHEDULED")[-1]["id"]  # as a worker leaves it that is killed before it has started the run
    state = {"state": {"type": "PENDING", "name": "Pending"}, "force": True}
    assert schedule.ask(f"/flow_runs/{pending}/set_state", state)["status"] == "ACCEPT"
    schedule.kill("worker", "start")
    second = schedule.training()
    assert schedule.run(pending)["state_type"] == "CRASHED"
    assert schedule.run(first)["state_type"] in ("CANCELLED", "CRASHED")

    above = psutil.Process(int(_text(project.root / "notes/pretrain-m.pid"))).parents()
    next(process for process in above if "prefect.engine" in process.cmdline()).kill()
    third = schedule.training()
    assert schedule.run(second)["state_type"] == "CRASHED"

    schedule.kill("prefect", "server", "start")
    project.write_params({"m": "0"})
    wait_for(lambda: answers(f"{schedule.address}/health"), 180, "the server answers again")
    assert schedule.run(third)["state_type"] == "RUNNING"  # it has waited for the server
    state = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
    assert schedule.ask(f"/flow_runs/{third}/set_state", state)["status"] == "ACCEPT"
    wait_for(lambda: schedule.runs("COMPLETED"), 180, "a later run has completed")
    schedule.process.send_signal(signal.SIGINT)
    assert schedule.process.wait(60) == 0
    assert schedule.said().count("it is started anew") == 2


def test_a_taken_port_is_one_sentence(project: Project) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = project.run("flows.schedule", "--port", str(port))
    assert done.returncode == 1
    assert done.stderr.strip() == f"error: 127.0.0.1:{port}: Address already in use; choose another with --port"


def test_the_deployments_of_the_project_are_what_the_issue_of_a_night_needs() -> None:
    from ruamel.yaml import YAML

    from flows.pipeline import pipeline
    from tests.flows.conftest import ROOT

    deployments = {d["name"]: d for d in YAML(typ="safe").load((ROOT / "prefect.yaml").read_text())["deployments"]}
    assert set(deployments) == {"nightly", "weekly"}
    assert not deployments["nightly"]["parameters"].get("force") and deployments["weekly"]["parameters"]["force"]
    for deployment in deployments.values():
        assert deployment["schedules"][0]["cron"] and deployment["schedules"][0]["timezone"]
        assert "concurrency_limit" not in deployment  # a slot that the server counts can leak
        pipeline.validate_parameters(json.loads(json.dumps(deployment["parameters"])))
