import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ssl_models.cpu.rms_norm import RMSNorm


@given(st.lists(st.integers(1, 5), max_size=2), st.integers(1, 9), st.sampled_from([1e-6, 1e-2]), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_values_and_gradients_are_torchs(shape, width, eps, seed):
    torch.manual_seed(seed)
    ours, theirs = RMSNorm(width, eps=eps).double(), nn.RMSNorm(width, eps=eps).double()
    nn.init.normal_(ours.weight)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, *shape, width, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn_like(x)
    found = [torch.autograd.grad(norm(x), [x, norm.weight], upstream) for norm in (ours, theirs)]
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(*found)


def test_a_row_of_zeros_has_a_finite_gradient():
    norm = RMSNorm(4, eps=1e-6)
    x = torch.zeros(2, 4, requires_grad=True)
    norm(x).sum().backward()
    assert x.grad.isfinite().all()
