"""Where a run came from, and where what it leaves behind is kept: the commit, DVC's hashes of its data, the MLflow
server, the record of each execution. Imports neither DVC nor MLflow: `dvc.lock` is plain YAML."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from ssl_models.addresses import public
from ssl_models.tracking.execution import Execution, Stopwatch, peak_memory_mb, result
from ssl_models.training.job import Dataset, Tracking
from stages.params import load_compute

DATA = Path("data")
LOCK = Path("dvc.lock")
CACHE = Path(".dvc/cache/files/md5")
STORE = Path(".mlflow")
EXECUTIONS = Path(".runs")
"""Ignored by git and DVC: `<stage>/<name>.json` holds what varies between two runs of the same work."""
EXPERIMENT = "DVC_EXP_NAME"
"""Set by DVC for the stages of an experiment: its name."""
FLOW_RUN_URL = "PRETEXT_FLOW_RUN_URL"
"""Set by a flow for the stages it runs: the page of the flow run."""
PATCH = "reproduce/changes.patch"
PATCH_FORMAT = ("--no-ext-diff", "--no-textconv", "--no-color", "--binary", "--src-prefix=a/", "--dst-prefix=b/")
"""What `git apply` reads, whatever the user's configuration of git."""
DECIDES = ("params.yaml", "dvc.yaml", "requirements.lock", "stages", "ssl_models")
"""What decides the result; `compute.yaml`, which may name a password, does not."""


def tracking_uri() -> str:
    """`compute.yaml: tracking_uri`, else MLFLOW_TRACKING_URI, else SQLite in `.mlflow/`, by its absolute path."""
    given = load_compute().tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    return given or f"sqlite:///{project() / STORE / 'mlflow.db'}"


def project() -> Path:
    """The root of the project; that of the user's own working tree for a DVC experiment, which runs in a copy below
    `.dvc/tmp/exps` that is removed in the end, and would take its MLflow runs with it."""
    here = Path.cwd()
    copies = [folder for folder in here.parents if folder.parts[-3:] == (".dvc", "tmp", "exps")]
    return copies[-1].parents[2] if copies else here  # a sweep makes copies of copies


def execution_file(stage: str, name: str, experiment: str | None = None) -> Path:
    """The record of a stage's last execution; one of its own for each experiment that ran in a copy of the tree."""
    if experiment is None and project() != Path.cwd():
        experiment = os.environ.get(EXPERIMENT, "unnamed")
    folder = project() / EXECUTIONS
    return (folder / "experiments" / experiment if experiment else folder) / stage / f"{name}.json"


def execution(stage: str, name: str) -> Execution | None:
    """The execution that wrote what now lies at `data/<stage>/<name>`; None where that came from elsewhere."""
    return Execution.of(DATA / stage / name, execution_file(stage, name))


Facts = Mapping[str, str | None]
"""Further fields of an Execution, by name."""


def measured(stage: str) -> Callable[[Callable[[str], Facts | None]], Callable[[str], None]]:
    """A decorator of a stage that works in this process: it writes the execution's record, with the facts that the
    stage returns. A result that does not come of it (a failure) has none."""

    def decorate(run: Callable[[str], Facts | None]) -> Callable[[str], None]:
        @functools.wraps(run)
        def timed(name: str) -> None:
            watch = Stopwatch()
            facts = run(name) or {}
            written = result(DATA / stage / name)
            if written is not None:
                taken = {"started": watch.started, "seconds": watch.seconds, "peak_memory_mb": peak_memory_mb()}
                record = Execution.model_validate({"result": written, **taken, **facts})
                record.save(execution_file(stage, name))

        return timed

    return decorate


def tracking(corpus: str, stage: str, datasets: tuple[Dataset, ...]) -> Tracking:
    """What a job is told about its MLflow run: one experiment per corpus, and tags that lead back to here."""
    uri = tracking_uri()
    artifacts = None if uri.startswith("http") else (project() / STORE / "artifacts").as_uri()
    tags = {"stage": stage, "dvc.lock": lock_hash(), "mlflow.source.type": "JOB", "mlflow.source.name": stage}
    commit = git_commit()
    if commit:
        tags |= {"git.commit": commit, "mlflow.source.git.commit": commit}
    if flow_run := os.environ.get(FLOW_RUN_URL):
        tags["prefect.flow_run"] = flow_run
    if experiment := os.environ.get(EXPERIMENT):
        tags["dvc.experiment"] = experiment
    changes = uncommitted()
    return Tracking(
        uri=uri,
        artifacts=artifacts,
        experiment=corpus,
        tags=tags,
        datasets=datasets,
        reproduce=reproduction(stage, commit, bool(changes)),
        files={PATCH: changes} if changes else {},
    )


def reproduction(stage: str, commit: str, changed: bool) -> str:
    """The commands that do this stage again, and what must be done before them, as Markdown."""
    origin = _git("remote", "get-url", "origin").strip()
    clone = [f"git clone {public(origin)} reproduced", "cd reproduced"] if origin and not Path(origin).exists() else []
    patch = [f"git apply {Path(PATCH).name}"] if changed else []
    lines = ["```bash", *clone, f"git checkout {commit or 'COMMIT'}", *patch, "make environment"]
    lines += [f".venv/bin/dvc repro {stage}", "```"]
    if changed:
        said = "The working tree had changes that the commit lacks: before `git apply`,"
        lines += ["", f"{said} save this run's artifact `{PATCH}` in the clone."]
    if clone and not _git("branch", "--remotes", "--contains", commit):
        lines += ["", "No branch of a remote had the commit when the run began: it must be pushed first."]
    return "\n".join(lines)


def uncommitted() -> str:
    """What decides the result and differs from the commit, as one patch; empty outside git."""
    changed = _git("diff", *PATCH_FORMAT, "HEAD", "--", *DECIDES)
    new = _git("ls-files", "-z", "--others", "--exclude-standard", "--", *DECIDES).split("\0")[:-1]
    added = (_git("diff", *PATCH_FORMAT, "--no-index", "--", os.devnull, name, status=1) for name in new)
    return changed + "".join(added)


def _git(*arguments: str, status: int = 0) -> str:
    """The output of a git command; empty where it fails, or where there is no git."""
    try:
        asked = subprocess.run(["git", *arguments], capture_output=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return asked.stdout.decode("utf-8", "replace") if asked.returncode == status else ""


def git_commit() -> str:
    """The commit of the working tree, empty outside git."""
    return _git("rev-parse", "HEAD").strip()


def lock_hash() -> str:
    """MD5 of `dvc.lock`, empty without one."""
    return hashlib.md5(LOCK.read_bytes()).hexdigest() if LOCK.exists() else ""


def shards_dataset(corpus: str, folder: Path) -> Dataset:
    """The shards of a corpus as a dataset input. The digest is DVC's hash of the folder where `dvc.lock` has it and its
    listing names this very manifest; else (a stage run by hand) the MD5 of the manifest."""
    manifest = hashlib.md5((folder / "manifest.json").read_bytes()).hexdigest()
    recorded = _recorded(f"shard@{corpus}", folder.as_posix())
    current = recorded is not None and _listed(recorded, "manifest.json") == manifest
    digest = recorded if recorded is not None and current else manifest
    return Dataset(name=corpus, digest=digest, source=folder.as_posix())


def _recorded(stage: str, path: str) -> str | None:
    """The hash in `dvc.lock` of one output."""
    try:
        return next(str(out["md5"]) for out in outputs().get(stage, ()) if out["path"] == path)
    except (KeyError, TypeError, StopIteration):
        return None


def lock() -> dict[str, Any]:
    """What `dvc.lock` records, by stage; empty where there is none, or DVC is writing it."""
    try:
        return dict(YAML(typ="safe").load(LOCK.read_text(encoding="utf-8"))["stages"])
    except (OSError, YAMLError, KeyError, TypeError, ValueError):
        return {}


def outputs() -> dict[str, list[dict[str, Any]]]:
    """The outputs that `dvc.lock` records, by stage."""
    return {stage: list(entry.get("outs", ())) for stage, entry in lock().items()}


def _listed(folder_hash: str, name: str) -> str | None:
    """The hash of one file in the listing that DVC's cache keeps of a folder."""
    try:
        entries = json.loads((CACHE / folder_hash[:2] / folder_hash[2:]).read_text(encoding="utf-8"))
        return next(str(entry["md5"]) for entry in entries if entry["relpath"] == name)
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return None
