"""Architectures are complete, and what does not fit together is said in one sentence that begins with the key."""

import subprocess
import sys

import pytest

from ssl_models.config import Backbone
from ssl_models.models.presets import PRESETS, RESNETS, check, resolve, resolve_resnet
from stages.params import Params


def backbone(preset: str, **overrides: object) -> Backbone:
    return Backbone.model_validate({"preset": preset, **overrides})


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_resolves_to_complete_sizes(preset: str) -> None:
    architecture = resolve(backbone(preset), vocabulary=100, context=32)
    assert architecture.kv_heads == architecture.heads
    assert architecture.head_width * architecture.heads == architecture.width
    assert architecture.mlp_width > 0
    assert (architecture.decoder_layers > 0) == (architecture.structure == "encoder-decoder")
    assert (architecture.vocabulary, architecture.context) == (100, 32)


@pytest.mark.parametrize("preset", RESNETS)
def test_every_residual_network_resolves(preset: str) -> None:
    network = resolve_resnet(Backbone(architecture="resnet", preset=preset))
    assert network.features == {"resnet18": 512, "resnet50": 2048}[preset]


def test_overrides_change_derived_sizes() -> None:
    architecture = resolve(backbone("llama", width=192, heads=6, kv_heads=2, layers=3))
    assert (architecture.head_width, architecture.kv_heads, architecture.mlp_width) == (32, 2, 512)


def test_the_corpus_decides_vocabulary_and_context_unless_the_backbone_says_more() -> None:
    architecture = resolve(backbone("gpt2", vocabulary=128), vocabulary=100, context=32)
    assert (architecture.vocabulary, architecture.context) == (128, 32)
    with pytest.raises(ValueError, match=r"^context: 16 is too small: the corpus needs 32 positions$"):
        resolve(backbone("gpt2", context=16), vocabulary=100, context=32)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"preset": "gpt5"}, "preset: there is no transformer 'gpt5' (did you mean 'gpt2'?) (there are: gpt2, "),
        ({"preset": "gpt2", "layer": 2}, "layer: no such key (did you mean 'layers'?); the keys are: "),
        ({"preset": "gpt2", "layers": 0}, "layers: must be greater than or equal to 1 (got 0)"),
        ({"preset": "gpt2", "layers": "many"}, "layers: must be a valid integer"),
        ({"preset": "gpt2", "mlp": "tanh"}, "mlp: must be 'gelu'"),
        ({"preset": "gpt2", "heads": 0}, "heads: must be greater than or equal to 1"),
        ({"preset": "gpt2", "width": 100, "heads": 12}, "heads: 12 heads do not divide a width of 100"),
        ({"preset": "llama", "heads": 12, "kv_heads": 5}, "kv_heads: 5 do not divide 12 heads"),
        ({"preset": "llama", "width": 15, "heads": 5}, "heads: rotary positions need an even head width, not 3"),
        ({"preset": "gpt2", "decoder_layers": 2}, "decoder_layers: a model of structure decoder has one stack"),
        (
            {"architecture": "resnet", "preset": "vit"},
            "preset: there is no resnet 'vit' (there are: resnet18, resnet50)",
        ),
        ({"architecture": "resnet", "preset": "resnet18", "layers": 18}, "layers: must be a valid tuple"),
    ],
)
def test_a_bad_backbone_is_one_sentence(given: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the sentence is the assertion
        check(Backbone.model_validate(given))
    assert str(error.value).startswith(sentence)
    assert "\n" not in str(error.value)


def test_params_name_the_key_of_a_bad_backbone() -> None:
    train = {"steps": 1, "batch": 1}
    corpus = {"modality": "text", "ingest": {"reader": "jsonl", "source": "x"}}
    model = {"corpus": "c", "objective": "next_token", "backbone": {"preset": "gpt2", "layers": -1}, "train": train}
    with pytest.raises(ValueError, match=r"models\.mine\.backbone\.layers: must be greater"):
        Params.model_validate(
            {
                "corpora": {"c": {**corpus, "dedup": {}, "tokenize": {}, "shard": {}}},
                "models": {"mine": model},
                "probe": {},
            }
        )


def test_presets_load_without_torch() -> None:
    code = "import sys, ssl_models.models.presets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
