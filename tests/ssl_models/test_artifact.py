import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models

from ssl_models import artifact
from ssl_models.config import Backbone, Model
from ssl_models.data.encoding import Encoding
from ssl_models.objectives import Objective
from tests.ssl_models import corpora
from tests.ssl_models.corpora import model


@pytest.fixture(scope="module")
def encoding(tmp_path_factory: pytest.TempPathFactory) -> Encoding:
    return Encoding.load(corpora.text_shards(tmp_path_factory.mktemp("artifact") / "shards") / "encoding")


def built(wanted: Model, encoding: Encoding) -> Objective:
    torch.manual_seed(3)
    return artifact.build(wanted, encoding)


LLAMA = model("next_token")
BERT = model("masked_language").model_copy(
    update={"backbone": Backbone(preset="bert", layers=2, width=16, heads=2)}
)  # fmt: skip


@pytest.mark.parametrize("wanted", [model(), model("toy_pairs", {"norm": True}), LLAMA, BERT])
def test_load_is_the_inverse_of_save(wanted: Model, encoding: Encoding, tmp_path: Path) -> None:
    objective = built(wanted, encoding)
    artifact.save(objective, wanted, encoding, tmp_path / "model", step=7)
    loaded = artifact.load(tmp_path / "model")
    torch.testing.assert_close(loaded.state_dict(), objective.state_dict(), rtol=0, atol=0)
    assert artifact.read_model(tmp_path / "model") == wanted
    assert json.loads((tmp_path / "model" / "pretext.json").read_text())["step"] == 7
    assert not list((tmp_path / "model").rglob("*.bin")) + list((tmp_path / "model").rglob("*.p*k*l*"))


def test_saving_twice_gives_the_same_bytes(encoding: Encoding, tmp_path: Path) -> None:
    for name in ("one", "two"):
        artifact.save(built(LLAMA, encoding), LLAMA, encoding, tmp_path / name)
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


def test_training_can_start_from_a_saved_model(encoding: Encoding, tmp_path: Path) -> None:
    source = built(model(), encoding)
    artifact.save(source, model(), encoding, tmp_path / "model")
    torch.manual_seed(9)
    other = artifact.build(model(), encoding)
    artifact.start_from(other, tmp_path / "model")
    torch.testing.assert_close(other.state_dict(), source.state_dict(), rtol=0, atol=0)


def test_weights_of_another_model_are_refused_by_name(encoding: Encoding, tmp_path: Path) -> None:
    artifact.save(built(model(), encoding), model(), encoding, tmp_path / "model")
    with pytest.raises(ValueError, match=r"holds .*which this model has not"):
        artifact.start_from(built(model("toy_pairs"), encoding), tmp_path / "model")


@pytest.mark.parametrize("file", ["model.safetensors", "pretext.json"])
@pytest.mark.parametrize("content", [b"", b"not this", b"\xff\xfe"])
def test_a_damaged_folder_is_one_sentence(file: str, content: bytes, encoding: Encoding, tmp_path: Path) -> None:
    artifact.save(built(model(), encoding), model(), encoding, tmp_path / "model")
    (tmp_path / "model" / file).write_bytes(content)
    with pytest.raises(ValueError, match=file) as error:
        artifact.load(tmp_path / "model")
    assert "\n" not in str(error.value)


def test_an_option_that_is_unknown_is_named_by_its_path(encoding: Encoding) -> None:
    with pytest.raises(ValueError, match=r"models.x.task.droput: no such key"):
        artifact.build(model(task={"droput": 1}), encoding, "models.x.task")


def test_loading_does_not_import_the_compiler(encoding: Encoding, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    artifact.save(built(LLAMA, encoding), LLAMA, encoding, folder)
    code = (
        "import sys; from pathlib import Path; from ssl_models import artifact; artifact.load(Path(sys.argv[1]))\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(folder)], check=False).returncode == 0


def tokenized(folder: Path, words: list[str], added: list[str]) -> Encoding:
    """An encoding whose tokenizer has these words, then these special tokens."""
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.add_special_tokens(added)
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return Encoding(
        modality="text", folder=folder, length=12, vocabulary=len(words) + len(added), pad=0, eos=1, special=(0, 1)
    )


WORDS = ["<pad>", "</s>", "a", "b", "c"]


@pytest.mark.parametrize("place", [".", "encoding"])
def test_a_model_made_with_another_tokenizer_is_refused(place: str, tmp_path: Path) -> None:
    tokenized(tmp_path / "start" / place, WORDS, [])
    ours = tokenized(tmp_path / "ours", [*WORDS[:2], "c", "b", "a"], [])
    wanted = LLAMA.model_copy(update={"init_from": str(tmp_path / "start")})
    folder = tmp_path / "start" / place
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the sentence is the assertion
        artifact.build(wanted, ours, "params.yaml: models.x.task")
    assert str(error.value) == (
        f"params.yaml: models.x.init_from: the model in {tmp_path / 'start'} was made with another tokenizer; "
        f"set corpora.tiny.tokenize: {{tokenizer: {folder}}}"
    )


def test_special_tokens_added_to_the_tokenizer_of_the_model_are_accepted(tmp_path: Path) -> None:
    tokenized(tmp_path / "start", WORDS, [])
    ours = tokenized(tmp_path / "ours", WORDS, ["<mask>"])
    artifact.build(LLAMA.model_copy(update={"init_from": str(tmp_path / "start")}), ours)


def test_a_special_token_added_in_the_place_of_another_is_refused(tmp_path: Path) -> None:
    tokenized(tmp_path / "start", WORDS, ["<sep>"])
    ours = tokenized(tmp_path / "ours", WORDS, ["<mask>"])
    with pytest.raises(ValueError, match="another tokenizer"):
        artifact.build(LLAMA.model_copy(update={"init_from": str(tmp_path / "start")}), ours)


GPT2 = LLAMA.model_copy(update={"backbone": Backbone(preset="gpt2", layers=1, width=16, heads=2)})


def started(folder: Path, encoding: Encoding, wanted: Model = GPT2, **backbone: Any) -> Model:
    """An entry that starts from a model saved as `wanted` in `folder`, and overrides `backbone`."""
    artifact.save(built(wanted, encoding), wanted, encoding, folder)
    given = Backbone(preset=wanted.backbone.preset, **backbone)
    return wanted.model_copy(update={"backbone": given, "init_from": str(folder)})


def test_sizes_left_open_are_the_folders(encoding: Encoding, tmp_path: Path) -> None:
    assert artifact.completed(started(tmp_path / "m", encoding, width=16)).backbone.overrides["heads"] == 2


def test_a_backbone_is_checked_once_it_is_complete(encoding: Encoding, tmp_path: Path) -> None:
    wanted = started(tmp_path / "m", encoding, model(), width=32, heads=5)
    with pytest.raises(ValueError, match=r"^backbone\.heads: 5 heads do not divide a width of 32$"):
        artifact.completed(wanted)


def test_errors_of_a_folder_name_it_after_the_key(encoding: Encoding, tmp_path: Path) -> None:
    wanted, path = started(tmp_path / "m", encoding), tmp_path / "m" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"activation_function": "silu"}))
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the sentence is the assertion
        artifact.completed(wanted)
    assert str(error.value).startswith(f"init_from: {tmp_path / 'm'}: activation_function: 'silu' is not supported")


def test_a_context_that_the_folder_has_too_small_names_the_mend(encoding: Encoding, tmp_path: Path) -> None:
    wanted = artifact.completed(started(tmp_path / "m", encoding))
    longer = encoding.model_copy(update={"length": 64})
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the sentence is the assertion
        artifact.build(wanted, longer, "params.yaml: models.x.task")
    assert str(error.value) == (
        f"params.yaml: models.x.init_from: context: 12 is too small: the corpus needs 64 positions "
        f"(of the model in {tmp_path / 'm'}); lower corpora.tiny.shard.sequence"
    )


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"model_type": ["gpt2"]}'])
def test_a_folder_without_a_configuration_is_named(content: str | None, encoding: Encoding, tmp_path: Path) -> None:
    wanted, path = started(tmp_path / "m", encoding), tmp_path / "m" / "config.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(ValueError, match=r"^init_from: .*config\.json"):
        artifact.completed(wanted)
