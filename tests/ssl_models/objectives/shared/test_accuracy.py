"""Ties are broken at random, in expectation: against every order of the answers, and where everything is a tie."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_models.objectives.shared.accuracy import correct, recalled


def test_the_best_score_is_right_and_any_other_wrong():
    scores = torch.tensor([[0.1, 0.9, 0.5], [3.0, 1.0, 2.0], [-1.0, -2.0, -3.0]])
    assert correct(scores, torch.tensor([1, 2, 0])) == 2
    assert correct(scores, torch.tensor([1, -100, -1])) == 1


def test_any_dimensions_may_come_before_the_answers():
    scores = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(24).view(2, 3, 4) % 5
    assert correct(scores, targets) == (scores.argmax(-1) == targets).sum()


def test_equal_scores_are_those_of_guessing_whatever_the_target():
    for target in range(8):
        assert float(correct(torch.zeros(40, 8), torch.full((40,), target))) == pytest.approx(40 / 8)
    right = torch.eye(40, dtype=torch.bool)
    assert float(recalled(torch.ones(40, 40), right, 1)) == pytest.approx(1)
    assert float(recalled(torch.ones(40, 40), right, 5)) == pytest.approx(5)


@given(st.data(), st.integers(1, 6), st.integers(1, 7))
@settings(deadline=None, max_examples=60)
def test_recall_is_the_mean_over_all_orders_of_the_answers(data, answers, places):
    scores = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=answers, max_size=answers))).float()
    right = torch.tensor(data.draw(st.lists(st.booleans(), min_size=answers, max_size=answers)))
    right[data.draw(st.integers(0, answers - 1))] = True
    orders = list(itertools.permutations(range(answers)))
    best = [sorted(order, key=lambda answer: -scores[answer])[:places] for order in orders]  # a stable sort
    expected = sum(any(right[answer] for answer in chosen) for chosen in best) / len(orders)
    assert float(recalled(scores[None], right[None], places)) == pytest.approx(expected, abs=1e-6)
    if right.sum() == 1 and places == 1:
        assert float(correct(scores[None], right.int().argmax()[None])) == pytest.approx(expected, abs=1e-6)


def test_what_is_not_a_number_is_wrong():
    nothing = torch.full((3, 4), torch.nan)
    assert correct(nothing, torch.tensor([0, 1, 2])) == 0
    assert recalled(nothing, torch.eye(3, 4, dtype=torch.bool), 5) == 0
    partly = torch.tensor([[1.0, torch.nan, 0.0]])
    assert correct(partly, torch.tensor([0])) == 0
