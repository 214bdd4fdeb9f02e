"""The stage on real shards: what it writes, for every kind of corpus, and what it says where it cannot go on."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file

from ssl_models import artifact
from ssl_models.config import Backbone, Model, Train
from ssl_models.data.encoding import Encoding
from ssl_models.probing import report
from ssl_models.tracking import probe as probe_tracking
from ssl_models.tracking.execution import Execution, result
from ssl_models.tracking.probe import Run, Trained
from ssl_models.training.job import Tracking
from stages import linear_probe, params
from stages.params import UserError
from stages.registry import probed
from stages.registry import versions as registry
from stages.registry.decision import DECISION

MODEL = Model(
    corpus="tiny",
    objective="next_token",
    backbone=Backbone(preset="llama", layers=2, width=16, heads=2),
    train=Train(steps=1, batch=4),
)
OUTPUT = Path("data/linear-probe/tiny")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Work in a folder with these shards, and an untrained model `tiny` on them; MLflow is not asked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(probe_tracking, "log", lambda *_: None)
    caches = (params.load_params, params.load_compute)

    def prepare(shards: Path) -> None:
        shutil.copytree(shards, "data/shard/tiny/shards")
        shutil.rmtree("data/pretrain", ignore_errors=True)
        encoding = Encoding.load(shards / "encoding")
        torch.manual_seed(1)
        artifact.save(artifact.build(MODEL, encoding), MODEL, encoding, Path("data/pretrain/tiny/model"), step=1)
        corpus = {"modality": "text", "ingest": {"reader": "jsonl", "source": "x"}, "dedup": {}, "tokenize": {}}
        content = {
            "corpora": {"tiny": {**corpus, "shard": {}}},
            "models": {"tiny": MODEL.model_dump(mode="json")},
            "probe": {"draws": 2, "seeds": 2, "strengths": [0.1, 1.0]},
        }
        with Path("params.yaml").open("w", encoding="utf-8") as file:
            YAML().dump(content, file)
        for cache in caches:
            cache.cache_clear()

    yield prepare
    for cache in caches:
        cache.cache_clear()


def metrics() -> dict[str, Any]:
    """Every number that the report holds."""
    return json.loads((OUTPUT / "report.json").read_text())


def edit_probe_shard(change: Callable[[dict[str, np.ndarray]], None]) -> None:
    """Rewrite the labels and parts of the probe split; the manifest's checksum is not looked at here."""
    path = Path("data/shard/tiny/shards/probe/part-00000.arrow")
    with pa.ipc.open_file(path) as reader:
        batch = reader.get_batch(0)
    columns = {name: batch.column(name).to_numpy().copy() for name in ("label", "test")}
    change(columns)
    for name, values in columns.items():
        index = batch.schema.get_field_index(name)
        batch = batch.set_column(index, batch.schema.field(name), pa.array(values))
    path.unlink()
    with pa.ipc.new_file(path, batch.schema) as writer:
        writer.write_batch(batch)


def test_everything_is_written_and_the_same_again(
    project: Callable[[Path], None], tiny_text_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project(tiny_text_shards)
    linear_probe.run("tiny")
    first = metrics()
    assert "pretrained - random_init" in capsys.readouterr().out
    assert first["raw_input"]["accuracy"] > 0.95  # words tell recipes from logs
    assert first["classes"] == 2
    table = pq.read_table(OUTPUT / "predictions.parquet")
    assert table.num_rows == len((OUTPUT / "confusion.csv").read_text().splitlines()) - 1
    assert set(table["actual"].to_pylist()) == {"recipe", "log"}
    assert np.mean(table["correct"].to_numpy()) == pytest.approx(first["pretrained"]["accuracy"], abs=1e-4)
    assert len(table.schema.metadata[b"probe_rows"]) == 32
    assert len(set(table["id"].to_pylist())) == table.num_rows  # every document has a name of its own ...
    assert 1 < len(set(table["group"].to_pylist())) < table.num_rows  # ... and shares its file with others
    assert len(json.loads((OUTPUT / "report.json").read_text())["weights"]) == 32
    header, *rows = (OUTPUT / "label_efficiency.csv").read_text().splitlines()
    assert header == "labels,encoder,accuracy,low,high" and len(rows) == 9  # 20 a class are not there
    linear_probe.run("tiny")
    assert metrics() == first
    assert pq.read_table(OUTPUT / "predictions.parquet").equals(table)


def test_a_corpus_without_labels_succeeds_and_says_so(
    project: Callable[[Path], None],
    make_text_shards: Callable[..., Path],
    little_documents: Callable[..., list[Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    project(make_text_shards([document._replace(label=None) for document in little_documents(60)]))
    linear_probe.run("tiny")
    assert "the corpus has no labelled rows" in capsys.readouterr().out
    assert metrics()["labels"] == 0
    assert pq.read_table(OUTPUT / "predictions.parquet").num_rows == 0
    assert (OUTPUT / "label_efficiency.csv").read_text() == "labels,encoder,accuracy,low,high\n"
    assert (OUTPUT / "confusion.csv").read_text() == "actual,predicted\n"


@pytest.mark.parametrize(
    ("part", "says"), [(0, "no labelled row is in the test part"), (1, "every labelled row is in the test part")]
)
def test_a_part_without_rows_is_said(
    part: int, says: str, project: Callable[[Path], None], tiny_text_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project(tiny_text_shards)
    edit_probe_shard(lambda columns: columns["test"].fill(part))
    linear_probe.run("tiny")
    assert says in capsys.readouterr().out
    assert metrics()["labels"] == 0


def test_one_class_is_said(
    project: Callable[[Path], None], tiny_text_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project(tiny_text_shards)
    edit_probe_shard(lambda columns: columns["label"].fill(1))
    linear_probe.run("tiny")
    assert "the probe says nothing" in capsys.readouterr().out
    assert metrics()["majority"] == {"accuracy": 1.0}


def test_a_model_that_diverged_is_reported(
    project: Callable[[Path], None], tiny_text_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project(tiny_text_shards)
    weights = Path("data/pretrain/tiny/model/model.safetensors")
    state = load_file(weights)
    save_file({name: torch.full_like(value, torch.nan) for name, value in state.items()}, weights)
    linear_probe.run("tiny")
    assert "did the training diverge?" in capsys.readouterr().out
    assert metrics()["pretrained"]["accuracy"] is None
    assert metrics()["random_init"]["accuracy"] > 0
    assert not any(pq.read_table(OUTPUT / "predictions.parquet")["correct"].to_pylist())


def test_what_is_missing_or_broken_is_one_sentence(project: Callable[[Path], None], tiny_text_shards: Path) -> None:
    project(tiny_text_shards)
    weights = Path("data/pretrain/tiny/model/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match=r"model\.safetensors: cannot be read"):
        linear_probe.run("tiny")
    shutil.rmtree("data/pretrain")
    with pytest.raises(UserError, match="dvc repro pretrain@tiny"):
        linear_probe.run("tiny")
    with pytest.raises(UserError, match="there is no such model"):
        linear_probe.run("nobody")


def test_results_go_into_the_run_of_the_training(
    project: Callable[[Path], None], tiny_text_shards: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mlflow = pytest.importorskip("mlflow")
    project(tiny_text_shards)
    _, found = linear_probe.ask("tiny")
    monkeypatch.undo()
    store = Tracking(
        uri=f"sqlite:///{tmp_path / '.mlflow/mlflow.db'}",
        artifacts=(tmp_path / "artifacts").as_uri(),
        experiment="tiny",
    )
    elsewhere = Trained("tiny", "ab", run_id="0" * 32)
    made = probe_tracking.log(elsewhere, found, 1.0, store)
    assert isinstance(made, Run)
    client = mlflow.MlflowClient(tracking_uri=store.uri)
    run = client.get_run(made.run_id)
    assert run.data.tags[probe_tracking.PRETRAINED_BY] == "0" * 32
    assert run.info.status == "FINISHED"
    assert run.data.metrics["probe.accuracy"] == run.data.metrics["probe.pretrained.accuracy"]
    for name in ("probe.labels_5", "probe.random_init.accuracy", "probe.knn.accuracy", "probe.gain.raw_input"):
        assert name in run.data.metrics
    files = {Path(file.path).name for file in client.list_artifacts(made.run_id, probe_tracking.FOLDER)}
    assert files >= {"report.json", "report.md", "label_efficiency.png", "confusion.png"}
    for again in (elsewhere, Trained("tiny", "ab")):  # the same weights: the same run, not a second one
        assert probe_tracking.log(again, found, 1.0, store) == made
    assert probe_tracking.log(Trained("tiny", "cd", made.run_id), found, 1.0, store) == made
    assert probe_tracking.log(Trained("tiny", "cd"), found, 1.0, store) != made


def test_results_go_into_the_run_that_trained_these_very_weights(
    project: Callable[[Path], None], tiny_text_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project(tiny_text_shards)
    asked: list[str | None] = []
    monkeypatch.setattr(probe_tracking, "log", lambda model, *_: asked.append(model.run_id))
    linear_probe.run("tiny")
    weights = result(Path("data/pretrain/tiny"))
    assert weights is not None
    record = Execution(result=weights, started="", seconds=1.0, peak_memory_mb=1.0, run_id="r")
    record.save(Path(".runs/pretrain/tiny.json"))
    linear_probe.run("tiny")
    record.model_copy(update={"result": "0" * 32}).save(Path(".runs/pretrain/tiny.json"))
    linear_probe.run("tiny")
    assert asked == [None, "r", None]


def test_the_headline_is_what_dvc_shows_and_a_part_of_the_report(
    project: Callable[[Path], None], tiny_text_shards: Path
) -> None:
    project(tiny_text_shards)
    linear_probe.run("tiny")
    shown = json.loads((OUTPUT / "metrics.json").read_text())
    assert list(shown) == ["accuracy", "gain", "gain_low", "raw_input", "labels_5"]
    assert shown["accuracy"] == metrics()["pretrained"]["accuracy"]
    assert shown["labels_5"] == metrics()["pretrained"]["labels_5"]


def test_a_store_that_is_down_costs_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("mlflow")
    (tmp_path / "file").touch()
    store = Tracking(uri=f"sqlite:///{tmp_path / 'file/mlflow.db'}", experiment="tiny")
    assert probe_tracking.log(Trained("tiny", ""), None, 1.0, store) is None
    assert "warning: MLflow at" in capsys.readouterr().err


def test_dvc_draws_the_columns_that_are_written() -> None:
    root = Path(__file__).parents[2]
    stage = YAML(typ="safe").load((root / "dvc.yaml").read_text())["stages"]["linear-probe"]["do"]
    plots = {Path(file).name: options for entry in stage["plots"] for file, options in entry.items()}
    curve, confusion = plots["label_efficiency.csv"], plots["confusion.csv"]
    assert {curve["x"], curve["y"]} <= set(report.CURVE_COLUMNS)
    assert {confusion["x"], confusion["y"]} == set(report.CONFUSION_COLUMNS)
    template = json.loads((root / f".dvc/plots/{curve['template']}.json").read_text())
    drawn = re.findall(r'"field": "(\w+)"', json.dumps(template))
    assert set(drawn) - {"rev"} == {"encoder", "low", "high"} <= set(report.CURVE_COLUMNS)


def test_a_training_that_overfitted_is_said(
    project: Callable[[Path], None], tiny_text_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project(tiny_text_shards)
    curve = "step,loss,validation_loss\n1,5.0,4.9\n2,4.0,\n3,3.0,4.62\n4,1.0,6.66\n"
    Path("data/pretrain/tiny/loss.csv").write_text(curve)
    linear_probe.run("tiny")
    assert "rose from 4.620 at step 3 to 6.660 at step 4" in capsys.readouterr().out


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a registry that is stood in for was asked to register; the probe's run is there."""
    given: list[Any] = []

    def register(*arguments: Any) -> SimpleNamespace:
        given.append(arguments)
        return SimpleNamespace(version=4, tags={DECISION: "kept back: does not beat version 3"})

    monkeypatch.setattr(registry, "register", register)
    return given


def test_a_probed_model_is_registered_and_the_decision_is_said(
    project: Callable[[Path], None],
    tiny_text_shards: Path,
    asked: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    project(tiny_text_shards)
    run = Run("1", "2", "sqlite:///x")
    monkeypatch.setattr(probe_tracking, "log", lambda *_: run)
    linear_probe.run("tiny")
    ((name, corpus, model, predictions, facts, where, _),) = asked
    assert (name, corpus, where) == ("tiny", "tiny", run)
    assert (model / "model.safetensors").exists() and predictions.exists()
    assert facts.feature == metrics()["feature"] and facts.accuracy == pytest.approx(
        metrics()["pretrained"]["accuracy"], abs=1e-4
    )
    assert facts.over_random and facts.over_random.mean == pytest.approx(metrics()["gain"]["random_init"], abs=1e-4)
    assert facts.steps == 1 and "| pretrained |" in facts.description
    assert "tiny version 4: kept back: does not beat version 3" in capsys.readouterr().out


def test_the_point_of_an_experiment_is_no_version(
    project: Callable[[Path], None],
    tiny_text_shards: Path,
    asked: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    project(tiny_text_shards)
    monkeypatch.setattr(probe_tracking, "log", lambda *_: Run("1", "2", "sqlite:///x"))
    monkeypatch.setenv("DVC_EXP_NAME", "sweep-1")
    linear_probe.run("tiny")
    assert not asked and "sweep-1 is an experiment" in capsys.readouterr().out


def test_what_was_not_registered_is_made_up_for_once_and_only_if_it_is_what_was_probed(
    project: Callable[[Path], None], tiny_text_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    project(tiny_text_shards)
    linear_probe.run("tiny")  # its store is away
    monkeypatch.setattr(registry, "save", lambda model, predictions, feature, every, folder: folder.mkdir())
    uri = f"sqlite:///{tmp_path / '.mlflow/mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert [probed.catch_up(), probed.catch_up()] == [1, 0]
    client = mlflow.MlflowClient(tracking_uri=uri)
    (version,) = client.search_model_versions("name = 'tiny'")
    assert version.tags[DECISION].startswith(("promoted: beats its random", "kept back: does not beat its random"))
    assert client.get_run(version.run_id).data.metrics["probe.accuracy"] == metrics()["pretrained"]["accuracy"]
    weights = Path("data/pretrain/tiny/model/model.safetensors")
    save_file({name: value + 1 for name, value in load_file(weights).items()}, weights)  # trained anew, not yet probed
    assert probed.catch_up() == 0


def test_a_registry_that_cannot_be_asked_is_said_once(
    project: Callable[[Path], None],
    tiny_text_shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("mlflow")
    project(tiny_text_shards)
    linear_probe.run("tiny")
    (tmp_path / "file").touch()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'file/mlflow.db'}")
    assert probed.catch_up() == 0
    assert capsys.readouterr().err.count("cannot be asked") == 1
