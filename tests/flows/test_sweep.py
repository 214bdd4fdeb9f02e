"""Sweeps: every point once, its own experiment, several at the same time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.sweep import points, probes, split
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


def test_each_model_is_probed_once_whichever_of_its_stages_is_named() -> None:
    assert probes(["pretrain@a", "linear-probe@a", "pretrain@b"]) == ["linear-probe@a", "linear-probe@b"]


@pytest.mark.slow
def test_a_sweep_trains_every_point_and_leaves_the_working_tree_alone(project: Project, server: str) -> None:
    project.environment["PREFECT_API_URL"] = server
    assert project.run("dvc", "repro", "-q").returncode == 0
    project.git("add", "-A")
    project.git("commit", "-qm", "results")
    before = (project.root / "params.yaml").read_bytes(), (project.root / "dvc.lock").read_bytes()
    """Two of the points wait for each other; the probe runs though only the training is asked for."""
    both = "models.m.work=0.1 meet,0.4 meet"
    notes = {"NOTES": str(project.root / "notes")}
    done = project.run("flows.sweep", "pretrain@m", both, "--point", "models.m.work='0 3'", "--parallel", "2", **notes)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "with status 3" in done.stdout + done.stderr or "exited with 3" in done.stdout + done.stderr
    rows = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("| sweep-")]
    assert [row.split(" | ")[2:4] for row in rows] == [
        ["0.4 meet", "0.900"],
        ["0.1 meet", "0.600"],
        ["'0 3'", "failed"],
    ]
    assert before == ((project.root / "params.yaml").read_bytes(), (project.root / "dvc.lock").read_bytes())
    assert project.git("status", "--porcelain") == ""
    assert not list((project.root / ".dvc/tmp/exps").glob("sweep-*"))
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
