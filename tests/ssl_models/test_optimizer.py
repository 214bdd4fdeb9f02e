import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ssl_models.config import Train
from ssl_models.optimizer import Optimizer, hidden_matrices, schedule


def train(**changes: object) -> Train:
    return Train.model_validate({"steps": 100, "batch": 1, "warmup": 0.1, "final": 0.1, **changes})


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.blocks = nn.ModuleList([nn.ModuleDict({"mix": nn.Linear(4, 4), "norm": nn.LayerNorm(4)}) for _ in "ab"])
        self.head = nn.Linear(4, 5, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(ids)
        for block in self.blocks:
            x = x + block["mix"](block["norm"](x))
        return self.head(x)


def test_warm_up_is_linear_and_reaches_the_peak() -> None:
    rates = [schedule(train(), step) for step in range(11)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[4] == pytest.approx(0.5)
    assert rates[9] == rates[10] == 1.0


def test_cosine_ends_at_the_final_rate_half_way_at_the_middle() -> None:
    assert schedule(train(), 99) == pytest.approx(0.1)
    middle = train(steps=101, warmup=0)
    assert schedule(middle, 50) == pytest.approx(0.1 + 0.9 * 0.5)


def test_wsd_is_stable_until_its_decay() -> None:
    wsd = train(schedule="wsd", decay=0.2)
    assert [schedule(wsd, step) for step in (10, 50, 79, 80)] == [1.0] * 4
    assert schedule(wsd, 99) == pytest.approx(0.1)
    assert schedule(wsd, 85) > schedule(wsd, 86)


@given(st.integers(1, 300), st.floats(0, 0.99), st.floats(0.01, 1), st.floats(0, 1), st.sampled_from(["cosine", "wsd"]))
def test_every_rate_is_positive_at_most_the_peak_and_falls_after_warm_up(
    steps: int, warmup: float, decay: float, final: float, kind: str
) -> None:
    settings = train(steps=steps, warmup=warmup, decay=decay, final=final, schedule=kind)
    rates = [schedule(settings, step) for step in range(steps)]
    assert all(0 <= rate <= 1 and math.isfinite(rate) for rate in rates)
    after = rates[round(warmup * steps) :]
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(after))


def test_muon_takes_the_matrices_of_repeated_blocks_only() -> None:
    assert hidden_matrices(Blocks()) == {"blocks.0.mix.weight", "blocks.1.mix.weight"}


def test_only_weights_of_two_or_more_dimensions_decay() -> None:
    model = Blocks()
    optimizer = Optimizer(model, train(weight_decay=0.5, learning_rate=0.1, warmup=0))
    before = {name: value.clone() for name, value in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(0)
    for name, value in model.named_parameters():
        factor = 1 - 0.1 * 0.5 if value.ndim >= 2 else 1.0
        torch.testing.assert_close(value.data, before[name] * factor)


def steps(model: Blocks, optimizer: Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        torch.manual_seed(step)
        ids = torch.randint(5, (3, 2))
        nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
        optimizer.step(step)
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_an_optimizer_that_takes_over_a_state_goes_on_to_the_same_bytes(kind: str) -> None:
    torch.manual_seed(0)
    whole = Blocks()
    first = Blocks()
    first.load_state_dict(whole.state_dict())
    settings = train(optimizer=kind)
    steps(whole, Optimizer(whole, settings), 0, 6)
    before = Optimizer(first, settings)
    steps(first, before, 0, 3)
    state = {name: value.clone() for name, value in before.state().items()}
    second = Blocks()
    second.load_state_dict(first.state_dict())
    after = Optimizer(second, settings)
    after.load(state)
    steps(second, after, 3, 6)
    torch.testing.assert_close(second.state_dict(), whole.state_dict(), rtol=0, atol=0)
    if kind == "muon":
        assert "blocks.0.mix.weight/momentum_buffer" in state
        assert "head.weight/exp_avg" in state


def test_the_learning_rate_that_is_returned_is_adamws() -> None:
    model = Blocks()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert Optimizer(model, train(learning_rate=0.5, optimizer="muon")).step(0) == pytest.approx(0.05)
