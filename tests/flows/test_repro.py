"""What has changed is reproduced side by side: corpora, then models, and nothing after a failure."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import repro
from flows.execution import graph
from flows.execution.graph import Node
from stages import params

PARAMS = """
corpora:
  words: &corpus {modality: text, ingest: {reader: jsonl, source: here}, dedup: {}, tokenize: {}, shard: {}}
  alone: *corpus
models:
  a: &model {corpus: words, objective: next_token, backbone: {preset: llama}, train: {steps: 1, batch: 1}}
  b: *model
probe: {}
"""
MARK = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch(); "


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "params.yaml").write_text(PARAMS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(repro.__file__).parents[1]))  # the leash is found as from the root
    params.load_params.cache_clear()
    yield tmp_path
    params.load_params.cache_clear()


def stands_for_dvc(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr(repro.dvc_process, "command", lambda *words: [sys.executable, "-c", MARK + code, words[-1]])


def test_only_what_has_changed_is_asked_for_corpora_before_models(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = {"code", "ingest@alone", "shard@alone", "pretrain@b", "linear-probe@b"}
    names = [f"{kind}@{name}" for kind in ("ingest", "shard") for name in ("words", "alone")]
    names += [f"{kind}@{name}" for kind in ("pretrain", "linear-probe") for name in "ab"]
    monkeypatch.setattr(graph, "read", lambda: [Node(name, changed=name in changed) for name in ["code", *names]])
    assert repro.rounds() == [[("code",)], [("ingest@alone", "shard@alone")], [("pretrain@b", "linear-probe@b")]]


def test_targets_run_side_by_side(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = "[time.sleep(0.05) for _ in range(600) if not pathlib.Path('ab'.replace(sys.argv[1], '')).exists()]; "
    stands_for_dvc(monkeypatch, other + "sys.exit(not pathlib.Path('ab'.replace(sys.argv[1], '')).exists())")
    assert repro.repro([("a",), ("b",)], parallel=2)


def test_after_a_failure_nothing_new_is_started(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stands_for_dvc(monkeypatch, "print('ran', sys.argv[1]); sys.exit(sys.argv[1] == 'b')")
    assert not repro.repro([("a",), ("b",), ("c",)], parallel=1)
    assert (project / "a").exists() and (project / "b").exists() and not (project / "c").exists()
    assert capsys.readouterr().out == "ran a\nran b\n"


@pytest.mark.parametrize(("targets", "share"), [("a", 2), ("ab", 1), ("abcde", 1)])
def test_what_runs_side_by_side_shares_the_cores(
    project: Path, monkeypatch: pytest.MonkeyPatch, targets: str, share: int
) -> None:
    two = sorted(os.sched_getaffinity(0))[:2]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(two))
    stands_for_dvc(monkeypatch, f"import os; sys.exit(len(os.sched_getaffinity(0)) != {min(share, len(two))})")
    assert repro.repro([(target,) for target in targets], parallel=2)
