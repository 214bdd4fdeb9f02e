"""Sweeps: every point once, its own experiment, and a table that says no more than the intervals allow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.sweep import Result, points, split, table
from tests.flows.conftest import ROOT, Project, make_project

VALUES = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=4, unique=True)


@given(st.dictionaries(st.sampled_from("xyz"), VALUES, max_size=3))
def test_a_grid_is_every_combination_once(grid: dict[str, list[str]]) -> None:
    found = points(grid)
    expected = 1
    for values in grid.values():
        expected *= len(values)
    assert len(found) == (expected if grid else 0)
    assert len({tuple(point.items()) for point in found}) == len(found)
    assert all(point[key] in grid[key] for point in found for key in grid)


def test_listed_points_come_after_the_grid_as_they_are() -> None:
    assert points({"a": ["1", "2"]}, [{"b": "3"}]) == [{"a": "1"}, {"a": "2"}, {"b": "3"}]


@pytest.mark.parametrize(
    ("text", "values"), [("1,2", ["1", "2"]), ("[1,5],[1,20]", ["[1,5]", "[1,20]"]), ("{a: [1,2]}", ["{a: [1,2]}"])]
)
def test_commas_inside_brackets_do_not_separate(text: str, values: list[str]) -> None:
    assert split(text) == values


def result(name: str, accuracy: float, low: float, high: float) -> Result:
    metrics = {"pretrained.accuracy": accuracy, "pretrained.low": low, "pretrained.high": high}
    return Result(name, "m", {"steps": name}, metrics)


def test_a_result_is_worse_only_where_its_interval_lies_below_the_bests() -> None:
    lines = table(
        [
            result("1", 0.5, 0.4, 0.55),
            result("2", 0.8, 0.7, 0.9),
            result("3", 0.75, 0.6, 0.85),
            Result("4", "m", {}, failure="x"),
        ]
    ).splitlines()
    assert [line.split(" | ")[5] for line in lines[2:]] == ["best", "not told apart", "worse", ""]
    assert "failed" in lines[-1]


@pytest.mark.slow
def test_a_sweep_trains_every_point_and_leaves_the_working_tree_alone(project: Project, server: str) -> None:
    project.environment["PREFECT_API_URL"] = server
    assert project.run("dvc", "repro", "-q").returncode == 0
    project.git("add", "-A")
    project.git("commit", "-qm", "results")
    before = (project.root / "params.yaml").read_bytes(), (project.root / "dvc.lock").read_bytes()
    done = project.run("flows.sweep", "linear-probe@m", "models.m.work=0.1,0.4", "--point", "models.m.work='0 3'")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "with status 3" in done.stdout + done.stderr or "exited with 3" in done.stdout + done.stderr
    rows = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("| sweep-")]
    assert [row.split(" | ")[2:4] for row in rows] == [["0.4", "0.900"], ["0.1", "0.600"], ["'0 3'", "failed"]]
    assert before == ((project.root / "params.yaml").read_bytes(), (project.root / "dvc.lock").read_bytes())
    assert project.git("status", "--porcelain") == ""
    assert project.run("dvc", "exp", "list", "--name-only").stdout.count("sweep-") == 2


@pytest.mark.slow
def test_no_name_reaches_a_shell_by_a_flow_or_a_sweep(tmp_path: Path, server: str) -> None:
    project = make_project(tmp_path / "project", tmp_path / "home", (ROOT / "dvc.yaml").read_text())
    project.environment["PREFECT_API_URL"] = server
    stages: dict[str, Any] = {stage: {} for stage in ("dedup", "tokenize", "shard")}
    corpus = {"modality": "text", "ingest": {"reader": "jsonl", "source": "work.py"}, **stages}
    hostile = "x; touch PWNED #"
    for run, corpora, models in (
        ("flows.run", {hostile: corpus}, {}),
        ("flows.sweep", {"mine": corpus}, {hostile: {"corpus": "mine", "objective": "next_token"}}),
    ):
        (project.root / "params.yaml").write_text(json.dumps({"corpora": corpora, "models": models, "probe": {}}))
        done = project.run(run, f"linear-probe@{hostile}")
        assert done.returncode == 1 and "a name must be text of letters" in done.stdout + done.stderr
    (project.root / "params.yaml").write_text(json.dumps({"corpora": {"mine": corpus}, "models": {}, "probe": {}}))
    project.git("commit", "-qam", "a corpus")
    point = "corpora.mine.ingest.source=$(touch PWNED); touch PWNED"
    assert project.run("flows.sweep", "linear-probe@m", "--point", point).returncode == 1
    assert not list(project.root.rglob("*PWNED*"))
