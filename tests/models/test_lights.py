"""Light maps: orientation, interpolation, directions drawn by brightness; the networks' shapes."""

import math

import pytest
import torch
from torch.nn import functional as F

from models.ggx_sampling import pattern
from models.lights import (
    EnvironmentMap,
    InnerLight,
    NetworkLight,
    PhotographerLight,
    TextureLight,
    from_map,
    look_up,
    map_directions,
    to_map,
)


def test_orientation_is_blenders():
    """As measured in Blender 5.0: +x in the middle, +y at a quarter, -y at three quarters, up in the first row."""
    dirs = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]])
    uv = to_map(dirs)
    assert uv[:3, 0].tolist() == pytest.approx([0.5, 0.25, 0.75])
    assert uv[:, 1].tolist() == pytest.approx([0.5, 0.5, 0.5, 0, 1])


def test_to_map_and_back():
    dirs = F.normalize(torch.randn(500, 3), dim=-1)
    assert torch.allclose(from_map(to_map(dirs)), dirs, atol=1e-4)


def test_a_map_has_its_values_at_its_pixels_and_closes_on_itself():
    image = torch.rand(8, 16, 3)
    assert torch.allclose(look_up(image, map_directions(8).reshape(-1, 3)).view(8, 16, 3), image, atol=1e-4)
    seam = from_map(torch.tensor([[0.0, 0.5 / 8], [1 - 1e-6, 0.5 / 8]]))
    assert torch.allclose(look_up(image, seam), image[0, [0, -1]].mean(0).expand(2, 3), atol=1e-3)


def test_bright_directions_are_drawn_with_their_density():
    image = torch.full((16, 32, 3), 0.1)
    image[4, 7] = 500.0
    angle = 0.7
    turn = torch.tensor([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
    light = EnvironmentMap(image, turn)
    dirs = light.sample(torch.rand(200_000, 2))
    density = light.pdf(dirs)
    assert float((1 / density).mean()) == pytest.approx(4 * math.pi, rel=0.1)
    fine = map_directions(256).reshape(-1, 3)
    area = torch.sin(torch.arccos(fine[:, 2].clamp(-1, 1))) * 2 * math.pi**2 / len(fine)
    assert float((light.pdf(fine) * area).sum()) == pytest.approx(1, rel=0.01)
    assert float((light.radiance(dirs)[:, 0] / density).mean()) == pytest.approx(float((light.radiance(fine)[:, 0] * area).sum()), rel=0.05)
    lamp = from_map(torch.tensor([7.5 / 32, 4.5 / 16])) @ turn.T
    assert float(light.radiance(lamp[None])[0, 0]) == pytest.approx(500, rel=1e-3)


@torch.no_grad()
def test_even_numbers_are_even_over_rows_and_columns():
    """Of 64 points each quarter of an evenly bright sky takes 16, by height and by azimuth."""
    light = EnvironmentMap(torch.ones(64, 128, 3))
    dirs = light.sample(pattern(64, torch.rand(20, 2)))
    for share in (to_map(dirs)[..., 0], (dirs[..., 2] + 1) / 2):
        counts = torch.stack([((share * 4).long().clamp(max=3) == k).sum(1) for k in range(4)], 1)
        assert (counts - 16).abs().max() <= 3


def test_lights_give_radiance_below_their_limit():
    points, dirs = 0.5 * torch.randn(64, 3).clamp(-1, 1), F.normalize(torch.randn(64, 3), dim=-1)
    texture = TextureLight(8, 5.0)
    torch.nn.init.constant_(texture.log_radiance, 9.0)
    lights = [texture, NetworkLight(16, 5.0, False, 1.0), NetworkLight(16, 5.0, True, 1.0), InnerLight(16, 5.0)]
    for light in lights:
        out = light(points, dirs)
        assert out.shape == (64, 3) and bool((out > 0).all()) and float(out.detach().max()) <= math.exp(5) * 1.0001
    assert texture.roughness() == 0


def test_the_photographer_is_hit_only_towards_the_camera():
    photographer = PhotographerLight(16, 5.0)
    camera = torch.tensor([[3.0, 0, 0]])
    toward, away = torch.tensor([[1.0, 0, 0]]), torch.tensor([[-1.0, 0, 0]])
    point, spread = torch.zeros(1, 3), torch.full((1,), 0.1)
    assert float(photographer(point, toward, camera, spread)[1].detach()) > 0
    assert float(photographer(point, away, camera, spread)[1].detach()) == 0
