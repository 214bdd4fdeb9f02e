import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_models.objectives.shared.cross_entropy import IGNORE
from tests.ssl_models import texts

MASK, BOS, EOS, PAD = 4, 1, 2, 0


def prepared(objective, tokens, step=0):
    return objective.prepare({"tokens": tokens}, texts.keys(len(tokens), step))


def infilled_slowly(words, spans, row):
    """The corrupted row, word by word: what `infill` does for whole batches."""
    out, word, special = [BOS], -1, True
    for place, token in enumerate(words.tokens[row].tolist()):
        if not words.present[row, place]:
            break
        if words.starts[row, place]:
            word += 1
            begun, inserted = int(spans.begun[row, word]), int(spans.inserted[row, word])
            continued = bool(spans.covered[row, word]) and not begun and special
            out += [MASK] * (begun + inserted + continued)
        special = bool(words.special[row, place])
        if special or not spans.covered[row, word]:
            out.append(token)
    return [*out, *[MASK] * int(spans.inserted[row, word + 1]), EOS]


@given(
    length=st.integers(12, 80),
    vocabulary=st.integers(60, 300),
    filled=st.integers(0, 80),
    document=st.integers(2, 50),
    rate=st.floats(0.05, 0.9),
    mean_span=st.floats(0.5, 6.0),
    step=st.integers(0, 10**6),
)
@settings(max_examples=80, deadline=None)
def test_every_span_becomes_one_mask_and_the_target_is_the_original(
    length, vocabulary, filled, document, rate, mean_span, step
):
    encoding = texts.plain(vocabulary, length, sentinels=10)
    objective = texts.build("text_infilling", encoding, rate=rate, mean_span=mean_span)
    tokens = texts.random_rows(encoding, 3, seed=step, document=document)
    tokens[0, filled:] = PAD
    batch = prepared(objective, tokens, step)
    keys = texts.keys(3, step)
    words = objective.words(tokens)
    words = words.reordered(objective.permutation(words, keys))
    spans = objective.spans(words, keys)
    for row, size in enumerate([min(filled, length), length, length]):
        original = [BOS, *tokens[row, :size].tolist(), EOS]
        assert batch["targets"][row].tolist() == original + [IGNORE] * (length + 2 - len(original))
        found = batch["inputs"][row, ~batch["padding"][row]].tolist()
        expected = infilled_slowly(words, spans, row)
        if len(expected) <= length + 2:
            assert found == expected
        assert len(found) <= length + 2 and found[0] == BOS and found[-1] == EOS
        assert found.count(EOS) == original.count(EOS) and found.count(BOS) == 1, "neither is masked"
        assert not Counter(token for token in found if token != MASK) - Counter(original)
        total = int(words.starts[row].sum())
        covered = int(spans.covered[row, :total].sum())
        assert abs(covered - total * rate) < 1 and not spans.covered[row, total:].any()
        assert (batch["inputs"][row][batch["padding"][row]] == PAD).all()


def test_a_million_words_lose_thirty_percent_in_spans_of_poisson_three():
    encoding = texts.plain(length=1000)
    objective = texts.build("text_infilling", encoding)
    tokens = texts.random_rows(encoding, 1010, document=10**6)
    words = objective.words(tokens)
    spans = objective.spans(words, texts.keys(1010))
    total = int(words.starts.sum())
    covered = int(spans.covered.sum())
    assert total > 1e6 and abs(covered - 0.3 * total) < 3 * math.sqrt(0.3 * 0.7 * total)
    empty, whole = int(spans.inserted[:, :1001].sum()), int(spans.begun[:, :1001].sum())
    probability = math.exp(-3)
    count = empty + whole
    assert abs(empty - count * probability) < 3 * math.sqrt(count * probability)
    assert abs(covered / count - 3) < 0.05


def test_spans_fall_evenly_over_the_row():
    encoding = texts.plain(length=100)
    objective = texts.build("text_infilling", encoding)
    words = objective.words(texts.random_rows(encoding, 5000, document=10**6))
    covered = objective.spans(words, texts.keys(5000)).covered.float().mean(0)
    assert (covered[5:95] - 0.3).abs().max() < 6 * math.sqrt(0.21 / 5000)


def sentences(tmp_path, text, length=64):
    encoding = texts.bpe(tmp_path, length)
    objective = texts.build("text_infilling", encoding)
    row = texts.encode(encoding, text)
    return objective, row


def shuffled(objective, tokens, step=0):
    words = objective.words(tokens)
    return words.reordered(objective.permutation(words, texts.keys(len(tokens), step))).tokens


def test_sentences_are_put_in_every_order_as_often(tmp_path):
    objective, row = sentences(tmp_path, "It rains. Is it the fox? Never mind!")
    tokens = texts.padded([row] * 6000, objective.encoding)
    found, counts = shuffled(objective, tokens)[:, : len(row)].unique(dim=0, return_counts=True)
    orders = {
        objective.vocabulary.decode(ids): count for ids, count in zip(found.tolist(), counts.tolist(), strict=True)
    }
    parts = ["It rains.", " Is it the fox?", " Never mind!"]
    assert len(orders) == 6
    assert all(sorted(text.find(part) >= 0 for part in parts) == [True] * 3 for text in orders)
    assert sum((count - 1000) ** 2 / 1000 for count in orders.values()) < 5 + 5 * math.sqrt(10)


def test_a_point_inside_a_word_ends_no_sentence_and_a_line_break_does(tmp_path):
    objective, row = sentences(tmp_path, "a.b = 3.5\nnext line\n")
    tokens = texts.padded([row] * 200, objective.encoding)
    found = {objective.vocabulary.decode(ids) for ids in shuffled(objective, tokens)[:, : len(row)].tolist()}
    assert found == {"a.b = 3.5\nnext line\n", "next line\na.b = 3.5\n"}


def test_sentences_stay_in_their_document_and_eos_at_its_end(tmp_path):
    objective, first = sentences(tmp_path, "It rains. It does!")
    second = texts.encode(objective.encoding, "Never mind. Ann left!")
    tokens = texts.padded([[*first, EOS, *second, EOS]] * 100, objective.encoding)
    for ids in shuffled(objective, tokens).tolist():
        assert sorted(ids[: len(first)]) == sorted(first) and ids[len(first)] == EOS
        assert sorted(ids[len(first) + 1 : len(first) + 1 + len(second)]) == sorted(second)
        assert ids[len(first) + 1 + len(second)] == EOS


def test_words_of_several_tokens_are_masked_whole(tmp_path):
    objective, row = sentences(tmp_path, "zyxwv utsrq ponml kjihg fedcb zyxwv utsrq ponml")
    tokens = texts.padded([row] * 200, objective.encoding)
    batch = prepared(objective, tokens)
    whole = {"zyxwv", "utsrq", "ponml", "kjihg", "fedcb"}
    for inputs, padding in zip(batch["inputs"], batch["padding"], strict=True):
        text = objective.vocabulary.decode(inputs[~padding].tolist())
        assert set(text.replace("<s>", " ").replace("</s>", " ").replace("<mask>", " ").split()) <= whole


def test_without_permutation_the_sentences_keep_their_order(tmp_path):
    encoding = texts.bpe(tmp_path)
    objective = texts.build("text_infilling", encoding, permute=False)
    tokens = texts.padded([texts.encode(encoding, "It rains. It does! Never mind.")] * 50, encoding)
    for inputs, original in zip(prepared(objective, tokens)["inputs"].tolist(), tokens.tolist(), strict=True):
        rest = iter(original)
        assert all(token in rest for token in inputs if token not in (BOS, EOS, MASK, PAD))


def test_the_decoder_starts_with_eos_and_sees_the_original_before_each():
    objective = texts.build("text_infilling", texts.plain())
    batch = prepared(objective, texts.random_rows(objective.encoding, 2))
    inputs = objective.decoder_inputs(batch["targets"])
    assert (inputs[:, 0] == EOS).all() and torch.equal(inputs[:, 1:], batch["targets"][:, :-1])
    assert objective.count(batch) == 2 * 66


def test_no_target_sees_itself_or_what_follows():
    objective = texts.build("text_infilling", texts.plain()).eval()
    batch = prepared(objective, texts.random_rows(objective.encoding, 1))
    memory = objective.transformer.encode(batch["inputs"], padding=batch["padding"])

    def states(targets):
        return objective.transformer.decode(objective.decoder_inputs(targets), memory=memory)

    changed = batch["targets"].clone()
    changed[:, 8] = 7 + (changed[:, 8] - 6) % 60
    before, after = states(batch["targets"]), states(changed)
    assert torch.equal(before[:, :9], after[:, :9]) and not torch.equal(before[:, 9], after[:, 9])


@pytest.mark.parametrize("pad", [0, 2])
def test_features_do_not_depend_on_padding(pad):
    encoding = texts.plain(pad=pad)
    objective = texts.build("text_infilling", encoding).eval()
    tokens = texts.random_rows(encoding, 2)
    tokens[:, 20:] = pad
    with torch.no_grad():
        full, cut = objective.features({"tokens": tokens}), objective.features({"tokens": tokens[:, :32]})
    assert set(full) == {"mean", "layer1.mean"}
    for name, value in full.items():
        torch.testing.assert_close(value, cut[name], rtol=1e-4, atol=1e-5)


def test_examples_show_original_corrupted_and_restored(tmp_path):
    encoding = texts.bpe(tmp_path)
    objective = texts.build("text_infilling", encoding).eval()
    rows = {"tokens": texts.padded([texts.encode(encoding, texts.TEXT)] * 4, encoding)}
    shown = objective.examples(rows, texts.keys(4)).texts["row0"]
    assert "The quick brown fox" in shown and "<mask>" in shown and "**restored**" in shown
