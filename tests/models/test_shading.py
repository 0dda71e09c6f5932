"""The split-sum shader: energy, lights that answer to roughness, the photographer's plane; occlusion marched on known shapes."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from confs.model import ShadingConfig
from models.brdf import SplitSum
from models.lights import distance_to_sphere, limited_exp, photographer_plane
from models.nero import falling_weights, occlusion_probability
from models.shading import SplitSumShader, lobe
from utils.colour import clip, linear_to_srgb, srgb_to_linear


class Fixed(nn.Module):
    """Materials or a light that are the same everywhere."""

    def __init__(self, *values):
        super().__init__()
        self.values = values

    def forward(self, x, *_):
        parts = tuple(torch.full((len(x), *([3] if i == 0 else [])), float(v)) for i, v in enumerate(self.values))
        return parts if len(parts) > 1 else parts[0]


@torch.no_grad()
def furnace(albedo: float, roughness: float, metallic: float, cos_v: float, light: float = 0.5) -> float:
    """Linear colour over the light, under light that is the same all round and with nothing in the way."""
    shader = SplitSumShader(ShadingConfig(hidden=16, layers=1, outer=16, light_max=1.0), 4)
    shader.materials = Fixed(albedo, roughness, metallic)
    shader.outer = shader.inner = Fixed(math.log(light / (1 - light)))
    normal, dirs = torch.tensor([[0.0, 0, 1]]), torch.tensor([[math.sqrt(1 - cos_v**2), 0, -cos_v]])
    out = shader(torch.zeros(1, 3), torch.zeros(1, 4), normal, dirs, -2 * dirs)
    assert torch.allclose(out.diffuse, torch.tensor(light)) and torch.allclose(out.specular, torch.tensor(light))
    return float(srgb_to_linear(out.colour)[0, 0]) / light


@pytest.mark.parametrize("roughness", [0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0])
def test_energy_under_uniform_light(roughness):
    from tests.models.test_brdf import brute_force

    for cos_v in (0.2, 0.6, 0.95):
        want = sum(brute_force(cos_v, roughness))
        assert furnace(1.0, roughness, 1.0, cos_v) == pytest.approx(want, rel=0.02)  # a white metal: F0 = 1
        x, y = SplitSum()(torch.tensor([cos_v]), torch.tensor([roughness]))[0].tolist()
        white = furnace(1.0, roughness, 0.0, cos_v, light=0.4)  # the excess of a dielectric is what it mirrors, no more
        assert white - (0.04 * x + y) == pytest.approx(1, rel=0.01)


def test_the_excess_of_a_dielectric_is_as_documented():
    excess = [furnace(1.0, 0.1, 0.0, cos_v, light=0.4) for cos_v in (1.0, 0.2, 0.02)]
    assert excess == pytest.approx([1.04, 1.35, 1.78], abs=0.05)


def test_light_blurs_with_roughness_and_reaches_the_normals():
    torch.manual_seed(0)
    shader = SplitSumShader(ShadingConfig(hidden=32, layers=2, outer=32), 4)
    dirs = F.normalize(torch.randn(500, 3), dim=1)
    around = [shader.outer(shader.blurred(dirs, lobe(torch.full((500,), r)))).std(0).mean() for r in (0.05, 0.3, 0.6, 1.0)]
    assert around[0] > around[1] > around[2] > around[3] > 0
    normal = F.normalize(-dirs + 0.3 * torch.randn(500, 3), dim=1).requires_grad_()
    feature = torch.randn(500, 4, requires_grad=True)
    shader(torch.zeros(500, 3), feature, normal, dirs, -dirs).colour.sum().backward()
    for grad in (normal.grad, feature.grad, *(p.grad for p in shader.outer.parameters())):
        assert torch.isfinite(grad).all() and grad.abs().sum() > 0
    assert float(lobe(torch.tensor(0.12))) == pytest.approx(2 * 0.12**4, rel=1e-3)


def test_occlusion_is_low_at_first_and_teaches_no_geometry():
    shader = SplitSumShader(ShadingConfig(hidden=32, layers=2, outer=32), 4)
    points, mirrored = torch.randn(50, 3, requires_grad=True), F.normalize(torch.randn(50, 3), dim=1).requires_grad_()
    shader.occlusion(points, mirrored).sum().backward()
    assert points.grad is None and mirrored.grad is None
    assert abs(float(shader.occlusion(points, mirrored).detach().mean()) - 0.025) < 0.15


def test_colours_and_light_stay_in_range():
    x = torch.tensor([-1.0, 0.0, 0.001, 0.5, 1.0, 3.0], requires_grad=True)
    y = linear_to_srgb(clip(x))
    assert (y >= 0).all() and (y <= 1 + 1e-6).all() and float(y[3].detach()) == pytest.approx(0.7354, abs=1e-3)
    y.sum().backward()
    assert torch.isfinite(x.grad).all() and x.grad[-1] > 0  # too bright is made darker
    assert torch.allclose(srgb_to_linear(y[1:5]), x[1:5], atol=1e-5)
    light = limited_exp(torch.linspace(-20, 20, 9), 5.0)
    assert (
        (light > 0).all() and (light <= 5).all() and float(limited_exp(torch.tensor(-3.0), 100.0)) == pytest.approx(math.exp(-3), rel=1e-2)
    )


def test_the_photographers_plane_stands_upright_through_the_camera():
    camera = torch.tensor([[3.0, 0, 1]] * 3)
    dirs = F.normalize(torch.tensor([[3.0, 0, 1], [3, 0.6, 0.4], [-1, 0, 0]]), dim=1)
    position, distance, hit = photographer_plane(torch.zeros(3, 3), dirs, camera)
    assert hit.tolist() == [True, True, False] and float(distance[2]) == 0
    assert torch.allclose(position, torch.tensor([[0.0, 0], [0.6, -0.6], [0, 0]]), atol=1e-6)
    assert float(distance[0]) == pytest.approx(math.sqrt(10))


def test_the_photographer_lights_only_what_mirrors_the_camera():
    shader = SplitSumShader(ShadingConfig(hidden=16, layers=1, outer=16, photographer=True), 4)
    nn.init.constant_(shader.photographer[-1].bias[3:], 20.0)
    normal = F.normalize(torch.tensor([[1.0, 0, 0], [0, 1, 1]]), dim=1)
    dirs, origins = torch.tensor([[-1.0, 0, 0]] * 2), torch.tensor([[3.0, 0, 0]] * 2)
    out = shader(torch.zeros(2, 3), torch.zeros(2, 4), normal, dirs, origins)
    assert (out.photographer[0] > 0.1).all() and (out.photographer[1] == 0).all()


# ------------------------------------------------------------------ occlusion by marching


def test_two_spheres_hide_each_other_along_the_axis_only():
    """Radius 0.3 at x = -0.5 and 0.5; from the left one's pole towards the right one, past it, and away."""
    centres = torch.tensor([[-0.5, 0, 0], [0.5, 0, 0]])

    def sdf(x):
        return (x[:, None] - centres).norm(dim=-1).amin(1) - 0.3

    pole = torch.tensor([[-0.2, 0.0, 0.0]])
    angles = torch.tensor([0.0, 0.2, 0.35, 0.55, 0.8, 1.5])  # the tangent to the right sphere: asin(0.3 / 0.7) = 0.443
    dirs = torch.stack([angles.cos(), angles.sin(), 0 * angles], 1)
    hit = occlusion_probability(sdf, pole.expand(6, 3), dirs, 400.0, 1.0)
    assert (hit[:3] > 0.99).all() and (hit[3:] < 0.01).all()


def test_a_point_in_an_open_box_sees_out_through_the_opening_alone():
    """A box of half side 0.6 with walls, open at the top: from the floor's middle up, out past the rim, and into a wall."""

    def sdf(x):
        def box(x, half):
            q = x.abs() - half
            return q.clamp(min=0).norm(dim=-1) + q.amax(-1).clamp(max=0)

        outer, hollow = box(x, torch.tensor([0.5, 0.5, 0.5])), box(x - torch.tensor([0, 0, 0.2]), torch.tensor([0.4, 0.4, 0.6]))
        return torch.maximum(outer, -hollow)

    floor = torch.tensor([[0.0, 0, -0.4]])
    tilt = torch.tensor([0.0, 0.3, 0.38, 0.5, 0.9, 1.3])  # the rim: atan(0.4 / 0.9) = 0.418
    dirs = torch.stack([tilt.sin(), 0 * tilt, tilt.cos()], 1)
    hit = occlusion_probability(sdf, floor.expand(6, 3), dirs, 500.0, 1.0)
    assert (hit[:3] < 0.05).all() and (hit[3:] > 0.95).all()


def test_a_convex_surface_never_meets_itself():
    x = F.normalize(torch.randn(300, 3), dim=1)
    dirs = F.normalize(x + 0.98 * F.normalize(torch.randn(300, 3), dim=1), dim=1)
    for offset in (-0.01, 0.0, 0.01):  # the estimated surface is a little off
        assert float(occlusion_probability(lambda p: p.norm(dim=-1) - 0.5, x * (0.5 + offset), dirs, 200.0, 1.0).max()) < 0.01


def test_weights_fall_where_the_distance_falls():
    t = torch.tensor([[0.0, 1, 2, 3, 4]])
    weights = falling_weights(t, torch.tensor([[0.0, 1, 0.5, -0.5, 1]]), 20.0)
    assert torch.allclose(weights, torch.tensor([[0.0, 0, 1, 0]]), atol=1e-3)
    assert torch.allclose(
        distance_to_sphere(torch.tensor([[0.5, 0, 0], [2, 0, 0]]), torch.tensor([[1.0, 0, 0]] * 2), 1.0), torch.tensor([0.5, 0.0])
    )
    assert occlusion_probability(lambda p: p[:, 0], torch.zeros(0, 3), torch.zeros(0, 3), 1.0, 1.0).shape == (0,)
