"""Intervals against published numbers and against simulations of corpora whose truth is known; neighbours against a
loop, rank against its definition."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import norm

from ssl_models.probing.geometry import knn_accuracy, knn_votes, principal_plane, rank_me
from ssl_models.probing.intervals import FEWEST_GROUPS, paired, proportion, wilson

NORMAL = 1.959963984540054
SIMULATIONS = 1000


def even(groups: int, rows: int) -> np.ndarray:
    return np.repeat(np.arange(groups), rows)


def uneven(groups: int, generator: np.random.Generator) -> np.ndarray:
    """A few groups hold most of the rows: sizes are log-normal with a deviation of 1, about 40 on average."""
    return np.repeat(np.arange(groups), np.ceil(24 * generator.lognormal(0, 1, groups)).astype(int))


def one_encoder(of: np.ndarray, generator: np.random.Generator, share: float = 0.6, alike: float = 0.2) -> np.ndarray:
    """Correct answers, whose share differs from group to group around `share` with an intraclass correlation."""
    spread = (1 - alike) / alike
    shares = generator.beta(share * spread, (1 - share) * spread, of.max() + 1)
    return generator.random(len(of)) < shares[of]


def equals(of: np.ndarray, generator: np.random.Generator, encoders: int = 2) -> np.ndarray:
    """Correct answers `[encoders, rows]` of equally good encoders: groups are hard for all, and for each a bit so."""
    hard = generator.normal(0, 1, of.max() + 1)
    own = generator.normal(0, 0.5, (encoders, of.max() + 1))
    return generator.random((encoders, len(of))) < expit((0.5 + hard + own)[:, of])


def coverage(share: float, groups: int, rows: int | None) -> float:
    """How often the interval of an accuracy holds the truth; `rows` None: uneven groups."""
    generator = np.random.default_rng(1)
    held = 0
    for _ in range(SIMULATIONS):
        of = even(groups, rows) if rows else uneven(groups, generator)
        low, high = proportion(one_encoder(of, generator, share), of)
        held += low <= share <= high
    return held / SIMULATIONS


def rejections(groups: int, rows: int | None) -> float:
    """How often equal encoders are told apart."""
    generator = np.random.default_rng(2)
    told = 0
    for _ in range(SIMULATIONS):
        of = even(groups, rows) if rows else uneven(groups, generator)
        gain = paired(*equals(of, generator), of)
        told += gain.low > 0 or gain.high < 0
    return told / SIMULATIONS


def test_an_accuracy_of_fifty_groups_of_forty_rows_is_held_as_often_as_said() -> None:
    assert 0.93 <= coverage(0.6, 50, 40) <= 0.97
    assert 0.93 <= coverage(0.9, 50, 40) <= 0.97


def test_equal_encoders_on_fifty_groups_are_told_apart_as_rarely_as_said() -> None:
    assert 0.025 <= rejections(50, 40) <= 0.075


@pytest.mark.parametrize(("groups", "rows"), [(10, 40), (50, None), (10, None)])
def test_few_and_uneven_groups_stay_sane(groups: int, rows: int | None) -> None:
    assert 0.93 <= coverage(0.6, groups, rows) <= 0.98
    assert 0.02 <= rejections(groups, rows) <= 0.075


def test_the_luck_of_a_seed_is_paid_for() -> None:
    """An encoder as good as random ones are on average, beside five of them: some seeds are better than others."""
    generator, told = np.random.default_rng(3), 0
    of, luck = even(50, 10), norm.ppf((np.arange(20) + 0.5) / 20)
    for _ in range(SIMULATIONS):
        hard = 0.5 + generator.normal(0, 1, 50)[of]
        alike = expit(hard + 0.3 * luck[:, None]).mean(axis=0)
        seeds = expit(hard + generator.normal(0, 0.3, 5)[:, None])
        gain = paired(generator.random(len(of)) < alike, generator.random(seeds.shape) < seeds, of)
        told += gain.low > 0 or gain.high < 0
    assert 0.02 <= told / SIMULATIONS <= 0.075


@settings(max_examples=40)
@given(rows=st.integers(30, 3000), share=st.floats(0, 1))
def test_rows_that_are_groups_of_their_own_have_wilsons_interval(rows: int, share: float) -> None:
    correct = np.arange(rows) < round(share * rows)
    np.testing.assert_allclose(
        proportion(correct, np.arange(rows)), wilson(correct.mean(), rows, NORMAL), atol=0.6 / rows
    )


def test_a_group_is_worth_no_more_than_a_row_where_its_rows_are_copies() -> None:
    answers = np.random.default_rng(0).random(60) < 0.7
    copies = proportion(np.repeat(answers, 25), even(60, 25))
    np.testing.assert_allclose(copies, proportion(answers, np.arange(60)), atol=1e-3)


def test_draws_that_disagree_widen_the_interval() -> None:
    generator = np.random.default_rng(0)
    of = np.arange(500)
    alike = np.tile(generator.random(500) < 0.6, (3, 1))
    differing = np.stack([generator.random(500) < share for share in (0.5, 0.6, 0.7)])
    widths = [np.ptp(proportion(scores, of)) for scores in (alike[0], alike, differing)]
    assert widths[0] == pytest.approx(widths[1], rel=1e-6) and widths[2] > 2 * widths[1]


def test_wilson_gives_the_published_interval() -> None:
    # R: prop.test(15, 148, correct = FALSE); Newcombe 1998, table I.
    assert wilson(15 / 148, 148, NORMAL) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(81 / 263, 263, NORMAL) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_wilson_at_the_edges() -> None:
    assert wilson(0.0, 0, NORMAL) == (0.0, 1.0)
    assert wilson(0.0, 20, NORMAL) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(1.0, 20, NORMAL)[1] == 1.0


@settings(max_examples=60)
@given(
    groups=st.lists(st.integers(0, 12), min_size=1, max_size=80),
    seed=st.integers(0, 99),
    share=st.sampled_from([0, 0.5, 1]),
)
def test_an_interval_holds_its_mean_whatever_the_groups(groups: list[int], seed: int, share: float) -> None:
    generator = np.random.default_rng(seed)
    correct, other = generator.random((2, len(groups))) < share
    low, high = proportion(correct, groups)
    assert 0 <= low <= correct.mean() + 1e-9 and correct.mean() - 1e-9 <= high <= 1
    gain = paired(correct, other, groups)
    assert -1 <= gain.low <= gain.mean <= gain.high <= 1 and 0 <= gain.p <= 1
    if len(set(groups)) < FEWEST_GROUPS:
        assert (low, high, gain.low, gain.high, gain.p) == (0, 1, -1, 1, 1)


def test_a_pair_agrees_with_the_normal_approximation() -> None:
    generator = np.random.default_rng(3)
    first, second = generator.random(2000) < 0.8, generator.random(2000) < 0.6
    gain = paired(first, second, np.arange(2000))
    difference = first.astype(float) - second.astype(float)
    error = difference.std() / math.sqrt(2000)
    assert gain.mean == pytest.approx(difference.mean())
    assert gain.low == pytest.approx(difference.mean() - 1.96 * error, abs=0.001)
    assert gain.high == pytest.approx(difference.mean() + 1.96 * error, abs=0.001)
    assert gain.significant and gain.p < 0.01


def test_a_pair_of_equals_finds_nothing_and_is_not_sure_of_it() -> None:
    same = np.arange(20) % 3 == 0
    gain = paired(same, same, np.arange(20))
    assert (gain.mean, gain.p) == (0.0, 1.0)
    assert gain.low < 0 < gain.high and not gain.significant


def test_rows_that_do_not_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="same rows"):
        paired([1, 0], [1, 0, 1], [0, 1, 2])
    with pytest.raises(ValueError, match="at least one"):
        paired([], [], [])


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
