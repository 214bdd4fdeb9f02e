"""`kill -9` of everything at any moment, then `dvc repro`: it completes, with the bytes of an undisturbed run."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PARAMS = """
corpora:
  tiny:
    modality: text
    ingest: {reader: jsonl, source: tiny.jsonl, label: label}
    dedup: {}
    tokenize: {vocabulary: 512}
    shard: {sequence: 32, validation: 0.1, probe: 0.5}
models:
  gpt:
    corpus: tiny
    objective: next_token
    backbone: {architecture: transformer, preset: llama, layers: 1, width: 32, heads: 2}
    train: {steps: 40, batch: 8, evaluate_every: 20, validation_rows: 8, optimizer: muon}
probe: {shots: [1], draws: 2}
"""
COMPUTE = "workers: 1\ncheckpoint_seconds: 0\nlocal: {threads: 1}\n"
TIMEOUT = 240


def project(root: Path, folder: Path, documents: list[Any]) -> Path:
    for name in ("stages", "ssl_models", "flows"):
        shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(root / "dvc.yaml", folder / "dvc.yaml")
    (folder / "params.yaml").write_text(PARAMS)
    (folder / "compute.yaml").write_text(COMPUTE)
    with (folder / "tiny.jsonl").open("w") as file:
        for document in documents:
            file.write(json.dumps({"text": document.text, "label": document.label}) + "\n")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=folder, check=True, timeout=60)
    subprocess.run(
        [sys.executable, "-m", "dvc", "config", "core.analytics", "false"], cwd=folder, check=True, timeout=60
    )
    return folder


def repro(folder: Path) -> "subprocess.Popen[str]":
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "DVC_NO_ANALYTICS": "true"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    with (folder / "repro.log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "dvc", "repro"], cwd=folder, env=environment, stdout=log, stderr=log, text=True,
            start_new_session=True,
        )  # fmt: skip


def completed(folder: Path) -> float:
    began = time.monotonic()
    process = repro(folder)
    try:
        assert process.wait(TIMEOUT) == 0, (folder / "repro.log").read_text()[-4000:]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return time.monotonic() - began


def left(folder: Path) -> list[int]:
    """Processes that still work in `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                inside = (entry / "cwd").readlink().is_relative_to(folder)
                zombie = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
            except OSError:
                continue
            if inside and not zombie:
                found.append(int(entry.name))
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_dvc_repro_after_any_kill_ends_with_the_bytes_of_an_undisturbed_run(
    tmp_path: Path, little_documents: Callable[..., list[Any]], request: pytest.FixtureRequest
) -> None:
    root = request.config.rootpath
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
        project(root, folder, little_documents())
    seconds = completed(whole)
    draw = random.Random(0)
    # A moment in each third of what is left to do, so that every stage is met sooner or later.
    for share in (0.2, 0.5, 0.8):
        process = repro(killed)
        try:
            process.wait(max(0.5, seconds * share * draw.uniform(0.7, 1.3)))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)
        end = time.monotonic() + 15
        while left(killed) and time.monotonic() < end:
            time.sleep(0.05)
        assert not left(killed)
    completed(killed)
    for file in ("data/shard/tiny/shards/manifest.json", "data/pretrain/gpt/model/model.safetensors"):
        assert (killed / file).read_bytes() == (whole / file).read_bytes()
    assert not list((killed / ".checkpoints").glob("gpt-*/"))
