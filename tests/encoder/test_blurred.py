"""Levels open gradually; encodings of regions are means over them; the input in front."""

import math

import pytest
import torch
from torch.nn import functional as F

from encoder.get_encoding import get_encoding


@pytest.mark.parametrize("name", ["frequency", "ipe"])
def test_masked_levels_are_untouched_and_open_gradually(name):
    encoding = get_encoding(name, n_frequencies=6, unit=True, **({"include_input": False} if name == "frequency" else {}))
    x = torch.rand(20, 3)
    whole = encoding(x).view(20, 2, 6, 3)
    for opened in (1, 3, 6):
        part = encoding(x, opened).view(20, 2, 6, 3)
        assert torch.equal(part[:, :, :opened], whole[:, :, :opened]) and (part[:, :, opened:] == 0).all()
    assert torch.allclose(encoding(x, 3.5).view(20, 2, 6, 3)[:, :, 3], whole[:, :, 3] / 2, atol=1e-6)


def test_integrated_frequency_is_the_mean_over_a_gaussian():
    encoding = get_encoding("ipe", n_frequencies=4)
    mean, variance = torch.tensor([[0.3, -0.2, 0.9]]), torch.tensor([[0.01, 0.04, 0.0]])
    drawn = mean + torch.randn(400_000, 3) * variance.sqrt()
    assert torch.allclose(encoding(mean, None, variance)[0], encoding(drawn).mean(0), atol=5e-3)


def test_a_cones_variance_is_that_of_points_in_it():
    from encoder.frequency import cone_variance

    t0, t1, cone = 2.0, 3.0, 0.1
    t = (torch.rand(600_000) * (t1**3 - t0**3) + t0**3) ** (1 / 3)  # uniform in the volume
    r, phi = cone * t * torch.rand(600_000).sqrt(), torch.rand(600_000) * 6.2831853
    points = torch.stack([r * phi.cos(), r * phi.sin(), t], 1)
    got = cone_variance(torch.tensor([[0.0, 0, 1]]), torch.tensor([t0]), torch.tensor([t1]), cone)[0]
    assert torch.allclose(got, points.var(0), rtol=0.02)


def test_integrated_directions_are_spherical_harmonics_that_fade():
    encoding = get_encoding("ide", degree=5)
    assert encoding.width == 72
    d = F.normalize(torch.randn(100_000, 3), dim=1)
    y = encoding(d)
    real = y[:, :36].double()
    gram = real.T @ real / len(d) * 4 * math.pi
    zonal = [0, 2, 5, 10, 19]  # m = 0 of l = 1, 2, 4, 8, 16: norm 1; others are halves of a complex pair
    want = torch.full((36,), 0.5).index_fill(0, torch.tensor(zonal), 1.0).diag()
    assert (gram - want).abs().max() < 0.03
    z = d[:, 2]
    assert torch.allclose(y[:, 0], math.sqrt(3 / (4 * math.pi)) * z, atol=1e-5)
    assert torch.allclose(y[:, 1], -math.sqrt(3 / (8 * math.pi)) * d[:, 0], atol=1e-5)
    rough = encoding(d, torch.full((len(d),), 0.2))
    assert torch.allclose(rough[:, 0], y[:, 0] * math.exp(-0.2), atol=1e-5)
    assert rough[:, 19].abs().max() < 1e-6 * 20  # l = 16 is gone


def test_the_input_in_front():
    x = torch.rand(5, 3)
    y = get_encoding("identity+spherical", degree=3)(x)
    assert torch.equal(y[:, :3], x) and torch.equal(y[:, 3:], get_encoding("spherical", degree=3)(x))
    assert torch.equal(get_encoding("identity")(x), x)


@pytest.mark.parametrize("degree", [1, 3, 5])
def test_the_integrated_directional_encodings_written_out_derivative_is_autograds(degree):
    from encoder.directional import harmonics

    encoding = get_encoding("ide", degree=degree)
    results = []
    for way in (harmonics, None):
        g = torch.Generator().manual_seed(1)
        dirs = F.normalize(torch.randn(200, 3, generator=g), dim=1).requires_grad_()
        rough = (torch.rand(200, generator=g) * 0.2).requires_grad_()
        fade = torch.exp(encoding.fall * rough[None])
        out = way(dirs, fade, encoding.a, encoding.b, encoding.diagonal, encoding.bands) if way else encoding(dirs, rough)
        out.backward(torch.randn(out.shape, generator=g))
        results.append((out.detach(), dirs.grad, rough.grad))
    for a, b in zip(*results):
        assert (a - b).abs().max() <= 1e-5 * a.abs().max()
