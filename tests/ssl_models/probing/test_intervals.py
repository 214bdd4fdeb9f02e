"""Intervals against published numbers, neighbours against a loop, rank against its definition."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_models.probing.geometry import knn_accuracy, knn_votes, principal_plane, rank_me
from ssl_models.probing.intervals import paired_bootstrap, wilson


def test_wilson_gives_the_published_interval() -> None:
    # R: prop.test(15, 148, correct = FALSE); Newcombe 1998, table I.
    low, high = wilson(15, 148)
    assert (round(low, 4), round(high, 4)) == (0.0624, 0.1605)
    low, high = wilson(81, 263)
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)


def test_wilson_at_the_edges() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 20)[0] == 0.0
    assert round(wilson(0, 20)[1], 4) == 0.1611
    assert wilson(20, 20)[1] == 1.0


@given(rows=st.integers(1, 10_000), share=st.floats(0, 1))
def test_wilson_holds_the_proportion(rows: int, share: float) -> None:
    correct = round(share * rows)
    low, high = wilson(correct, rows)
    assert 0 <= low <= correct / rows + 1e-12 and correct / rows - 1e-12 <= high <= 1


def test_bootstrap_agrees_with_the_normal_approximation() -> None:
    generator = np.random.default_rng(3)
    first, second = generator.random(2000) < 0.8, generator.random(2000) < 0.6
    gain = paired_bootstrap(first, second)
    difference = first.astype(float) - second.astype(float)
    error = difference.std() / math.sqrt(2000)
    assert gain.mean == pytest.approx(difference.mean())
    assert gain.low == pytest.approx(difference.mean() - 1.96 * error, abs=0.004)
    assert gain.high == pytest.approx(difference.mean() + 1.96 * error, abs=0.004)
    assert gain.significant and gain.p < 0.01


def test_bootstrap_of_equals_finds_nothing() -> None:
    same = np.array([1, 0, 1, 1, 0])
    gain = paired_bootstrap(same, same)
    assert (gain.mean, gain.low, gain.high, gain.p) == (0.0, 0.0, 0.0, 1.0)
    assert not gain.significant


def test_bootstrap_is_seeded() -> None:
    first, second = np.arange(50) % 3 == 0, np.arange(50) % 4 == 0
    assert paired_bootstrap(first, second, seed=1) == paired_bootstrap(first, second, seed=1)


def test_bootstrap_refuses_rows_that_do_not_pair() -> None:
    with pytest.raises(ValueError, match="same rows"):
        paired_bootstrap([1, 0], [1, 0, 1])
    with pytest.raises(ValueError, match="at least one"):
        paired_bootstrap([], [])


def test_neighbours_vote_by_cosine_not_by_length() -> None:
    bank = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 5.0]])
    labels = torch.tensor([0, 0, 1])
    queries = torch.tensor([[100.0, 1.0], [0.01, 0.5]])
    assert knn_votes(bank, labels, queries, neighbours=1).tolist() == [[1, 0], [0, 1]]


def test_a_nearer_neighbour_outvotes_two_farther_ones() -> None:
    bank = torch.tensor([[1.0, 0.0], [0.7, 0.7], [0.7, 0.72]])
    votes = knn_votes(bank, torch.tensor([1, 0, 0]), torch.tensor([[1.0, 0.01]]), neighbours=3)
    assert votes.argmax(dim=1).tolist() == [1] and float(votes.sum()) == pytest.approx(1)


def test_leave_one_out_never_asks_the_row_itself() -> None:
    features = torch.eye(4)[[0, 0, 1, 1]] + torch.tensor([[0.0], [0.1], [0.0], [0.1]])
    assert knn_accuracy(features, torch.tensor([0, 0, 1, 1]), neighbours=1) == 1.0
    assert knn_accuracy(features, torch.tensor([0, 1, 2, 3]), neighbours=1) == 0.0


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(2, 40), chunk=st.integers(1, 50), k=st.integers(1, 60), seed=st.integers(0, 99))
def test_neighbours_do_not_depend_on_the_chunk(rows: int, chunk: int, k: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, 5, generator=generator)
    labels = torch.randint(0, 3, (rows,), generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ssl_models.probing.geometry.CHUNK", chunk)
        parted = knn_votes(features, labels, neighbours=k)
    torch.testing.assert_close(parted, knn_votes(features, labels, neighbours=k))


@pytest.mark.parametrize("first", [0, 1])
def test_neighbours_that_tie_are_right_as_often_as_a_coin(first: int) -> None:
    features = torch.eye(3)[[0, 1, 1, 2, 2]]
    features[0] = 1  # as near to the one pair as to the other
    labels = torch.tensor([first, 0, 0, 1, 1])
    assert knn_accuracy(features, labels, neighbours=4) == pytest.approx((4 + 0.5) / 5)


@pytest.mark.parametrize("order", ["sorted", "mixed"])
def test_neighbours_of_collapsed_features_are_right_by_chance(order: str) -> None:
    labels = torch.arange(200) // 20 if order == "sorted" else torch.arange(200) % 10
    assert knn_accuracy(torch.ones(200, 8), labels) == pytest.approx(0.1, abs=0.05)


def test_rows_without_a_label_are_left_out() -> None:
    features, labels = torch.eye(3), torch.tensor([-1, -1, 0])
    assert math.isnan(knn_accuracy(features, labels))
    assert math.isnan(knn_accuracy(torch.full((4, 2), torch.nan), torch.zeros(4, dtype=torch.int64)))


def test_rank_of_equal_singular_values_is_their_number() -> None:
    assert rank_me(torch.eye(8)) == pytest.approx(8, abs=1e-4)


def test_rank_of_collapsed_features_is_one() -> None:
    assert rank_me(torch.ones(50, 16)) == pytest.approx(1, abs=1e-3)
    assert rank_me(torch.zeros(50, 16)) == pytest.approx(1, abs=1e-3)
    assert math.isnan(rank_me(torch.full((5, 2), torch.inf)))


def test_rank_follows_the_definition() -> None:
    # Singular values 3 and 1: shares 0.75 and 0.25; exp of their entropy.
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert rank_me(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(expected, abs=1e-5)


def test_the_map_keeps_the_distances_of_points_in_a_plane() -> None:
    flat = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 1.0])
    turned = torch.linalg.qr(torch.randn(7, 7, generator=torch.Generator().manual_seed(1))).Q[:2]
    plane = principal_plane(flat @ turned + 5)
    torch.testing.assert_close(torch.cdist(plane, plane), torch.cdist(flat, flat), atol=1e-3, rtol=1e-3)
    assert plane[:, 0].var() > plane[:, 1].var()


@pytest.mark.parametrize("shape", [(1, 3), (5, 1), (4, 6)])
def test_the_map_of_few_or_narrow_features_is_filled_with_zeros(shape: tuple[int, int]) -> None:
    assert principal_plane(torch.ones(shape)).abs().max() < 1e-6
    assert principal_plane(torch.ones(shape)).shape == (shape[0], 2)
