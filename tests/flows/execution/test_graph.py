"""The flow's graph is DVC's, cut to the targets; damage that a kill leaves in DVC's lock file is mended."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
from pathlib import Path

import psutil
import pytest

from flows.execution import dvc_process, graph
from flows.execution.graph import GraphError, Node
from flows.execution.stage_task import Children, StageError, repro
from tests.flows.conftest import Project, wait_for

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


@pytest.mark.parametrize("content", ['{"write": {"/x', "", "[]", '{"write": {"/x": {"pid": 7}}}'])
def test_a_lock_file_that_a_kill_has_left_half_written_is_mended(inside: Project, content: str) -> None:
    path = lock_file(inside, content)
    graph._forget_dead(path.parent)
    assert not any(json.loads(path.read_text()).values())


def test_a_damaged_lock_file_is_left_alone_while_a_dvc_process_works(inside: Project) -> None:
    path = lock_file(inside, "")
    (inside.root / "bin").mkdir()
    (inside.root / "bin/dvc").symlink_to("/bin/sleep")
    with subprocess.Popen([inside.root / "bin/dvc", "60"]) as working:
        wait_for(lambda: "dvc" in Path(f"/proc/{working.pid}/cmdline").read_text(), 10, "it runs")
        with pytest.raises(GraphError, match="rwlock: is damaged, and another DVC process may be at work"):
            graph._forget_dead(path.parent)
        working.kill()
    assert path.read_text() == ""


def lock_file(project: Project, content: str) -> Path:
    path = project.root / ".dvc/tmp/rwlock"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def test_locks_of_ended_processes_go_and_of_living_ones_stay(inside: Project) -> None:
    """Our parent is no DVC: only what is known to have been written here is judged by its process id."""
    machine, boot, namespace = dvc_process.mark().split("/")
    holders = {
        "ended here": {"pid": os.getppid(), "cmd": f"{dvc_process.mark()} repro"},
        "before the last boot": {"pid": os.getppid(), "cmd": f"{machine}/another/{namespace} repro"},
        "another machine": {"pid": os.getppid(), "cmd": f"dvc@elsewhere/{boot}/{namespace} repro"},
        "another container": {"pid": os.getppid(), "cmd": f"{machine}/{boot}/1 repro"},
        "by hand": {"pid": os.getppid(), "cmd": "/usr/bin/dvc repro"},
    }
    readers = {"/r": list(holders.values())}
    path = lock_file(
        inside, json.dumps({"write": {f"/{name}": entry for name, entry in holders.items()}, "read": readers})
    )
    graph._forget_dead(path.parent)
    left = json.loads(path.read_text())
    assert set(left["write"]) == {"/another machine", "/another container", "/by hand"}
    assert len(left["read"]["/r"]) == 3


def test_locks_older_than_the_machines_start_go_where_no_other_machine_writes(
    inside: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = lock_file(inside, json.dumps({"write": {"/x": {"pid": os.getppid(), "cmd": "dvc repro"}}}))
    os.utime(path, (1e9, 1e9))
    monkeypatch.setattr(dvc_process, "is_local", lambda folder: False)
    graph._forget_dead(path.parent)
    assert "/x" in path.read_text()
    os.utime(path, (1e9, 1e9))
    monkeypatch.setattr(dvc_process, "is_local", lambda folder: True)
    graph._forget_dead(path.parent)
    assert json.loads(path.read_text()) == {}


@pytest.mark.slow
def test_a_stage_that_runs_says_where_in_dvcs_lock_file(inside: Project) -> None:
    inside.write_params({"m": "0"}, shard="60")
    children = Children(inside.environment)

    def stage() -> None:
        with contextlib.suppress(StageError):
            repro("shard@c", children, lambda line: None)

    thread = threading.Thread(target=stage)
    thread.start()
    path = inside.root / ".dvc/tmp/rwlock"
    held = wait_for(lambda: path.exists() and path.read_text(), 60, "the stage holds its paths")
    (holder,) = json.loads(held)["write"].values()
    assert holder["cmd"].startswith(dvc_process.mark()) and dvc_process.may_live(holder)
    psutil.Process(holder["pid"]).kill()
    children.end()
    thread.join(30)
    assert not dvc_process.may_live(holder)
