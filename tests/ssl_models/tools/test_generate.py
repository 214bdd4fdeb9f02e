"""What a model writes is what it would give the highest logits, and depends on prompt and seed alone."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ssl_models import artifact
from ssl_models.config import Backbone, Model, Train
from ssl_models.objectives.shared.sampling import choose, continuation
from ssl_models.tools import generate as module
from ssl_models.tools.generate import Written, generate, main, write
from tests.ssl_models import texts

PRESETS = {"gpt2": "next_token", "llama": "next_token", "t5": "span_corruption", "bart": "text_infilling"}


def saved(folder: Path, preset: str, objective: str) -> Path:
    """A model folder with a byte-level tokenizer; weights are random."""
    encoding = texts.bpe(folder / "encoding")
    backbone = Backbone.model_validate({"preset": preset, **texts.SMALL})
    model = Model(corpus="c", objective=objective, backbone=backbone, train=Train(steps=1, batch=1))
    torch.manual_seed(0)
    made = artifact.build(model, encoding)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    artifact.save(made, model, encoding, folder / "model")
    return folder / "model"


@pytest.mark.parametrize("preset", PRESETS)
@torch.no_grad()
def test_the_likeliest_continuation_is_that_of_the_whole_row(preset: str, tmp_path: Path) -> None:
    made = artifact.load(saved(tmp_path, preset, PRESETS[preset])).double()
    model, encoding = made.transformer, made.encoding
    memory = model.encode(torch.randint(7, 60, (3, 9))) if hasattr(model, "encoder") else None
    start = torch.randint(7, 60, (3, 4), generator=torch.Generator().manual_seed(1))
    sizes = {"limit": 12, "end": encoding.eos, "vocabulary": encoding.vocabulary}
    written = continuation(model, start, **sizes, temperature=0, memory=memory)
    tokens = torch.cat([start, written], dim=1)
    logits = model.logits(model.decode(tokens, memory=memory))[:, 3:-1]
    ended = (written == encoding.eos).cumsum(1) - (written == encoding.eos).long() > 0
    assert torch.equal(written, logits.argmax(-1).masked_fill(ended, encoding.eos))


@torch.no_grad()
def test_a_row_that_ended_stays_ended_and_the_others_go_on(tmp_path: Path) -> None:
    made = artifact.load(saved(tmp_path, "gpt2", "next_token"))
    start = torch.randint(7, 60, (8, 4), generator=torch.Generator().manual_seed(1))
    first = continuation(made.transformer, start, limit=1, end=-1, vocabulary=300, temperature=0)
    end = int(first[0, 0])
    written = continuation(made.transformer, start, limit=6, end=end, vocabulary=300, temperature=0)
    assert (written[0] == end).all()
    assert written.shape[1] == 6
    assert (written != end).any()


@torch.no_grad()
def test_draws_are_below_the_vocabulary_and_among_the_likeliest(tmp_path: Path) -> None:
    made = artifact.load(saved(tmp_path, "gpt2", "next_token"))
    start = torch.full((200, 1), 9)
    draw = {"limit": 1, "end": 0, "generator": torch.Generator().manual_seed(0)}
    assert continuation(made.transformer, start, vocabulary=5, **draw).unique().tolist() == [0, 1, 2, 3, 4]
    likeliest = made.transformer.logits(made.transformer.decode(start[:1]))[0, 0, :300].topk(3).indices
    found = continuation(made.transformer, start, vocabulary=300, likeliest=3, **draw).unique()
    assert sorted(found.tolist()) == sorted(likeliest.tolist())


@pytest.mark.parametrize("preset", PRESETS)
def test_the_command_writes_the_same_for_the_same_seed(
    preset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(saved(tmp_path, preset, PRESETS[preset]))
    prompt = "The quick <extra_id_0> dog" if preset == "t5" else "The quick brown"
    written = []
    for seed in ("1", "1", "2"):
        assert main([folder, prompt, "--tokens", "20", "--seed", seed]) == 0
        written.append(capsys.readouterr().out)
    assert written[0] == written[1] != written[2]
    assert written[0].startswith("The quick brown") == (PRESETS[preset] == "next_token")


def test_special_tokens_of_a_prompt_are_read_as_such(tmp_path: Path) -> None:
    made = artifact.load(saved(tmp_path, "t5", "span_corruption"))
    read: list[list[int]] = []
    encode = made.transformer.encode
    made.transformer.encode = lambda tokens, **more: (read.append(tokens[0].tolist()), encode(tokens, **more))[1]
    generate(made, "a <extra_id_0> b", limit=1, temperature=0, likeliest=1, seed=0)
    assert made.encoding.sentinels[0] in read[0]
    assert read[0][-1] == made.encoding.eos


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (
            lambda folder: (folder / "pretext.json").unlink(),
            "has no pretext.json; MODEL is a folder that training",
        ),
        (shutil.rmtree, "model: is no folder; MODEL is a folder that training wrote: data/pretrain/NAME/model"),
        (lambda folder: (folder / "pretext.json").write_text("{"), "pretext.json: is not what a training job wrote"),
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no model.safetensors"),
        (lambda folder: (folder / "encoding" / "tokenizer.json").unlink(), "tokenizer.json: is no tokenizer"),
        (lambda folder: (folder / "encoding" / "encoding.json").unlink(), "encoding.json: cannot be read"),
        (lambda folder: (folder / "encoding" / "encoding.json").write_text("[]"), "encoding.json: is not"),
        (lambda folder: (folder / "config.json").write_text("{}"), "model_type: None is not "),
    ],
)
def test_a_broken_folder_is_one_sentence(
    break_it: Callable[[Path], object], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved(tmp_path, "gpt2", "next_token")
    break_it(folder)
    assert main([str(folder), "The"]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.startswith("error: ") and error.count("\n") == 1


def test_what_does_not_write_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(tmp_path, "bert", "masked_language")
    assert main([str(folder), "The"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {folder}: this model reads text and does not write any; decoders (gpt2, llama)")


@pytest.mark.parametrize(("preset", "room"), [("gpt2", 62), ("bart", 64)])
def test_a_prompt_beyond_the_context_is_refused(
    preset: str, room: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved(tmp_path, preset, PRESETS[preset])
    assert main([str(folder), "x" * (room + 1)]) == 2
    error = capsys.readouterr().err
    assert f"the prompt has {room + 1} tokens, at most {room} fit into the model's context of " in error
    assert main([str(folder), "x" * room, "--tokens", "1"]) == 0


@pytest.mark.parametrize(("preset", "most"), [("gpt2", 62), ("bart", 65), ("llama", None)])
def test_an_end_by_the_context_is_noted(
    preset: str, most: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = artifact.load(saved(tmp_path, preset, PRESETS[preset]))
    monkeypatch.setattr(made, "encoding", made.encoding.model_copy(update={"eos": -1}))
    monkeypatch.setattr(made, "prompt", lambda ids: torch.cat([ids, ids], dim=1))
    written = write(made, "x", limit=80, temperature=0, likeliest=1, seed=0)
    assert written.cut == most


def test_the_note_goes_to_standard_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "write", lambda *_, **__: Written("text", 62))
    assert main([str(saved(tmp_path, "gpt2", "next_token")), "x", "--tokens", "600"]) == 0
    found = capsys.readouterr()
    assert (found.out, found.err) == ("text\n", "note: the model's context ends after 62 of 600 tokens\n")


def test_a_prompt_that_is_not_unicode_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(saved(tmp_path, "gpt2", "next_token")), "caf\udce9"]) == 2
    assert "error: the prompt is not UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize("temperature", [1e-7, 1e-40, 5e-324])
def test_the_least_temperatures_take_the_likeliest(temperature: float) -> None:
    logits = torch.tensor([[1.0, 30.0, 2.0], [-9.0, -8.0, -7.0]])
    assert choose(logits, temperature, 0, None).tolist() == [[1], [2]]


def test_what_memory_does_not_hold_is_refused(tmp_path: Path) -> None:
    made = artifact.load(saved(tmp_path, "llama", "next_token"))
    with pytest.raises(ValueError, match="memory does not suffice for 1000000000000000 tokens"):
        generate(made, "x", limit=10**15, temperature=0, likeliest=1, seed=0)


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--tokens", "100000000000", "--tokens: 100000000000 is not between 1 and 1000000"),
        ("--tokens", "0", "--tokens: 0 is not between 1 and 1000000"),
        ("--top-k", "many", "--top-k: 'many' is not a whole number"),
        ("--seed", str(10**23), f"--seed: {10**23} is not between {-(2**63)} and {2**64 - 1}"),
        ("--temperature", "inf", "--temperature: inf is not a finite number of at least 0"),
    ],
)
def test_a_number_out_of_range_is_named(
    option: str, value: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["model", "x", option, value])
    assert ended.value.code == 2
    assert f"error: argument {sentence}\n" in capsys.readouterr().err
