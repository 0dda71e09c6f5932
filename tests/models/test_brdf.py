"""The FG table against a brute-force integral, and what it must be at the ends."""

import math
import time

import pytest
import torch

from models.brdf import SplitSum, distribution, fg_table, smith_lambda, smith_visibility


def smith(cos_v, cos_l, alpha):
    """Share of facets visible from both directions, by Lambda: not how `smith_visibility` computes it."""
    return 1 / (1 + smith_lambda(cos_v, alpha) + smith_lambda(cos_l, alpha))


def half_at(cos_h):
    return torch.stack([(1 - cos_h**2).sqrt(), torch.zeros_like(cos_h), cos_h], -1)


def brute_force(cos_v: float, roughness: float, n: int = 600) -> tuple[float, float]:
    """The two integrals over facets drawn by D n.h, evenly in its cumulative distribution: no visible normals, no table."""
    alpha, cos_v = torch.tensor(roughness**2, dtype=torch.float64), torch.tensor(cos_v, dtype=torch.float64)
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    theta, phi = torch.meshgrid(torch.atan(alpha * (u / (1 - u)).sqrt()), math.pi * u, indexing="ij")
    h = torch.stack([theta.sin() * phi.cos(), theta.sin() * phi.sin(), theta.cos()], -1)
    v_h = h @ torch.stack([(1 - cos_v**2).sqrt(), 0 * cos_v, cos_v])
    cos_l = 2 * v_h * h[..., 2] - cos_v
    lit = (cos_l > 0) & (v_h > 0)
    weight = torch.where(lit, smith(cos_v, cos_l.clamp(min=1e-9), alpha) * v_h / (cos_v * h[..., 2]), 0.0)
    fresnel = (1 - v_h.clamp(0, 1)) ** 5
    return float((weight * (1 - fresnel)).mean()), float((weight * fresnel).mean())


def monte_carlo(cos_v: float, roughness: float, n: int = 2_000_000) -> tuple[float, float]:
    """The definition itself, D G / (4 n.v n.l) n.l over light from random directions of the hemisphere: for broad lobes."""
    g = torch.Generator().manual_seed(0)
    cos_l, phi = torch.rand(n, generator=g).double(), 2 * math.pi * torch.rand(n, generator=g).double()
    sin_l = (1 - cos_l**2).sqrt()
    light = torch.stack([sin_l * phi.cos(), sin_l * phi.sin(), cos_l], -1)
    view = torch.tensor([math.sqrt(1 - cos_v**2), 0, cos_v], dtype=torch.float64)
    h = torch.nn.functional.normalize(light + view, dim=-1)
    alpha, cos = torch.tensor(roughness**2).double(), torch.tensor(cos_v).double()
    value = distribution(h, alpha) * smith(cos, cos_l.clamp(min=1e-9), alpha) / (4 * cos_v)
    fresnel = (1 - (h @ view).clamp(0, 1)) ** 5
    return float((value * (1 - fresnel)).mean() * 2 * math.pi), float((value * fresnel).mean() * 2 * math.pi)


def looked_up(cos_v: float, roughness: float) -> tuple[float, float]:
    return tuple(SplitSum()(torch.tensor([cos_v]), torch.tensor([roughness]))[0].tolist())


@pytest.mark.parametrize("roughness", [0.05, 0.12, 0.35, 0.6, 0.85, 1.0])
@pytest.mark.parametrize("cos_v", [0.1, 0.3, 0.7, 0.98])
def test_the_table_is_the_integral(cos_v, roughness):
    x, y = looked_up(cos_v, roughness)
    want_x, want_y = brute_force(cos_v, roughness)
    assert x == pytest.approx(want_x, abs=0.006) and y == pytest.approx(want_y, abs=0.006)
    assert x + y == pytest.approx(want_x + want_y, rel=0.02)


@pytest.mark.parametrize("roughness", [0.5, 1.0])
@pytest.mark.parametrize("cos_v", [0.2, 0.8])
@pytest.mark.slow
def test_the_table_is_the_monte_carlo_integral(cos_v, roughness):
    assert looked_up(cos_v, roughness) == pytest.approx(monte_carlo(cos_v, roughness), abs=0.008)


def test_d_projects_to_one_and_the_masking_is_a_share():
    cosine = (torch.arange(200000, dtype=torch.float64) + 0.5) / 200000
    for alpha in (0.05, 0.4, 1.0):
        assert float((distribution(half_at(cosine), torch.tensor(alpha)) * cosine).mean() * 2 * math.pi) == pytest.approx(1, rel=1e-3)
    cos_l, cos_v, alpha = (torch.rand(3, 100, dtype=torch.float64) + 1e-3).clamp(max=1)
    g = smith_visibility(cos_l, cos_v, alpha) * 4 * cos_l * cos_v
    assert (g > 0).all() and (g <= 1 + 1e-9).all() and torch.allclose(g, smith(cos_v, cos_l, alpha))


def test_a_mirror_reflects_all_and_the_gradient_is_finite():
    cos_v, roughness = torch.tensor([0.0, 0.5, 1.0, 1.2, -0.3], requires_grad=True), torch.full((5,), 0.03, requires_grad=True)
    out = SplitSum()(cos_v, roughness)
    assert torch.allclose(out[1:4].sum(1), torch.ones(3), atol=2e-3)
    out.sum().backward()
    assert torch.isfinite(cos_v.grad).all() and torch.isfinite(roughness.grad).all()


@pytest.mark.slow
def test_the_table_is_made_quickly():
    fg_table.cache_clear()
    began = time.process_time()
    fg_table()
    assert time.process_time() - began < 5
