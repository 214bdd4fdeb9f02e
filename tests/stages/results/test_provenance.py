"""Where a run came from: its changes beside the commit, its project, and no environment."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from stages import params
from stages.results import provenance


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "project"
    (root / "stages").mkdir(parents=True)
    monkeypatch.chdir(root)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    params.load_compute.cache_clear()
    (root / "params.yaml").write_text("models: {}\n")
    (root / "compute.yaml").write_text("launcher: local\n")
    who = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
    for command in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", "x"]):
        subprocess.run(["git", *command], check=True)
    return root


def test_a_clean_tree_needs_no_patch(repository: Path) -> None:
    found = provenance.tracking("c", "pretrain@m", ())
    assert found.files == {} and "git apply" not in found.reproduce
    assert found.tags["git.commit"] in found.reproduce and "dvc repro pretrain@m" in found.reproduce


def test_what_the_commit_lacks_is_a_patch_that_restores_it(repository: Path, tmp_path: Path) -> None:
    (repository / "params.yaml").write_text("models: {m: 1}\n")
    (repository / "stages/new.py").write_text("x = 1\n")
    (repository / "compute.yaml").write_text("tracking_uri: https://user:password@host\n")
    params.load_compute.cache_clear()
    found = provenance.tracking("c", "pretrain@m", ())
    patch = found.files[provenance.PATCH]
    assert "git apply changes.patch" in found.reproduce and "password" not in patch
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(repository), str(clone)], check=True)
    subprocess.run(["git", "apply"], input=patch.encode(), cwd=clone, check=True)
    for name in ("params.yaml", "stages/new.py"):
        assert (clone / name).read_text() == (repository / name).read_text()


def test_the_patch_is_one_that_git_reads_whatever_the_user_s_configuration(repository: Path, tmp_path: Path) -> None:
    for setting in ("diff.noprefix=true", "color.diff=always", "diff.external=false"):
        subprocess.run(["git", "config", *setting.split("=")], check=True)
    (repository / "params.yaml").write_text("models: {m: 2}\n")
    (repository / "stages/\u00fc.bin").write_bytes(b"\0\1")
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(repository), str(clone)], check=True)
    subprocess.run(["git", "apply"], input=provenance.uncommitted().encode(), cwd=clone, check=True)
    assert (clone / "params.yaml").read_text() == "models: {m: 2}\n"
    assert (clone / "stages/\u00fc.bin").read_bytes() == b"\0\1"


def test_the_commands_clone_the_repository_without_its_password_and_say_what_was_not_pushed(
    repository: Path, tmp_path: Path
) -> None:
    subprocess.run(["git", "remote", "add", "origin", "https://user:do-not-tell@localhost/x.git"], check=True)
    commands = provenance.tracking("c", "pretrain@m", ()).reproduce
    assert "git clone https://localhost/x.git reproduced\ncd reproduced\ngit checkout" in commands
    assert "must be pushed first" in commands
    remote = tmp_path / "remote"
    subprocess.run(["git", "clone", "-q", "--bare", str(repository), str(remote)], check=True)
    subprocess.run(["git", "remote", "set-url", "origin", remote.as_uri()], check=True)
    subprocess.run(["git", "fetch", "-q"], check=True)
    commands = provenance.tracking("c", "pretrain@m", ()).reproduce
    assert f"git clone {remote.as_uri()} reproduced" in commands and "must be pushed" not in commands


def test_a_dvc_experiment_keeps_its_runs_in_the_project(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = repository / ".dvc/tmp/exps/tmpabc"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("DVC_EXP_NAME", "sweep-1")
    found = provenance.tracking("c", "pretrain@m", ())
    assert found.uri == f"sqlite:///{repository}/.mlflow/mlflow.db"
    assert found.artifacts == f"{repository.as_uri()}/.mlflow/artifacts"
    assert found.tags["dvc.experiment"] == "sweep-1"


def test_nothing_of_the_environment_is_in_what_a_run_is_told(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "do-not-tell-8f2c")
    monkeypatch.setenv(provenance.FLOW_RUN_URL, "http://127.0.0.1:4200/runs/flow-run/1")
    found = provenance.tracking("c", "pretrain@m", ())
    assert "do-not-tell" not in found.model_dump_json()
    assert found.tags["prefect.flow_run"] == "http://127.0.0.1:4200/runs/flow-run/1"


def stage(accuracy: float) -> Callable[[str], None]:
    """A stage that writes this accuracy, and has an MLflow run."""

    @provenance.measured("linear-probe")
    def run(name: str) -> dict[str, str | None]:
        folder = Path("data/linear-probe") / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").write_text(json.dumps({"accuracy": accuracy}))
        return {"run_id": "r", "experiment_id": "1", "tracking_uri": "http://localhost"}

    return run


def test_a_measured_stage_leaves_its_record_in_the_ignored_place(repository: Path) -> None:
    stage(0.5)("gpt")
    record = provenance.execution("linear-probe", "gpt")
    assert record is not None and record.run_id == "r" and record.seconds >= 0
    assert (repository / ".runs/linear-probe/gpt.json").exists()
    (repository / "data/linear-probe/gpt/metrics.json").write_text("{}")  # of another execution
    assert provenance.execution("linear-probe", "gpt") is None


def test_a_stage_that_fails_leaves_no_record(repository: Path) -> None:
    @provenance.measured("dedup")
    def run(name: str) -> None:
        raise RuntimeError(name)

    with pytest.raises(RuntimeError):
        run("c")
    assert not (repository / ".runs").exists()


def test_an_experiment_in_a_copy_of_the_tree_has_records_of_its_own_in_the_project(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage(0.5)("gpt")
    copy = repository / ".dvc/tmp/exps/tmpabc"
    copy.mkdir(parents=True)
    with monkeypatch.context() as inside:
        inside.chdir(copy)
        inside.setenv(provenance.EXPERIMENT, "sweep-1")
        stage(0.75)("gpt")
        assert provenance.execution("linear-probe", "gpt") is not None
    assert provenance.execution_file("linear-probe", "gpt", "sweep-1").exists()
    assert provenance.execution("linear-probe", "gpt") is not None  # that of the project is as it was
