import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from ssl_models.objectives.shared import cross_entropy
from ssl_models.objectives.shared.cross_entropy import IGNORE, evaluate, linear_cross_entropy


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(cross_entropy, "chunk_rows", lambda vocabulary, device: 7)


def example(positions, vocabulary, bias, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(positions, 12, generator=generator, dtype=dtype)
    weight = torch.randn(vocabulary, 12, generator=generator, dtype=dtype)
    offset = torch.randn(vocabulary, generator=generator, dtype=dtype) if bias else None
    targets = torch.randint(vocabulary, (positions,), generator=generator)
    targets[torch.rand(positions, generator=generator) < 0.3] = IGNORE
    return [None if value is None else value.requires_grad_() for value in (hidden, weight, offset)], targets


def gradients(loss, inputs):
    return torch.autograd.grad(loss * 0.37, [value for value in inputs if value is not None])


@given(st.integers(1, 40), st.integers(1, 50), st.booleans())
@settings(max_examples=40, deadline=None)
def test_loss_and_gradients_equal_those_of_plain_cross_entropy(positions, vocabulary, bias):
    inputs, targets = example(positions, vocabulary, bias, dtype=torch.float64)
    plain = F.cross_entropy(F.linear(*inputs), targets, ignore_index=IGNORE, reduction="sum")
    ours = linear_cross_entropy(*inputs, targets)
    torch.testing.assert_close(ours.double(), plain, rtol=1e-6, atol=1e-6)
    for made, expected in zip(gradients(ours, inputs), gradients(plain, inputs), strict=True):
        torch.testing.assert_close(made, expected, rtol=1e-6, atol=1e-5)


def test_a_tied_matrix_receives_the_gradients_of_both_its_uses():
    (_, weight, _), targets = example(30, 20, False)
    tokens = torch.randint(20, (30,))
    plain = F.cross_entropy(F.linear(weight[tokens], weight), targets, ignore_index=IGNORE, reduction="sum")
    ours = linear_cross_entropy(weight[tokens], weight, None, targets)
    torch.testing.assert_close(*(torch.autograd.grad(loss, weight)[0] for loss in (ours, plain)))


def test_leading_dimensions_are_flattened():
    (hidden, weight, bias), targets = example(24, 9, True)
    cube = linear_cross_entropy(hidden.view(4, 6, 12), weight, bias, targets.view(4, 6))
    torch.testing.assert_close(cube, linear_cross_entropy(hidden, weight, bias, targets))


def test_where_nothing_is_predicted_loss_and_gradients_are_zero():
    inputs, targets = example(20, 9, True)
    loss = linear_cross_entropy(*inputs, torch.full_like(targets, IGNORE))
    assert loss == 0
    assert all((gradient == 0).all() for gradient in gradients(loss, inputs))


def test_huge_logits_do_not_overflow():
    (hidden, weight, _), targets = example(20, 9, False)
    inputs = [(hidden * 1e4).detach().requires_grad_(), weight]
    loss = linear_cross_entropy(*inputs, None, targets)
    assert loss.isfinite() and all(gradient.isfinite().all() for gradient in gradients(loss, inputs))


def test_bfloat16_autocast_stays_near_float32_and_gives_float32_gradients():
    inputs, targets = example(30, 20, True)
    plain = linear_cross_entropy(*inputs, targets)
    with torch.autocast("cpu", torch.bfloat16):
        ours = linear_cross_entropy(*inputs, targets)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, plain, rtol=0.02, atol=0.1)
    for made, expected in zip(gradients(ours, inputs), gradients(plain, inputs), strict=True):
        assert made.dtype == torch.float32
        assert F.cosine_similarity(made.flatten(), expected.flatten(), 0) > 0.999


def test_the_share_of_a_micro_batch_is_not_rounded_to_bfloat16():
    (hidden, weight, _), targets = example(30, 20, False)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, None, targets)
    whole, share = (torch.autograd.grad(loss * factor, hidden, retain_graph=True)[0] for factor in (1.0, 1.503))
    assert (share * whole).sum() / (whole * whole).sum() == pytest.approx(1.503, abs=1e-3)


def test_a_chunk_of_a_large_vocabulary_is_a_power_of_two(monkeypatch):
    monkeypatch.undo()
    for vocabulary in (50, 4096, 50257, 50304, 128_000, 10**9):
        rows = {kind: cross_entropy.chunk_rows(vocabulary, torch.device(kind)) for kind in ("cpu", "cuda")}
        assert all(count >= 64 and count & (count - 1) == 0 for count in rows.values())
        assert rows["cuda"] * vocabulary <= 2**29 or rows["cuda"] == 64


def test_evaluation_gives_the_same_loss_and_counts_the_likeliest():
    (hidden, weight, bias), targets = example(30, 5, True)
    loss, correct = evaluate(hidden, weight, bias, targets)
    torch.testing.assert_close(loss, linear_cross_entropy(hidden, weight, bias, targets).detach())
    assert correct == (F.linear(hidden, weight, bias).argmax(1) == targets).sum()
    with torch.no_grad():
        assert linear_cross_entropy(hidden, weight, bias, targets) == loss


def test_the_logits_of_a_large_vocabulary_are_never_held_whole(monkeypatch):
    largest = 0
    log_softmax = torch.Tensor.log_softmax

    def watched(self, *args, **kwargs):
        nonlocal largest
        largest = max(largest, self.numel())
        return log_softmax(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "log_softmax", watched)
    inputs, targets = example(100, 300, False)
    linear_cross_entropy(*inputs, targets).backward()
    assert largest == 7 * 300
