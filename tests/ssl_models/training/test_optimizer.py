import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ssl_models.config import Backbone, Train
from ssl_models.models.presets import resolve
from ssl_models.models.transformer import Transformer
from ssl_models.training import optimizer as optimizers
from ssl_models.training.optimizer import Muon, Optimizer, hidden_matrices, orthogonal, schedule


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


def test_constant_stays_at_the_peak_and_warm_up_may_be_given_in_steps() -> None:
    constant = train(schedule="constant", warmup=4)
    assert [schedule(constant, step) for step in (0, 3, 4, 50, 99)] == [0.25, 1.0, 1.0, 1.0, 1.0]
    assert train(schedule="constant", warmup=4, steps=1000).warmup_steps == 4


SCHEDULES = st.sampled_from(["cosine", "wsd", "constant"])


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 20), st.floats(0.01, 1), SCHEDULES)
def test_a_longer_training_has_the_stable_steps_of_a_shorter_one_in_common_with_it(
    steps: int, more: int, warmup: int, decay: float, kind: str
) -> None:
    short = train(steps=steps, warmup=warmup if warmup != 0 else 0.0, decay=decay, schedule=kind)
    longer = short.model_copy(update={"steps": steps + more})
    common = min(short.stable_steps, longer.stable_steps)
    assert [schedule(short, step) for step in range(common)] == [schedule(longer, step) for step in range(common)]
    assert (short.stable_steps == 0) == (kind == "cosine") or kind == "wsd"


@given(st.integers(1, 300), st.floats(0, 0.99), st.floats(0.01, 1), st.floats(0, 1), SCHEDULES)
def test_every_rate_is_positive_at_most_the_peak_and_falls_after_warm_up(
    steps: int, warmup: float, decay: float, final: float, kind: str
) -> None:
    settings = train(steps=steps, warmup=warmup, decay=decay, final=final, schedule=kind)
    rates = [schedule(settings, step) for step in range(steps)]
    assert all(0 <= rate <= 1 and math.isfinite(rate) for rate in rates)
    after = rates[round(warmup * steps) :]
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(after))


def test_muon_takes_the_matrices_of_repeated_blocks_only() -> None:
    assert hidden_matrices(Blocks()) == {"blocks.0.mix.weight": (4,), "blocks.1.mix.weight": (4,)}


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


@given(st.integers(1, 3), st.integers(1, 24), st.integers(1, 24), st.integers(0, 99))
def test_an_orthogonal_matrix_has_the_singular_vectors_of_its_source_and_values_near_1(
    count: int, rows: int, columns: int, seed: int
) -> None:
    matrices = torch.randn(count, rows, columns, generator=torch.Generator().manual_seed(seed))
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    found = orthogonal(matrices, (3.4445, -4.775, 2.0315), 5, 1e-7).float()
    seen = left.mT @ found @ right.mT
    diagonal = torch.diagonal(seen, dim1=1, dim2=2)
    assert (seen - torch.diag_embed(diagonal)).abs().max() < 0.1
    assert diagonal.max() < 1.35
    assert diagonal[values > 0.05 * values.amax(1, keepdim=True)].min() > 0.5


@pytest.mark.parametrize("together", [2**26, 1])
def test_muon_on_all_matrices_at_once_is_torchs_on_one_at_a_time(
    together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimizers, "AT_ONCE", together)
    torch.manual_seed(0)
    shapes = [(16, 16), (16, 48), (48, 16), (16, 16), (48, 16)]
    ours = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    settings = {"lr": 0.1, "weight_decay": 0.1, "momentum": 0.95}
    pair = Muon(ours, {}, **settings), torch.optim.Muon(theirs, **settings)
    for _ in range(3):
        for mine, peer in zip(ours[:-1], theirs[:-1], strict=True):  # the last has no gradient
            mine.grad = torch.randn_like(mine)
            peer.grad = mine.grad.clone()
        for optimizer in pair:
            optimizer.step()
    for mine, peer in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, peer, rtol=0, atol=0.01)  # bfloat16: an update is rounded at 0.1 * 2**-8
    assert ours[-1] not in pair[0].state


@pytest.mark.parametrize(
    ("preset", "fields", "fused"),
    [
        ("llama", {"kv_heads": 2}, {"attention.qkv": (32, 16, 16), "mlp.up": (96, 96)}),
        ("t5", {}, {"attention.qkv": (32, 32, 32), "cross_attention.kv": (32, 32), "mlp.up": (96, 96)}),
        ("gpt2", {}, {"attention.qkv": (32, 32, 32), "mlp.up": (128,)}),
    ],
)
def test_fused_layers_are_as_many_matrices_to_muon_as_were_fused(
    preset: str, fields: dict[str, int], fused: dict[str, tuple[int, ...]]
) -> None:
    torch.manual_seed(0)
    small = {"layers": 1, "width": 32, "heads": 4, **fields}
    model = Transformer(resolve(Backbone.model_validate({"preset": preset, **small}), vocabulary=9, context=8))
    parts = hidden_matrices(model)
    for layer, rows in fused.items():
        assert {value for name, value in parts.items() if name.endswith(f"0.{layer}.weight")} == {rows}
    settings = {"lr": 0.1, "weight_decay": 0.1, "momentum": 0.95}
    optimizer = Optimizer(model, train(optimizer="muon", muon_learning_rate=0.1, weight_decay=0.1, warmup=0))
    named = {name: value for name, value in model.named_parameters() if name in parts}
    apart = {name: [nn.Parameter(m.clone()) for m in p.data.split(parts[name])] for name, p in named.items()}
    theirs = torch.optim.Muon([matrix for matrices in apart.values() for matrix in matrices], **settings)
    for step in range(3):
        for name, parameter in named.items():
            parameter.grad = torch.randn_like(parameter)
            for matrix, gradient in zip(apart[name], parameter.grad.split(parts[name]), strict=True):
                matrix.grad = gradient.clone()
        optimizer.step(step)
        theirs.step()
    for name, parameter in named.items():
        torch.testing.assert_close(parameter.data, torch.cat([m.data for m in apart[name]]), rtol=0, atol=0.01)
