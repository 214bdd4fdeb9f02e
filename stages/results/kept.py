"""Results of trainings, kept beside the checkpoints until DVC has them.

DVC deletes the outputs of a stage before it runs it, and knows them only once `dvc.lock` has been written. So a
finished model lies in `.checkpoints/results/<model>/<key>/` and is put in place from there, by hard links: a stage that
was killed late, a full disk or a dead `dvc` costs the next run seconds, not the training.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from ssl_models.files import whole_file, whole_folder
from stages.results import provenance

CHECKPOINTS = Path(".checkpoints")
RESULTS = CHECKPOINTS / "results"


def place(result: Path, folder: Path) -> None:
    """Make everything of `result` appear in `folder`, each entry whole."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in sorted(result.iterdir()):
        if source.is_dir():
            with whole_folder(folder / source.name) as whole:
                shutil.copytree(source, whole, copy_function=_link, dirs_exist_ok=True)
        else:
            with whole_file(folder / source.name) as whole:
                _link(source, whole)


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def prune() -> None:
    """Remove results that `dvc.lock` has, and older ones of the same model."""
    models = [folder for folder in RESULTS.glob("*") if any(folder.iterdir())]
    recorded = provenance.outputs() if models else {}
    for folder in models:
        outputs = recorded.get(f"pretrain@{folder.name}", [])
        with contextlib.suppress(FileNotFoundError):  # a stage beside this one has removed it
            kept = sorted(folder.iterdir(), key=lambda result: result.stat().st_mtime_ns)
            for number, result in reversed(list(enumerate(kept))):
                if is_recorded(result, outputs):
                    for old in kept[: number + 1]:
                        shutil.rmtree(old, ignore_errors=True)
                    break


def is_recorded(result: Path, outputs: list[dict[str, Any]]) -> bool:
    """Whether `outputs`, as `dvc.lock` has them of a stage, are those of `result`; the smallest are compared first."""
    inside = sorted(outputs, key=lambda out: int(out.get("size", 0)))
    return bool(inside) and all(md5(result / Path(out["path"]).name) == out.get("md5") for out in inside)


def md5(path: Path) -> str | None:
    """DVC's hash of a file or a folder; None where there is neither."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest()
    files = sorted((inner.relative_to(path).as_posix(), inner) for inner in path.rglob("*") if inner.is_file())
    listing = json.dumps([{"md5": md5(inner), "relpath": name} for name, inner in files], sort_keys=True)
    return f"{hashlib.md5(listing.encode()).hexdigest()}.dir" if files else None
