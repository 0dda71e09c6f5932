"""Directions of light: densities integrate to one, energy is kept, the split sum agrees with the sampled one."""

import math

import pytest
import torch
from torch.nn import functional as F

from models import ggx_sampling as ggx
from models.material import MaterialValues, reflect
from utils.colour import linear_to_srgb, srgb_to_linear


def sphere(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Directions [2 n^2, 3] of a grid over the sphere, and their solid angles."""
    z = (torch.arange(n, dtype=torch.float64) + 0.5) / n * 2 - 1
    turn = (torch.arange(2 * n, dtype=torch.float64) + 0.5) / n * math.pi
    z, turn = torch.meshgrid(z, turn, indexing="ij")
    radius = (1 - z * z).sqrt()
    dirs = torch.stack([radius * turn.cos(), radius * turn.sin(), z], -1).reshape(-1, 3)
    return dirs, torch.full((len(dirs),), 4 * math.pi / len(dirs), dtype=torch.float64)


def view_at(cosine: float) -> torch.Tensor:
    return torch.tensor([[math.sqrt(1 - cosine**2), 0.0, cosine]], dtype=torch.float64)


def brute_force(cosine: float, roughness: float, n: int = 600) -> tuple[float, float]:
    """(FG.x, FG.y) by a fine grid over the microfacet normals, drawn by D cos (Karis, 2013): none of the code under test."""
    alpha = roughness**2
    u, turn = torch.meshgrid((torch.arange(n).double() + 0.5) / n, (torch.arange(n).double() + 0.5) / n * 2 * math.pi, indexing="ij")
    cos_half = ((1 - u) / (1 + (alpha**2 - 1) * u)).sqrt()
    sine = (1 - cos_half**2).clamp(min=0).sqrt()
    half = torch.stack([sine * turn.cos(), sine * turn.sin(), cos_half], -1)
    view = view_at(cosine)[0]
    across = (half * view).sum(-1)
    cos_light = (2 * across[..., None] * half - view)[..., 2]
    lam = [(-1 + (1 + alpha**2 * (1 / c.clamp(min=1e-9) ** 2 - 1)).sqrt()) / 2 for c in (cos_light, torch.tensor(cosine).double())]
    weight = torch.where((cos_light > 0) & (across > 0), across / (cos_half * cosine) / (1 + lam[0] + lam[1]), 0.0)
    rim = (1 - across.clamp(0, 1)) ** 5
    return float((weight * (1 - rim)).mean()), float((weight * rim).mean())


def sampled(cosine: float, roughness: float, n_cosine: int, n_ggx: int, points: int = 256):
    """Sums of the weights, (diffuse, base, edge), mean over points: light 1 from everywhere."""
    view = view_at(cosine).float().expand(points, 3)
    alpha, shift = torch.full((points,), roughness**2), torch.rand(points, 4)
    local = torch.cat(
        [ggx.sample_cosine(ggx.pattern(n_cosine, shift[:, :2])), ggx.sample_ggx(ggx.pattern(n_ggx, shift[:, 2:]), view, alpha)], 1
    )
    weights = ggx.shading_weights(local, view, alpha, n_cosine, n_ggx)
    return tuple(float(w.sum(1).mean()) for w in (weights.diffuse, weights.base, weights.edge))


@pytest.mark.parametrize("roughness", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("cosine", [0.15, 0.6, 0.95])
def test_densities_integrate_to_one(cosine, roughness):
    dirs, area = sphere(700)
    view, alpha = view_at(cosine), torch.tensor([roughness**2], dtype=torch.float64)
    assert float((ggx.pdf_ggx(dirs[None], view, alpha)[0] * area).sum()) == pytest.approx(1, abs=0.01)
    assert float((ggx.pdf_cosine(dirs) * area).sum()) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(("cosine", "roughness"), [(0.9, 0.5), (0.3, 0.4), (0.5, 1.0)])
def test_directions_are_drawn_with_their_density(cosine, roughness):
    """The mean of any function of the direction is that under the density."""
    dirs, area = sphere(500)
    view, alpha = view_at(cosine), torch.tensor([roughness**2], dtype=torch.float64)
    drawn = ggx.sample_ggx(torch.rand(1, 400_000, 2, dtype=torch.float64), view, alpha)[0]
    density = ggx.pdf_ggx(dirs[None], view, alpha)[0] * area
    assert torch.allclose(drawn.norm(dim=1), torch.ones(1, dtype=torch.float64), atol=1e-9)
    for function in (lambda d: d[:, 2], lambda d: d[:, 0] ** 2, lambda d: (d[:, 2] < 0).double()):
        assert float(function(drawn).mean()) == pytest.approx(float((function(dirs) * density).sum()), abs=0.01)


@pytest.mark.parametrize("roughness", [0.05, 0.12, 0.35, 0.6, 1.0])
@pytest.mark.parametrize("cosine", [0.2, 0.5, 0.95])
def test_energy_under_uniform_light(cosine, roughness):
    diffuse, base, edge = sampled(cosine, roughness, 256, 256)
    x, y = brute_force(cosine, roughness)
    assert diffuse == pytest.approx(1, rel=0.01)
    assert base + edge == pytest.approx(x + y, rel=0.02)  # F0 = 1
    for metallic in (0.0, 0.5, 1.0):
        albedo = torch.tensor([[0.8, 0.4, 0.2]])
        material = MaterialValues(albedo, torch.tensor([roughness]), torch.tensor([metallic]))
        monte_carlo = reflect(material, torch.tensor([diffuse, base, edge])[None, :, None].expand(1, 3, 3))
        straight = 0.04 * (1 - metallic) + metallic * albedo
        split_sum = (1 - metallic) * albedo + straight * x + y
        assert torch.allclose(monte_carlo, split_sum, rtol=0.03)


def test_any_share_of_the_strategies_gives_the_same():
    results = [sampled(0.6, 0.5, a, b) for a, b in ((256, 256), (500, 12), (64, 448))]
    for other in results[1:]:
        assert other == pytest.approx(results[0], rel=0.02)


def test_the_turns_of_a_pattern_fill_each_others_gaps():
    shift = torch.rand(3, 2)
    assert torch.allclose(torch.cat([ggx.pattern(16, shift, turn) for turn in range(4)], 1), ggx.pattern(64, shift), atol=1e-6)


def test_frames_are_orthonormal_and_end_in_the_normal():
    normal = F.normalize(torch.cat([torch.randn(99, 3), torch.eye(3), -torch.eye(3)]), dim=-1)
    frame = ggx.frames(normal)
    assert torch.allclose(frame @ frame.transpose(1, 2), torch.eye(3).expand(len(normal), 3, 3), atol=1e-5)
    assert torch.equal(frame[:, 2], normal)
    assert torch.allclose(torch.linalg.det(frame), torch.ones(1), atol=1e-5)


def test_gradients_are_finite_at_every_roughness():
    alpha = torch.tensor([0.04**2, 0.01, 0.1, 1.0], requires_grad=True)
    view = view_at(0.002).float().expand(4, 3)
    local = torch.cat([ggx.sample_cosine(torch.rand(4, 64, 2)), ggx.sample_ggx(torch.rand(4, 64, 2), view, alpha.detach())], 1)
    weights = ggx.shading_weights(local, view, alpha, 64, 64)
    weights.stack().sum().backward()
    assert torch.isfinite(alpha.grad).all() and torch.isfinite(weights.stack()).all()


def test_srgb_there_and_back():
    x = torch.linspace(0, 1.5, 200)
    assert torch.allclose(srgb_to_linear(linear_to_srgb(x)), x, atol=1e-5)
    assert float(linear_to_srgb(torch.tensor(0.5))) == pytest.approx(0.7354, abs=1e-4)
