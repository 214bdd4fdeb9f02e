import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_models.objectives.shared.cross_entropy import IGNORE
from tests.ssl_models import texts


def prepared(objective, tokens, step=0):
    return objective.prepare({"tokens": tokens}, texts.keys(len(tokens), step))


def within(hits, of, probability, sigma=3.0):
    return abs(hits - of * probability) <= sigma * math.sqrt(of * probability * (1 - probability))


@pytest.fixture(scope="module")
def million():
    """Originals, inputs and targets of a million ordinary tokens, in rows whose 15 % are no whole number."""
    encoding = texts.plain(vocabulary=1200, length=128)
    objective = texts.build("masked_language", encoding)
    tokens = texts.random_rows(encoding, 8300)
    batch = prepared(objective, tokens)
    originals = objective.enclosed(tokens)[0]
    return objective, originals, batch


def test_fifteen_percent_of_the_ordinary_tokens_are_selected(million):
    objective, originals, batch = million
    ordinary = int((~objective.vocabulary.special[originals]).sum())
    assert ordinary > 1e6
    assert within(int((batch["targets"] != IGNORE).sum()), ordinary, 0.15)


def test_of_these_eight_tenths_are_masked_a_tenth_replaced_and_a_tenth_kept(million):
    objective, _, batch = million
    selected = batch["targets"] != IGNORE
    shown, original = batch["inputs"].gather(1, batch["positions"])[selected], batch["targets"][selected]
    masked = shown == objective.encoding.mask
    kept = shown == original
    count, ordinary = len(shown), len(objective.vocabulary.ordinary)
    assert within(int(masked.sum()), count, 0.8)
    assert within(int(kept.sum()), count, 0.1 + 0.1 / ordinary)
    assert within(int((~masked & ~kept).sum()), count, 0.1 - 0.1 / ordinary)


def test_random_replacements_are_ordinary_and_evenly_spread(million):
    objective, _, batch = million
    selected = batch["targets"] != IGNORE
    shown, original = batch["inputs"].gather(1, batch["positions"])[selected], batch["targets"][selected]
    drawn = shown[(shown != objective.encoding.mask) & (shown != original)]
    assert not objective.vocabulary.special[drawn].any()
    counts = drawn.bincount(minlength=1200)[objective.vocabulary.ordinary].float()
    mean = counts.mean()
    assert ((counts - mean) ** 2 / mean).sum() < len(counts) + 5 * math.sqrt(2 * len(counts))


def test_every_place_is_selected_as_often(million):
    objective, originals, batch = million
    selected = torch.zeros_like(originals).scatter(1, batch["positions"], (batch["targets"] != IGNORE).long())
    ordinary = (~objective.vocabulary.special[originals]).sum(0)[1:-1]
    expected = ordinary * 0.15
    chi_squared = ((selected.sum(0)[1:-1] - expected) ** 2 / (expected * 0.85)).sum()
    assert chi_squared < 128 + 5 * math.sqrt(2 * 128)


@given(
    length=st.integers(2, 60),
    vocabulary=st.integers(50, 500),
    filled=st.integers(0, 60),
    rate=st.floats(0.01, 1.0),
    step=st.integers(0, 10**6),
)
@settings(max_examples=60, deadline=None)
def test_targets_restore_the_row_and_nothing_special_is_touched(length, vocabulary, filled, rate, step):
    encoding = texts.plain(vocabulary, length, sentinels=10)
    objective = texts.build("masked_language", encoding, rate=rate)
    tokens = texts.random_rows(encoding, 3, seed=step, document=6)
    tokens[0, filled:] = encoding.pad
    batch = prepared(objective, tokens, step)
    originals, present = objective.enclosed(tokens)
    selected = batch["targets"] != IGNORE
    assert not objective.vocabulary.special[batch["targets"][selected]].any()
    restored = batch["inputs"].scatter(
        1, batch["positions"], torch.where(selected, batch["targets"], batch["inputs"].gather(1, batch["positions"]))
    )
    assert torch.equal(restored, originals)
    ordinary = (~objective.vocabulary.special[originals]).sum(1)
    assert ((selected.sum(1) - ordinary * rate).abs() < 1).all()
    assert torch.equal(batch.get("padding", ~present), ~present)


def test_a_row_is_cls_tokens_sep_padding():
    objective = texts.build("masked_language", texts.plain(length=8))
    tokens = torch.tensor([[9, 10, 2, 0, 0, 0, 0, 0], [9, 10, 11, 12, 13, 14, 15, 16]])
    framed, present = objective.enclosed(tokens)
    assert framed.tolist() == [[5, 9, 10, 2, 6, 0, 0, 0, 0, 0], [5, 9, 10, 11, 12, 13, 14, 15, 16, 6]]
    assert present.sum(1).tolist() == [5, 10]


def test_another_step_draws_another_mask():
    objective = texts.build("masked_language", texts.plain())
    tokens = texts.random_rows(objective.encoding, 4)
    first, second = (prepared(objective, tokens, step)["inputs"] for step in (0, 1))
    assert all(not torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_evaluation_masks_fifteen_percent_whatever_the_rate():
    encoding = texts.plain()
    tokens = texts.random_rows(encoding, 8)
    batches = [prepared(texts.build("masked_language", encoding, rate=rate).eval(), tokens) for rate in (0.15, 0.4)]
    assert all(torch.equal(batches[0][name], batches[1][name]) for name in batches[0])
    assert (
        texts.build("masked_language", encoding, rate=0.4).count(
            prepared(texts.build("masked_language", encoding, rate=0.4), tokens)
        )
        > 2 * batches[0]["targets"].ne(IGNORE).sum()
    )


def test_the_loss_is_that_of_the_full_logits_at_the_selected_places():
    objective = texts.build("masked_language", texts.plain()).eval()
    batch = prepared(objective, texts.random_rows(objective.encoding, 4))
    logits = objective.transformer(batch["inputs"])
    labels = torch.full_like(batch["inputs"], IGNORE).scatter(1, batch["positions"], batch["targets"])
    expected = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="sum")
    outcome = objective(batch)
    torch.testing.assert_close(outcome.loss, expected.detach())
    correct, count = outcome.sums["mask_accuracy"]
    assert count == (labels != IGNORE).sum()
    assert correct == ((logits.argmax(-1) == labels) & (labels != IGNORE)).sum()


def test_features_do_not_depend_on_padding():
    encoding = texts.plain()
    objective = texts.build("masked_language", encoding).eval()
    tokens = texts.random_rows(encoding, 2)
    tokens[:, 20:] = encoding.pad
    with torch.no_grad():
        full, cut = objective.features({"tokens": tokens}), objective.features({"tokens": tokens[:, :32]})
    assert set(full) == {"cls", "mean", "layer1.mean"}
    for name, value in full.items():
        torch.testing.assert_close(value, cut[name], rtol=1e-4, atol=1e-5)


def test_examples_show_original_corrupted_and_restored(tmp_path):
    encoding = texts.bpe(tmp_path)
    objective = texts.build("masked_language", encoding).eval()
    rows = {"tokens": texts.padded([texts.encode(encoding, texts.TEXT)] * 4, encoding)}
    shown = objective.examples(rows, texts.keys(4)).texts["row0"]
    assert all(f"**{name}**" in shown for name in ("original", "corrupted", "restored"))
    assert "The quick brown fox" in shown and "<mask>" in shown
