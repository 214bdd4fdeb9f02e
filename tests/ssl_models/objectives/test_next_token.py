import math

import pytest
import torch
from torch.nn import functional as F

from ssl_models.objectives.shared.cross_entropy import IGNORE
from tests.ssl_models import texts


@pytest.fixture(params=["gpt2", "llama"])
def preset(request):
    return request.param


def prepared(objective, tokens):
    return objective.prepare({"tokens": tokens}, texts.keys(len(tokens)))


def hidden(objective, batch):
    return objective.transformer.decode(batch["inputs"], documents=batch.get("documents"))


def test_targets_are_the_inputs_shifted_once():
    objective = texts.build("next_token", texts.plain())
    tokens = texts.random_rows(objective.encoding, 4)
    batch = prepared(objective, tokens)
    assert torch.equal(batch["inputs"], tokens[:, :-1]) and torch.equal(batch["targets"], tokens[:, 1:])
    assert objective.count(batch) == 4 * 63


@pytest.mark.parametrize("document_masking", [True, False])
def test_changing_a_token_leaves_everything_before_it_unchanged(preset, document_masking):
    objective = texts.build("next_token", texts.plain(), preset, document_masking=document_masking)
    tokens = texts.random_rows(objective.encoding, 1)
    before = hidden(objective, prepared(objective, tokens))
    for place in (1, 30, 62):
        changed = tokens.clone()
        changed[:, place] = 7 + (tokens[:, place] - 6) % 60
        after = hidden(objective, prepared(objective, changed))
        assert torch.equal(after[:, :place], before[:, :place])
        assert not torch.equal(after[:, place], before[:, place])


def test_packed_documents_are_computed_as_if_alone(preset):
    objective = texts.build("next_token", texts.plain(), preset)
    tokens = texts.random_rows(objective.encoding, 1, document=1000)
    tokens[0, 25] = objective.encoding.eos
    packed = hidden(objective, prepared(objective, tokens))
    alone = objective.transformer.decode(tokens[:, 25:63])  # eos begins the document
    torch.testing.assert_close(packed[:, 25:], alone, rtol=1e-4, atol=1e-5)
    first = objective.transformer.decode(tokens[:, :25])
    torch.testing.assert_close(packed[:, :25], first, rtol=1e-4, atol=1e-5)


def test_the_first_token_of_a_document_is_predicted_from_eos_alone_and_eos_from_its_document():
    objective = texts.build("next_token", texts.plain())
    tokens = texts.random_rows(objective.encoding, 2, document=1000)
    tokens[:, 25] = objective.encoding.eos
    batch = prepared(objective, tokens)
    states = hidden(objective, batch)
    torch.testing.assert_close(states[0, 25], states[1, 25])  # whatever came before
    assert batch["targets"][0, 24] == objective.encoding.eos
    assert not torch.allclose(states[0, 24], states[1, 24])


def test_without_document_masking_documents_see_what_came_before():
    objective = texts.build("next_token", texts.plain(), document_masking=False)
    tokens = texts.random_rows(objective.encoding, 2, document=1000)
    tokens[:, 25] = objective.encoding.eos
    batch = prepared(objective, tokens)
    assert "documents" not in batch
    states = hidden(objective, batch)
    assert not torch.allclose(states[0, 25], states[1, 25])


def test_padding_is_neither_predicted_nor_counted():
    objective = texts.build("next_token", texts.plain())
    tokens = texts.random_rows(objective.encoding, 2)
    tokens[0, 10], tokens[0, 11:] = objective.encoding.eos, objective.encoding.pad
    batch = prepared(objective, tokens)
    assert (batch["targets"][0, 10:] == IGNORE).all() and batch["targets"][0, 9] == objective.encoding.eos
    assert objective.count(batch) == 10 + 63


def test_where_pad_is_eos_the_document_still_ends_once():
    objective = texts.build("next_token", texts.plain(pad=2))
    tokens = texts.random_rows(objective.encoding, 1, document=1000)
    tokens[0, 5], tokens[0, 10:] = 2, 2
    targets = prepared(objective, tokens)["targets"][0]
    assert targets[4] == 2 and targets[9] == 2 and (targets[10:] == IGNORE).all()


def test_bits_per_byte_is_the_loss_over_the_bytes_of_the_targets(tmp_path):
    encoding = texts.bpe(tmp_path)
    objective = texts.build("next_token", encoding).eval()
    text = "The quick brown fox, 東京."
    row = [*texts.encode(encoding, text), encoding.eos]
    batch = prepared(objective, texts.padded([row], encoding))
    with torch.no_grad():
        outcome = objective(batch)
        logits = objective.transformer.logits(hidden(objective, batch))[0, : len(row) - 1]
    loss = F.cross_entropy(logits, torch.tensor(row[1:]), reduction="sum")
    bits, size = outcome.sums["bits_per_byte"]
    torch.testing.assert_close(bits, loss / math.log(2), rtol=1e-4, atol=1e-4)
    first = objective.vocabulary.decode(row[:1])  # is never a target
    assert size == len(text.removeprefix(first).encode())
    correct, count = outcome.sums["accuracy"]
    assert count == len(row) - 1 and correct == (logits.argmax(1) == torch.tensor(row[1:])).sum()


def test_last_and_mean_features_do_not_depend_on_padding(preset):
    encoding = texts.plain()
    objective = texts.build("next_token", encoding, preset).eval()
    tokens = texts.random_rows(encoding, 2, document=1000)
    tokens[:, 20], tokens[:, 21:] = encoding.eos, encoding.pad
    changed = tokens.clone()
    changed[:, 19] = 7 + (tokens[:, 19] - 6) % 60
    with torch.no_grad():
        short = {name: value[:, :32] if name == "tokens" else value for name, value in {"tokens": tokens}.items()}
        full, cut, other = (objective.features(rows) for rows in ({"tokens": tokens}, short, {"tokens": changed}))
    assert set(full) == {"last", "mean", "layer1.mean"}
    for name, value in full.items():
        torch.testing.assert_close(value, cut[name], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(value, other[name]), "the last token must count"


def test_the_sample_is_the_same_each_time_and_begins_with_the_first_row(tmp_path):
    encoding = texts.bpe(tmp_path)
    objective = texts.build("next_token", encoding, "llama").eval()
    rows = {"tokens": texts.padded([texts.encode(encoding, texts.TEXT)] * 2, encoding)}
    first, again = (objective.examples(rows, texts.keys(2)).texts["sample"] for _ in range(2))
    assert first == again and "The quick" in first


def test_a_preset_of_another_structure_is_refused():
    with pytest.raises(ValueError, match="bert is of structure encoder; this task needs decoder"):
        texts.build("next_token", texts.plain(), "bert")
