import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_models.objectives.shared.cross_entropy import IGNORE
from ssl_models.objectives.span_corruption import SpanCorruptionOptions, amounts, partition, splice, widths
from tests.ssl_models import texts


def prepared(objective, tokens, step=0):
    return objective.prepare({"tokens": tokens}, texts.keys(len(tokens), step))


def listed(batch, row):
    inputs = batch["inputs"][row]
    if "padding" in batch:
        inputs = inputs[~batch["padding"][row]]
    return inputs.tolist(), batch["targets"][row][batch["targets"][row] != IGNORE].tolist()


@pytest.mark.parametrize(("raw", "inputs", "targets"), [(568, 512, 114), (284, 256, 58), (141, 128, 29)])
def test_inputs_and_targets_have_the_lengths_of_the_paper(raw, inputs, targets):
    assert widths(raw, SpanCorruptionOptions()) == (inputs, targets)
    encoding = texts.plain(vocabulary=200, length=raw)
    batch = prepared(texts.build("span_corruption", encoding), texts.random_rows(encoding, 3, document=10**6))
    assert batch["inputs"].shape == (3, inputs) and batch["targets"].shape == (3, targets)
    assert (batch["targets"] != IGNORE).all() and "padding" not in batch


@given(
    length=st.integers(2, 120),
    vocabulary=st.integers(60, 400),
    filled=st.integers(0, 120),
    density=st.floats(0.05, 0.6),
    mean_span=st.floats(2.0, 6.0),
    step=st.integers(0, 10**6),
)
@settings(max_examples=80, deadline=None)
def test_putting_the_target_spans_back_restores_the_text(length, vocabulary, filled, density, mean_span, step):
    encoding = texts.plain(vocabulary, length)
    objective = texts.build("span_corruption", encoding, density=density, mean_span=mean_span)
    tokens = texts.random_rows(encoding, 3, seed=step, document=10**6)
    tokens[0, filled:] = encoding.pad
    batch = prepared(objective, tokens, step)
    for row, size in enumerate([min(filled, length), length, length]):
        inputs, targets = listed(batch, row)
        assert inputs[-1] == encoding.eos and targets[-1] == encoding.eos
        assert splice(inputs[:-1], targets[:-1], encoding.sentinels) == tokens[row, :size].tolist()
        noise, spans = (int(x) for x in amounts(torch.tensor(size), objective.options))
        used = [token for token in inputs if token in encoding.sentinels]
        assert used == list(encoding.sentinels[:spans]), "sentinels descend, one for each span"
        if spans:
            assert inputs[0] not in encoding.sentinels, "the rest comes first"
            assert [token for token in targets if token in encoding.sentinels] == used
            assert targets[0] == encoding.sentinels[0]
            assert len(targets) == noise + spans + 1
        places = [place for place, token in enumerate(inputs) if token in encoding.sentinels]
        assert all(after - before > 1 for before, after in itertools.pairwise(places))


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_a_partition_has_as_many_non_empty_parts_as_asked(total, parts, step):
    parts = min(parts, total)
    split = partition(torch.tensor([[total], [1]]), torch.tensor([[parts], [1]]), 50, 12, texts.keys(2, step), 0)
    assert split.shape == (2, 12) and split[0].sum() == total and split[1].tolist() == [1] + [0] * 11
    assert (split[0, :parts] > 0).all() and (split[0, parts:] == 0).all()


def test_every_partition_is_as_likely():
    rows = 30_000
    split = partition(torch.full((rows, 1), 6), torch.full((rows, 1), 3), 6, 3, texts.keys(rows), 0)
    counts = (split @ torch.tensor([49, 7, 1])).bincount()
    counts = counts[counts > 0].float()
    assert len(counts) == math.comb(5, 2)
    assert ((counts - rows / 10) ** 2 / (rows / 10)).sum() < 9 + 5 * math.sqrt(18)


def test_a_million_tokens_hold_fifteen_percent_noise_evenly_spread():
    encoding = texts.plain(vocabulary=200, length=568)
    objective = texts.build("span_corruption", encoding)
    present = torch.ones(1800, 568, dtype=torch.bool)
    noise = objective.noise(present, texts.keys(1800))
    assert noise.sum() == 1800 * 85  # round(0.15 x 568) in every row
    starts = noise & ~torch.cat([torch.zeros(1800, 1, dtype=torch.bool), noise[:, :-1]], 1)
    assert (starts.sum(1) == 28).all()
    assert not noise[:, 0].any() and noise[:, -1].all()
    middle = noise[:, 50:-50].float().mean(0)
    assert abs(middle.mean() - 0.15) < 0.01


def test_the_decoder_starts_with_pad_and_sees_the_targets_before_each():
    objective = texts.build("span_corruption", texts.plain())
    batch = prepared(objective, texts.random_rows(objective.encoding, 2))
    inputs = objective.decoder_inputs(batch["targets"])
    assert (inputs[:, 0] == objective.encoding.pad).all()
    assert torch.equal(inputs[:, 1:], batch["targets"][:, :-1])


def test_no_target_sees_itself_or_what_follows():
    objective = texts.build("span_corruption", texts.plain()).eval()
    batch = prepared(objective, texts.random_rows(objective.encoding, 1))
    memory = objective.transformer.encode(batch["inputs"])

    def states(targets):
        return objective.transformer.decode(objective.decoder_inputs(targets), memory=memory)

    changed = batch["targets"].clone()
    changed[:, 8] = 7 + (changed[:, 8] - 6) % 60
    before, after = states(batch["targets"]), states(changed)
    assert torch.equal(before[:, :9], after[:, :9]) and not torch.equal(before[:, 9], after[:, 9])


def test_features_do_not_depend_on_padding():
    encoding = texts.plain()
    objective = texts.build("span_corruption", encoding).eval()
    tokens = texts.random_rows(encoding, 2)
    tokens[:, 20:] = encoding.pad
    with torch.no_grad():
        full, cut = objective.features({"tokens": tokens}), objective.features({"tokens": tokens[:, :32]})
    assert set(full) == {"mean", "layer1.mean"}
    for name, value in full.items():
        torch.testing.assert_close(value, cut[name], rtol=1e-4, atol=1e-5)


def test_too_few_sentinels_are_told_in_one_sentence():
    with pytest.raises(ValueError, match="need 28 sentinels, its tokenizer has 5"):
        texts.build("span_corruption", texts.plain(length=568, sentinels=5))


def test_examples_splice_what_was_written_into_the_input(tmp_path):
    encoding = texts.bpe(tmp_path)
    objective = texts.build("span_corruption", encoding).eval()
    rows = {"tokens": texts.padded([texts.encode(encoding, texts.TEXT)] * 4, encoding)}
    shown = objective.examples(rows, texts.keys(4)).texts["row0"]
    assert "<extra_id_0>" in shown.split("**corrupted**")[1].split("**restored**")[0]
    assert "The quick brown fox" in shown.split("**corrupted**")[0]
