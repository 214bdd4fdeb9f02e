"""What holds for all four language tasks."""

import math
from pathlib import Path

import pytest
import torch

from ssl_models.huggingface import to_hugging_face
from ssl_models.objectives.shared.cross_entropy import IGNORE
from ssl_models.objectives.shared.text import content
from tests.ssl_models import texts

TASKS = list(texts.PRESETS)


@pytest.fixture(params=TASKS)
def task(request):
    return request.param


def batch_of(objective, rows, step=0):
    return objective.prepare({"tokens": rows}, texts.keys(len(rows), step))


@pytest.mark.parametrize(
    ("name", "preset"), [*texts.PRESETS.items(), ("next_token", "llama")], ids=["gpt2", "bert", "t5", "bart", "llama"]
)
@pytest.mark.parametrize("vocabulary", [100, 3000])
def test_a_fresh_model_s_loss_is_that_of_guessing(name, preset, vocabulary):
    objective = texts.build(name, texts.plain(vocabulary), preset)
    batch = batch_of(objective, texts.random_rows(objective.encoding, 32))
    with torch.no_grad():
        loss = float(objective(batch).loss / objective.count(batch))
    assert abs(loss - math.log(vocabulary)) < 0.06


def test_the_gradient_of_four_micro_batches_is_that_of_one_batch(task):
    objective = texts.build(task, texts.plain()).double()
    rows = texts.random_rows(objective.encoding, 8)
    rows[0, 9:], rows[5, 30:] = objective.encoding.pad, objective.encoding.pad  # uneven numbers of predicted tokens
    batch = batch_of(objective, rows)
    count = objective.count(batch)
    (objective(batch).loss / count).backward()
    whole = {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}
    objective.zero_grad()
    for start in range(0, 8, 2):
        micro = {name: value[start : start + 2] for name, value in batch.items()}
        (objective(micro).loss / count).backward()
    for name, parameter in objective.named_parameters():
        if name in whole:
            torch.testing.assert_close(parameter.grad, whole[name], rtol=1e-5, atol=1e-8)


def test_a_row_is_corrupted_alike_whatever_batch_it_is_in(task):
    objective = texts.build(task, texts.plain())
    rows = texts.random_rows(objective.encoding, 8)
    together = batch_of(objective, rows)
    for chosen in ([3], [5, 0, 7]):
        apart = objective.prepare({"tokens": rows[chosen]}, texts.keys(8)[chosen])
        assert all(torch.equal(apart[name], together[name][chosen]) for name in apart)


@pytest.mark.parametrize("task", TASKS[1:])  # nothing is random in predicting the next token
def test_another_step_corrupts_every_row_otherwise(task):
    objective = texts.build(task, texts.plain())
    rows = texts.random_rows(objective.encoding, 8)
    first, same, second = (batch_of(objective, rows, step)["inputs"] for step in (0, 0, 1))
    assert torch.equal(first, same)
    assert all(not torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_preparing_changes_neither_the_rows_nor_the_seed_of_torch(task):
    objective = texts.build(task, texts.plain())
    rows = texts.random_rows(objective.encoding, 4)
    before, state = rows.clone(), torch.get_rng_state()
    batch_of(objective, rows)
    assert torch.equal(rows, before) and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("pad", [0, 2])
def test_rows_of_nothing_but_padding_do_no_harm(task, pad):
    objective = texts.build(task, texts.plain(pad=pad))
    rows = texts.random_rows(objective.encoding, 3)
    rows[1] = pad
    batch = batch_of(objective, rows)
    loss = objective(batch).loss
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in objective.parameters() if p.grad is not None)
    with torch.no_grad():
        assert all(value.isfinite().all() for value in objective.eval().features({"tokens": rows}).values())


def test_the_raw_baseline_is_a_sparse_bag_of_tokens(task):
    objective = texts.build(task, texts.plain())
    rows = texts.random_rows(objective.encoding, 3)
    bag = objective.raw({"tokens": rows})
    assert bag.is_sparse and bag.shape == (3, objective.encoding.vocabulary)
    assert bag.to_dense()[0].sum() == (~objective.vocabulary.special[rows[0]]).sum()


def test_only_the_transformer_is_learned_and_saved(task):
    objective = texts.build(task, texts.plain())
    assert all(name.startswith("transformer.") for name in objective.state_dict())


def test_an_option_that_does_not_exist_is_refused(task):
    with pytest.raises(ValueError, match="spelling_mistake"):
        texts.build(task, texts.plain(), spelling_mistake=1)


def test_pictures_are_refused(task):
    with pytest.raises(ValueError, match="needs rows of text"):
        texts.build(task, texts.plain().model_copy(update={"modality": "image"}))


def hugging_face(objective, folder: Path):
    """The same model in `transformers`, from the folder that this project writes."""
    transformers = pytest.importorskip("transformers")
    to_hugging_face(objective.transformer, objective.encoding, folder)
    kinds = {
        "next_token": transformers.AutoModelForCausalLM,
        "masked_language": transformers.AutoModelForMaskedLM,
        "span_corruption": transformers.AutoModelForSeq2SeqLM,
        "text_infilling": transformers.AutoModelForSeq2SeqLM,
    }
    return kinds[objective.__module__.rsplit(".", 1)[-1]].from_pretrained(folder).eval()


def their_inputs(name, objective, rows, batch):
    """The corrupted batch as `transformers` takes it."""
    if name == "next_token":
        return {"input_ids": rows, "labels": rows.masked_fill(~content(rows, objective.encoding), IGNORE)}  # it shifts
    labels = batch["targets"].contiguous()
    if name == "masked_language":
        labels = torch.full_like(batch["inputs"], IGNORE).scatter(1, batch["positions"], labels)
    return {"input_ids": batch["inputs"], "attention_mask": (~batch["padding"]).long(), "labels": labels}


@pytest.mark.parametrize(
    ("name", "preset"), [*texts.PRESETS.items(), ("next_token", "llama")], ids=["gpt2", "bert", "t5", "bart", "llama"]
)
def test_the_loss_equals_that_of_transformers_on_the_same_batch(name, preset, tmp_path):
    task = {"document_masking": False} if name == "next_token" else {}
    objective = texts.build(name, texts.plain(), preset, **task).eval()
    with torch.no_grad():
        for parameter in objective.parameters():  # larger than at the start, where every loss is that of guessing
            parameter.add_(torch.randn_like(parameter) * 0.3)
    rows = texts.random_rows(objective.encoding, 4)
    rows[1, 20], rows[1, 21:] = objective.encoding.eos, objective.encoding.pad
    batch = batch_of(objective, rows)
    theirs = hugging_face(objective, tmp_path)
    with torch.no_grad():
        ours = objective(batch).loss / objective.count(batch)
        loss = theirs(**their_inputs(name, objective, rows, batch)).loss
    assert abs(float(ours) - math.log(120)) > 0.05
    torch.testing.assert_close(ours, loss, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["masked_language", "text_infilling"])
@pytest.mark.parametrize("instead", ["pad", "eos"])
def test_a_tokenizer_without_a_mask_token_is_refused_where_one_is_needed(name: str, instead: str) -> None:
    encoding = texts.plain(mask=getattr(texts.plain(), instead))
    with pytest.raises(ValueError, match=r"^corpus: its tokenizer has no mask token, .* mask_token"):
        texts.build(name, encoding)
