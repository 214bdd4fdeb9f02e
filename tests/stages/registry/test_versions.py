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
from ssl_models.probing.intervals import Gain
from ssl_models.tracking.probe import Run
from ssl_models.training.job import Tracking
from stages.modalities.image import pictures
from stages.params import UserError
from stages.registry import versions as registry
from stages.registry.decision import DECISION, PROMOTED
from stages.registry.serving import Served
from stages.registry.versions import CHAMPION, Facts, Registry

mlflow = pytest.importorskip("mlflow")
ROOT = Path(__file__).parents[3]
GPT = Model(
    corpus="tiny",
    objective="next_token",
    backbone=Backbone(preset="llama", layers=2, width=16, heads=2),
    train=Train(steps=1, batch=4),
)
BETTER, WORSE = Gain(0.1, 0.05, 0.15, 0.0001), Gain(-0.04, -0.06, -0.02, 0.0005)
"""Than a random encoder."""
TEXTS = ["stir the soup with salt", "worker restarted at line [42]", "", "butter " * 200]


def predictions(path: Path, correct: np.ndarray, actual: str = "x", first: int = 0) -> Path:
    """Documents from the `first` on, each a group of its own, in an order of their own."""
    numbers = np.random.default_rng(0).permutation(len(correct))
    correct = correct[numbers]
    columns = {
        "row": pa.array(np.arange(len(correct))),
        "id": pa.array([f"{first + number:016x}" for number in numbers]),
        "group": pa.array(numbers),
        "actual": pa.array([actual] * len(correct)),
        "predicted": pa.array([actual if right else "y" for right in correct]),
        "correct": pa.array(correct),
    }
    pq.write_table(pa.table(columns), path)
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


def test_versions_decisions_and_the_way_back(
    desk: tuple[Registry, str, Run], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "save", _save_little)
    found, corpus, run = desk
    found.client.set_tag(run.run_id, registry.EXPERIMENT, "wide-3")
    made = []
    for number, (share, gain) in enumerate(((0.55, WORSE), (0.6, BETTER), (0.5, BETTER), (0.85, BETTER))):
        path = predictions(tmp_path / f"{number}.parquet", right(share))
        facts = Facts("mean", 0.5, "a report", gain, steps=160)
        made.append(found.register("gpt", corpus, model, path, facts, run))
        if number == 0:
            assert found.champion(corpus) is None  # worse than its random encoder: a first version, but no champion
    assert [str(version.version) for version in made] == ["1", "2", "3", "4"]
    reasons = [version.tags[DECISION] for version in made]
    assert reasons[0].startswith("kept back: does not beat its random encoder by -0.04")
    assert reasons[1].startswith("promoted: beats its random encoder by +0.1") and "challenger 2" in reasons[1]
    assert reasons[2].startswith("kept back: does not beat version 2 by -0.1")
    assert reasons[3].startswith("promoted: beats version 2 by +0.25") and "challenger 2" in reasons[3]
    assert "a report" in made[3].description and reasons[3] in made[3].description
    assert str(found.champion(corpus).version) == "4"
    again = found.register("gpt", corpus, model, tmp_path / "2.parquet", facts, run)
    assert str(again.version) == "3" and len(found.versions(corpus)) == 4
    header, *lines = promote(found, corpus).splitlines()
    assert header.split() == ["version", "date", "model", "steps", "accuracy", "experiment", "decision"]
    assert lines[3].split()[:2] == ["*", "4"] and lines[3].split()[4:8] == ["gpt", "160", "0.5000", "wide-3"]
    assert lines[2].split()[0] == "3"
    assert "already" in promote(found, corpus, "4")
    assert "version 3 is champion now; it was 4" in promote(found, corpus, "3")
    assert "version 4 is champion again" in promote(found, corpus, back=True)
    assert "version 2 is champion again" in promote(found, corpus, back=True)
    assert str(found.champion(corpus).version) == "2"
    with pytest.raises(UserError, match="no version was champion before"):
        promote(found, corpus, back=True)
    with pytest.raises(UserError, match="has no version 9"):
        promote(found, corpus, "9")
    with pytest.raises(UserError, match="has no registered version"):
        promote(found, "nothing")


def test_what_was_taken_back_no_longer_says_that_it_was_promoted(
    desk: tuple[Registry, str, Run], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "save", _save_little)
    found, corpus, run = desk
    for share in (0.6, 0.9):
        path = predictions(tmp_path / f"{share}.parquet", right(share))
        found.register("gpt", corpus, model, path, Facts("mean", share, "a report", BETTER), run)
    promote(found, corpus, back=True)
    first, second = found.versions(corpus)
    assert first.tags[DECISION] == "champion again by hand, after version 2"
    assert second.tags[DECISION] == "taken back by hand: version 1 is champion again"
    assert (first.tags[PROMOTED], second.tags[PROMOTED]) == ("true", "false")
    assert "beats" not in second.description and second.tags[DECISION] in second.description
    assert "a report" in second.description
    promote(found, corpus, "2")
    first, second = found.versions(corpus)
    assert first.tags[DECISION] == "champion until version 2 was promoted by hand"
    assert second.tags[DECISION] == "promoted by hand, after version 1"


def test_a_registration_that_was_cut_short_is_completed(
    desk: tuple[Registry, str, Run], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "save", _save_little)
    found, corpus, run = desk
    path = predictions(tmp_path / "p.parquet", right(0.6))
    facts = Facts("mean", 0.6, "a report", BETTER)
    with monkeypatch.context() as patch:
        patch.setattr(Registry, "_decide", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            found.register("gpt", corpus, model, path, facts, run)
    mark = registry.fingerprint(model, path)
    assert found.knows(corpus, mark) is None
    assert str(found.register("gpt", corpus, model, path, facts, run).version) == "1"
    assert str(found.knows(corpus, mark).version) == "1" and str(found.champion(corpus).version) == "1"


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
    facts = Facts("mean", 0.5, "", BETTER)
    assert registry.register("gpt", "tiny", model, path, facts, Run("1", "1", ""), down) is None
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
    version = found.register("gpt", corpus, model, path, Facts("mean", 0.5, "", BETTER), run)
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
    found.register("gpt", corpus, model, path, Facts("mean", 0.5, "", BETTER), run)
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
