import json
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from ssl_models import train
from ssl_models.objectives import Examples
from ssl_models.tracking import tracker as tracking_thread
from ssl_models.tracking.execution import Execution
from ssl_models.tracking.tracker import Tracker
from ssl_models.training.job import Dataset, Job, Tracking
from ssl_models.training.parallel import World
from tests.ssl_models.corpora import model, tiny_job

mlflow = pytest.importorskip("mlflow")
DATASET = Dataset(name="tiny", digest="0123456789abcdef0123456789abcdef.dir", source="data/shard/tiny/shards")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Tracking:
    folder = tmp_path_factory.mktemp("mlflow")
    return Tracking(
        uri=f"sqlite:///{folder / '.mlflow' / 'mlflow.db'}",
        artifacts=(folder / ".mlflow" / "artifacts").as_uri(),
        experiment="tiny",
        tags={"stage": "pretrain@tiny", "git.commit": "c0ffee"},
        datasets=(DATASET,),
    )


def client(store: Tracking) -> "mlflow.MlflowClient":
    return mlflow.MlflowClient(tracking_uri=store.uri)


def job(folder: Path, store: Tracking, **compute: float) -> Job:
    return Job.load(tiny_job(folder, model(steps=8), store, **compute))


def steps(store: Tracking, run_id: str, name: str) -> list[int]:
    return [metric.step for metric in client(store).get_metric_history(run_id, name)]


def test_a_run_has_parameters_tags_data_metrics_and_examples_and_is_finished(tmp_path: Path, store: Tracking) -> None:
    subject = job(tmp_path / "whole", store)
    train.run(subject, World(), train.Signals())
    facts = Execution.of(subject.output, subject.execution).model_dump()
    run = client(store).get_run(facts["run_id"])
    assert facts["tracking_uri"] == store.uri
    assert (run.info.status, run.info.run_name) == ("FINISHED", "tiny")
    assert run.data.params["train.steps"] == "8"
    assert run.data.params["backbone.preset"] == "llama"
    assert run.data.tags["git.commit"] == "c0ffee"
    assert [entry.dataset.digest for entry in run.inputs.dataset_inputs] == [DATASET.digest]
    for name in ("loss", "learning_rate", "gradient_norm", "tokens_per_second", "training_accuracy"):
        assert steps(store, facts["run_id"], name) == list(range(1, 9))
    for name in ("validation_loss", "rank_me", "knn_accuracy", "accuracy"):
        assert steps(store, facts["run_id"], name) == [4, 8]
    shown = client(store).list_artifacts(facts["run_id"], "examples/sample")
    assert [Path(file.path).name for file in shown] == ["step-00000004.md", "step-00000008.md"]
    assert len(client(store).list_artifacts(facts["run_id"], "examples/square")) == 2


class AskedAt:
    checkpoint = False
    asked = threading.Event()

    def __init__(self, step: int) -> None:
        self._looks = -1
        self._step = step

    @property
    def stop(self) -> int | None:
        self._looks += 1
        return 15 if self._looks == self._step else None


def test_a_run_is_marked_killed_while_its_last_step_goes_on_and_finished_if_that_was_the_last(
    tmp_path: Path, store: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking_thread, "SECONDS", 0.05)
    subject, asked = job(tmp_path / "slow", store), threading.Event()
    memory = subject.checkpoints / "run.json"
    tracker = Tracker(subject, memory, asked)
    asked.set()

    def status() -> str | None:
        if not memory.exists():
            return None
        return str(client(store).get_run(json.loads(memory.read_text())["run_id"]).info.status)

    deadline = time.monotonic() + 30
    while status() != "KILLED":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    tracker.finish("FINISHED")
    assert status() == "FINISHED"


def test_a_resumed_job_continues_its_run_and_repeats_no_step(tmp_path: Path, store: Tracking) -> None:
    subject = job(tmp_path / "resumed", store)
    with pytest.raises(train.Stopped):
        train.run(subject, World(), AskedAt(5))
    remembered = json.loads((subject.checkpoints / "run.json").read_text())
    assert client(store).get_run(remembered["run_id"]).info.status == "KILLED"
    # A kill may come long after the last checkpoint: take the job back to where nothing was saved.
    for path in subject.checkpoints.glob("step-*"):
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    train.run(subject, World(), train.Signals())
    facts = Execution.of(subject.output, subject.execution).model_dump()
    assert facts["run_id"] == remembered["run_id"]
    assert client(store).get_run(facts["run_id"]).info.status == "FINISHED"
    assert steps(store, facts["run_id"], "loss") == list(range(1, 9))
    assert steps(store, facts["run_id"], "validation_loss") == [4, 8]


def test_a_job_that_fails_marks_its_run_failed(tmp_path: Path, store: Tracking) -> None:
    subject = Job.load(tiny_job(tmp_path / "failed", model(task={"explode_at": 1.0}), store))
    with pytest.raises(train.JobError):
        train.run(subject, World(), train.Signals())
    remembered = json.loads((subject.checkpoints / "run.json").read_text())
    assert client(store).get_run(remembered["run_id"]).info.status == "FAILED"


def test_a_run_that_was_deleted_is_begun_anew(tmp_path: Path, store: Tracking) -> None:
    subject = job(tmp_path / "deleted", store)
    memory = subject.checkpoints / "run.json"
    first = Tracker(subject, memory).finish("KILLED")["run_id"]
    client(store).delete_run(first)
    second = Tracker(subject, memory).finish("FINISHED")["run_id"]
    assert second is not None and second != first


def test_a_server_that_is_down_costs_a_warning_and_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    down = Tracking(uri="http://someone:secret@127.0.0.1:1")
    subject = job(tmp_path / "down", down)
    train.run(subject, World(), train.Signals())
    record = Execution.of(subject.output, subject.execution)
    assert (record.run_id, record.experiment_id, record.tracking_uri) == (None, None, "http://127.0.0.1:1")
    kept = [json.loads(line) for line in subject.checkpoints.with_suffix(".metrics.jsonl").read_text().splitlines()]
    assert Counter("validation_loss" in point for point in kept) == {False: 8, True: 2}
    error = capsys.readouterr().err
    assert error.count("does not answer") == 1
    assert "secret" not in error


def test_what_a_killed_process_had_not_sent_is_sent_by_the_next(tmp_path: Path, store: Tracking) -> None:
    subject = job(tmp_path / "unsent", store)
    killed = Tracker(subject.model_copy(update={"tracking": Tracking()}), subject.checkpoints / "none.json")
    killed.restore([(1, False, {"loss": 3.0}, 1), (2, False, {"loss": 2.0}, 2)])
    kept = json.loads(json.dumps(killed.unsent()))
    tracker = Tracker(subject, subject.checkpoints / "run.json")
    tracker.restore(kept)
    tracker.metrics(3, {"loss": 1.0})
    run_id = tracker.finish("FINISHED")["run_id"]
    assert run_id is not None
    assert steps(store, run_id, "loss") == [1, 2, 3]


def test_metrics_are_sent_in_few_batches(tmp_path: Path, store: Tracking, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    original = mlflow.MlflowClient.log_batch

    def counted(self: object, run_id: str, metrics: tuple[object, ...] = (), **more: object) -> None:
        batches.append(len(metrics))
        original(self, run_id, metrics, **more)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", counted)
    subject = job(tmp_path / "batches", store)
    tracker = Tracker(subject, subject.checkpoints / "run.json")
    for step in range(1, 2001):
        tracker.metrics(step, {"loss": 1.0 / step, "learning_rate": 0.1})
    facts = tracker.finish("FINISHED")
    sent = [size for size in batches if size]
    assert sum(sent) == 4000
    assert len(sent) <= 20
    assert facts["run_id"] is not None
    assert len(steps(store, facts["run_id"], "loss")) == 2000


@pytest.mark.slow
def test_several_jobs_may_be_the_first_to_use_a_store(tmp_path: Path) -> None:
    fresh = Tracking(uri=f"sqlite:///{tmp_path / '.mlflow' / 'mlflow.db'}", experiment="tiny")
    subjects = [job(tmp_path / f"job{number}", fresh) for number in range(3)]
    trackers = [Tracker(subject, subject.checkpoints / "run.json") for subject in subjects]
    found = [tracker.finish("FINISHED") for tracker in trackers]
    assert len({facts["run_id"] for facts in found} - {None}) == 3
    assert len({facts["experiment_id"] for facts in found}) == 1


def test_no_point_is_lost_while_the_store_is_locked(tmp_path: Path, store: Tracking) -> None:
    subject = job(tmp_path / "locked", store)
    tracker = Tracker(subject, subject.checkpoints / "run.json")
    tracker.examples(1, Examples(texts={"note": "hello"}))
    end = time.monotonic() + 60
    while not (subject.checkpoints / "run.json").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    path = str(store.uri).removeprefix("sqlite:///")
    with sqlite3.connect(path) as other:
        other.execute("BEGIN IMMEDIATE")
        tracker.metrics(1, {"loss": 2.0})
        time.sleep(0.2)
        other.rollback()
    facts = tracker.finish("FINISHED")
    assert facts["run_id"] is not None
    assert steps(store, facts["run_id"], "loss") == [1]


def waited(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_server_that_is_gone_for_a_while_has_everything_afterwards(
    tmp_path: Path, store: Tracking, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking_thread, "RETRY", 0.0)
    monkeypatch.setattr(tracking_thread, "SECONDS", 0.05)
    monkeypatch.setattr(tracking_thread, "MACHINE_SECONDS", 0.05)
    subject = job(tmp_path / "gone", store)
    tracker = Tracker(subject, subject.checkpoints / "run.json")
    tracker.metrics(1, {"loss": 1.0})
    waited(lambda: not tracker.unsent())

    def watched() -> bool:
        return bool(tracker._monitor._process.is_alive())

    for outage in (1, 2):
        with monkeypatch.context() as gone:
            for name in ("log_batch", "log_text", "get_run"):
                gone.setattr(mlflow.MlflowClient, name, lambda *_, **__: 1 / 0)
            tracker.metrics(2 * outage, {"loss": 2.0})
            tracker.metrics(2 * outage + 1, {"loss": 3.0})
            tracker.examples(2 * outage, Examples(texts={"note": "hello"}))
            waited(lambda: not watched())
            assert len(tracker.unsent()) == 2
        waited(lambda: not tracker.unsent() and not tracker._shown and watched())
    run_id = tracker.finish("FINISHED")["run_id"]
    assert run_id is not None
    assert steps(store, run_id, "loss") == [1, 2, 3, 4, 5]
    assert len(client(store).list_artifacts(run_id, "examples/note")) == 2
    assert capsys.readouterr().err.count("does not answer") == 2


def test_a_server_that_stays_away_costs_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(tracking_thread, "HELD", 10)
    monkeypatch.setattr(tracking_thread, "SECONDS", 0.02)
    subject = job(tmp_path / "away", Tracking(uri="http://127.0.0.1:1"))
    tracker = Tracker(subject, subject.checkpoints / "run.json")
    for step in range(1, 101):
        tracker.metrics(step, {"loss": 1.0})
    waited(lambda: len(tracker.unsent()) <= 100 - 10)
    tracker.finish("FAILED")
    kept = subject.checkpoints.with_suffix(".metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in kept] == list(range(1, 101))
    assert "metrics that MLflow did not take are in" in capsys.readouterr().err


def test_without_a_server_no_metric_is_held(tmp_path: Path) -> None:
    subject = Job.load(tiny_job(tmp_path / "off", model(steps=8), Tracking()))
    tracker = Tracker(subject, subject.checkpoints / "run.json")
    tracker.metrics(1, {"loss": 1.0})
    assert tracker.unsent() == []


def test_of_a_month_of_steps_a_curve_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    subject = Job.load(tiny_job(tmp_path / "month", model(steps=1_000_003), Tracking(uri="http://127.0.0.1:1")))
    tracker = Tracker(subject, subject.checkpoints / "run.json")
    for step in (1, 100, 101, 202, 1_000_003):
        tracker.metrics(step, {"loss": 1.0})
    tracker.metrics(300, {"validation_loss": 1.0}, evaluation=True)
    assert [step for step, *_ in tracker.unsent()] == [101, 202, 1_000_003, 300]
    tracker.finish("FAILED")
