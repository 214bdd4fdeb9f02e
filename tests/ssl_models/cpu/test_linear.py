"""`ssl_models.cpu.linear` computes what torch's own linear computes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from ssl_models.cpu import linear

SIZES = st.integers(1, 70)


def gradients(function, x, weight, bias):
    tensors = [t.clone().requires_grad_() for t in (x, weight, bias)]
    out = function(*tensors)
    out.backward(torch.linspace(-1, 1, out.numel()).view_as(out))
    return [out.detach(), *(tensor.grad for tensor in tensors)]


@given(SIZES, SIZES, SIZES, SIZES)
def test_values_and_gradients_are_those_of_torch(batch, tokens, inner, outer):
    torch.manual_seed(batch)
    x, weight, bias = torch.randn(batch, tokens, inner), torch.randn(outer, inner), torch.randn(outer)
    for ours, torchs in zip(
        gradients(linear.linear, x, weight, bias), gradients(functional.linear, x, weight, bias), strict=True
    ):
        torch.testing.assert_close(ours, torchs, atol=1e-3, rtol=1e-4)


def test_a_strided_input_and_a_broadcast_gradient_give_the_same():
    x = torch.randn(3, 5, 48)[..., ::3].requires_grad_()
    layer = linear.Linear(16, 8, bias=False)
    layer(x).sum().backward()
    torch.testing.assert_close(layer.weight.grad, x.detach().flatten(0, 1).sum(0).expand(8, 16))


def test_the_product_takes_transposes():
    a, b = torch.randn(7, 12), torch.randn(12, 5)
    torch.testing.assert_close(linear.product(a, b.T), a @ b)
    torch.testing.assert_close(linear.product(b.T, a), b.T @ a.T)


@pytest.mark.parametrize("x", [torch.zeros(0, 4), torch.zeros(4), torch.zeros(2, 4, dtype=torch.float64)])
def test_what_onednn_is_not_made_for_falls_back(x):
    weight = torch.ones(3, 4, dtype=x.dtype)
    assert linear.linear(x, weight).shape == (*x.shape[:-1], 3)


def test_autocast_is_obeyed():
    with torch.autocast("cpu", torch.bfloat16):
        assert linear.Linear(4, 3)(torch.zeros(2, 4)).dtype == torch.bfloat16


def test_no_gradient_is_made_for_what_needs_none():
    layer = linear.Linear(4, 3)
    layer.weight.requires_grad_(False)
    layer(torch.ones(2, 4)).sum().backward()
    assert layer.weight.grad is None and layer.bias.grad is not None


@given(SIZES, SIZES, SIZES)
def test_the_product_of_a_transpose_is_torchs_whichever_matrix_is_narrower(rows, left, right):
    torch.manual_seed(rows)
    a, b = torch.randn(rows, left), torch.randn(rows, right)
    torch.testing.assert_close(linear.transposed_product(a, b), a.T @ b, atol=1e-3, rtol=1e-4)
