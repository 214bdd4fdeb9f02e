"""The training job: `python -m ssl_models.train JOB`, started by a launcher, in one process or several.

One loop, read from top to bottom. Everything that decides the result is a pure function of (seed, step): the rows,
their corruption, dropout, the learning rate. So a job that is killed at any moment and started again ends, on the CPU,
with the very bytes of an undisturbed one. Exit status: 0 done, 2 something the user can mend, 143 stopped by SIGTERM
after a checkpoint.
"""

from __future__ import annotations

import math
import shutil
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssl_models import artifact, disk
from ssl_models.data.encoding import Encoding
from ssl_models.data.shards import Shards, Split
from ssl_models.files import sync, whole_folder, write_json, write_text
from ssl_models.models import compiler
from ssl_models.objectives import Objective
from ssl_models.tracking.execution import METRICS, REPORT, Execution, Stopwatch, peak_memory_mb, result
from ssl_models.tracking.tracker import Status, Tracker
from ssl_models.training import batch_norm, checkpoint
from ssl_models.training.batches import Batches, on
from ssl_models.training.evaluation import Evaluation
from ssl_models.training.job import Compute, Job, JobError
from ssl_models.training.learner import Learner
from ssl_models.training.optimizer import Optimizer
from ssl_models.training.parallel import World, first_to_fail
from ssl_models.training.progress import Progress
from ssl_models.training.signals import Signals

PATIENCE = 5
"""Steps in a row whose loss or gradient may be infinite or NaN; they are skipped, then the job gives up."""
CURVE = 1000
"""Most rows of loss.csv: longer curves are averaged over windows."""
RUN = "run.json"
"""Beside the checkpoints: the MLflow run that a resumed job continues."""
DIGITS = 6
"""Significant digits of a number in `metrics.json` and `report.json`."""


@dataclass
class State:
    """What a checkpoint remembers beside weights and optimizer."""

    step: int = 0
    seconds: float = 0.0
    skipped: int = 0
    """Steps skipped in a row."""
    skipped_ever: int = 0
    micro_batch: int | None = None
    """What was found to fit: on another machine, too, a resumed job goes on with it."""
    losses: list[float] = field(default_factory=list)
    evaluations: dict[int, dict[str, float]] = field(default_factory=dict)


class Stopped(Exception):  # noqa: N818 - not an error
    """The job was asked to stop, and a checkpoint was written."""


def main() -> int:
    """Run the job file named on the command line."""
    if len(sys.argv) != 2:
        print("usage: python -m ssl_models.train JOB", file=sys.stderr)
        return 2
    signals = Signals()
    status = 0
    try:
        job = completed(Job.load(Path(sys.argv[1])))
        world = World.start()
        run(job, world, signals)
    except Stopped:
        status = 128 + (signals.stop or signal.SIGTERM)
    except Exception as error:  # the other processes may be waiting for this one: the launcher ends them
        says_why = first_to_fail()
        reason = str(error) if isinstance(error, JobError) else disk.full(error, f"the job {sys.argv[1]}")
        if reason is not None:
            if says_why:
                print(f"error: {reason}", file=sys.stderr, flush=True)
            return 2
        if says_why:
            raise
        return 1
    world.close()
    return status


def run(job: Job, world: World, signals: Signals) -> None:
    """Train, or go on training, and write the output. JobError is one sentence; Stopped leaves a checkpoint."""
    watch, partial = Stopwatch(), job.output.with_name(f".{job.output.name}.partial")
    tracker = Tracker(job, job.checkpoints / RUN, signals.asked) if world.rank == 0 else None
    status: Status = "FAILED"
    try:
        objective, encoding, shards = opened(job)
        if objective.scheduled:
            job = job.model_copy(update={"extendable": None})
        state, evaluation = train(job, world, signals, objective, encoding, shards, tracker)
        if tracker is not None:
            shutil.rmtree(partial, ignore_errors=True)
            write_model(job.model_copy(update={"output": partial}), objective, encoding, state)
        status = "FINISHED"
    except Stopped:
        status = "KILLED"
        raise
    except torch.OutOfMemoryError:
        raise JobError(f"{job.name}: the GPU ran out of memory; set a smaller micro_batch in compute.yaml") from None
    finally:
        mlflow_run = tracker.finish(status) if tracker is not None else {}
    if tracker is not None:
        size = sum(parameter.numel() for parameter in objective.parameters())
        draft = job.model_copy(update={"output": partial})
        write_results(draft, state, {"parameters": size, "steps": state.step}, evaluation)
        shutil.rmtree(job.output, ignore_errors=True)
        partial.rename(job.output)
        sync(job.output.parent)
        write_execution(job, state, watch, mlflow_run)
        tidy(job)
        print(f"{job.name}: trained {state.step} steps in {watch.seconds:.1f} s", flush=True)


def tidy(job: Job) -> None:
    """Without the checkpoints, now that there is a result; of all runs of this model, the last one stays extendable."""
    shutil.rmtree(job.checkpoints, ignore_errors=True)
    if job.extendable is not None and job.extendable.exists():
        for other in set(job.extendable.parent.iterdir()) - {job.extendable}:
            shutil.rmtree(other, ignore_errors=True)


def completed(job: Job) -> Job:
    """The job with what its model takes over from the folder it starts from; JobError where the two do not fit."""
    try:
        return job.model_copy(update={"model": artifact.completed(job.model)})
    except ValueError as error:
        raise JobError(f"params.yaml: models.{job.name}.{error}") from None


def opened(job: Job) -> tuple[Objective, Encoding, Shards]:
    """The untrained objective, built alike in every process, and the data. JobError where they do not fit."""
    torch.manual_seed(job.model.train.seed)
    try:
        shards = Shards.open(job.shards)
        encoding = Encoding.load(job.shards / artifact.ENCODING)
        objective = artifact.build(job.model, encoding, f"params.yaml: models.{job.name}.task")
        if job.model.init_from is not None:
            artifact.start_from(objective, Path(job.model.init_from))
    except FileNotFoundError as error:
        raise JobError(f"{error.filename}: is missing; run the shard stage first (dvc repro)") from None
    except (ValueError, KeyError) as error:
        text = str(error.args[0]) if error.args else str(error)
        raise JobError(text if "params.yaml" in text else f"models.{job.name}: {text}") from None
    return objective, encoding, shards


def splits(job: Job, shards: Shards, world: World) -> tuple[Split, Split]:
    """Training and validation rows; JobError where there are too few."""
    try:
        training, validation = shards.split("train"), shards.split("validation")
    except ValueError as error:
        raise JobError(str(error)) from None
    batch = job.model.train.batch
    if len(training) < batch:
        raise JobError(
            f"models.{job.name}.train.batch: a batch of {batch} rows is more than the {len(training)} rows of the "
            f"training split of {job.model.corpus!r}; make the batch smaller or the corpus larger"
        )
    if not len(validation):
        raise JobError(f"the validation split of {job.model.corpus!r} is empty; raise corpora.{job.model.corpus}.shard")
    if batch < world.size:
        raise JobError(f"models.{job.name}.train.batch: {batch} rows cannot be divided among {world.size} processes")
    return training, validation


def train(
    job: Job,
    world: World,
    signals: Signals,
    objective: Objective,
    encoding: Encoding,
    shards: Shards,
    tracker: Tracker | None,
) -> tuple[State, dict[str, float]]:
    """The training loop. Returns the final state and the last evaluation."""
    settings = job.model.train
    training, validation = splits(job, shards, world)
    objective.to(world.device).train()
    optimizer = Optimizer(objective, settings)
    state = resume(job, objective, optimizer, world, tracker)
    learner = prepared_learner(job, world, objective, training, state)
    batches, evaluation = Batches(training, settings, world), Evaluation(learner, shards, validation)
    writer, extendable = (
        checkpoint.Writer(job.checkpoints),
        checkpoint.Writer(job.extendable or job.checkpoints, keep=1),
    )
    rate_name, per_row = ("tokens", encoding.length) if encoding.modality == "text" else ("samples", 1)
    progress = None
    if tracker is not None:
        progress = Progress(job.name, settings.steps, done=state.step, unit="step", stream=sys.stdout)
    last_checkpoint = time.monotonic()
    try:
        while state.step < settings.steps:
            step, started = state.step, time.perf_counter()
            batch = learner.prepare(*batches.take(step))
            count = world.sum(objective.count(batch).double())
            totals = learner.gradient(step, batch, count, settings.batch)
            length = clip(objective, settings.clip)
            due = time.monotonic() - last_checkpoint >= job.compute.checkpoint_seconds
            # From here on the device's numbers are on the host: the one time in a step that it waits for the device.
            means = totals.means(world, signals.stop is not None, signals.checkpoint or (due and not writer.busy))
            norm, (stop, write) = float(length), means.flags
            if means.finite and math.isfinite(norm):
                learning_rate = optimizer.step(step)
                with torch.no_grad():
                    objective.after_step(step, settings.steps, means.statistics)
                state.skipped = 0
            else:
                learning_rate = 0.0
                learner.undo()
                skip(job, state, means.loss, norm, progress)
            optimizer.zero_grad()

            state.step += 1
            seconds = time.perf_counter() - started
            state.seconds += seconds
            state.losses.append(means.loss)
            rate = settings.batch * per_row / seconds
            values = {
                "loss": means.loss,
                "learning_rate": learning_rate,
                "gradient_norm": norm,
                **({"skipped_steps": float(state.skipped_ever)} if state.skipped_ever else {}),
                f"{rate_name}_per_second": rate,
                **{f"training_{name}": value for name, value in means.metrics.items()},
            }
            if tracker is not None and progress is not None:
                tracker.metrics(state.step, values)
                progress.advance(f"loss {means.loss:.4f}, {rate:,.0f} {rate_name}/s")
            if state.step % settings.evaluate_every == 0 or state.step == settings.steps:
                evaluate(state, objective, evaluation, tracker, progress)
            if state.step == settings.stable_steps and job.extendable is not None and world.rank == 0:
                extendable.save(snapshot(state, settings.steps, objective, optimizer, tracker))
            if (stop or write) and state.step < settings.steps:
                last_checkpoint, signals.checkpoint = time.monotonic(), False
                if world.rank == 0:
                    writer.save(snapshot(state, settings.steps, objective, optimizer, tracker))
                if stop:
                    writer.wait()
                    raise Stopped
    finally:
        batches.close()
        writer.wait()
        extendable.wait()
    return state, state.evaluations.get(settings.steps, {})


def prepared_learner(job: Job, world: World, objective: Objective, training: Split, state: State) -> Learner:
    """The objective made ready for this hardware: precision, compilation, micro-batch (found once, and then in
    `state`), batch normalisation."""
    compute, gpu = job.compute, world.device.type == "cuda"
    if not gpu:
        # Byte-identical reruns; uninitialised memory need not be filled, as nothing here reads it.
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a property
    torch.backends.cudnn.benchmark = True  # shapes never change
    torch.set_float32_matmul_precision("high" if gpu else "highest")
    automatic = gpu and torch.cuda.is_bf16_supported()
    bfloat16 = automatic if compute.precision == "auto" else compute.precision == "bfloat16"
    learner = Learner(objective, world, job.model.train, bfloat16, compiled(compute, world))
    settings = job.model.train
    if compute.micro_batch == "auto" and state.micro_batch is None:
        rows, keys = Batches(training, settings, world).read(0)
        state.micro_batch = learner.fit(learner.prepare(on(world, rows), keys.to(world.device)), settings.batch)
    learner.micro_batch = (state.micro_batch or 1) if compute.micro_batch == "auto" else compute.micro_batch
    if learner.normalised:
        if not gpu:
            torch.set_num_threads(
                1
            )  # a normalisation group is one piece, and threads that share it would round by number
        learner.micro_batch, learner.sharing = normalisation(job, world, learner.micro_batch)
        batch_norm.synchronise(objective, world, learner.sharing)
    return learner


def normalisation(job: Job, world: World, most: int) -> tuple[int, int]:
    """The micro-batch and the number of processes that a normalisation group is spread over, where a process can
    compute `most` rows at once. JobError where it cannot hold its part of a group."""
    settings, at = job.model.train, f"models.{job.name}.train"
    group = settings.normalisation_batch or settings.batch
    try:
        rows, sharing = batch_norm.layout(settings.batch, group, world.size)
    except ValueError as error:
        raise JobError(f"{at}.{error}") from None
    if rows > most:
        raise JobError(
            f"{at}.normalisation_batch: {group} rows share the statistics of batch normalisation, which makes {rows} "
            f"rows on each process, and micro_batch is {most}; raise compute.yaml's micro_batch or the number of "
            f"processes, or set normalisation_batch to a divisor of the batch of at most {most}"
        )
    return rows, sharing


def compiled(compute: Compute, world: World) -> bool:
    """Whether to use `torch.compile`: `auto` is where a GPU can have it. JobError where it is asked for and cannot."""
    gpu = world.device.type == "cuda"
    lacking = compiler.lacking() if gpu else None
    if lacking is None:
        return gpu if compute.compile == "auto" else compute.compile
    if compute.compile is True:
        raise JobError(f"compute.yaml: compile: torch.compile lacks {lacking} here; install it, or set compile: false")
    if compute.compile == "auto" and world.rank == 0:
        print(f"warning: torch.compile lacks {lacking}; training is slow without it", file=sys.stderr, flush=True)
    return False


def clip(objective: nn.Module, largest: float) -> Tensor:
    """Scale the gradients to a global norm of at most `largest` (0: leave them); returns the norm before."""
    parameters = [p for p in objective.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if largest:
        torch.nn.utils.clip_grads_with_norm_(parameters, largest, norm)
    return norm


def skip(job: Job, state: State, loss: float, norm: float, progress: Progress | None) -> None:
    """Count a step that changes nothing, and say so. JobError after `PATIENCE` of them in a row."""
    state.skipped += 1
    state.skipped_ever += 1
    what = "loss" if not math.isfinite(loss) else "gradient" if not math.isfinite(norm) else "objective's statistics"
    if state.skipped >= PATIENCE:
        raise JobError(
            f"{job.name}: the {what} has not been finite for {state.skipped} steps up to step {state.step + 1}; lower "
            f"models.{job.name}.train.learning_rate"
        )
    if progress is not None:
        progress.say(f"warning: {job.name}: step {state.step + 1} is skipped, as its {what} is not finite")


def evaluate(
    state: State,
    objective: Objective,
    evaluation: Evaluation,
    tracker: Tracker | None,
    progress: Progress | None,
) -> None:
    """Measure the model as it is after `state.step` steps; the first process also watches the features."""
    objective.eval()
    means = evaluation.loss()
    measured = {"validation_loss": means.loss, **means.metrics}
    if tracker is not None and progress is not None:
        measured.update(evaluation.watch())
        examples = evaluation.examples()
        measured.update(examples.metrics)
        tracker.metrics(state.step, measured, evaluation=True)
        tracker.examples(state.step, examples)
        progress.say(f"step {state.step}: " + ", ".join(f"{name} {value:.4g}" for name, value in measured.items()))
        if infinite := sorted(name for name, value in measured.items() if not math.isfinite(value)):
            progress.say(f"warning: after step {state.step} {', '.join(infinite)} is not finite")
    state.evaluations[state.step] = measured
    objective.train()


def finite(values: dict[str, float]) -> dict[str, float]:
    """Without NaN and infinity, which JSON cannot hold."""
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}


def snapshot(
    state: State, steps: int, objective: nn.Module, optimizer: Optimizer, tracker: Tracker | None
) -> checkpoint.Checkpoint:
    """Everything that a resumed job needs."""
    tensors = {f"model/{name}": value for name, value in objective.state_dict().items()}
    tensors |= {f"optimizer/{name}": value for name, value in optimizer.state().items()}
    tensors["losses"] = checkpoint.history(state.losses)
    evaluations = {str(step): values for step, values in state.evaluations.items()}
    unsent = tracker.unsent() if tracker is not None else []
    meta = {
        "steps": steps,
        "seconds": state.seconds,
        "skipped": state.skipped,
        "skipped_ever": state.skipped_ever,
        "micro_batch": state.micro_batch,
        "evaluations": evaluations,
        "unsent": unsent,
    }
    return checkpoint.Checkpoint(state.step, tensors, meta)


def resume(job: Job, objective: nn.Module, optimizer: Optimizer, world: World, tracker: Tracker | None) -> State:
    """The state of the newest whole checkpoint, put into model and optimizer; a fresh one where there is none."""
    found, damaged = newest(job) if world.rank == 0 else (None, [])
    for sentence in damaged:
        print(f"warning: {sentence}", file=sys.stderr, flush=True)
    step = world.sum(torch.tensor(found.step if found else 0, device=world.device))
    if not int(step):
        return State()
    if found is None:  # the first process has dropped what was damaged: all read the same one
        found, _ = newest(job)
    if found is None or found.step != int(step):
        raise JobError(f"{job.checkpoints}: every process must see the same checkpoints; use a shared folder")

    def under(prefix: str) -> dict[str, Any]:
        return {n.removeprefix(prefix): v for n, v in found.tensors.items() if n.startswith(prefix)}

    objective.load_state_dict(under("model/"))
    optimizer.load(under("optimizer/"))
    settings, losses = job.model.train, found.tensors["losses"].tolist()
    evaluations = {
        step: values
        for step, values in ((int(text), values) for text, values in found.meta["evaluations"].items())
        if step % settings.evaluate_every == 0 or step == settings.steps  # a shorter training also looked at its end
    }
    if tracker is not None:
        if found.meta["steps"] == settings.steps:
            tracker.restore(found.meta["unsent"])
        else:  # of another run, which has sent it: this one shows the whole curve
            for number, loss in enumerate(losses, 1):
                tracker.metrics(number, {"loss": loss})
            for number, values in evaluations.items():
                tracker.metrics(number, values, evaluation=True)
        print(f"{job.name}: resumed at step {found.step} of {settings.steps}", flush=True)
    remembered = {name: found.meta[name] for name in ("seconds", "skipped", "skipped_ever", "micro_batch")}
    return State(step=found.step, losses=losses, evaluations=evaluations, **remembered)


def newest(job: Job) -> tuple[checkpoint.Checkpoint | None, list[str]]:
    """The newest whole checkpoint of this very training, or else the one of a shorter training that it extends; and a
    sentence for each that was damaged."""
    found, damaged = checkpoint.load(job.checkpoints)
    if found is None and job.extendable is not None:
        found, more = checkpoint.load(job.extendable)
        damaged += more
        if found is not None and found.step > job.model.train.stable_steps:
            found = None
    return found, damaged


def write_model(job: Job, objective: Objective, encoding: Encoding, state: State) -> None:
    """Write `model/`, whole or not at all."""
    with whole_folder(job.output / "model") as folder:
        artifact.save(objective, job.model, encoding, folder, step=state.step)


def write_results(job: Job, state: State, sizes: dict[str, int], evaluation: dict[str, float]) -> None:
    """Write `metrics.json` (the two losses), `report.json` (every number of the last evaluation) and `loss.csv`."""
    tail = [loss for loss in state.losses[-max(1, job.model.train.steps // 20) :] if math.isfinite(loss)] or [math.nan]
    values = finite({"loss": sum(tail) / len(tail), **evaluation})
    report = sizes | {name: float(f"{value:.{DIGITS}g}") for name, value in values.items()}
    write_json(job.output / REPORT, report)
    write_json(job.output / METRICS, {name: report.get(name) for name in ("loss", "validation_loss")})
    write_text(job.output / "loss.csv", curve(state))


def write_execution(job: Job, state: State, watch: Stopwatch, mlflow_run: dict[str, str | None]) -> None:
    """Write what another run of the same job would give differently; `seconds` are those of all its steps."""
    written = result(job.output)
    if job.execution is None or written is None:
        return
    gpu = torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else None
    Execution(
        result=written,
        started=watch.started,
        seconds=round(state.seconds, 3),
        peak_memory_mb=peak_memory_mb(),
        peak_gpu_memory_mb=gpu,
        samples_per_second=round(job.model.train.batch * state.step / max(state.seconds, 1e-9), 2),
        **mlflow_run,
    ).save(job.execution)


def curve(state: State) -> str:
    """`step,loss,validation_loss` as CSV: losses averaged over windows, so that a month's curve stays a picture."""
    window = math.ceil(len(state.losses) / CURVE)
    ends = [*range(window, len(state.losses), window), len(state.losses)]
    lines = ["step,loss,validation_loss"]
    before = 0
    for end in ends:
        part = state.losses[before:end]
        measured = [values["validation_loss"] for step, values in state.evaluations.items() if before < step <= end]
        lines.append(f"{end},{sum(part) / len(part):.6g},{f'{measured[-1]:.6g}' if measured else ''}")
        before = end
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
