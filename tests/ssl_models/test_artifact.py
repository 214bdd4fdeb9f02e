"""A model folder gives back the objective that was saved, and is a Hugging Face folder where that can be."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ssl_models import artifact, huggingface
from ssl_models.config import Backbone, Model, Train
from ssl_models.encoding import Encoding
from ssl_models.objectives import Objective

LENGTH = 12
ENCODING = Encoding(
    modality="text", length=LENGTH, vocabulary=60, pad=0, eos=1, bos=40, mask=41, cls=42, sep=43,
    sentinels=tuple(range(59, 43, -1)), special=(0, 1, *range(40, 60)),
)  # fmt: skip
TASKS = {
    "gpt2": "next_token",
    "llama": "next_token",
    "bert": "masked_language",
    "t5": "span_corruption",
    "bart": "text_infilling",
}


def model(preset: str, init_from: Path | None = None, **overrides: Any) -> Model:
    sizes = {} if init_from else {"layers": 2, "width": 16, "heads": 2}
    return Model(
        corpus="tiny",
        objective=TASKS[preset],
        backbone=Backbone.model_validate({"preset": preset, **sizes, **overrides}),
        train=Train(steps=1, batch=2),
        init_from=str(init_from) if init_from else None,
    )


def saved(folder: Path, of: Model) -> Objective:
    torch.manual_seed(0)
    objective = artifact.build(of, ENCODING).eval()
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    artifact.save(objective, of, ENCODING, folder, step=7)
    return objective


@torch.no_grad()
def same(first: Objective, second: Objective) -> bool:
    states = first.state_dict(), second.state_dict()
    rows = {"tokens": torch.randint(2, 40, (3, LENGTH), generator=torch.Generator().manual_seed(0))}
    features = first.features(rows), second.features(rows)
    return states[0].keys() == states[1].keys() and all(
        bool((one[name] == other[name]).all()) for one, other in (states, features) for name in one
    )


@pytest.mark.parametrize("preset", TASKS)
def test_saving_and_loading_are_inverse_to_the_bit(preset: str, tmp_path: Path) -> None:
    objective = saved(tmp_path / "model", model(preset))
    again = artifact.load(tmp_path / "model")
    assert type(again) is type(objective)
    assert same(objective, again)
    artifact.save(again, model(preset), ENCODING, tmp_path / "twice", step=7)
    for name in ("model.safetensors", "config.json", "pretext.json"):
        assert (tmp_path / "model" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()


@pytest.mark.parametrize("preset", TASKS)
def test_the_folder_of_a_language_model_is_a_hugging_face_folder(preset: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    objective = saved(tmp_path / "model", model(preset))
    name = json.loads((tmp_path / "model" / "config.json").read_text())["architectures"][0]
    peer = getattr(transformers, name).from_pretrained(tmp_path / "model").eval()
    tokens = torch.randint(2, 40, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    both = objective.transformer.architecture.structure == "encoder-decoder"
    with torch.no_grad():
        ours = objective.transformer(tokens, tokens if both else None)
        theirs = peer(tokens, **({"decoder_input_ids": tokens} if both else {})).logits
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_an_architecture_that_hugging_face_lacks_is_kept_under_our_names(tmp_path: Path) -> None:
    objective = saved(tmp_path / "model", model("llama", qk_norm=True, mlp="relu2"))
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == "pretext"
    assert same(objective, artifact.load(tmp_path / "model"))


@pytest.mark.parametrize("preset", TASKS)
def test_training_starts_from_a_hugging_face_folder_with_its_sizes(preset: str, tmp_path: Path) -> None:
    objective = saved(tmp_path / "model", model(preset))
    huggingface.to_hugging_face(objective.transformer, ENCODING, tmp_path / "hub")
    started = artifact.completed(model(preset, tmp_path / "hub"))
    fresh = artifact.build(started, ENCODING).eval()
    assert not same(objective, fresh)
    artifact.start_from(fresh, tmp_path / "hub")
    assert same(objective, fresh)
    artifact.save(fresh, started, ENCODING, tmp_path / "continued")
    assert same(objective, artifact.load(tmp_path / "continued"))


def test_a_folder_that_does_not_fit_is_one_sentence(tmp_path: Path) -> None:
    saved(tmp_path / "model", model("gpt2"))
    with pytest.raises(ValueError, match=r"^backbone\.layers: is 3, but the model in .* has 2: leave it out$"):
        artifact.completed(model("gpt2", tmp_path / "model", layers=3))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: is neither a Pretext nor a Hugging Face model folder"):
        artifact.start_from(artifact.build(model("gpt2"), ENCODING), tmp_path / "empty")
    with pytest.raises(ValueError, match=r"pretext\.json: cannot be read"):
        artifact.load(tmp_path / "empty")
    with (tmp_path / "model" / "model.safetensors").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(ValueError, match=r"model\.safetensors: cannot be read"):
        artifact.load(tmp_path / "model")
