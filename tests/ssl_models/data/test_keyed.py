import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_models.data import keyed

SAMPLES = torch.arange(1000)


def draws(stream=0, step=0, seed=0, count=1000):
    return keyed.uniform(keyed.keys(seed, step, SAMPLES), count, stream)


def correlation(a, b):
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def test_uniform_draws_fill_the_interval_evenly():
    values = draws()
    assert values.min() >= 0 and values.max() < 1
    counts = torch.histc(values, 100, 0, 1)
    chi_squared = float(((counts - 1e4) ** 2 / 1e4).sum())
    assert chi_squared < 99 + 4 * math.sqrt(2 * 99)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (draws(), draws(stream=1)),
        (draws(), draws(step=1)),
        (draws(), draws(seed=1)),
        (draws()[:-1], draws()[1:]),
        (draws()[:, :-1], draws()[:, 1:]),
    ],
    ids=["streams", "steps", "seeds", "samples", "draws"],
)
def test_draws_are_independent(first, second):
    assert abs(correlation(first, second)) < 4 / math.sqrt(first.numel())
    assert (first == second).float().mean() < 1e-5


def test_no_two_of_a_million_samples_share_a_key():
    assert len(keyed.keys(0, 0, torch.arange(10**6)).unique()) == 10**6


def test_samples_beyond_32_bits_have_keys_of_their_own():
    assert keyed.keys(0, 0, torch.tensor([5])) != keyed.keys(0, 0, torch.tensor([5 + 2**32]))


@given(st.integers(0, 2**31), st.integers(0, 2**32), st.lists(st.integers(0, 2**40), min_size=1, max_size=8))
@settings(max_examples=50, deadline=None)
def test_a_sample_draws_the_same_whatever_batch_it_is_in(seed, step, samples):
    together = keyed.normal(keyed.keys(seed, step, torch.tensor(samples)), 7, 3)
    alone = [keyed.normal(keyed.keys(seed, step, torch.tensor([sample])), 7, 3) for sample in samples]
    assert torch.equal(together, torch.cat(alone))


@given(st.integers(1, 300))
@settings(max_examples=20, deadline=None)
def test_permutations_hold_every_place_once(count):
    order = keyed.permutation(keyed.keys(0, 0, SAMPLES[:10]), count, 0)
    assert torch.equal(order.sort(dim=1).values, torch.arange(count).expand(10, -1))


def test_every_order_of_a_permutation_is_as_likely():
    order = keyed.permutation(keyed.keys(0, 0, torch.arange(60_000)), 3, 0)
    counts = (order * torch.tensor([9, 3, 1])).sum(1).bincount()
    counts = counts[counts > 0].float()
    assert len(counts) == 6
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 5 + 5 * math.sqrt(10)


def test_integers_are_uniform_below_their_bound_even_one_per_sample():
    key = keyed.keys(0, 0, SAMPLES)
    assert (keyed.integers(key, 1000, 7, 0).flatten().bincount().float() - 1e6 / 7).abs().max() < 5 * math.sqrt(1e6 / 7)
    bounds = 1 + SAMPLES[:, None] % 5
    values = keyed.integers(key, 200, bounds, 0)
    assert (values < bounds).all() and (values.amax(1) == bounds[:, 0] - 1).all()


def test_normal_draws_have_the_moments_of_a_normal():
    values = keyed.normal(keyed.keys(0, 0, SAMPLES), 1001, 0).double()
    size = math.sqrt(values.numel())
    assert values.shape == (1000, 1001)
    assert abs(values.mean()) < 4 / size
    assert abs(values.var() - 1) < 4 * math.sqrt(2) / size
    assert abs((values**3).mean()) < 4 * math.sqrt(15) / size
    assert abs((values**4).mean() - 3) < 4 * math.sqrt(96) / size


@pytest.mark.parametrize("rate", [0.3, 3.0, 50.0])
def test_poisson_draws_have_the_probabilities_of_a_poisson(rate):
    values = keyed.poisson(keyed.keys(0, 0, SAMPLES), 1000, rate, 0)
    size = math.sqrt(values.numel())
    assert abs(values.double().mean() - rate) < 4 * math.sqrt(rate) / size
    assert abs(values.double().var() - rate) < 4 * math.sqrt(rate + 2 * rate**2) / size
    for value in range(int(rate) + 3):
        probability = math.exp(value * math.log(rate) - rate - math.lgamma(value + 1))
        assert abs((values == value).double().mean() - probability) < 4 * math.sqrt(probability) / size


@pytest.mark.parametrize("rate", [0.0, -1.0, 101.0])
def test_a_poisson_rate_out_of_range_is_refused(rate):
    with pytest.raises(ValueError, match="Poisson rate"):
        keyed.poisson(keyed.keys(0, 0, SAMPLES[:1]), 1, rate, 0)
