import pytest
import torch

from models.density import Variance, cell_alpha, neus_alpha


def plane_weights(inv_s, n=2000, cosine=-1.0):
    """Weights along a ray that crosses a plane at t = 0.5 with the given cosine."""
    edges = torch.linspace(0, 1, n + 1, dtype=torch.float64)
    mid, dt = (edges[1:] + edges[:-1]) / 2, edges[1:] - edges[:-1]
    sdf = (0.5 - mid) * -cosine
    alpha = neus_alpha(sdf, torch.full_like(mid, cosine), dt, torch.tensor(inv_s, dtype=torch.float64))
    transmittance = torch.cumprod(torch.cat([torch.ones(1, dtype=torch.float64), 1 - alpha]), 0)[:-1]
    return mid, transmittance * alpha


@pytest.mark.parametrize("cosine", [-1.0, -0.3])
def test_weights_are_unbiased_at_a_plane(cosine):
    """NeuS's weight peaks where the ray crosses the surface and sums to 1."""
    mid, w = plane_weights(200.0, cosine=cosine)
    assert abs(float(mid[w.argmax()]) - 0.5) < 2e-3
    assert float(w.sum()) == pytest.approx(1, abs=2e-2)


def test_alpha_bounds_and_leaving_rays():
    sdf = torch.linspace(-1, 1, 201)
    dt = torch.full_like(sdf, 0.01)
    alpha = neus_alpha(sdf, torch.full_like(sdf, -1.0), dt, torch.tensor(100.0))
    assert (alpha >= 0).all() and (alpha <= 1).all()
    leaving = neus_alpha(sdf, torch.full_like(sdf, 1.0), dt, torch.tensor(100.0))
    assert leaving[sdf > -0.05].max() < 2e-3  # deeper inside nothing is left to absorb


def test_anneal_softens_the_cosine():
    """At anneal 0 a grazing ray is still stopped as if it hit the surface at an angle."""
    sdf, dt, s = torch.tensor([0.0]), torch.tensor([0.01]), torch.tensor(100.0)
    grazing = torch.tensor([0.0])
    assert neus_alpha(sdf, grazing, dt, s, 0.0) > 10 * neus_alpha(sdf, grazing, dt, s, 1.0)


def test_variance_and_cap():
    assert Variance(0.3)().item() == pytest.approx(20.0855, rel=1e-4)
    assert Variance(2.0)(5000).item() == 5000


def test_cell_alpha_vanishes_on_both_sides():
    value = cell_alpha(torch.tensor([-0.5, 0.0, 0.5]), 0.002, torch.tensor(100.0))
    assert value[1] > 0.05 and value[0] < 1e-6 and value[2] < 1e-6
