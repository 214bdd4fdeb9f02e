"""The protocol: what is chosen, on which rows, and the table for features that know, guess or have collapsed."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from ssl_models.probing import probe as module
from ssl_models.probing.intervals import paired
from ssl_models.probing.probe import Report, Task, overfitted, probe, shots, shuffle, standardise, stratified
from ssl_models.probing.settings import Probe

CONFIG = Probe(shots=(1, 5), draws=3, seeds=1, strengths=(0.01, 0.1, 1.0))
CPU = torch.device("cpu")


def task(rows: int = 240, classes: int = 4, seed: int = 0, share: float = 0.3) -> Task:
    generator = np.random.default_rng(seed)
    labels = np.concatenate(
        [np.arange(classes), np.arange(classes), generator.integers(0, classes, rows - 2 * classes)]
    )
    test = generator.random(rows) < share
    test[:classes], test[classes : 2 * classes] = False, True
    return Task(np.arange(rows), labels, test, np.arange(rows), tuple(f"class{index}" for index in range(classes)))


def telling(of: Task, width: int = 12, noise: float = 1.0, seed: int = 1) -> np.ndarray:
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(of.labels.max() + 1, width))
    return (3 + centres[of.labels] + noise * generator.normal(size=(len(of.labels), width))).astype(np.float32)


def noise(of: Task, width: int = 12, seed: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(len(of.labels), width)).astype(np.float32)


def run(of: Task, pretrained: dict[str, Any] | None = None, **config: Any) -> Report:
    features = pretrained or {"noise": noise(of), "telling": telling(of)}
    return probe(features, [{"mean": noise(of, seed=3)}], noise(of, seed=4), of, replace_config(**config))


def replace_config(**config: Any) -> Probe:
    return CONFIG.model_copy(update=config)


def test_features_that_know_beat_features_that_do_not() -> None:
    report = run(task())
    pretrained, fresh = report.scores["pretrained"], report.scores["random_init"]
    assert pretrained and fresh
    assert pretrained.feature == "telling" and fresh.feature == "mean"
    assert pretrained.accuracy > 0.8 > 0.45 > fresh.accuracy
    assert pretrained.low < pretrained.accuracy < pretrained.high
    gain = report.gains["random_init"]
    assert gain and gain.significant and gain.p < 0.01
    assert report.knn and report.knn > 0.7
    assert [point.labels for point in pretrained.curve][:-1] == [1, 5]
    assert pretrained.curve[-1].accuracy == pretrained.accuracy
    assert pretrained.curve[0].accuracy < pretrained.curve[-1].accuracy
    assert not report.warnings


@settings(max_examples=8)
@given(seed=st.integers(0, 1000))
def test_shuffled_labels_are_at_chance(seed: int) -> None:
    report = run(task(rows=400, seed=seed), seed=seed)
    assert report.shuffled_labels is not None
    assert report.shuffled_labels < 0.25 + 4 * np.sqrt(0.25 * 0.75 / 120)


@settings(max_examples=30)
@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=80), seed=st.integers(0, 9))
def test_a_shuffle_permutes_and_tells_nothing_of_a_class(labels: list[int], seed: int) -> None:
    array = np.array(labels)
    shuffled = shuffle(array, 0, seed)
    assert sorted(shuffled) == sorted(labels)
    for true in set(labels):
        for label in set(labels):
            expected = labels.count(true) * labels.count(label) / len(labels)
            assert abs(np.sum(shuffled[array == true] == label) - expected) <= 2


def test_the_same_rows_give_the_same_report() -> None:
    first, second = run(task()), run(task())
    assert first.gains == second.gains
    assert (first.knn, first.shuffled_labels) == (second.knn, second.shuffled_labels)
    for name, score in first.scores.items():
        other = second.scores[name]
        assert score and other
        assert np.array_equal(score.predicted, other.predicted) and score.curve == other.curve


@settings(max_examples=10)
@given(seed=st.integers(0, 1000))
def test_test_rows_never_decide_anything(seed: int) -> None:
    of = task(seed=seed)
    features = {"noise": noise(of), "telling": telling(of)}
    generator = np.random.default_rng(seed)
    changed = {name: np.where(of.test[:, None], 100 * generator.normal(size=values.shape), values).astype(np.float32)
               for name, values in features.items()}  # fmt: skip
    labels = np.where(of.test, generator.integers(0, 4, len(of.labels)), of.labels)
    before = module.choose(features, of, CONFIG, CPU)
    after = module.choose(changed, replace(of, labels=labels), CONFIG, CPU)
    assert before and after
    assert (before[0], before[2], before[3]) == (after[0], after[2], after[3])
    train = ~of.test
    weights = [module.fit(found[1][train], of.trained, found[2]).weights for found in (before, after)]
    assert np.array_equal(*weights)


def test_collapsed_features_fall_to_the_majority() -> None:
    of = task()
    ones = np.full((len(of.labels), 5), 3.3, np.float32) + np.float32(1e-7) * noise(of, 5)
    score = run(of, {"mean": ones}).scores["pretrained"]
    assert score
    values, counts = np.unique(of.trained, return_counts=True)
    assert set(score.predicted) == {values[counts.argmax()]}


def test_features_that_are_not_finite_are_reported_and_passed_over() -> None:
    of = task()
    broken = telling(of)
    broken[5, 3] = np.nan
    report = run(of, {"broken": broken, "noise": noise(of)})
    assert report.scores["pretrained"] and report.scores["pretrained"].feature == "noise"
    report = run(of, {"broken": broken})
    assert report.scores["pretrained"] is None
    assert report.knn is None and report.shuffled_labels is None
    assert report.gains == {"random_init": None, "raw_input": None}
    assert "pretrained: every feature holds NaN or infinity" in report.warnings[0]


def test_a_class_that_training_never_saw_counts_as_wrong() -> None:
    of = task()
    labels = np.where((of.labels == 3) & ~of.test, 0, of.labels)
    report = run(replace(of, labels=labels))
    assert report.task.unseen == ["class3"]
    assert "1 classes of the test part" in report.warnings[0] and "'class3'" in report.warnings[0]
    score = report.scores["pretrained"]
    assert score and not np.any(score.predicted == 3)


def test_one_class_only_is_said_and_does_not_fail() -> None:
    of = task()
    report = run(replace(of, labels=np.ones_like(of.labels)))
    assert report.scores["pretrained"] and report.scores["pretrained"].accuracy == report.majority == 1.0
    assert "'class1'" in report.warnings[0]


def test_classes_of_one_row_and_fewer_rows_than_shots() -> None:
    labels, test = np.array([0, 1, 2, 0, 1, 2]), np.array([0, 0, 0, 1, 1, 1], bool)
    of = Task(np.arange(6), labels, test, np.arange(6), ("a", "b", "c"))
    report = run(of, {"first": telling(of), "second": noise(of)}, shots=(1, 20))
    score = report.scores["pretrained"]
    assert score and score.feature == "first"  # there is no slice to choose on: the first feature, the middle strength
    assert score.strength == 0.1
    assert [point.labels for point in score.curve] == [1]  # with one row a class, nothing can be drawn
    assert (score.low, score.high) == (0, 1)
    said = " ".join(report.warnings)
    for part in (
        "3 rows of 3 groups",
        "the 3 rows of the training part are too few to choose on",
        "1, 20 labels a class",
    ):
        assert part in said


def test_an_empty_part_is_refused() -> None:
    of = task()
    with pytest.raises(ValueError, match="test part"):
        run(replace(of, test=np.zeros_like(of.test)))


def test_rows_without_a_label_are_not_of_the_task() -> None:
    labels, test, groups = np.array([2, -1, 0, 1]), np.array([True, False, False, True]), np.array([7, 8, 8, 9])
    of = Task.choose(labels, test, groups, ("a", "b", "c"), 100, 0)
    assert of.rows.tolist() == [0, 2, 3]
    assert of.tested.tolist() == [2, 1] and of.trained.tolist() == [0] and of.groups.tolist() == [7, 8, 9]


@settings(max_examples=30)
@given(limit=st.integers(10, 99), share=st.floats(0.1, 0.9), seed=st.integers(0, 9))
def test_a_limit_keeps_the_share_of_test_rows(limit: int, share: float, seed: int) -> None:
    test = np.arange(100) < 100 * share
    of = Task.choose(np.zeros(100, np.int64), test, np.arange(100), ("a",), limit, seed)
    assert len(of.rows) == limit and np.all(np.diff(of.rows) > 0)
    assert of.test.mean() == pytest.approx(test.mean(), abs=1 / limit)


@settings(max_examples=50)
@given(labels=st.lists(st.integers(0, 5), min_size=1, max_size=60), count=st.integers(1, 9), seed=st.integers(0, 9))
def test_shots_and_slices_respect_the_classes(labels: list[int], count: int, seed: int) -> None:
    array = np.array(labels)
    drawn = shots(array, count, 0, seed)
    assert len(set(drawn)) == len(drawn)
    held = stratified(array, np.arange(len(array)), 0.2, seed)
    for label in set(labels):
        rows = labels.count(label)
        assert np.sum(array[drawn] == label) == min(count, rows)
        assert held[array == label].sum() == max(round(0.2 * rows), rows > 1)


@settings(max_examples=50)
@given(rows=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), min_size=1, max_size=80), seed=st.integers(0, 9))
def test_a_slice_is_of_whole_groups_and_leaves_half_of_every_class(rows: list[tuple[int, int]], seed: int) -> None:
    labels, groups = np.array(rows).T
    held = stratified(labels, groups, 0.2, seed)
    for group in set(groups.tolist()):
        assert len(set(held[groups == group].tolist())) == 1
    for label in set(labels.tolist()):
        assert held[labels == label].mean() <= 0.5


def test_words_of_a_file_do_not_decide_the_strength() -> None:
    """Each file has a word of its own that gives its class away, on rows of the same file only."""
    files = np.repeat(np.arange(60), 8)
    labels, test = files % 2, files >= 40
    of = Task(np.arange(len(files)), labels, test, files, ("a", "b"))
    words = np.eye(60, dtype=np.float32)[files] + 0.01 * np.random.default_rng(0).normal(size=(480, 60))
    by_file = run(of, {"words": words.astype(np.float32)}).scores["pretrained"]
    by_row = run(replace(of, groups=of.rows), {"words": words.astype(np.float32)}).scores["pretrained"]
    assert by_row and by_row.slice_accuracy == 1.0
    assert by_file and by_file.slice_accuracy and by_file.slice_accuracy < 0.8  # as on the test part: files are new


def test_draws_differ() -> None:
    labels = np.zeros(1000, np.int64)
    assert shots(labels, 5, 0, 0).tolist() != shots(labels, 5, 1, 0).tolist()


def test_standardising_looks_at_the_training_part_alone() -> None:
    values, train = noise(task()) * 5 + 2, ~task().test
    changed = values.copy()
    changed[~train] *= 1000
    first, second = standardise(values, train), standardise(changed, train)
    np.testing.assert_array_equal(first[train], second[train])
    np.testing.assert_allclose(first[train].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(first[train].std(0), 1, atol=1e-5)


def test_a_bag_of_tokens_stays_sparse_and_forgets_words_of_every_document() -> None:
    counts = csr_array(np.array([[3, 1, 0], [1, 0, 2], [2, 0, 0]], np.float32))
    found = standardise(counts, np.array([True, True, False]))
    assert isinstance(found, csr_array)
    dense = found.toarray()
    assert np.all(dense[:, 0] == 0) and np.all(np.isfinite(dense))
    np.testing.assert_allclose(np.linalg.norm(dense[:2], axis=1), module.DOCUMENT_LENGTH, rtol=1e-5)


def test_the_random_encoder_is_the_mean_of_its_seeds() -> None:
    of = task(rows=400)
    seeds = [{"mean": telling(of, noise=level, seed=5), "other": noise(of)} for level in (1.0, 1.5, 4.0)]
    asked = []

    def one_after_the_other() -> Iterator[dict[str, np.ndarray]]:
        for number, features in enumerate(seeds):
            asked.append(number)
            yield features

    config = CONFIG.model_copy(update={"seeds": 3})
    report = probe({"mean": telling(of)}, one_after_the_other(), noise(of), of, config)
    score = report.scores["random_init"]
    assert score and asked == [0, 1, 2]
    alone = [probe({"mean": telling(of)}, [each], noise(of), of, CONFIG).scores["random_init"] for each in seeds]
    assert score.feature == "mean" and score.correct.shape == (3, len(of.tested))
    assert score.accuracy == pytest.approx(np.mean([each.accuracy for each in alone if each]), abs=0.03)
    first = alone[0]
    assert first and np.array_equal(score.predicted, first.predicted)
    gain, sure = (
        report.gains["random_init"],
        paired(report.scores["pretrained"].correct, score.correct, of.tested_groups),
    )
    assert gain == sure and gain.high - gain.low > first.high - first.low  # seeds that differ are paid for


def test_few_shots_of_several_seeds_are_dealt_to_them_in_turn() -> None:
    of = task()
    good, blind = {"mean": telling(of, noise=0.1)}, {"mean": np.zeros((len(of.labels), 3), np.float32)}
    report = probe(good, [good, blind], noise(of), of, CONFIG.model_copy(update={"seeds": 2}))
    score = report.scores["random_init"]
    assert score
    shares = score.curve[0].correct.mean(axis=1)
    assert shares[0] > 0.9 and shares[1] < 0.5 and shares[2] > 0.9


def test_rows_of_a_group_do_not_count_as_many() -> None:
    """Each file has one answer, right or wrong: forty rows of it say no more than one."""
    files = np.repeat(np.arange(60), 20)
    of = Task(np.arange(1200), files % 2, files >= 30, files, ("a", "b"))
    by_file = np.random.default_rng(0).normal(size=(60, 3))[files].astype(np.float32)
    grouped = run(of, {"mean": by_file}).scores["pretrained"]
    alone = run(replace(of, groups=of.rows), {"mean": by_file}).scores["pretrained"]
    assert grouped and alone and grouped.accuracy == pytest.approx(alone.accuracy, abs=0.1)
    assert grouped.high - grouped.low > 3 * (alone.high - alone.low)


def test_a_validation_loss_that_rose_is_said() -> None:
    said = overfitted([(100, 4.9), (200, 4.62), (300, 5.5), (400, 6.66)])
    assert said and "rose from 4.620 at step 200 to 6.660 at step 400" in said
    assert overfitted([(100, 4.9), (200, 4.62), (300, 4.7)]) is None
    assert overfitted([]) is None and overfitted([(1, float("nan"))]) is None
    losses = [(1, 1.0), (2, 2.0)]
    report = probe({"mean": telling(task())}, [{"mean": noise(task())}], noise(task()), task(), CONFIG, losses=losses)
    assert any("overfitted" in warning for warning in report.warnings)


def test_zero_shot_counts_test_rows_and_the_map_shows_them() -> None:
    of = task()
    told = of.tested.copy()
    told[: len(told) // 2] += 1
    features = {"mean": telling(of)}
    report = probe(features, [{"mean": noise(of)}], noise(of), of, CONFIG, zero_shot=told)
    share = report.zero_shot
    assert share and share.accuracy == 1 - (len(told) // 2) / len(told)
    assert share.low < share.accuracy < share.high
    assert report.plane is not None and report.plane.shape == (len(told), 2)
    assert run(of).zero_shot is None
