"""The pretrain stage: `python -m stages.pretrain MODEL`. It checks everything that can be checked without torch,
writes the job file beside the checkpoints, and has the launcher of `compute.yaml` run `ssl_models.train` on it.

Checkpoints lie outside DVC's outputs under a key that hashes whatever decides the result: the same key resumes, a new
one starts afresh.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ssl_models.config import Model
from ssl_models.training import job
from stages import dispatch, params, provenance, tables
from stages.params import PARAMS, UserError

CHECKPOINTS = Path(".checkpoints")
JOB = "job.json"


def check(name: str, model: Model) -> None:
    """UserError, naming the key, where there is nothing to start from. A launcher elsewhere gets a full check of the
    objective's options, too; a local job makes it by itself at once."""
    if model.init_from is not None and not Path(model.init_from).is_dir():
        raise UserError(f"{PARAMS}: models.{name}.init_from: there is no folder {model.init_from}")
    if params.load_compute().launcher != "local":
        from ssl_models import objectives  # imports torch

        params.options(objectives.find(model.objective).Options, model.task, f"models.{name}.task")


def write_job(name: str, model: Model) -> Path:
    """Write the job file and return its path. Checkpoints of other keys stay: an edit may be taken back."""
    shards = tables.address("shard", model.corpus) / "shards"
    manifest = shards / "manifest.json"
    if not manifest.exists():
        raise UserError(f"{manifest} is missing: run the shard stage first (dvc repro shard@{model.corpus})")
    compute = params.load_compute()
    folder = CHECKPOINTS.absolute() / f"{name}-{job.key(model, manifest)}"
    path = folder / JOB
    job.Job(
        name=name,
        model=model,
        shards=shards.absolute(),
        output=tables.address("pretrain", name).absolute(),
        execution=provenance.execution_file("pretrain", name),
        checkpoints=folder,
        compute=job.Compute(
            micro_batch=compute.micro_batch,
            precision=compute.precision,
            compile=compute.compile,
            checkpoint_seconds=compute.checkpoint_seconds,
        ),
        tracking=provenance.tracking(
            model.corpus, f"pretrain@{name}", (provenance.shards_dataset(model.corpus, shards),)
        ),
    ).save(path)
    return path


def run(name: str) -> None:
    """Train the model `models.NAME`; exits with the job's status where that is not 0."""
    model = params.model(name)
    check(name, model)
    status = dispatch.run(write_job(name, model), params.load_compute())
    if status:
        sys.exit(status)


if __name__ == "__main__":
    params.main(run)
