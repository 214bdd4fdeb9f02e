"""`kill -9` of everything while a stage works, then `dvc repro`: it ends with the bytes of an undisturbed run."""

import contextlib
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

import psutil
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
LOOK_SECONDS = 0.05
STAGES = ("ingest", "dedup", "tokenize", "shard", "pretrain", "linear_probe")
KILLS_EACH = 2
BYTES = (
    "data/ingest/tiny/rows/part-00000.parquet",
    "data/dedup/tiny/rows/part-00000.parquet",
    "data/tokenize/tiny/rows/part-00000.parquet",
    "data/shard/tiny/shards/manifest.json",
    "data/pretrain/gpt/model/model.safetensors",
    "data/linear-probe/gpt/predictions.parquet",
)


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


def at_work(process: "subprocess.Popen[str]") -> tuple[str, psutil.Process] | None:
    """The stage that runs below DVC's `process`, and its process."""
    with contextlib.suppress(psutil.Error):
        for below in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                for stage in STAGES:
                    if f"stages.{stage}" in below.cmdline():
                        return stage, below
    return None


def left(folder: Path) -> list[psutil.Process]:
    """Processes that still work in `folder`."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()).is_relative_to(folder):
                found.append(process)
    return found


def completed(folder: Path) -> dict[str, float]:
    """Run to the end; for how many seconds each stage's process lived."""
    process, began, lives = repro(folder), time.monotonic(), dict.fromkeys(STAGES, 0.0)
    try:
        while process.poll() is None:
            assert time.monotonic() - began < TIMEOUT
            if (found := at_work(process)) is not None:
                stage, seen = found
                psutil.wait_procs([seen], timeout=TIMEOUT)
                lives[stage] += time.time() - seen.create_time()
            time.sleep(LOOK_SECONDS)
        assert process.returncode == 0, (folder / "repro.log").read_text()[-4000:]
    finally:
        end(process)
    return lives


def killed_in(folder: Path, stage: str, after: float) -> str | None:
    """Start anew, and kill everything `after` seconds of `stage`, or of the next one where that was done already; the
    stage that was at work. None where it ended before: then it is DVC between two stages that is let go on, because a
    kill in the middle of its writing its lock file is one that DVC itself does not mend.
    """
    process, began = repro(folder), time.monotonic()
    try:
        while (found := at_work(process)) is None or STAGES.index(found[0]) < STAGES.index(stage):
            assert process.poll() is None and time.monotonic() - began < TIMEOUT, (folder / "repro.log").read_text()
            time.sleep(LOOK_SECONDS)
        _, alive = psutil.wait_procs([found[1]], timeout=after)
        while not alive and process.poll() is None and at_work(process) is None:
            time.sleep(LOOK_SECONDS)
        return found[0] if alive else None
    finally:
        end(process)


def end(process: "subprocess.Popen[str]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_dvc_repro_after_kills_in_every_stage_ends_with_the_bytes_of_an_undisturbed_run(
    tmp_path: Path, little_documents: Callable[..., list[Any]], request: pytest.FixtureRequest
) -> None:
    root = request.config.rootpath
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
        project(root, folder, little_documents())
    lives = completed(whole)
    draw, landed = random.Random(0), []
    for stage in STAGES:
        for _ in range(KILLS_EACH):
            if (at := killed_in(killed, stage, lives[stage] * draw.uniform(0.05, 0.6))) is not None:
                landed.append(at)
            deadline = time.monotonic() + 15
            while remaining := left(killed):
                assert time.monotonic() < deadline, remaining
                time.sleep(LOOK_SECONDS)
    assert set(landed) == set(STAGES) and len(landed) >= 0.7 * KILLS_EACH * len(STAGES), landed
    completed(killed)
    for file in BYTES:
        assert (killed / file).read_bytes() == (whole / file).read_bytes(), file
    assert not list((killed / ".checkpoints").glob("gpt-*/"))
