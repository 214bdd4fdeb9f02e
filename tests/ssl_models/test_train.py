import contextlib
import dataclasses
import json
import math
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from ssl_models import artifact, objectives, train
from ssl_models.config import Model
from ssl_models.models import compiler
from ssl_models.tracking.execution import Execution
from ssl_models.training import checkpoint
from ssl_models.training.job import Job, JobError
from ssl_models.training.parallel import World
from stages.dispatch.local import Lease, Running
from tests.ssl_models import corpora
from tests.ssl_models.corpora import finish, model, start, tiny_job

ToyTeacher, ToyWords = objectives.find("toy_teacher"), objectives.find("toy_words")


def weights(folder: Path) -> bytes:
    return (folder / "output" / "model" / "model.safetensors").read_bytes()


def until(condition: object, process: "subprocess.Popen[str]", timeout: float = 60) -> None:
    assert callable(condition)
    end = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "timed out"
        time.sleep(0.005)


def has_step(folder: Path, step: int) -> bool:
    return any(int(path.name[5:]) >= step for path in (folder / "checkpoints").glob("step-*"))


DROPOUT = {"dropout": 0.2}
SLOWLY = {"dropout": 0.2, "wait": 0.03}


class Asked:
    """In place of `Signals`: a stop that is asked for during step `stop_at`."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.checkpoint, self.asked = False, threading.Event()
        self._looks, self._stop_at = 0, stop_at

    @property
    def stop(self) -> int | None:
        self._looks += 1
        return signal.SIGTERM if self._looks == self._stop_at else None


def train_here(job: Path, stop_at: int | None = None) -> None:
    train.run(Job.load(job), World(), Asked(stop_at))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train") / "undisturbed"
    train_here(tiny_job(folder, model(task=DROPOUT)))
    return folder


@pytest.fixture(scope="module")
def undisturbed_slowly(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train") / "undisturbed"
    done = finish(tiny_job(folder, model(task=SLOWLY)))
    assert done.returncode == 0, done.stderr
    return folder


def test_a_job_writes_model_metrics_curve_and_run_and_leaves_no_checkpoint(undisturbed: Path) -> None:
    output = undisturbed / "output"
    metrics, report = (json.loads((output / name).read_text()) for name in ("metrics.json", "report.json"))
    assert list(metrics) == ["loss", "validation_loss"] and metrics.items() <= report.items()
    assert {"parameters", "accuracy", "rank_me", "knn_accuracy"} <= set(report)
    assert report["steps"] == 12
    lines = (output / "loss.csv").read_text().splitlines()
    assert lines[0] == "step,loss,validation_loss"
    assert len(lines) == 13
    assert [line.split(",")[0] for line in lines[1:] if line.split(",")[2]] == ["4", "8", "12"]
    record = Execution.of(output, undisturbed / "execution.json")
    assert record is not None and record.run_id is None
    assert record.seconds > 0 and record.samples_per_second > 0 and record.peak_memory_mb > 50
    assert not (undisturbed / "checkpoints").exists()
    assert artifact.load(output / "model").training is False


def test_the_loss_falls(undisturbed: Path) -> None:
    table = [line.split(",") for line in (undisturbed / "output" / "loss.csv").read_text().splitlines()[1:]]
    losses = np.array([float(row[1]) for row in table])
    assert losses[-4:].mean() < losses[:4].mean()
    assert abs(losses[0] - np.log(corpora.VOCABULARY)) < 0.5


@pytest.mark.parametrize("step", [1, 4, 5, 11])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_job_resumed_at_any_step_ends_with_the_bytes_of_an_undisturbed_one(
    step: int, optimizer: str, tmp_path: Path
) -> None:
    wanted = model(task=DROPOUT, optimizer=optimizer)
    train_here(tiny_job(tmp_path / "whole", wanted))
    job = tiny_job(tmp_path / "stopped", wanted)
    with pytest.raises(train.Stopped):
        train_here(job, stop_at=step)
    found, _ = checkpoint.load(tmp_path / "stopped" / "checkpoints")
    assert found is not None and found.step == step
    assert not (tmp_path / "stopped" / "output").exists()
    train_here(job)
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")
    curves = [(tmp_path / name / "output" / "loss.csv").read_text() for name in ("stopped", "whole")]
    assert curves[0] == curves[1]


def test_a_damaged_newest_checkpoint_costs_steps_but_changes_nothing(
    undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = undisturbed.parent / "damaged"
    job = tiny_job(folder, model(task=DROPOUT), checkpoint_seconds=0)
    with pytest.raises(train.Stopped):
        train_here(job, stop_at=6)
    newest = max((folder / "checkpoints").glob("step-*"))
    (newest / checkpoint.STATE).write_bytes(b"nothing")
    train_here(job)
    assert "is damaged" in capsys.readouterr().err
    assert weights(folder) == weights(undisturbed)


@pytest.mark.slow
def test_a_job_that_is_killed_again_and_again_ends_with_the_bytes_of_an_undisturbed_one(
    undisturbed_slowly: Path,
) -> None:
    folder = undisturbed_slowly.parent / "killed"
    job = tiny_job(folder, model(task=SLOWLY), checkpoint_seconds=0)
    for step in (2, 5, 9):
        process = start(job)
        until(lambda step=step: has_step(folder, step), process)
        process.kill()
        process.communicate(timeout=30)
    done = finish(job)
    assert done.returncode == 0, done.stderr
    assert "resumed at step" in done.stdout
    assert weights(folder) == weights(undisturbed_slowly)


@pytest.mark.slow
def test_sigterm_finishes_the_step_writes_a_checkpoint_and_exits_143(undisturbed_slowly: Path) -> None:
    folder = undisturbed_slowly.parent / "terminated"
    job = tiny_job(folder, model(task=SLOWLY))
    process = start(job)
    assert line_of(process)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 143, error
    found, _ = checkpoint.load(folder / "checkpoints")
    assert found is not None and 0 < found.step < 12
    assert not (folder / "output").exists()


def line_of(process: "subprocess.Popen[str]") -> bool:
    """The job has printed its first line of progress."""
    assert process.stdout is not None
    return bool(process.stdout.readline())


@pytest.mark.slow
def test_sigusr1_writes_a_checkpoint_and_goes_on(undisturbed_slowly: Path) -> None:
    folder = undisturbed_slowly.parent / "warned"
    process = start(tiny_job(folder, model(task=SLOWLY)))
    line_of(process)
    process.send_signal(signal.SIGUSR1)
    until(lambda: has_step(folder, 1), process)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    assert weights(folder) == weights(undisturbed_slowly)


def test_micro_batches_change_the_result_by_rounding_only(undisturbed: Path) -> None:
    folder = undisturbed.parent / "micro"
    train_here(tiny_job(folder / "one", model(steps=4)))
    train_here(tiny_job(folder / "four", model(steps=4), micro_batch=2))
    one, four = (json.loads((folder / name / "output" / "metrics.json").read_text()) for name in ("one", "four"))
    assert one["validation_loss"] == pytest.approx(four["validation_loss"], rel=1e-5)


def extendable_job(folder: Path, wanted: Model) -> Path:
    path = tiny_job(folder, wanted)
    Job.load(path).model_copy(update={"extendable": folder / "extendable" / "key"}).save(path)
    return path


@pytest.mark.parametrize("settings", [{"schedule": "constant"}, {"schedule": "wsd", "decay": 0.25}], ids=str)
def test_a_finished_run_goes_on_to_the_bytes_of_an_undisturbed_longer_one(
    settings: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = {"warmup": 2, "evaluate_every": 5, **settings}
    longer = model(task=DROPOUT, **wanted, steps=20)
    train_here(extendable_job(tmp_path / "extended", model(task=DROPOUT, **wanted, steps=12)))
    kept = [path.name for path in (tmp_path / "extended/extendable/key").iterdir()]
    assert kept == [f"step-{12 if settings['schedule'] == 'constant' else 9:010d}"]
    train_here(extendable_job(tmp_path / "extended", longer))
    assert f"resumed at step {int(kept[0][5:])} of 20" in capsys.readouterr().out
    train_here(tiny_job(tmp_path / "whole", longer))
    assert weights(tmp_path / "extended") == weights(tmp_path / "whole")
    curves = [(tmp_path / name / "output" / "loss.csv").read_text() for name in ("extended", "whole")]
    assert curves[0] == curves[1]
    assert len(list((tmp_path / "extended/extendable").glob("*/step-*"))) == 1


def test_a_training_shorter_than_what_could_be_extended_starts_afresh(tmp_path: Path) -> None:
    wanted = {"schedule": "constant", "warmup": 2}
    train_here(extendable_job(tmp_path / "again", model(**wanted, steps=12)))
    train_here(extendable_job(tmp_path / "again", model(**wanted, steps=6)))
    train_here(tiny_job(tmp_path / "whole", model(**wanted, steps=6)))
    assert weights(tmp_path / "again") == weights(tmp_path / "whole")


def test_a_result_is_there_in_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    job = tiny_job(tmp_path, model(steps=4))
    with monkeypatch.context() as patch:
        patch.setattr(train, "write_results", full)
        with pytest.raises(OSError, match="No space"):
            train_here(job)
    assert not (tmp_path / "output").exists()
    train_here(job)
    assert (tmp_path / "output/model").exists()


def refused(folder: Path, wanted: Model, sentence: str) -> None:
    with pytest.raises(JobError) as error:
        train_here(tiny_job(folder, wanted))
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    assert not (folder / "output" / "model").exists()


@pytest.mark.slow
def test_what_the_user_can_mend_is_one_line_and_exit_status_2(undisturbed: Path) -> None:
    done = finish(tiny_job(undisturbed.parent / "line", model(task={"droput": 1})))
    assert done.returncode == 2
    assert done.stderr.startswith("error: params.yaml: models.tiny.task.droput: no such key (did you mean 'dropout'?)")
    assert len(done.stderr.splitlines()) == 1


def test_a_loss_that_is_not_finite_ends_the_job_with_one_sentence(undisturbed: Path) -> None:
    refused(undisturbed.parent / "nan", model(task={"explode_at": 1.0}), "the loss has not been finite for 5 steps")


def test_a_skipped_step_is_skipped_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    loss, states, told = ToyTeacher.loss, list[dict[str, torch.Tensor]](), list[int]()

    def one_is_infinite(self: ToyTeacher, batch: dict[str, torch.Tensor]) -> object:
        if self.training:
            states.append({name: value.clone() for name, value in self.state_dict().items()})
        if self.training and len(states) == 4:
            with torch.no_grad():
                self.student[0].weight.mul_(1e30)
                outcome = loss(self, batch)
                self.student[0].weight.copy_(states[-1]["student.0.weight"])
            outcome.loss = outcome.loss * math.inf + self.head.bias.sum()
            return outcome
        return loss(self, batch)

    monkeypatch.setattr(ToyTeacher, "loss", one_is_infinite)
    after_step = ToyTeacher.after_step
    monkeypatch.setattr(
        ToyTeacher, "after_step", lambda self, *given: (told.append(given[0]), after_step(self, *given))
    )
    train_here(tiny_job(tmp_path / "job", model("toy_teacher", steps=6, evaluate_every=6), micro_batch=8))
    torch.testing.assert_close(states[4], states[3], rtol=0, atol=0)
    assert not torch.equal(states[3]["centre"], states[2]["centre"])
    assert not torch.equal(states[3]["student.2.running_var"], states[2]["student.2.running_var"])
    assert told == [0, 1, 2, 4, 5]
    assert "warning: tiny: step 4 is skipped, as its loss is not finite" in capsys.readouterr().out
    trained = artifact.load(tmp_path / "job" / "output" / "model")
    assert all(value.isfinite().all() for value in trained.state_dict().values())


def test_a_validation_loss_that_is_not_finite_is_said_and_ends_with_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loss = ToyWords.loss

    def infinite(self: ToyWords, batch: dict[str, torch.Tensor]) -> object:
        outcome = loss(self, batch)
        return outcome if self.training else dataclasses.replace(outcome, loss=outcome.loss * math.nan)

    monkeypatch.setattr(ToyWords, "loss", infinite)
    logged = list[dict[str, float]]()
    monkeypatch.setattr(train.Tracker, "metrics", lambda self, step, values, evaluation=False: logged.append(values))
    job = tiny_job(tmp_path / "job", model(), micro_batch=8)
    with pytest.raises(train.Stopped):
        train_here(job, stop_at=6)
    train_here(job)
    output = tmp_path / "job" / "output"
    rows = [line.split(",") for line in (output / "loss.csv").read_text().splitlines()[1:]]
    assert [row[0] for row in rows if row[2] == "nan"] == ["4", "8", "12"]
    assert json.loads((output / "metrics.json").read_text())["validation_loss"] is None
    assert "warning: after step 12 validation_loss is not finite" in capsys.readouterr().out
    assert sum(math.isnan(values.get("validation_loss", 0.0)) for values in logged) == 3
    artifact.load(output / "model")


def test_a_micro_batch_is_found_once_and_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = tiny_job(tmp_path / "job", model())
    with pytest.raises(train.Stopped):
        train_here(job, stop_at=2)
    monkeypatch.setattr(train.Learner, "fit", lambda *given: pytest.fail("found anew"))
    train_here(job)


def test_a_teacher_and_a_centre_are_in_checkpoints_and_in_the_model(tmp_path: Path) -> None:
    wanted = model("toy_teacher", steps=6, evaluate_every=6)
    train_here(tiny_job(tmp_path / "whole", wanted))
    job = tiny_job(tmp_path / "stopped", wanted)
    with pytest.raises(train.Stopped):
        train_here(job, stop_at=3)
    found, _ = checkpoint.load(tmp_path / "stopped" / "checkpoints")
    assert found is not None
    assert {"model/centre", "model/teacher.0.weight", "model/teacher.2.running_var"} <= found.tensors.keys()
    train_here(job)
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")
    trained = artifact.load(tmp_path / "whole" / "output" / "model")
    assert trained.centre.abs().max() > 0
    assert not torch.equal(trained.teacher[0].weight, trained.student[0].weight)


@pytest.mark.slow
def test_the_number_of_cores_changes_no_byte(tmp_path: Path) -> None:
    for cores in ("1", "2"):
        environment = {**corpora.environment(), "OMP_NUM_THREADS": cores}
        job = tiny_job(tmp_path / cores, model(task=DROPOUT))
        subprocess.run([sys.executable, "-c", corpora.RUN_TRAIN, str(job)], env=environment, check=True, timeout=300)
    assert weights(tmp_path / "1") == weights(tmp_path / "2")


def test_a_step_that_is_skipped_leaves_the_loss_of_the_others(tmp_path: Path) -> None:
    job = Job.load(tiny_job(tmp_path, model(steps=40)))
    job.output.mkdir()
    train.write_results(job, train.State(step=40, losses=[2.0] * 38 + [1.0, math.nan]), {}, {})
    assert json.loads((job.output / "metrics.json").read_text())["loss"] == 1.0


@pytest.mark.parametrize("compiling", [True, "auto"])
def test_a_gpu_without_a_compiler_trains_without_it_unless_it_was_asked_for(
    compiling: bool | str, undisturbed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compiler, "lacking", lambda: "a C compiler (apt install gcc)")
    job = Job.load(tiny_job(undisturbed.parent / f"compiler-{compiling}", model(), compile=compiling))
    gpu = World(device=torch.device("cuda"))
    if compiling is True:
        with pytest.raises(JobError, match=r"compile: torch\.compile lacks a C compiler \(apt install gcc\) here"):
            train.compiled(job.compute, gpu)
    else:
        assert not train.compiled(job.compute, gpu)
        assert "torch.compile lacks a C compiler" in capsys.readouterr().err
    assert train.compiled(job.compute, World()) == (compiling is True)


def test_an_unknown_option_is_named_by_its_key(undisturbed: Path) -> None:
    refused(undisturbed.parent / "option", model(task={"droput": 1}), "params.yaml: models.tiny.task.droput: no such")


def test_a_batch_beyond_the_corpus_is_refused(undisturbed: Path) -> None:
    refused(undisturbed.parent / "batch", model(batch=101), "a batch of 101 rows is more than the 100 rows")


def test_a_job_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text("{}")
    with pytest.raises(JobError, match=r"job.json: name: Field required"):
        Job.load(tmp_path / "job.json")


@pytest.mark.slow
def test_several_processes_train_the_model_of_one(undisturbed: Path) -> None:
    folder = undisturbed.parent / "several"
    wanted = model("toy_pairs", {"norm": True}, steps=4)
    train_here(tiny_job(folder / "one", wanted))
    job = tiny_job(folder / "two", wanted)
    running = Running([sys.executable, "-c", corpora.RUN_TRAIN, str(job)], corpora.environment(), 2, Lease())
    with ThreadPoolExecutor(1) as pool:
        bound = pool.submit(sockets, [psutil.Process(pid) for pid in running._processes])
        assert running.wait() == 0
    one, two = (json.loads((folder / name / "output" / "metrics.json").read_text()) for name in ("one", "two"))
    assert one["validation_loss"] == pytest.approx(two["validation_loss"], rel=1e-4)
    assert len(bound.result()) >= 2  # each listens for the other
    assert {ip for ip, _ in bound.result()} == {"127.0.0.1"}


def sockets(job: list[psutil.Process]) -> set[tuple[str, int]]:
    """Address and port of every socket of these processes and their children, until the first of them ends."""
    found = set()
    with contextlib.suppress(psutil.Error):
        while all(rank.status() != psutil.STATUS_ZOMBIE for rank in job):
            for process in [*job, *(child for rank in job for child in rank.children(recursive=True))]:
                found |= {(socket.laddr.ip, socket.laddr.port) for socket in process.net_connections()}
            time.sleep(0.02)
    return found


@pytest.mark.slow
def test_a_process_that_fails_alone_says_why_and_the_others_nothing(
    undisturbed: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = """
import os
from ssl_models.training import job
from ssl_models import train
def clip(*given):
    raise job.JobError("models.tiny: only here")
if os.environ["RANK"] == "1":
    train.clip = clip
"""
    path = tiny_job(undisturbed.parent / "alone", model("toy_pairs"))
    running = Running([sys.executable, "-c", code + corpora.RUN_TRAIN, str(path)], corpora.environment(), 2, Lease())
    assert running.wait() == 2
    assert capfd.readouterr().err == "error: models.tiny: only here\n"
