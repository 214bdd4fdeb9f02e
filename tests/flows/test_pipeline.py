"""The flow against a real Prefect server, on projects whose stages only wait and write."""

from __future__ import annotations

import http.server
import json
import os
import queue
import shutil
import signal
import sqlite3
import threading
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows import pipeline
from tests.flows.conftest import Project, api, wait_for

OVERLAP_SECONDS = 30.0
"""For rounds of two models at the same time, beyond the first three."""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def served(project: Project, server: str) -> Project:
    project.environment["PREFECT_API_URL"] = server
    return project


def last_run(server: str) -> dict[str, Any]:
    return api(server, "/flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 1})[0]


def task_states(server: str, run: dict[str, Any], least: int) -> dict[str, str]:
    """The final states of a run's tasks; they reach the server a moment after the flow's own."""

    def found() -> dict[str, str] | None:
        runs = api(server, "/task_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
        states = {task["name"]: task["state_name"] for task in runs}
        return states if len(states) >= least and not {"Running", "Pending"} & set(states.values()) else None

    return wait_for(found, 30, f"{least} tasks have ended")


def artifacts(server: str, run: dict[str, Any]) -> dict[str, Any]:
    found = api(server, "/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run["id"]]}}})
    return {artifact["key"]: artifact["data"] for artifact in found}


def test_what_changed_runs_and_the_rest_is_shown_as_cached(served: Project, server: str) -> None:
    served.write_params({"a": "0", "b": "0"})
    assert served.flow().returncode == 0
    first = last_run(server)
    assert set(task_states(server, first, 5).values()) == {"Completed"}
    shown = artifacts(server, first)
    assert {row["stage"] for row in json.loads(shown["stages"])} == set(served.times())
    assert "| a | 0.5 | 0.35 | 0.65 |" in shown["metrics"]
    assert "data:image/png;base64," in shown["loss-a"]

    before = served.times()
    nothing = served.flow()
    assert nothing.returncode == 0 and "0 stages ran, 5 were cached" in nothing.stdout
    assert "Running stage" not in nothing.stdout + nothing.stderr
    assert set(task_states(server, last_run(server), 5).values()) == {"Cached"}
    assert served.times() == before

    served.write_params({"a": "0", "b": "0.1"})
    assert served.flow().returncode == 0
    states = task_states(server, last_run(server), 5)
    assert {name for name, state in states.items() if state == "Completed"} == {"pretrain@b", "linear-probe@b"}


def test_independent_models_run_at_the_same_time_and_never_trip_over_dvcs_locks(served: Project) -> None:
    """Round after round: two trainings of which each waits for the other, six beside them, all ending at once."""
    served.write_params({"a": "0 meet", "b": "0 meet", **dict.fromkeys("cdefgh", "0")})
    began, rounds = time.monotonic(), 0
    while rounds < 3 or (rounds < 10 and time.monotonic() - began < OVERLAP_SECONDS):
        for met in (served.root / "notes").glob("met-*"):
            met.unlink()
        done = served.flow("pretrain", "--parallel", "8", "--force", "--timeout", "pretrain=120", "--retries", "0")
        assert done.returncode == 0, done.stdout + done.stderr
        rounds += 1
    assert len(served.times()) == 9


def test_a_failure_shows_the_stages_last_lines_and_skips_what_needs_it(served: Project, server: str) -> None:
    served.write_params({"bad": "0 3", "good": "0"}, corpora=("c", "d"))
    done = served.flow("--keep-going", "--retries", "1", "--retry-delay", "0.1")
    assert done.returncode == 1
    run = last_run(server)
    assert run["state_name"] == "Failed"
    assert "the last words" in run["state"]["message"] and "with status 3" in run["state"]["message"]
    states = task_states(server, run, 6)
    assert states["pretrain@bad"] == "Failed" and states["linear-probe@bad"] == "Skipped"
    assert states["linear-probe@good"] == "Completed"
    assert done.stderr.count("the last words") + done.stdout.count("the last words") >= 2  # it was tried again


def test_what_succeeded_is_pushed_and_committed_though_another_stage_has_failed(served: Project) -> None:
    assert (
        served.run("dvc", "remote", "add", "-q", "--default", "storage", str(served.root.parent / "remote")).returncode
        == 0
    )
    served.write_params({"bad": "0 3", "good": "0"}, corpora=("c", "d"))
    done = served.flow("--keep-going", "--push", "--commit", "results", "--retries", "0")
    assert done.returncode == 1 and "with status 3" in done.stdout and "pushed" in done.stdout, (
        done.stdout + done.stderr
    )
    files = served.git("ls-tree", "-r", "--name-only", "results").splitlines()
    assert "data/pretrain/good/metrics.json" in files and "data/pretrain/bad/metrics.json" not in files
    assert "pretrain@good" in served.git("show", "results:dvc.lock")
    message = served.git("log", "-1", "--format=%B", "results")
    assert "Results: 4 stages ran, 0 were cached, 1 failed" in message and "Failed: pretrain@bad" in message
    model = served.root / "data/pretrain/good/model"
    content = model.read_text()
    model.unlink()
    shutil.rmtree(served.root / ".dvc/cache")
    assert served.run("dvc", "pull", "pretrain@good").returncode == 0 and model.read_text() == content


def test_a_task_that_prefect_itself_breaks_still_gives_the_flow_an_answer() -> None:
    class Broken:
        def wait(self) -> None:
            raise RuntimeError("the task engine has ended")

    ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
    pipeline._reporter("pretrain@m", ended)(Broken())
    name, state = ended.get(timeout=5)
    assert name == "pretrain@m" and state.is_crashed()
    assert state.message == "pretrain@m: RuntimeError: the task engine has ended"


def test_what_the_user_must_mend_is_not_tried_again(served: Project) -> None:
    served.write_params({"bad": "0 2"})
    done = served.flow("--retries", "5", "--retry-delay", "60")
    assert done.returncode == 1 and "attempt 2" not in done.stdout + done.stderr


def test_cancelling_by_the_api_ends_every_process_and_starts_nothing_more(served: Project, server: str) -> None:
    served.write_params({"a": "60", "b": "60", "c": "0"})
    flow = served.start("flows.run", "--parallel", "2")
    wait_for(lambda: len(list((served.root / "notes").glob("pretrain-*.pid"))) == 2, 120, "training has started")
    first, second = (set(json.loads((served.root / f"notes/pretrain-{of}.cores").read_text())) for of in "ab")
    assert not first & second or len(os.sched_getaffinity(0)) == 1  # each has its share of the cores
    state = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
    assert api(server, f"/flow_runs/{last_run(server)['id']}/set_state", state)["status"] == "ACCEPT"
    assert flow.wait(15) == 130
    assert served.processes() == []
    run = last_run(server)
    assert run["state_name"] == "Cancelled"
    assert sorted(task_states(server, run, 7).values()) == ["Cancelled"] * 2 + ["Completed"] + ["Skipped"] * 4


def test_a_run_that_finds_another_at_work_waits_for_it(served: Project) -> None:
    served.write_params({"m": "6"})
    by_hand = served.start("dvc", "repro")
    wait_for(lambda: (served.root / "notes/pretrain-m.pid").exists(), 120, "training has started")
    done = served.flow()
    assert done.returncode == 0 and "3 were cached" in done.stdout, done.stdout + done.stderr
    assert by_hand.wait(60) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_all_of_a_terminal_ends_the_flow_and_the_server_it_has_brought(
    project: Project, number: signal.Signals
) -> None:
    project.write_params({"m": "60"})
    flow = project.start("flows.run")
    wait_for(lambda: (project.root / "notes/pretrain-m.pid").exists(), 120, "training has started")
    (port,) = {c.laddr.port for p in project.processes() for c in p.net_connections() if c.status == psutil.CONN_LISTEN}
    with pytest.raises(urllib.error.HTTPError, match="401"):  # without the password
        api(f"http://127.0.0.1:{port}/api", "/flow_runs/filter", {})
    os.killpg(flow.pid, number)
    assert flow.wait(60) == 130
    assert project.processes() == []
    with sqlite3.connect(project.root / ".prefect/prefect.db") as database:
        assert database.execute("SELECT state_name FROM flow_run").fetchall() == [("Cancelled",)]


def test_kill_9_of_the_flow_leaves_no_process_and_the_next_run_completes(project: Project) -> None:
    project.write_params({"m": "60"})
    flow = project.start("flows.run")
    wait_for(lambda: (project.root / "notes/pretrain-m.pid").exists(), 120, "training has started")
    flow.kill()
    flow.wait(10)
    wait_for(lambda: not project.processes(), 60, "every process has ended, the server that it had brought, too")
    project.write_params({"m": "0"})
    assert project.flow().returncode == 0


def test_a_stage_is_ended_by_its_timeout(served: Project) -> None:
    served.write_params({"m": "60"})
    began = time.monotonic()
    done = served.flow("--timeout", "pretrain=2")
    assert done.returncode == 1 and "pretrain@m: ended by its timeout of 2 s" in done.stdout
    assert time.monotonic() - began < 60
    assert served.processes() == []


def test_results_go_to_a_branch_and_nothing_else_of_git_is_touched(served: Project) -> None:
    (served.root / "staged.txt").write_text("half a thought")
    served.git("add", "staged.txt")
    served.git("config", "core.abbrev", "12")
    before = served.git("status", "--porcelain", "staged.txt", "work.py"), served.git("rev-parse", "HEAD")
    refused = served.flow("--commit", "main")
    assert refused.returncode == 1 and "'main' is checked out" in refused.stdout
    assert served.times() == {}
    assert served.flow("--commit", "results").returncode == 0
    assert before == (
        served.git("status", "--porcelain", "--", "staged.txt", "work.py"),
        served.git("rev-parse", "HEAD"),
    )
    files = served.git("ls-tree", "-r", "--name-only", "results").splitlines()
    assert {"dvc.lock", "data/pretrain/m/metrics.json", "data/pretrain/m/loss.csv", "work.py"} <= set(files)
    assert "staged.txt" not in files
    assert served.git("show", "results:dvc.lock") == (served.root / "dvc.lock").read_text().strip()
    tip = served.git("rev-parse", "results")
    again = served.flow("linear-probe@m", "--commit", "results")
    assert again.returncode == 0 and "has it already" in again.stdout
    assert served.git("rev-parse", "results") == tip


class Listener(http.server.BaseHTTPRequestHandler):
    heard: list[dict[str, Any]]

    def do_POST(self) -> None:
        self.heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    heard: list[dict[str, Any]] = []
    listener = type("Bound", (Listener,), {"heard": heard})
    receiver = http.server.HTTPServer(("127.0.0.1", 0), listener)
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{receiver.server_port}/secret-path", heard
    receiver.shutdown()


def test_a_failure_is_told_to_the_webhook_whose_address_stays_secret(
    served: Project, server: str, webhook: tuple[str, list[dict[str, Any]]]
) -> None:
    address, heard = webhook
    done = served.flow("no-such-stage", PRETEXT_WEBHOOK=address)
    assert done.returncode == 1
    (told,) = heard
    assert told["state"] == "Failed" and "no stage 'no-such-stage'" in told["message"]
    assert told["url"].endswith(last_run(server)["id"]) and told["url"] in told["text"]
    assert "secret-path" not in done.stdout + done.stderr + json.dumps(last_run(server))


def test_without_a_server_a_flow_brings_its_own_and_leaves_the_home_alone(project: Project) -> None:
    done = project.flow("pretrain@m")
    assert done.returncode == 0, done.stdout
    assert (project.root / ".prefect").is_dir()
    assert not (Path(project.environment["HOME"]) / ".prefect").exists()
    assert not any(process.name().startswith("prefect") for process in project.processes())
    assert not [c for c in psutil.Process().children(recursive=True) if str(project.root) in " ".join(c.cmdline())]
