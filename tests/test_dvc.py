"""dvc.yaml as DVC reads it: what an edit makes it run, and that no name of the user's meets a shell."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
MOST_LINES = 1800
HOSTILE = [
    "x; touch PWNED #",
    "$(touch PWNED)",
    "`touch PWNED`",
    "x'; touch PWNED; '",
    'x"; touch PWNED; "',
    "x && touch PWNED",
    "x|touch PWNED",
    "x\ntouch PWNED\n",
    "${item.modality}; touch PWNED",
    "--help",
]
CORPUS = {
    "modality": "text",
    "ingest": {"reader": "jsonl", "source": "tiny.jsonl"},
    "dedup": dict[str, Any](),
    "tokenize": dict[str, Any](),
    "shard": {"sequence": 32},
}


def dvc(folder: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], cwd=folder, env=environment, capture_output=True, text=True,
        timeout=240, check=False,
    )  # fmt: skip
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def project(folder: Path, params: Any = None) -> Path:
    """The pipeline with a copy of its code, in a folder of its own."""
    for name in ("stages", "ssl_models"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "params.yaml", "requirements.lock", ".dvcignore"):
        shutil.copyfile(ROOT / name, folder / name)
    if params is not None:
        (folder / "params.yaml").write_text(json.dumps(params))
    dvc(folder, "init", "--no-scm", "-q")
    return folder


def as_if_made(folder: Path) -> None:
    """Outputs that say nothing, recorded as those of the code and the parameters as they are."""
    subprocess.run([sys.executable, "-m", "stages.code"], cwd=folder, check=True, timeout=60)
    graph = YAML(typ="safe").load((folder / "dvc.yaml").read_text())["stages"]
    params = YAML(typ="safe").load((folder / "params.yaml").read_text())
    for stage in graph.values():
        if "foreach" not in stage:
            continue
        kept = [stage["do"].get(kind, []) for kind in ("outs", "metrics", "plots")]
        for entry in [entry for entries in kept for entry in entries]:
            out = entry if isinstance(entry, str) else next(iter(entry))
            for key in params[stage["foreach"].strip("${}")]:
                path = folder / out.replace("${key}", key)
                if path.suffix:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text("{}\n" if path.suffix == ".json" else f"{path}\n")
                else:
                    path.mkdir(parents=True)
                    (path / "part").write_text(f"{path}\n")
    dvc(folder, "commit", "-q", "--force")


def changed(folder: Path) -> set[str]:
    """The stages that DVC would run for a reason of their own, once `code` has."""
    subprocess.run([sys.executable, "-m", "stages.code"], cwd=folder, check=True, timeout=60)
    return set(json.loads(dvc(folder, "status", "--json").stdout)) - {"code"}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.slow
def test_dvc_re_runs_what_an_edit_decides_and_its_lock_is_short(tmp_path: Path) -> None:
    folder = project(tmp_path)
    as_if_made(folder)
    assert json.loads(dvc(folder, "status", "--json").stdout) == {}
    assert len((folder / "dvc.lock").read_text().splitlines()) < MOST_LINES

    for file in [*folder.glob("stages/**/*.py"), *folder.glob("ssl_models/**/*.py")]:
        file.write_text(file.read_text() + "\n\n# A comment.\n")
    assert set(json.loads(dvc(folder, "status", "--json").stdout)) == {"code"}
    assert changed(folder) == set()

    models = YAML(typ="safe").load((folder / "params.yaml").read_text())["models"]
    objective = folder / "ssl_models/objectives/rotation.py"
    objective.write_text(objective.read_text() + "EDITED = 1\n")
    assert changed(folder) == {"pretrain@rotation", "linear-probe@rotation"}
    edit(objective, "EDITED = 1\n", "")
    edit(folder / "ssl_models/config.py", "default=0.95", "default=0.99")
    assert changed(folder) == {f"pretrain@{name}" for name in models}
    edit(folder / "ssl_models/config.py", "default=0.99", "default=0.95")
    pictures = folder / "stages/modalities/image/pictures.py"
    pictures.write_text(pictures.read_text() + "EDITED = 1\n")
    found = changed(folder)
    assert found and not any(name.endswith("@python") for name in found)
    edit(pictures, "EDITED = 1\n", "")
    assert changed(folder) == set()

    shutil.copy(objective, folder / "ssl_models/objectives/mine.py")
    edit(folder / "params.yaml", "    objective: rotation", "    objective: mine")
    assert changed(folder) == {"pretrain@rotation", "linear-probe@rotation"}


@pytest.mark.slow
def test_no_name_reaches_a_shell(tmp_path: Path) -> None:
    folder = project(tmp_path, {"corpora": {"mine": CORPUS}, "models": {}})
    (folder / "tiny.jsonl").write_text('{"text": "a"}\n')
    dvc(folder, "repro", "-q", "code")
    corpora = dict.fromkeys(["mine", *HOSTILE], CORPUS)
    (folder / "params.yaml").write_text(json.dumps({"corpora": corpora, "models": {}}))
    # Even where somebody runs a stage itself, past `code`, which refuses such names before anything else runs:
    tried = dvc(folder, "repro", "-k", "--single-item", "--", *(f"ingest@{name}" for name in HOSTILE), check=False)
    by_dvc = [name for name in HOSTILE if "${" in name]
    assert tried.stderr.count("a name must be text of letters") >= len(HOSTILE) - len(by_dvc), tried
    refused = dvc(folder, "repro", check=False)
    assert refused.returncode and refused.stderr.count("a name must be text of letters") == 1
    assert (folder / "code.json").exists() and not (folder / "data").exists()
    assert not list(folder.rglob("*PWNED*"))
