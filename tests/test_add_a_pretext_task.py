"""`docs/add-a-pretext-task.md` does what it says."""

import importlib
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

from ssl_models import artifact, objectives
from ssl_models.config import Model
from ssl_models.data import keyed
from ssl_models.data.encoding import Encoding
from tests.ssl_models import corpora, texts

PAGE = Path("docs/add-a-pretext-task.md")


def block(language: str) -> str:
    """The page's one block of code in `language`."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the page's module, searched after `ssl_models/objectives`."""
    (tmp_path / "added").mkdir()
    (tmp_path / "added" / "replaced_tokens.py").write_text(block("python"), encoding="utf-8")
    monkeypatch.setattr(objectives, "__path__", [*objectives.__path__, str(tmp_path / "added")])
    yield tmp_path
    sys.modules.pop("ssl_models.objectives.replaced_tokens", None)
    importlib.invalidate_caches()


@pytest.fixture
def model() -> Model:
    """The page's entry of params.yaml, as the stages read it."""
    entries = YAML(typ="safe").load("models:\n" + block("yaml"))["models"]
    return Model.model_validate(entries["replaced"])


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
    run = (
        "import sys, ssl_models.objectives as o\n"
        f"o.__path__.append({str(folder / 'added')!r})\n"
        "from ssl_models.train import main\n"
        "sys.exit(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", run, str(job)],
        env=corpora.environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    metrics = json.loads((folder / "run" / "output" / "report.json").read_text())
    assert metrics["steps"] == 4 and 0 < metrics["validation_loss"] < 1 and 0 <= metrics["accuracy"] <= 1
    objective = artifact.load(folder / "run" / "output" / "model")
    with torch.no_grad():
        found = objective.features({"tokens": texts.random_rows(texts.plain(60, corpora.LENGTH), 3)})
    assert found["mean"].shape == (3, 64)
