"""Where a run came from: the commit, DVC's hashes of its data, and the MLflow server that keeps it. Imports neither
DVC nor MLflow: `dvc.lock` is plain YAML."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from ssl_models.job import Dataset, Tracking
from stages.params import load_compute

LOCK = Path("dvc.lock")
CACHE = Path(".dvc/cache/files/md5")
STORE = Path(".mlflow")


def tracking_uri() -> str:
    """`compute.yaml: tracking_uri`, else MLFLOW_TRACKING_URI, else SQLite in `.mlflow/`, by its absolute path."""
    given = load_compute().tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    return given or f"sqlite:///{STORE.absolute() / 'mlflow.db'}"


def tracking(corpus: str, stage: str, datasets: tuple[Dataset, ...]) -> Tracking:
    """What a job is told about its MLflow run: one experiment per corpus, and tags that lead back to here."""
    uri = tracking_uri()
    artifacts = (STORE.absolute() / "artifacts").as_uri() if uri.startswith("sqlite:///") else None
    tags = {"stage": stage, "dvc.lock": lock_hash(), "mlflow.source.type": "JOB", "mlflow.source.name": stage}
    if commit := git_commit():
        tags |= {"git.commit": commit, "mlflow.source.git.commit": commit}
    return Tracking(uri=uri, artifacts=artifacts, experiment=corpus, tags=tags, datasets=datasets)


def git_commit() -> str:
    """The commit of the working tree, empty outside git."""
    try:
        asked = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return asked.stdout.strip() if asked.returncode == 0 else ""


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
        lock: Any = YAML(typ="safe").load(LOCK.read_text(encoding="utf-8"))
        outputs = lock["stages"][stage]["outs"]
        return next(str(out["md5"]) for out in outputs if out["path"] == path)
    except (OSError, YAMLError, KeyError, TypeError, StopIteration):
        return None


def _listed(folder_hash: str, name: str) -> str | None:
    """The hash of one file in the listing that DVC's cache keeps of a folder."""
    try:
        entries = json.loads((CACHE / folder_hash[:2] / folder_hash[2:]).read_text(encoding="utf-8"))
        return next(str(entry["md5"]) for entry in entries if entry["relpath"] == name)
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return None
