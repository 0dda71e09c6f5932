"""Directions of light at a surface: three strategies, one answer."""

import pytest
import torch
from torch.nn import functional as F

from models.lights import EnvironmentMap, map_directions
from models.material import Counts, Surface, sample_directions


def lamp(rows: int = 32) -> EnvironmentMap:
    """A dim room with a small lamp, in which most of its light is."""
    dirs = map_directions(rows)
    near = (dirs @ F.normalize(torch.tensor([0.3, 0.2, 0.9]), dim=0)) > 0.98
    return EnvironmentMap(0.2 + 200.0 * near[..., None].float().expand(-1, -1, 3))


def surface(n: int) -> Surface:
    generator = torch.Generator().manual_seed(0)
    normal = F.normalize(torch.tensor([0.0, 0, 1]) + 0.3 * torch.randn(n, 3, generator=generator), dim=-1)
    view = F.normalize(normal + 0.5 * torch.randn(n, 3, generator=generator), dim=-1)
    return Surface(torch.zeros(n, 3), normal, normal, view, torch.arange(n))


def sums(counts: Counts, room: EnvironmentMap, guided: bool, n: int = 400, times: int = 40):
    """Estimates [times, n, 3] of the reflected light of each kind (one channel) for the same points."""
    points, alpha = surface(n), torch.full((n,), 0.15)
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(times):
        drawn = sample_directions(points, alpha, counts, torch.rand(n, 6, generator=generator), room if guided else None)
        radiance = room.radiance(drawn.dirs.reshape(-1, 3)).view_as(drawn.dirs)
        found.append((drawn.weights @ radiance)[..., 0])
    return torch.stack(found)


def test_light_drawn_where_it_is_bright_is_the_same_light_with_less_noise():
    plain, guided = (sums(Counts(16, 16, 16), lamp(), on) for on in (False, True))
    many = sums(Counts(1500, 1500, 1500), lamp(), True, times=1)[0]
    for kind in range(3):
        want = pytest.approx(float(many[:, kind].mean()), rel=0.03)
        assert float(guided[..., kind].mean()) == want
        assert float(plain[..., kind].mean()) == want
    assert guided[..., 0].std(0).mean() < 0.4 * plain[..., 0].std(0).mean()


def test_what_points_into_the_surface_counts_for_nothing():
    drawn = sample_directions(surface(50), torch.full((50,), 0.5), Counts(8, 8, 8), torch.rand(50, 6), lamp())
    n = drawn.dirs.shape[1]
    below = torch.ones(50 * n, dtype=torch.bool)
    below[drawn.above] = False
    assert n == 24 and below.any() and (drawn.weights.transpose(1, 2).reshape(-1, 3)[below] == 0).all()
    assert (drawn.weights >= 0).all() and torch.isfinite(drawn.weights).all()


def test_without_a_map_the_cosine_draws_what_the_light_would():
    drawn = sample_directions(surface(50), torch.full((50,), 0.5), Counts(8, 4, 8), torch.rand(50, 6), None)
    assert drawn.dirs.shape == (50, 20, 3)
