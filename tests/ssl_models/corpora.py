"""Tiny corpora as the shard stage writes them, and jobs on them."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import ssl_models.objectives
from ssl_models.config import Backbone, Model, Train
from ssl_models.data.encoding import Encoding
from ssl_models.data.manifest import Column, Manifest, Shard, SplitManifest
from ssl_models.files import checksum
from ssl_models.training.job import Compute, Job, Tracking
from tests.ssl_models.objectives import pictures

TOYS = Path(__file__).parent / "objectives"
if str(TOYS) not in ssl_models.objectives.__path__:
    ssl_models.objectives.__path__.append(str(TOYS))

RUN_TRAIN = f"""
import sys, ssl_models.objectives
ssl_models.objectives.__path__.append({str(TOYS)!r})
from ssl_models.train import main
sys.exit(main())
"""
ORDINARY = 40  # pad, eos, and words
VOCABULARY = 60
LENGTH = 12


def text_shards(folder: Path, rows: dict[str, int] | None = None, labels: int = 2) -> Path:
    """Random walks over the vocabulary: something a next-token model can learn."""
    counts = rows or {"train": 100, "validation": 20, "probe": 30}
    generator = np.random.default_rng(7)
    columns = {
        "tokens": Column(dtype="uint16", shape=(LENGTH,)),
        "label": Column(dtype="int32"),
        "test": Column(dtype="uint8"),
        "group": Column(dtype="int64"),
        "id": Column(dtype="int64"),
    }
    splits = {}
    for name, count in counts.items():
        steps = generator.integers(1, 4, size=(count, LENGTH)).cumsum(1) + generator.integers(0, 30, size=(count, 1))
        tokens = (steps % (ORDINARY - 2) + 2).astype(np.uint16)
        arrays = {"tokens": pa.FixedSizeListArray.from_arrays(pa.array(tokens.reshape(-1)), LENGTH)}
        if name == "probe":
            arrays["label"] = pa.array(np.arange(count) % labels, pa.int32())
            arrays["test"] = pa.array((np.arange(count) % 4 == 0).astype(np.uint8))
            arrays["group"] = arrays["id"] = pa.array(np.arange(count))
        batch = pa.RecordBatch.from_pydict(arrays)
        shards = []
        if count:
            path = folder / name / "part-00000.arrow"
            path.parent.mkdir(parents=True, exist_ok=True)
            with pa.ipc.new_file(path, batch.schema) as writer:
                writer.write_batch(batch)
            shards = [Shard(file=f"{name}/part-00000.arrow", rows=count, blake2b=checksum(path))]
        splits[name] = SplitManifest(
            rows=count, bytes=sum((folder / s.file).stat().st_size for s in shards), shards=shards
        )
    manifest = Manifest(
        modality="text", columns=columns, splits=splits, labels=tuple(f"class{n}" for n in range(labels)), length=LENGTH
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    Encoding(
        modality="text", length=LENGTH, vocabulary=VOCABULARY, pad=0, eos=1, bos=40, mask=41, cls=42, sep=43,
        sentinels=tuple(range(59, 43, -1)), special=(0, 1, *range(40, 60)),
    ).save(folder / "encoding")  # fmt: skip
    return folder


def model(objective: str = "toy_words", task: dict[str, Any] | None = None, **train: Any) -> Model:
    settings = {"steps": 12, "batch": 8, "evaluate_every": 4, "validation_rows": 10, **train}
    return Model(
        corpus="tiny",
        objective=objective,
        backbone=Backbone(preset="llama", layers=1, width=16, heads=2),
        task=task or {},
        train=Train(**settings),
    )


def picture_shards(folder: Path, rows: dict[str, int] | None = None) -> Path:
    """Smooth colour pictures, all different."""
    counts = rows or {"train": 48, "validation": 24}
    columns = {"pixels": Column(dtype="uint8", shape=(3, pictures.SIDE, pictures.SIDE))}
    splits = {}
    for seed, (name, count) in enumerate(counts.items()):
        flat = pictures.pixels(count, seed=seed).flatten(1).numpy()
        arrays = {"pixels": pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])}
        batch = pa.RecordBatch.from_pydict(arrays)
        path = folder / name / "part-00000.arrow"
        path.parent.mkdir(parents=True, exist_ok=True)
        with pa.ipc.new_file(path, batch.schema) as writer:
            writer.write_batch(batch)
        shard = Shard(file=f"{name}/part-00000.arrow", rows=count, blake2b=checksum(path))
        splits[name] = SplitManifest(rows=count, bytes=path.stat().st_size, shards=[shard])
    (folder / "manifest.json").write_text(Manifest(modality="image", columns=columns, splits=splits).model_dump_json())
    pictures.encoding().save(folder / "encoding")
    return folder


def tiny_job(folder: Path, model: Model, tracking: Tracking | None = None, **compute: Any) -> Path:
    """A job file whose everything lies under `folder`; the shards, of text, are shared."""
    shards = folder.parent / "shards"
    if not shards.exists():
        text_shards(shards)
    return job(folder, model, shards, tracking, **compute)


def job(folder: Path, model: Model, shards: Path, tracking: Tracking | None = None, **compute: Any) -> Path:
    """A job file whose everything but the shards lies under `folder`."""
    job = Job(
        name="tiny",
        model=model,
        shards=shards,
        output=folder / "output",
        execution=folder / "execution.json",
        checkpoints=folder / "checkpoints",
        compute=Compute(**compute),
        tracking=tracking or Tracking(),
    )
    path = folder / "job.json"
    job.save(path)
    return path


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(Path.cwd())}


def start(job: Path, **options: Any) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", RUN_TRAIN, str(job)],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def finish(job: Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", RUN_TRAIN, str(job)],
        env=environment(), capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip
