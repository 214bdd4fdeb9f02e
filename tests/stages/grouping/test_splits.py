import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from stages.grouping.splits import PROBE_TEST, PROBE_TRAIN, TRAIN, VALIDATION, Fractions, Groups, assign, beyond, keys


def grouped(rows, labels=None, size=None) -> Groups:
    """`labels[g]` maps a class to the labelled rows of group `g`."""
    pairs = [(group, c, n) for group, held in enumerate(labels or []) for c, n in held.items()]
    return Groups(
        rows=np.array(rows, np.int64),
        size=np.array(size or rows, np.int64),
        label_pairs=np.array(pairs, np.int64).reshape(-1, 3),
        classes=1 + max((c for _, c, _ in pairs), default=-1),
    )


@st.composite
def corpora(draw):
    rows = draw(st.lists(st.integers(1, 50), min_size=1, max_size=60))
    labels = [
        draw(st.dictionaries(st.integers(0, 4), st.integers(1, 10), max_size=3)) if draw(st.booleans()) else {}
        for _ in rows
    ]
    rows = [max(n, sum(held.values())) for n, held in zip(rows, labels, strict=True)]
    return grouped(rows, labels)


@given(corpora(), st.floats(0.001, 0.5), st.floats(0, 0.5), st.floats(0.1, 0.9))
def test_something_is_always_left_to_train_on_and_to_validate(groups, validation, probe, test):
    split = assign(groups, Fractions(validation=validation, probe=probe, test=test))
    assert (split == TRAIN).any()
    assert (split == VALIDATION).any() == (len(split) > 1)
    assert (split == PROBE_TRAIN).any() == (split == PROBE_TEST).any()


@given(corpora())
def test_only_groups_with_a_label_are_probed(groups):
    split = assign(groups, Fractions())
    assert set(np.flatnonzero(split >= PROBE_TRAIN)) <= set(groups.label_pairs[:, 0])


def test_many_small_groups_hit_the_fractions_in_every_class():
    labels = [{group % 4: 1} for group in range(8000)]
    split = assign(grouped([1] * 8000, labels), Fractions(validation=0.05, probe=0.2, test=0.25))
    assert abs((split == VALIDATION).sum() - 400) <= 1
    for c in range(4):
        mine = split[c::4]
        assert abs((mine == PROBE_TRAIN).sum() - 300) <= 1 and abs((mine == PROBE_TEST).sum() - 100) <= 1


def test_sixteen_large_groups_come_near_the_fractions():
    labels = [{0: 60, 1: 40} for _ in range(16)]
    split = assign(grouped([100] * 16, labels), Fractions(validation=0.02, probe=0.25))
    assert [(split == code).sum() for code in range(4)] == [11, 1, 2, 2]


def test_one_group_larger_than_all_others_trains():
    labels = [{0: 1000}] + [{0: 5, 1: 5}] * 20
    split = assign(grouped([1000] + [10] * 20, labels), Fractions())
    assert split[0] == TRAIN


def test_every_class_of_two_groups_is_in_both_parts():
    labels = [{c: 1} for c in range(10) for _ in range(2)] + [{10: 1}] * 60
    split = assign(grouped([1] * 80, labels), Fractions(probe=0.1))
    for c in range(10):
        assert sorted(split[2 * c : 2 * c + 2]) == [PROBE_TRAIN, PROBE_TEST]


def test_the_limit_of_probe_rows_holds():
    split = assign(grouped([1] * 1000, [{0: 1}] * 1000), Fractions(probe=0.5, probe_rows=100))
    assert (split >= PROBE_TRAIN).sum() == 100


def test_a_corpus_without_labels_has_no_probe():
    assert set(assign(grouped([1] * 100), Fractions())) == {TRAIN, VALIDATION}


def test_few_labels_among_many_rows_are_probed():
    labels = [{group % 2: 1} if group < 20 else {} for group in range(1000)]
    split = assign(grouped([1] * 1000, labels), Fractions(probe=0.5))
    assert (split >= PROBE_TRAIN).sum() == 10 and (split[20:] < PROBE_TRAIN).all()


def test_validation_has_at_least_one_row_of_tokens():
    split = assign(grouped([1] * 100, size=[10] * 100), Fractions(validation=0.01), least=32)
    assert (split == VALIDATION).sum() in (3, 4)


@given(st.lists(st.text(max_size=20), unique=True, min_size=2, max_size=50), st.integers(0, 100))
def test_keys_tell_names_and_seeds_apart(names, seed):
    assert len(set(keys(names, seed).tolist())) == len(names)
    assert not np.array_equal(keys(names, seed), keys(names, seed + 1))


def test_a_corpus_that_grows_keeps_its_held_out_groups():
    def held(count):
        names = [f"file-{number}" for number in range(count)]
        hashed = keys(names, 0)
        order = np.argsort(hashed)
        split = assign(grouped([1] * count, [{0: 1}] * count), Fractions(probe=0.1))
        return {names[order[rank]] for rank in np.flatnonzero(split == PROBE_TEST)}

    before, after = held(2000), held(2020)
    assert len(before & after) > 0.75 * len(before)


@pytest.mark.parametrize("wrong", [{"validation": 0}, {"validation": 0.6}, {"probe": -1}, {"test": 1}, {"prob": 0.1}])
def test_fractions_out_of_range_are_refused(wrong):
    with pytest.raises(ValidationError):
        Fractions(**wrong)


@given(st.lists(st.integers(0, 6), max_size=60), st.integers(1, 5), st.randoms())
def test_of_a_group_the_rows_of_the_smallest_ids_stay_whatever_their_order(groups, most, random):
    ids = random.sample(range(1000), len(groups))
    left_out = beyond(np.array(groups, np.int64), np.array(ids, np.int64), most)
    for group in set(groups):
        mine = sorted(id_ for id_, of in zip(ids, groups, strict=True) if of == group)
        kept = [id_ for id_, of, out in zip(ids, groups, left_out, strict=True) if of == group and not out]
        assert sorted(kept) == mine[:most]
