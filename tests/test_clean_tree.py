"""What git sees of a run: the same files byte for byte after the same work done twice, and never the data."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.flows.conftest import clean_environment
from tests.test_kill import COMPUTE, PARAMS

ROOT = Path(__file__).parents[1]
OWN = ("stages", "ssl_models", "flows", "dvc.yaml", "data/.gitignore", ".gitignore", ".dvc/config", ".dvc/.gitignore")
OWN += (".dvc/plots",)

pytestmark = pytest.mark.slow


class Clone:
    """A git repository with a DVC project in it."""

    def __init__(self, root: Path) -> None:
        self.root, self._environment = root, clean_environment(root.parent / "home")

    def run(self, *program: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(program, cwd=self.root, env=self._environment, capture_output=True, text=True)

    def git(self, *arguments: str) -> str:
        done = self.run("git", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def commit(self) -> None:
        self.git("add", "-A")
        self.git("commit", "-qm", "as it is now")

    def clone(self, name: str) -> Clone:
        self.git("clone", "-q", ".", f"../{name}")
        return Clone(self.root.parent / name)

    def repro(self, *targets: str) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "dvc", "repro", *targets)


@pytest.fixture
def origin(tmp_path: Path, little_documents: Callable[..., list[Any]]) -> Clone:
    """This project with a tiny corpus and a tiny model, of which nothing has been made yet."""
    root = tmp_path / "origin"
    for name in OWN:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, root / name)
    (root / "params.yaml").write_text(PARAMS)
    (root / "compute.yaml").write_text(COMPUTE)
    lines = (json.dumps({"text": document.text, "label": document.label}) for document in little_documents(200))
    (root / "tiny.jsonl").write_text("\n".join(lines))
    project = Clone(root)
    project.git("init", "-q")
    project.commit()
    return project


@pytest.mark.timeout(600)
def test_the_same_work_in_two_clones_is_the_same_tree_byte_for_byte(origin: Clone) -> None:
    first = origin.clone("first")
    done = first.repro()
    assert done.returncode == 0, done.stdout + done.stderr
    assert (first.root / ".runs/pretrain/gpt.json").exists() and (first.root / ".mlflow/mlflow.db").exists()
    first.commit()
    kept = {Path(name).name for name in first.git("ls-files", "data").splitlines()}
    assert kept == {".gitignore", "metrics.json", "report.json", "loss.csv", "label_efficiency.csv", "confusion.csv"}

    second = first.clone("second")  # it has every result in git, and no data
    done = second.repro()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Running stage 'linear-probe@gpt'" in done.stdout
    assert second.git("diff") == "" and second.git("status", "--porcelain") == ""
    shown = second.run(sys.executable, "-m", "dvc", "metrics", "show").stdout
    assert "data/linear-probe/gpt/metrics.json" in shown and max(map(len, shown.splitlines())) <= 160


def test_after_a_first_run_that_fails_git_takes_no_data_and_the_next_run_goes_on(origin: Clone) -> None:
    stage = origin.root / "stages/dedup.py"
    code = stage.read_text()
    stage.write_text(code + "    raise SystemExit(1)\n")
    assert origin.repro("dedup@tiny").returncode != 0
    assert (origin.root / "data/dedup/tiny/rows/part-00000.parquet").exists()
    origin.commit()
    assert [name for name in origin.git("ls-files", "data").splitlines() if "rows" in name or ".parquet" in name] == []
    assert not list((origin.root / "data").glob("*/**/.gitignore"))
    stage.write_text(code)
    done = origin.repro("dedup@tiny")
    assert done.returncode == 0, done.stdout + done.stderr
