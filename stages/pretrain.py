"""The pretrain stage: `python -m stages.pretrain MODEL`. It checks everything that can be checked without torch,
writes the job file beside the checkpoints, and has the launcher of `compute.yaml` run `ssl_models.train` on it.

Checkpoints lie outside DVC's outputs under a key that hashes whatever decides the result: the same key resumes, a new
one starts afresh, and a finished run whose `train.steps` were raised goes on where the schedule allows. The result lies
there, too, until DVC has recorded it.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from pydantic import ValidationError

from ssl_models.config import Model
from ssl_models.training import job
from stages import dispatch, params
from stages.digests import policy as code
from stages.digests.syntax import Digests
from stages.files import tables
from stages.params import PARAMS, UserError
from stages.results import kept, provenance
from stages.results.kept import CHECKPOINTS

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
    decides = code.of_model(Digests(), "pretrain", name, model)
    key = job.key(model, manifest, decides)
    stable = job.key(model, manifest, decides, steps=False) if model.train.stable_steps else None
    folder = CHECKPOINTS.absolute() / f"{name}-{key}"
    path = folder / JOB
    job.Job(
        name=name,
        model=model,
        shards=shards.absolute(),
        output=kept.RESULTS.absolute() / name / key,
        execution=provenance.execution_file("pretrain", name),
        checkpoints=folder,
        extendable=CHECKPOINTS.absolute() / "extendable" / name / stable if stable else None,
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


def afresh(name: str, model: Model, wanted: job.Job) -> str | None:
    """Why a training that is but longer than the recorded one does not go on where that ended; None where it does, or
    where more was changed."""
    recorded = provenance.lock().get(f"pretrain@{name}", {}).get("params", {})
    try:
        before = Model.model_validate(recorded[str(PARAMS)][f"models.{name}"])
    except (KeyError, TypeError, ValidationError):
        return None
    longer = before.model_copy(update={"train": before.train.model_copy(update={"steps": model.train.steps})})
    if longer != model or before.train.steps >= model.train.steps or any(wanted.checkpoints.glob("step-*")):
        return None
    if model.train.schedule == "cosine":
        return f"{model.train.schedule}'s learning rates depend on train.steps; constant and wsd go on"
    if (steps := before.train.warmup_steps) != model.train.warmup_steps:
        return f"its warm-up is a fraction of them; with train.warmup: {steps}, in steps, it goes on"
    return None


def run(name: str) -> None:
    """Train the model `models.NAME`; exits with the job's status where that is not 0."""
    model = params.model(name)
    check(name, model)
    kept.prune()
    path = write_job(name, model)
    wanted = job.Job.load(path)
    if wanted.output.exists():
        print(f"{name}: was trained to its end, but not recorded: its result is put in place", flush=True)
    else:
        if (reason := afresh(name, model, wanted)) is not None:
            print(f"{name}: starts afresh with more steps: {reason}", flush=True)
        status = dispatch.run(path, params.load_compute())
        if status:
            sys.exit(status)
    kept.place(wanted.output, tables.address("pretrain", name))
    shutil.rmtree(wanted.checkpoints, ignore_errors=True)


if __name__ == "__main__":
    params.main(run)
