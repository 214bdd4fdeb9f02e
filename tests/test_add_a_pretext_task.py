"""`docs/add-a-pretext-task.md` does what it says."""

import importlib
import json
import math
import re
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file

from ssl_models import artifact, objectives
from ssl_models.config import Model
from ssl_models.data import keyed
from ssl_models.data.encoding import Encoding
from stages.dispatch.local import Lease, Running
from tests.ssl_models import corpora, texts
from tests.ssl_models.objectives import pictures

PAGE = Path("docs/add-a-pretext-task.md")


def blocks(language: str) -> list[str]:
    """The page's blocks of code in `language`."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the page's modules, searched after `ssl_models/objectives`."""
    (tmp_path / "added").mkdir()
    for name, text in zip(("replaced_tokens", "byol"), blocks("python"), strict=True):
        (tmp_path / "added" / f"{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.setattr(objectives, "__path__", [*objectives.__path__, str(tmp_path / "added")])
    yield tmp_path
    for name in ("replaced_tokens", "byol"):
        sys.modules.pop(f"ssl_models.objectives.{name}", None)
    importlib.invalidate_caches()


def entry(name: str) -> Model:
    """The page's entry of params.yaml, as the stages read it."""
    entries = YAML(typ="safe").load("models:\n" + "".join(blocks("yaml")))["models"]
    return Model.model_validate(entries[name])


@pytest.fixture
def model() -> Model:
    return entry("replaced")


def run_job(folder: Path, job: Path, processes: int = 1) -> Running:
    """The job, running, with the page's modules."""
    run = (
        "import sys, torch, ssl_models.objectives as o\n"
        f"o.__path__.append({str(folder / 'added')!r})\n"
        "from ssl_models.train import main\n"
        "sys.exit(main())\n"
    )
    return Running([sys.executable, "-c", run, str(job)], corpora.environment(), processes, Lease())


def built(model: Model, encoding: Encoding):
    torch.manual_seed(0)
    return artifact.build(model, encoding)


def test_the_entry_builds_the_module_and_its_options_are_checked(folder, model):
    objective = built(model, texts.plain())
    assert objective.options.rate == 0.2
    with pytest.raises(ValueError, match=r"task\.rate"):
        built(model.model_copy(update={"task": {"rate": 2}}), texts.plain())


def test_a_fresh_model_s_loss_is_ln_2_and_training_lowers_it(folder, model):
    encoding = texts.plain(length=32)
    objective = built(model, encoding)
    steps = torch.arange(32)[None] + torch.arange(16)[:, None]
    rows = {"tokens": 7 + steps % 40}  # ascending ids: what does not fit was replaced
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    losses = []
    for step in range(60):
        batch = objective.prepare(rows, keyed.keys(0, step, torch.arange(16)))
        loss = objective(batch).loss / objective.count(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert abs(losses[0] - math.log(2)) < 1e-5
    assert losses[-1] < 0.3


def test_a_million_tokens_are_replaced_at_the_rate_and_special_ones_never(folder, model):
    encoding = texts.plain(length=128)
    objective = built(model, encoding)
    tokens = texts.random_rows(encoding, 8500)
    batch = objective.prepare({"tokens": tokens}, texts.keys(8500))
    ordinary = int(objective.count(batch))
    assert ordinary > 1e6
    size = len(objective.vocabulary.ordinary)
    probability = 0.2 * (1 - 1 / size)  # a draw may be the token itself
    replaced = int((batch["targets"] == 1).sum())
    assert abs(replaced - ordinary * probability) < 3 * math.sqrt(ordinary * probability * (1 - probability))
    special = objective.vocabulary.special
    assert torch.equal(batch["inputs"][special[tokens]], tokens[special[tokens]])


def test_the_job_trains_saves_and_gives_the_model_back(folder, model):
    shorter = model.model_copy(update={"train": model.train.model_copy(update={"steps": 4, "evaluate_every": 2})})
    job = corpora.tiny_job(folder / "run", shorter)
    assert run_job(folder, job).wait() == 0
    metrics = json.loads((folder / "run" / "output" / "report.json").read_text())
    assert metrics["steps"] == 4 and 0 < metrics["validation_loss"] < 1 and 0 <= metrics["accuracy"] <= 1
    objective = artifact.load(folder / "run" / "output" / "model")
    with torch.no_grad():
        found = objective.features({"tokens": texts.random_rows(texts.plain(60, corpora.LENGTH), 3)})
    assert found["mean"].shape == (3, 64)


def small_byol(**train: object) -> Model:
    """The page's BYOL, smaller."""
    whole = entry("byol")
    backbone = whole.backbone.model_copy(update={"width": 4, "layers": (1, 1, 1, 1)})
    settings = whole.train.model_copy(update={"steps": 16, "batch": 16, "evaluate_every": 8, **train})
    task = {**whole.task, "hidden": 16, "width": 8}
    return whole.model_copy(update={"backbone": backbone, "train": settings, "task": task})


def test_the_target_follows_along_a_cosine_and_gets_no_gradient(folder):
    learner = pictures.objective("byol", pictures.resnet(), pictures.encoding(), tau=0.9, hidden=16, width=8)
    pictures.train(learner, {"pixels": pictures.pixels()}, 1)
    assert all(p.grad is None for p in learner.target.parameters())
    followed = [p.clone() for p in learner.target.parameters()]
    online = [*learner.encoder.parameters(), *learner.projector.parameters()]
    assert not all(map(torch.equal, followed, online))
    for step, share in ((0, 0.1), (5, 0.05), (10, 0.0)):
        before = [p.clone() for p in learner.target.parameters()]
        with torch.no_grad():
            learner.after_step(step, 10, {})
        for old, new, weight in zip(before, learner.target.parameters(), online, strict=True):
            torch.testing.assert_close(new, torch.lerp(old, weight, share))


def test_views_of_collapsed_networks_agree_and_opposite_ones_cost_four(folder, monkeypatch):
    learner = pictures.objective("byol", pictures.resnet(), pictures.encoding(), hidden=16, width=8)
    batch = learner.prepare({"pixels": pictures.pixels()}, pictures.keys())
    ones = torch.ones(8, 8)
    for sign, cost in ((1, 0.0), (-1, 4.0)):
        monkeypatch.setattr(learner.predictor, "forward", lambda x, sign=sign: sign * ones)
        monkeypatch.setattr(learner.target[1], "forward", lambda x: ones)
        assert float(learner(batch).loss / learner.count(batch)) == pytest.approx(cost, abs=1e-6)


@pytest.mark.slow
def test_byol_ends_with_the_same_bytes_over_a_kill_and_alike_on_two_processes(folder):
    shards = corpora.picture_shards(folder / "shards")
    model = small_byol()
    jobs = {name: corpora.job(folder / name, model, shards, checkpoint_seconds=0) for name in ("whole", "killed")}
    assert run_job(folder, jobs["whole"]).wait() == 0

    running = run_job(folder, jobs["killed"])
    (process,) = (psutil.Process(pid) for pid in running._processes)
    while not any(int(path.name[5:]) >= 3 for path in (folder / "killed" / "checkpoints").glob("step-*")):
        assert process.is_running()
        time.sleep(0.005)
    process.kill()
    assert running.wait() != 0
    assert not (folder / "killed" / "output").exists()
    assert run_job(folder, jobs["killed"]).wait() == 0
    whole, killed = (folder / name / "output" / "model" / "model.safetensors" for name in ("whole", "killed"))
    assert killed.read_bytes() == whole.read_bytes()

    # Adam makes a step of the sign of a gradient that is zero but for rounding: small steps, and few.
    curves, targets = [], []
    for processes in (1, 2):
        job = corpora.job(folder / str(processes), small_byol(steps=4, learning_rate=1e-5), shards)
        assert run_job(folder, job, processes).wait() == 0
        lines = (folder / str(processes) / "output" / "loss.csv").read_text().splitlines()[1:]
        curves.append([float(line.split(",")[1]) for line in lines])
        weights = load_file(folder / str(processes) / "output" / "model" / "model.safetensors")
        targets.append({name: value for name, value in weights.items() if name.startswith("target.")})
    assert curves[1] == pytest.approx(curves[0], rel=1e-5)
    assert len(targets[0]) > 10
    torch.testing.assert_close(targets[1], targets[0], rtol=1e-4, atol=1e-5)
    assert artifact.load(folder / "whole" / "output" / "model").target[0].training is False
