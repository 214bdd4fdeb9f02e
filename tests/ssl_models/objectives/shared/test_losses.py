"""Golden values in float64, on which open_clip, lightly and solo-learn agree, and the value where nothing is known."""

import math

import pytest
import torch

from ssl_models.objectives.shared import losses

Z0 = torch.sin(torch.arange(128, dtype=torch.float64)).view(8, 16)
Z1 = torch.cos(0.37 * torch.arange(128, dtype=torch.float64)).view(8, 16)


@pytest.mark.parametrize(
    ("loss", "value"),
    [
        (losses.nt_xent(Z0, Z1, 0.5), 3.2169498074071345),
        (losses.nt_xent(Z0, Z1, 0.1), 9.232820549619415),
        (losses.clip(Z0, Z1, 1 / 0.07), 3.4557902947633696),
        (losses.siglip(Z0, Z1, 10, -10), 9.873863674629504),
        (losses.vicreg(Z0, Z1), 37.34763847424392),
        (losses.barlow_twins(Z0, Z1, 0.0051), 16.78115884476459),
    ],
)
def test_golden_values(loss, value):
    assert float(loss) == pytest.approx(value, abs=1e-12)


def test_equal_similarities_give_the_logarithm_of_the_choices():
    same = torch.ones(256, 16, dtype=torch.float64)
    assert float(losses.nt_xent(same, same, 0.5)) == pytest.approx(math.log(511), abs=1e-12)
    assert float(losses.clip(same, same, 14.0)) == pytest.approx(math.log(256), abs=1e-12)


def test_siglip_starts_where_the_paper_says():
    image, text = torch.eye(512, dtype=torch.float64).chunk(2)
    assert float(losses.siglip(image, text, 10, -10)) == pytest.approx(10.012, abs=5e-4)


def test_both_views_are_anchors_and_order_does_not_matter():
    assert float(losses.nt_xent(Z0, Z1, 0.2)) == pytest.approx(float(losses.nt_xent(Z1, Z0, 0.2)), abs=1e-12)
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    assert float(losses.nt_xent(Z0[order], Z1[order], 0.2)) == pytest.approx(
        float(losses.nt_xent(Z0, Z1, 0.2)), abs=1e-12
    )
    first, second = Z0.clone().requires_grad_(), Z1.clone().requires_grad_()
    losses.nt_xent(first, second, 0.2).backward()
    assert first.grad.abs().min(dim=1).values.max() > 0
    assert second.grad.abs().min(dim=1).values.max() > 0
