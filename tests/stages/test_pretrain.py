import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ssl_models.tracking.execution import Execution
from ssl_models.training.job import Job
from stages import params, pretrain
from stages.digests.syntax import Digests
from stages.params import UserError
from stages.results import provenance
from tests.ssl_models import corpora

PARAMS = """
corpora:
  tiny:
    modality: text
    ingest: {reader: jsonl, source: here}
    dedup: {}
    tokenize: {}
    shard: {}
models:
  gpt:
    corpus: tiny
    objective: next_token
    backbone: {preset: llama, layers: 1, width: 16, heads: 2}
    train: {steps: 6, batch: 4, evaluate_every: 3, validation_rows: 8}
probe: {}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    corpora.text_shards(tmp_path / "data" / "shard" / "tiny" / "shards")
    (tmp_path / "params.yaml").write_text(PARAMS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    params.load_params.cache_clear()
    params.load_compute.cache_clear()
    return tmp_path


def edit(project: Path, old: str, new: str) -> None:
    text = (project / "params.yaml").read_text()
    assert old in text
    (project / "params.yaml").write_text(text.replace(old, new))
    params.load_params.cache_clear()


def job_of(project: Path) -> Job:
    return Job.load(pretrain.write_job("gpt", params.model("gpt")))


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("next_token", "next_tokn", "models.gpt.objective: there is no 'next_tokn'"),
        ("preset: llama", "preset: lama", "models.gpt.backbone.preset"),
        ("heads: 2", "heads: 3", "models.gpt.backbone"),
        ("heads: 2", "heds: 2", "models.gpt.backbone"),
        ("steps: 6", "steps: 0", "models.gpt.train.steps"),
        ("train: {", "init_from: nowhere\n    train: {", "models.gpt.init_from: there is no folder nowhere"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_key_before_any_work(
    project: Path, old: str, new: str, sentence: str
) -> None:
    edit(project, old, new)
    with pytest.raises(UserError) as error:
        pretrain.run("gpt")
    assert sentence in str(error.value)
    assert not (project / ".checkpoints").exists()


def test_missing_shards_name_the_stage_to_run(project: Path) -> None:
    (project / "data" / "shard" / "tiny" / "shards" / "manifest.json").unlink()
    with pytest.raises(UserError, match="dvc repro shard@tiny"):
        job_of(project)


def test_the_key_of_the_checkpoints_changes_with_what_decides_the_result_and_nothing_else(project: Path) -> None:
    first = job_of(project)
    (project / "compute.yaml").write_text("micro_batch: 2\ncheckpoint_seconds: 1\n")
    params.load_compute.cache_clear()
    second = job_of(project)
    assert second.compute.micro_batch == 2
    assert second.checkpoints == first.checkpoints
    edit(project, "steps: 6", "steps: 7")
    assert job_of(project).checkpoints != first.checkpoints
    edit(project, "steps: 7", "steps: 6")
    assert job_of(project).checkpoints == first.checkpoints
    manifest = project / "data" / "shard" / "tiny" / "shards" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("class0", "other"))
    assert job_of(project).checkpoints != first.checkpoints


def test_the_key_of_what_can_be_extended_leaves_out_the_steps_and_the_decay(project: Path) -> None:
    assert job_of(project).extendable is None  # cosine
    edit(project, "steps: 6,", "steps: 6, schedule: wsd, warmup: 2,")
    first = job_of(project)
    assert first.extendable is not None
    for old, new in (
        ("steps: 6,", "steps: 9,"),
        ("wsd,", "wsd, decay: 0.5,"),
        ("warmup: 2,", "warmup: 2, final: 0.5,"),
    ):
        edit(project, old, new)
        assert job_of(project).extendable == first.extendable
        assert job_of(project).checkpoints != first.checkpoints
    edit(project, "batch: 4", "batch: 5")
    assert job_of(project).extendable != first.extendable


def test_a_comment_leaves_the_key_of_the_checkpoints_and_an_edit_changes_it(
    project: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    for name in ("stages", "ssl_models"):
        shutil.copytree(request.config.rootpath / name, project / name)
    monkeypatch.setattr(pretrain, "Digests", functools.partial(Digests, project))
    first = job_of(project).checkpoints
    objective = project / "ssl_models/objectives/next_token.py"
    objective.write_text(objective.read_text() + "\n# a comment\n")
    (project / "ssl_models/probing/report.py").write_text("REPORT = 1\n")
    assert job_of(project).checkpoints == first
    objective.write_text(objective.read_text() + "EDITED = 1\n")
    assert job_of(project).checkpoints != first


def test_the_key_changes_with_the_content_of_the_folder_that_the_model_starts_from(project: Path) -> None:
    first = job_of(project).checkpoints
    (project / "theirs").mkdir()
    (project / "theirs/config.json").write_text("{}")
    edit(project, "train: {", "init_from: theirs\n    train: {")
    second = job_of(project).checkpoints
    os.utime(project / "theirs/config.json", (1, 1))
    assert job_of(project).checkpoints == second != first
    (project / "theirs/config.json").write_text("[]")
    assert job_of(project).checkpoints not in (first, second)


LOCKED = {
    "corpus": "tiny",
    "objective": "next_token",
    "backbone": {"preset": "llama", "layers": 1, "width": 16, "heads": 2},
}


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("", "cosine's learning rates depend on train.steps; constant and wsd go on"),
        ("schedule: constant,", "with train.warmup: 5, in steps, it goes on"),
        ("schedule: constant, warmup: 5,", None),
    ],
)
def test_a_longer_training_that_starts_afresh_says_why(project: Path, given: str, reason: str | None) -> None:
    edit(project, "steps: 6,", f"steps: 200, {given}")
    model = params.model("gpt")
    train = {**model.train.model_dump(exclude_unset=True), "steps": 100}
    recorded = {**model.model_dump(exclude_unset=True), "train": train}
    entry = {"params": {"params.yaml": {"models.gpt": recorded}}}
    Path("dvc.lock").write_text(json.dumps({"stages": {"pretrain@gpt": entry}}))
    said = pretrain.afresh("gpt", model, job_of(project))
    assert said is None if reason is None else said is not None and reason in said
    edit(project, "batch: 4", "batch: 5")
    assert pretrain.afresh("gpt", params.model("gpt"), job_of(project)) is None


def test_the_job_file_is_the_owners_alone(project: Path) -> None:
    path = pretrain.write_job("gpt", params.model("gpt"))
    assert path.stat().st_mode & 0o077 == 0


def test_the_tracking_store_is_absolute_unless_another_is_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert provenance.tracking_uri() == f"sqlite:///{project}/.mlflow/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert job_of(project).tracking.uri == "http://127.0.0.1:5000"
    assert job_of(project).tracking.artifacts is None
    (project / "compute.yaml").write_text("tracking_uri: http://127.0.0.1:6000\n")
    params.load_compute.cache_clear()
    assert provenance.tracking_uri() == "http://127.0.0.1:6000"


def test_the_digest_of_the_data_is_dvcs_where_the_lock_is_of_this_data(project: Path) -> None:
    folder = Path("data/shard/tiny/shards")
    fallback = provenance.shards_dataset("tiny", folder).digest
    assert len(fallback) == 32
    recorded = "ab" + "0" * 30 + ".dir"
    Path("dvc.lock").write_text(
        f"stages:\n  shard@tiny:\n    outs:\n    - {{path: {folder.as_posix()}, md5: {recorded}}}\n"
    )
    assert provenance.shards_dataset("tiny", folder).digest == fallback  # cannot be checked
    listing = project / ".dvc/cache/files/md5" / recorded[:2] / recorded[2:]
    listing.parent.mkdir(parents=True)
    listing.write_text(json.dumps([{"relpath": "manifest.json", "md5": fallback}]))
    assert provenance.shards_dataset("tiny", folder).digest == recorded
    listing.write_text(json.dumps([{"relpath": "manifest.json", "md5": "0" * 32}]))
    assert provenance.shards_dataset("tiny", folder).digest == fallback  # stale


def stage(project: Path, root: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "stages.pretrain", "gpt"], cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.slow
def test_a_stage_that_is_killed_after_its_training_costs_the_next_run_no_training(
    project: Path, request: pytest.FixtureRequest
) -> None:
    root, weights = request.config.rootpath, project / "data/pretrain/gpt/model/model.safetensors"
    kill = (
        "import os, sys; from stages import params, pretrain; from stages.results import kept; "
        "kept.place = lambda *given: os.kill(os.getpid(), 9)"
    )
    kill += "; sys.argv = ['stages/pretrain.py', 'gpt']; params.main(pretrain.run)"
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    killed = subprocess.run([sys.executable, "-c", kill], cwd=project, env=environment, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL and not weights.exists()
    made = next((project / ".checkpoints/results/gpt").glob("*/model/model.safetensors")).read_bytes()
    out, error = stage(project, root).communicate(timeout=120)
    assert "its result is put in place" in out and "trained" not in out.replace("was trained", ""), error
    assert weights.read_bytes() == made
    shutil.rmtree(project / "data/pretrain")  # as DVC does, which has recorded nothing yet
    out, error = stage(project, root).communicate(timeout=120)
    assert "its result is put in place" in out and weights.read_bytes() == made


@pytest.mark.slow
def test_the_stage_trains_and_terminates_on_request(project: Path, request: pytest.FixtureRequest) -> None:
    done = stage(project, request.config.rootpath)
    out, error = done.communicate(timeout=120)
    assert done.returncode == 0, error
    assert (project / "data/pretrain/gpt/model/model.safetensors").exists()
    record = Execution.of(project / "data/pretrain/gpt", project / ".runs/pretrain/gpt.json")
    assert record is not None and record.run_id and record.seconds > 0
    assert "trained 6 steps" in out

    edit(project, "steps: 6", "steps: 100000")
    stopped = stage(project, request.config.rootpath)
    assert stopped.stdout is not None and "step" in stopped.stdout.readline()
    began = time.monotonic()
    stopped.send_signal(signal.SIGTERM)
    stopped.communicate(timeout=60)
    assert stopped.returncode == 143
    assert time.monotonic() - began < 30
    assert list((project / ".checkpoints").glob("gpt-*/step-*"))
