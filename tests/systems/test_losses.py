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


def test_crossed_estimates_do_not_penalise_noise():
    """The estimate is 0.5 + noise * n: a plain term lowers the noise, the crossed one fits the mean alone."""
    torch.manual_seed(0)
    truth = torch.full((20000, 3), 0.5)
    for term in (losses.rgb_mse, losses.rgb_l1, losses.rgb_charbonnier):
        noise, mean = torch.tensor(0.2, requires_grad=True), torch.tensor(0.6, requires_grad=True)
        a, b = (mean + noise * torch.randn(20000, 3) for _ in range(2))
        plain = torch.autograd.grad(term((a + b) / 2, truth), (noise, mean), retain_graph=True)
        value = losses.crossed(term, a, b, truth)
        fair = torch.autograd.grad(value, (noise, mean))
        assert plain[0] > 0.05 and abs(fair[0]) < 0.1 * plain[0]
        assert fair[1] > 0.1 and torch.allclose(value, term((a + b) / 2, truth))
