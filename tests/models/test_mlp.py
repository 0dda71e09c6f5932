"""Networks with ReLU in one pass over memory, against torch's layers."""

import pytest
import torch

from models.network import mlp
from tests.conftest import needs_warp

pytestmark = needs_warp


@pytest.mark.parametrize("n", [1, 255, 300, 2500])
@pytest.mark.parametrize("shape", [(7, 64, 0, 1), (34, 20, 1, 5), (45, 64, 2, 3), (5, 130, 3, 2)])
def test_against_torch(n, shape):
    """Value and gradients of input, weights and biases; blocks that are not full, widths that are no multiple of a tile."""
    torch.manual_seed(3)
    net, g = mlp(*shape), torch.randn(n, shape[-1])
    x = torch.randn(n, shape[0])
    found = []
    for backend in ("torch", "warp"):
        net.backend = backend
        net.zero_grad()
        leaf = x.clone().requires_grad_()
        y = net(leaf)
        (y * g).sum().backward()
        found.append([y.detach(), leaf.grad, *[p.grad.clone() for p in net.parameters()]])
    for i, (want, got) in enumerate(zip(*found)):  # a unit within rounding of 0 may be on for one and off for the other
        assert (want - got).norm() <= (1e-2 if n > 1000 and i else 2e-6) * want.norm()


def test_weight_norm():
    net, x = mlp(5, 16, 2, 3), torch.randn(50, 5)
    for layer in net:
        if isinstance(layer, torch.nn.Linear):
            torch.nn.utils.parametrizations.weight_norm(layer)
    found = []
    for backend in ("torch", "warp"):
        net.backend = backend
        net.zero_grad()
        net(x).square().sum().backward()
        found.append([p.grad.clone() for p in net.parameters()])
    assert len(found[0]) == 9
    for want, got in zip(*found):
        assert torch.allclose(want, got, rtol=1e-3, atol=1e-4)


def test_leading_dimensions_and_no_points():
    net = mlp(4, 8, 1, 2)
    net.backend = "warp"
    assert net(torch.randn(3, 5, 4)).shape == (3, 5, 2)
    assert net(torch.zeros(0, 4)).shape == (0, 2)
    net(torch.zeros(0, 4).requires_grad_()).sum().backward()


def test_input_without_gradient():
    """Weights get theirs; where nothing needs one, nothing of the hidden layers is kept."""
    net = mlp(4, 8, 1, 2)
    net.backend = "warp"
    net(torch.randn(9, 4)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters() if p.dim() == 1)
    with torch.no_grad():
        assert net(torch.randn(9, 4)).grad_fn is None


def test_second_derivatives():
    """They come from torch's layers: a gradient penalty trains the weights."""
    torch.manual_seed(0)
    net, x = mlp(4, 16, 2, 1), torch.randn(30, 4)
    found = []
    for backend in ("torch", "warp"):
        net.backend = backend
        net.zero_grad()
        leaf = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(net(leaf).sum(), leaf, create_graph=True)
        ((grad.norm(dim=1) - 1) ** 2).sum().backward()
        found.append([net[0].weight.grad, net[2].weight.grad, net[4].weight.grad])
    for want, got in zip(*found):
        assert want.abs().sum() > 0 and torch.allclose(want, got, rtol=1e-4, atol=1e-6)


def test_steps_are_equal_at_every_run():
    """Parts have their own sums, added in a fixed order."""
    net, x = mlp(6, 32, 2, 3), torch.randn(5000, 6)
    net.backend = "warp"
    grads = []
    for _ in range(3):
        net.zero_grad()
        net(x).square().sum().backward()
        grads.append(torch.cat([p.grad.view(-1) for p in net.parameters()]))
    assert torch.equal(grads[0], grads[1]) and torch.equal(grads[0], grads[2])
