"""Every probed model is a version without a pickle that answers as the probe read it; the champion must be beaten."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from flows.promote import promote
from ssl_models import artifact
from ssl_models.config import Backbone, Model, Train
from ssl_models.data.encoding import Encoding
from ssl_models.tracking.probe import Run
from ssl_models.training.job import Tracking
from stages.modalities.image import pictures
from stages.params import UserError
from stages.registry import versions as registry
from stages.registry.serving import Served
from stages.registry.versions import CHAMPION, DECISION, Facts, Registry, decide

mlflow = pytest.importorskip("mlflow")
ROOT = Path(__file__).parents[3]
GPT = Model(
    corpus="tiny",
    objective="next_token",
    backbone=Backbone(preset="llama", layers=2, width=16, heads=2),
    train=Train(steps=1, batch=4),
)
TEXTS = ["stir the soup with salt", "worker restarted at line [42]", "", "butter " * 200]


def predictions(path: Path, correct: np.ndarray, rows: str = "a", actual: str = "x") -> Path:
    columns = {
        "row": pa.array(np.arange(len(correct))),
        "actual": pa.array([actual] * len(correct)),
        "predicted": pa.array([actual if right else "y" for right in correct]),
        "correct": pa.array(correct),
    }
    pq.write_table(pa.table(columns).replace_schema_metadata({"probe_rows": rows}), path)
    return path


@pytest.fixture(scope="module")
def model(tiny_text_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "model"
    encoding = Encoding.load(tiny_text_shards / "encoding")
    torch.manual_seed(0)
    artifact.save(artifact.build(GPT, encoding), GPT, encoding, folder, step=1)
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Tracking:
    folder = tmp_path_factory.mktemp("mlflow") / ".mlflow"
    return Tracking(
        uri=f"sqlite:///{folder / 'mlflow.db'}", artifacts=(folder / "artifacts").as_uri(), experiment="tiny"
    )


@pytest.fixture
def desk(store: Tracking, request: pytest.FixtureRequest) -> tuple[Registry, str, Run]:
    """A registry, the name of a registered model of this test's own, and a run to belong to."""
    found = Registry(store)
    run = found.client.create_run(found._experiment).info
    return found, request.node.name.split("[")[0], Run(run.run_id, run.experiment_id, str(store.uri))


def right(share: float, rows: int = 400) -> np.ndarray:
    return np.arange(rows) < share * rows


def test_a_version_that_beats_the_champion_takes_its_place(tmp_path: Path) -> None:
    new, old = predictions(tmp_path / "new", right(0.8)), predictions(tmp_path / "old", right(0.6))
    assert decide(new, None, None).promoted
    better = decide(new, old, "3")
    assert better.promoted and better.gain and better.gain.mean == pytest.approx(0.2)
    assert "beats version 3 by +0.2000 (95 % interval +0.1" in better.reason and "400 probe rows" in better.reason
    assert better.tags()["champion.against"] == "3" and float(better.tags()["champion.gain.low"]) > 0.1
    for other in (old, new):
        assert not decide(other, new, "3").promoted
    close = decide(predictions(tmp_path / "close", right(0.605)), old, "3")
    assert not close.promoted and "does not beat" in close.reason


def test_other_rows_are_never_compared(tmp_path: Path) -> None:
    old = predictions(tmp_path / "old", right(0.1))
    changed = decide(predictions(tmp_path / "changed", right(0.9), rows="b"), old, "1")
    assert not changed.promoted and "probe rows of the corpus have changed" in changed.reason
    fewer = decide(predictions(tmp_path / "fewer", right(0.9, 300)), old, "1")
    assert not fewer.promoted and "another choice" in fewer.reason
    gone = decide(old, None, "1")
    assert not gone.promoted and "are gone" in gone.reason


def test_versions_decisions_and_the_way_back(
    desk: tuple[Registry, str, Run], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "save", _save_little)
    found, corpus, run = desk
    facts = Facts("mean", 0.5, "a report")
    made = []
    for number, share in enumerate((0.6, 0.5, 0.8)):
        path = predictions(tmp_path / f"{number}.parquet", right(share))
        made.append(found.register("gpt", corpus, model, path, facts, run))
    assert [str(version.version) for version in made] == ["1", "2", "3"]
    reasons = [version.tags[DECISION] for version in made]
    assert reasons[0] == "promoted: the first version"
    assert reasons[1].startswith("kept: does not beat version 1 by -0.1")
    assert reasons[2].startswith("promoted: beats version 1 by +0.2")
    assert "a report" in made[2].description and reasons[2] in made[2].description
    assert str(found.champion(corpus).version) == "3"
    again = found.register("gpt", corpus, model, tmp_path / "1.parquet", facts, run)
    assert str(again.version) == "2" and len(found.versions(corpus)) == 3
    listed = promote(found, corpus)
    assert listed.count("\n") == 2 and listed.splitlines()[2].split()[:4] == ["3", "gpt", "0.5000", CHAMPION]
    assert "already" in promote(found, corpus, "3")
    assert "version 2 is champion now; it was 3" in promote(found, corpus, "2")
    assert "version 3 is champion again" in promote(found, corpus, back=True)
    assert "version 1 is champion again" in promote(found, corpus, back=True)
    assert str(found.champion(corpus).version) == "1"
    with pytest.raises(UserError, match="no version was champion before"):
        promote(found, corpus, back=True)
    with pytest.raises(UserError, match="has no version 9"):
        promote(found, corpus, "9")
    with pytest.raises(UserError, match="has no registered version"):
        promote(found, "nothing")


def _save_little(model: Path, predictions: Path, feature: str, every: int, folder: Path) -> None:
    folder.mkdir()
    (folder / "MLmodel").write_text("flavors: {}\n")
    shutil.copyfile(predictions, folder / registry.PREDICTIONS)


def test_a_registry_that_is_down_costs_a_warning(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    down = Tracking(uri=f"sqlite:///{tmp_path / 'file/mlflow.db'}", experiment="tiny")
    path = predictions(tmp_path / "p.parquet", right(0.5))
    assert registry.register("gpt", "tiny", model, path, Facts("mean", 0.5, ""), Run("1", "1", ""), down) is None
    assert "warning: gpt is not in the registry" in capsys.readouterr().err


def probe_features(model: Path, texts: list[str], feature: str = "mean") -> np.ndarray:
    """As the probe reads them: rows as the tokenize and shard stages make them."""
    from ssl_models.tools.generate import tokenizer_of

    objective = artifact.load(model)
    encoding = objective.encoding
    tokenizer, tail = tokenizer_of(objective), [encoding.eos, *[encoding.pad] * encoding.length]
    rows = [[*tokenizer.encode(text, add_special_tokens=False).ids, *tail][: encoding.length] for text in texts]
    tokens = torch.tensor(rows)
    with torch.inference_mode():
        return objective.features({"tokens": tokens})[feature].numpy()


def test_the_registered_model_has_no_pickle_and_gives_the_features_of_the_probe(
    desk: tuple[Registry, str, Run], model: Path, tmp_path: Path
) -> None:
    found, corpus, run = desk
    path = predictions(tmp_path / "p.parquet", right(0.5))
    version = found.register("gpt", corpus, model, path, Facts("mean", 0.5, ""), run)
    folder = Path(
        mlflow.artifacts.download_artifacts(
            artifact_uri=version.source, tracking_uri=run.tracking_uri, dst_path=str(tmp_path / "downloaded")
        )
    )
    suffixes = {file.suffix for file in folder.rglob("*") if file.is_file()}
    assert suffixes <= {".safetensors", ".json", ".py", ".txt", ".yaml", ".yml", ".parquet", ".jinja", ""}
    for file in folder.rglob("*"):
        assert not file.is_file() or not file.read_bytes().startswith(b"\x80\x04")  # a pickle of any protocol in use
    loaded = mlflow.pyfunc.load_model(str(folder))
    expected = probe_features(model, TEXTS)
    np.testing.assert_allclose(loaded.predict(pandas.DataFrame({"text": TEXTS})), expected, atol=1e-5)
    last = loaded.predict(pandas.DataFrame({"text": TEXTS}), params={"feature": "last"})
    np.testing.assert_allclose(last, probe_features(model, TEXTS, "last"), atol=1e-5)
    file = tmp_path / "text.txt"
    file.write_text(TEXTS[0])
    np.testing.assert_allclose(loaded.predict(pandas.DataFrame({"path": [str(file)]})), expected[:1], atol=1e-5)
    written = loaded.predict(pandas.DataFrame({"text": TEXTS[:2]}), params={"generate": True, "tokens": 5})
    assert len(written) == 2 and written[0].startswith(TEXTS[0])
    signature = loaded.metadata.signature
    assert signature.inputs.input_names() == ["text", "path"] and signature.outputs.inputs[0].shape == (-1, 16)
    assert loaded.metadata.saved_input_example_info is not None
    linked = found.client.get_run(run.run_id).outputs.model_outputs
    assert len(linked) == 1 and linked[0].model_id in version.source


@pytest.mark.slow
def test_mlflow_serves_the_champion(desk: tuple[Registry, str, Run], model: Path, tmp_path: Path) -> None:
    found, corpus, run = desk
    path = predictions(tmp_path / "p.parquet", right(0.5))
    found.register("gpt", corpus, model, path, Facts("mean", 0.5, ""), run)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": run.tracking_uri, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    place = ["--host", "127.0.0.1", "--port", str(port), "--env-manager", "local"]
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/{corpus}@{CHAMPION}", *place],
        cwd=tmp_path,
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
    )
    refused = []
    try:
        address = f"http://127.0.0.1:{port}/invocations"
        answer = asked(address, {"dataframe_records": [{"text": t} for t in TEXTS]}, server)
        for wrong in ({"inputs": TEXTS}, {"dataframe_records": [{"txt": t} for t in TEXTS]}):
            with pytest.raises(urllib.error.HTTPError) as error:
                asked(address, wrong, server)
            refused.append((error.value.code, error.value.read().decode()))
    finally:
        os.killpg(server.pid, 9)
        server.wait(10)
    np.testing.assert_allclose(answer["predictions"], probe_features(model, TEXTS), atol=1e-5)
    for status, sentence in refused:
        assert status == 400 and "send" in sentence and "dataframe_records" in sentence, sentence


def asked(address: str, content: object, server: "subprocess.Popen[bytes]") -> dict[str, list[list[float]]]:
    request = urllib.request.Request(address, json.dumps(content).encode(), {"Content-Type": "application/json"})
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.load(response)
        except urllib.error.HTTPError:
            raise
        except OSError:
            assert server.poll() is None and time.monotonic() < deadline, "the server did not come up"
            time.sleep(0.5)


IMAGES: dict[str, tuple[Encoding, Model]] = {
    modality: (
        Encoding(
            modality=modality,
            channels=1,
            height=16,
            width=16,
            mean=(0.5,),
            std=(0.2,),
            frames=3 if modality == "video" else 1,
        ),
        Model(corpus="tiny", objective=objective, backbone=Backbone(**backbone), train=Train(steps=1, batch=4)),
    )
    for modality, objective, backbone in (
        ("image", "masked_pixels", {"preset": "vit", "layers": 2, "width": 16, "heads": 2, "patch": 4}),
        ("video", "next_frame", {"preset": "vit", "layers": 2, "width": 16, "heads": 2, "patch": 4}),
    )
}


@pytest.mark.parametrize("modality", sorted(IMAGES))
def test_pictures_and_video_are_read_as_bytes_and_from_paths(modality: str, tmp_path: Path) -> None:
    encoding, kind = IMAGES[modality]
    torch.manual_seed(0)
    objective = artifact.build(kind, encoding).eval()
    artifact.save(objective, kind, encoding, tmp_path / "model", step=1)
    generator = np.random.default_rng(0)
    frames = generator.integers(0, 256, (2, encoding.frames, 16, 16), np.uint8)
    bundles = [[pictures.encoded(frame) for frame in clip] for clip in frames]
    contents = [pictures.bundle(clip) if modality == "video" else clip[0] for clip in bundles]
    pixels = torch.from_numpy(frames[:, :, None] if modality == "video" else frames)
    with torch.inference_mode():
        named = objective.features({"pixels": pixels})
    feature = list(named)[-1]
    served = Served(tmp_path / "model", feature)
    file = tmp_path / "content"
    file.write_bytes(contents[1])
    found = served.features(
        [{served.column: contents[0], "path": None}, {served.column: float("nan"), "path": str(file)}]
    )
    np.testing.assert_allclose(found, named[feature].numpy(), atol=1e-5)
    assert not served.generates
    _, _, example = registry.interface(served)
    assert served.features([example]).shape == (1, found.shape[1])
    with pytest.raises(ValueError, match="row 0: has neither"):
        served.features([{"other": 1}])
    with pytest.raises(ValueError, match=r"not a picture|bundle of frames"):
        served.features([{served.column: b"no picture at all"}])
    with pytest.raises(ValueError, match="no feature 'x'"):
        served.features([{served.column: contents[0]}], "x")
    with pytest.raises(ValueError, match="does not write text"):
        served.generate([{served.column: contents[0]}], 5, 0.0, 0)
    with pytest.raises(ValueError, match="cannot be read"):
        served.features([{"path": str(tmp_path / "none")}])
