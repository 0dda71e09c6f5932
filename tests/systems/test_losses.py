"""Hand numbers for every loss, and no silent broadcasting."""

import math

import pytest
import torch

from systems import losses


def test_hand_numbers():
    assert float(losses.rgb_l1(torch.tensor([[0.0, 0.5, 1.0]]), torch.tensor([[0.0, 0.0, 0.0]]))) == pytest.approx(0.5)
    assert float(losses.mask_bce(torch.tensor([0.5]), torch.tensor([1.0]))) == pytest.approx(math.log(2))
    assert float(losses.eikonal(torch.tensor([[2.0, 0, 0], [0, 1, 0]]))) == pytest.approx(0.5)
    n = torch.tensor([[1.0, 0, 0]])
    assert float(losses.curvature(n, n)) == 0
    assert float(losses.curvature(n, torch.tensor([[0.0, 1, 0]]))) == 1


def test_an_empty_or_full_ray_still_has_a_gradient():
    for opacity, mask, sign in ((0.0, 1.0, -1), (1.0, 0.0, 1)):
        o = torch.tensor([opacity], requires_grad=True)
        losses.mask_bce(o, torch.tensor([mask])).backward()
        assert torch.isfinite(o.grad).all() and sign * float(o.grad) > 1


def test_shapes_must_match():
    with pytest.raises(ValueError, match="one shape"):
        losses.rgb_l1(torch.zeros(4, 3), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="one shape"):
        losses.mask_bce(torch.zeros(4), torch.zeros(4, 1))


def test_no_samples():
    assert float(losses.eikonal(torch.zeros(0, 3))) == 0
