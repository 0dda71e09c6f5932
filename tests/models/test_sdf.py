"""The signed distance field: a sphere at step 0, fused against autograd, gradients of gradients."""

import pytest
import torch

from confs.model import SDFConfig
from encoder.hashgrid import HashGrid, HashGridSpec
from models.network import ACTIVATIONS
from models.sdf import SDFNetwork, fibonacci_sphere
from tests.conftest import needs_warp

SPEC = HashGridSpec(6, 2, 12, 4, 64)


def network(activation="softplus", layers=1, backend="torch", init=1e-4, radius=1.0, pass_encoding=False):
    return SDFNetwork(SDFConfig(layers=layers, activation=activation, pass_encoding=pass_encoding), HashGrid(SPEC, backend, init), radius)


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("radius", [1.0, 1.5])
def test_step_zero_is_a_sphere(activation, layers, radius):
    net = network(activation, layers, radius=radius)
    p = fibonacci_sphere(500)
    for r in (0.25, 0.5, 0.9):
        out = net(p * r * radius, 6)
        assert (out.sdf - (r - 0.5) * radius).abs().max() < 0.04 * radius
        assert ((out.grad * p).sum(1) > 0.9).all()


@needs_warp
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("n_levels", [6, 2])
@pytest.mark.parametrize("pass_encoding", [False, True])
def test_fused_against_autograd(activation, layers, n_levels, pass_encoding):
    net = network(activation, layers, init=0.05, pass_encoding=pass_encoding)
    x = torch.rand(400, 3) * 2 - 1
    g = torch.randn(400, 1 + net.n_features)
    results = []
    for backend in ("warp", "torch"):
        net.encoding.backend = backend
        net.zero_grad()
        out = net(x, n_levels)
        loss = (out.sdf * g[:, 0]).sum() + (out.feature * g[:, 1:]).sum() + ((out.grad.norm(dim=1) - 1) ** 2).sum()
        loss.backward()
        results.append([out.sdf, out.grad, out.feature] + [p.grad.clone() for p in net.parameters()])
    for i, (a, b) in enumerate(zip(*results)):
        assert (a - b).abs().max() <= (1e-5 if i in (0, 2) else 1e-4) * b.abs().max(), i


@needs_warp
@pytest.mark.gpu
@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_gpu_is_autograd_on_the_cpu(activation, amp):
    """Distances and slopes keep all digits under the trainer's autocast too."""
    net = network(activation, init=0.05)
    x, g = torch.rand(4000, 3) * 2 - 1, torch.randn(4000, 1 + net.n_features)
    results = []
    for backend, device in (("torch", "cpu"), ("warp", "cuda")):
        net = net.to(device)
        net.encoding.backend = backend
        net.zero_grad()
        with torch.autocast("cuda", enabled=amp and device == "cuda"):
            out = net(x.to(device), 6)
        weight = g.to(device)
        loss = (out.sdf * weight[:, 0]).sum() + (out.feature * weight[:, 1:]).sum() + ((out.grad.norm(dim=1) - 1) ** 2).sum()
        loss.backward()
        results.append([t.detach().float().cpu() for t in (out.sdf, out.grad, out.feature, *(p.grad for p in net.parameters()))])
    for i, (want, got) in enumerate(zip(*results)):
        assert (got - want).abs().max() <= (1e-4 if i in (0, 2) else 1e-3) * want.abs().max(), i


@needs_warp
@pytest.mark.parametrize("smoothstep", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("n_levels", [6, 3])
def test_gradient_to_the_points_against_autograd(smoothstep, layers, n_levels):
    """Cameras are refined through it: value, gradient and feature all depend on the points."""
    spec = HashGridSpec(6, 2, 12, 4, 64, smoothstep)
    net = SDFNetwork(SDFConfig(layers=layers, pass_encoding=True), HashGrid(spec, "warp", 0.05), 1.5)
    x = torch.rand(300, 3) * 2 - 1
    for scale in spec.scales:  # a linear grid's slope jumps at faces
        frac = ((x / 3 + 0.5) * scale + 0.5) % 1
        x = x[((frac > 1e-3) & (frac < 1 - 1e-3)).all(1)]
    g, n = torch.randn(len(x), 1 + net.n_features), torch.randn(len(x), 3)
    slopes = []
    for backend in ("warp", "torch"):
        net.encoding.backend = backend
        points = x.clone().requires_grad_(True)
        out = net(points, n_levels)
        ((out.sdf * g[:, 0]).sum() + (out.feature * g[:, 1:]).sum() + (out.grad * n).sum()).backward()
        slopes.append(points.grad)
    assert slopes[1].abs().max() > 0
    assert (slopes[0] - slopes[1]).abs().max() <= 1e-4 * slopes[1].abs().max()


def test_gradient_is_the_slope():
    net = network(init=0.05)
    x = torch.rand(50, 3) - 0.5
    eps = 1e-3
    out = net(x, 3)
    for d in range(3):
        e = torch.eye(3)[d] * eps
        slope = (net.sdf(x + e, 3) - net.sdf(x - e, 3)) / (2 * eps)
        assert (slope - out.grad[:, d]).abs().median() < 2e-2


def test_gradients_stay_finite_over_many_orders_of_magnitude():
    for scale in (1e-20, 1e-10, 1.0, 1e6):
        net = network(init=1e-4)
        out = net(torch.rand(20, 3) * min(scale, 1.0), 6)
        (out.sdf.sum() * scale + out.grad.pow(2).sum()).backward()
        assert all(torch.isfinite(p.grad).all() for p in net.parameters())


@pytest.mark.parametrize("activation", ["softplus", "quadratic"])
def test_activation_slopes_match_differences(activation):
    value, curve = ACTIVATIONS[activation]
    h = torch.linspace(-0.1, 0.1, 401, dtype=torch.float64)
    a, s = value(h)
    assert torch.allclose((a[2:] - a[:-2]) / (h[2:] - h[:-2]), s[1:-1], atol=5e-3)
    inner = (h[1:-1].abs() < 0.018) | (h[1:-1].abs() > 0.022)  # the parabola's ends have a kink in the slope
    assert torch.allclose(((s[2:] - s[:-2]) / (h[2:] - h[:-2]))[inner], curve(s)[1:-1][inner], atol=0.3, rtol=0.02)


def test_softplus_is_torchs():
    h = torch.linspace(-3, 3, 1001)
    assert torch.allclose(ACTIVATIONS["softplus"][0](h)[0], torch.nn.functional.softplus(h, beta=100), atol=1e-6)


def test_no_points():
    out = network()(torch.empty(0, 3), 6)
    assert out.sdf.shape == (0,) and out.grad.shape == (0, 3)
