"""What a run shows: numbers with their change against the last commit, links, curves, progress."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path
from typing import Any

import pytest

from flows.execution.graph import Node
from flows.reports import artifacts
from flows.reports.artifacts import StageResult
from flows.reports.links import mlflow_address, ranked_runs
from ssl_models.tracking.execution import Execution, result
from tests.flows.conftest import Project


@pytest.fixture
def inside(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(project.root)
    return project


def record(folder: Path, path: Path) -> None:
    """The execution that wrote what lies in `folder`."""
    run = {"run_id": "r", "experiment_id": "7", "tracking_uri": "sqlite:///x"}
    written = result(folder)
    assert written is not None
    Execution(result=written, started="2026-01-01T00:00:00+00:00", seconds=5.5, peak_memory_mb=1, **run).save(path)


def test_metrics_are_shown_with_their_change_since_the_last_commit(inside: Project) -> None:
    path = Path("data/pretrain/a/report.json")
    path.parent.mkdir(parents=True)
    node = Node("pretrain@a", records=("data/pretrain/a/metrics.json", str(path)))
    path.write_text(json.dumps({"validation_loss": 2.0}))
    inside.git("add", "-f", str(path))
    inside.git("commit", "-qm", "before")
    path.write_text(json.dumps({"validation_loss": 1.75}))
    path.with_name("metrics.json").write_text("{}")
    record(path.parent, Path(".runs/pretrain/a.json"))
    shown = artifacts.metrics_markdown([node])
    assert "| a | 1.75 (-0.25) | 5.5 | [run](http://127.0.0.1:5000/#/experiments/7/runs/r) |" in shown


def test_what_came_from_elsewhere_has_neither_seconds_nor_a_link(inside: Project) -> None:
    folder = Path("data/pretrain/a")
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text("{}")
    (folder / "report.json").write_text(json.dumps({"validation_loss": 1.75}))
    record(folder, Path(".runs/pretrain/a.json"))
    (folder / "metrics.json").write_text('{"loss": 1}')  # as DVC restores it from its cache
    shown = artifacts.metrics_markdown([Node("pretrain@a", records=("data/pretrain/a/report.json",))])
    assert shown.splitlines()[0] == "| pretrain | validation loss | MLflow |"
    assert shown.splitlines()[2] == "| a | 1.75 |  |"


def test_a_stage_without_metrics_or_git_shows_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert artifacts.metrics_markdown([Node("pretrain@a", records=("missing/report.json",)), Node("shard@c")]) == ""


def test_the_stage_table_says_what_did_not_run_and_why_the_rest_did() -> None:
    nodes = [Node("a", reasons=("changed deps: x (modified)",)), Node("b")]
    rows = artifacts.stage_rows(nodes, {"a": StageResult("Completed", 1.25)})
    assert rows[0] == {
        "stage": "a",
        "result": "Completed",
        "seconds": "1.2",
        "why it ran": "changed deps: x (modified)",
    }
    assert rows[1]["result"] == "Not run"


def test_the_loss_curve_is_a_small_picture(tmp_path: Path) -> None:
    path = tmp_path / "loss.csv"
    lines = [f"{step},{1 + math.exp(-step / 100)},{1.1 if step % 100 == 0 else ''}" for step in range(1, 1000)]
    path.write_text("step,loss,validation_loss\n" + "\n".join(lines))
    picture = artifacts.loss_curve(path, "a")
    assert picture is not None and picture.startswith("data:image/png;base64,")
    content = base64.b64decode(picture.partition(",")[2])
    assert content.startswith(b"\x89PNG") and len(content) < 40_000


@pytest.mark.parametrize("text", [None, "", "step,loss\n", "step,loss\n1,nonsense\n", "other\n1\n"])
def test_a_curve_that_cannot_be_drawn_is_left_out(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "loss.csv"
    if text is not None:
        path.write_text(text)
    assert artifacts.loss_curve(path, "a") is None


def test_progress_follows_a_long_stages_own_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    monkeypatch.setattr(artifacts.StageProgress, "_show", lambda self, percent: seen.append(percent))
    now = [0.0]
    progress = artifacts.StageProgress("pretrain@a", lambda: now[0])
    for second, line in enumerate(["a: step 1/200", "no number", "a: step 100/200, loss 3", "a: step 5/0", "12/10"]):
        now[0] = second * 3.0
        progress.line(line)
    assert seen == [50.0, 100.0]


@pytest.mark.parametrize(("name", "key"), [("GPT_2 large", "gpt-2-large"), ("mae", "mae")])
def test_keys_are_what_prefect_allows(name: str, key: str) -> None:
    assert artifacts.slug(name) == key


def test_links_lead_to_the_server_that_has_the_run() -> None:
    given: dict[str, Any] = {"result": "", "started": "", "seconds": 1.0, "peak_memory_mb": 1.0, "experiment_id": "7"}
    run = Execution(run_id="r", tracking_uri="https://mlflow.example/", **given)
    assert mlflow_address(run) == "https://mlflow.example/#/experiments/7/runs/r"
    assert mlflow_address(Execution(**given)) is None and mlflow_address(None) is None
    assert ranked_runs("http://x", "7").startswith("http://x/#/experiments/7/runs?")
