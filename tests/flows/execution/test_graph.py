"""The flow's graph is DVC's, cut to the targets; damage that a kill leaves in DVC's lock file is mended."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from flows.execution import graph
from flows.execution.graph import GraphError, Node
from tests.flows.conftest import Project

CHAIN = [Node("shard@c"), Node("pretrain@a", ("shard@c",)), Node("pretrain@b", ("shard@c",))]
CHAIN += [Node("linear-probe@a", ("pretrain@a",)), Node("linear-probe@b", ("pretrain@b",))]


@pytest.fixture
def inside(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(project.root)
    return project


def test_forcing_a_target_changes_it_and_what_lies_below_but_nothing_above() -> None:
    found = {node.name: node.changed for node in graph.forced(CHAIN, ["pretrain@a"])}
    assert found == {
        "shard@c": False,
        "pretrain@a": True,
        "pretrain@b": False,
        "linear-probe@a": True,
        "linear-probe@b": False,
    }
    assert all(node.changed for node in graph.forced(CHAIN, []))


def test_reasons_name_what_changed() -> None:
    status = [{"changed deps": {"params.yaml": {"models.a": "modified"}, "x.txt": "deleted"}}, "always changed"]
    assert graph.reasons(status) == [
        "changed deps: params.yaml:models.a (modified)",
        "changed deps: x.txt (deleted)",
        "always changed",
    ]


def test_a_kind_of_stage_stands_for_all_its_instances() -> None:
    edges = {node.name: node.needs for node in CHAIN}
    assert graph.expand(["pretrain"], edges) == {"pretrain@a", "pretrain@b"}
    assert graph.closure({"linear-probe@a"}, edges) == {"linear-probe@a", "pretrain@a", "shard@c"}


def test_the_graph_is_cut_to_the_targets_and_says_what_each_stage_leaves_to_git(inside: Project) -> None:
    inside.write_params({"a": "0", "b": "0"})
    nodes = graph.read(["linear-probe@a"])
    assert [node.name for node in nodes] == ["shard@c", "pretrain@a", "linear-probe@a"]
    assert all(node.changed for node in nodes)
    assert nodes[1].records == (
        "data/pretrain/a/loss.csv",
        "data/pretrain/a/metrics.json",
        "data/pretrain/a/report.json",
    )


def test_a_dependency_whose_address_holds_a_password_is_refused_and_not_shown(inside: Project) -> None:
    stage = {"cmd": "true", "deps": ["https://user:do-not-tell@127.0.0.1:1/x.csv"]}
    Path("dvc.yaml").write_text(json.dumps({"stages": {"ingest": stage}}))
    with pytest.raises(GraphError, match="ingest: the address of a dependency holds a password") as caught:
        graph.read()
    assert "do-not-tell" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda root: None, "there is no stage 'nonsense' in dvc.yaml"),
        (lambda root: (root / "params.yaml").write_text("{}"), "Could not find 'corpora'"),
        (lambda root: (root / "dvc.yaml").write_text("stages: ["), "dvc.yaml"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(inside: Project, break_it: object, said: str) -> None:
    assert callable(break_it)
    break_it(inside.root)
    with pytest.raises(GraphError, match=said) as raised:
        graph.read(["nonsense"])
    assert "\n" not in str(raised.value)


@pytest.mark.slow
@pytest.mark.parametrize("content", ['{"write": {"/x', "", '{"write": {"/x": {"pid": %d, "cmd": "dvc repro"}}}', "[]"])
def test_a_lock_file_of_processes_that_are_no_dvc_any_more_is_mended(inside: Project, content: str) -> None:
    path = inside.root / ".dvc/tmp/rwlock"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content % os.getppid() if "%d" in content else content)
    assert graph.read(["shard@c"])
    assert not any(json.loads(Path(path).read_text()).values())
