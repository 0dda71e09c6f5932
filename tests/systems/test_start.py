"""A start of the surface from points of structure from motion."""

import numpy as np
import torch

from confs.load import load_config
from models.sdf import fibonacci_sphere
from systems.build import build_system
from systems.start import oriented_points, signed_distance
from tests.conftest import needs_warp
from utils.rays import Cameras, Scene


def ball_scene(n: int = 1500, radius: float = 0.6) -> Scene:
    """Points on a ball, seen by the cameras in front of it, and far points beyond it."""
    x = fibonacci_sphere(n).double() * radius
    eyes = fibonacci_sphere(20).double() * 3
    far = fibonacci_sphere(100).double() * 20
    points = torch.cat([x, far])
    pairs = [(i, j) for i in range(n) for j in range(20) if (eyes[j] - x[i]) @ x[i] > 0]
    pairs += [(n + i, j) for i in range(100) for j in range(20) if far[i] @ eyes[j] > 0]
    c2w = torch.cat([torch.eye(3).expand(20, 3, 3), eyes.float()[:, :, None]], 2)
    K = torch.tensor([[50.0, 0, 15.5], [0, 50, 15.5], [0, 0, 1]]).expand(20, 3, 3)
    images = torch.zeros(20, 32, 32, 3, dtype=torch.uint8)
    return Scene(
        "ball", images, None, Cameras(K, c2w, 32, 32), torch.eye(4, dtype=torch.float64), tuple(range(1, 20)), (0,),
        tuple(f"{i}.png" for i in range(20)), points=points.float(), tracks=torch.tensor(pairs),
    )  # fmt: skip


def test_normals_point_to_the_cameras_and_distances_are_signed():
    from scipy.spatial import cKDTree

    o = oriented_points(ball_scene(), 1.0)
    assert o is not None and len(o.points) == 1500
    outward = o.points / np.linalg.norm(o.points, axis=1, keepdims=True)
    assert (o.normals * outward).sum(1).min() > 0.9
    x = outward[::10] * np.linspace(0.45, 0.75, 150)[:, None]
    distance, _ = signed_distance(o, cKDTree(o.points), x)
    assert np.abs(distance - (np.linspace(0.45, 0.75, 150) - 0.6)).max() < 0.02


@needs_warp
def test_the_surface_starts_at_the_points():
    cfg = load_config(None, ["model.start=points", "model.background=learned", "dataset.apply_mask=false", "seed=1"])
    scene = ball_scene()
    system = build_system(cfg, torch.device("cpu"), scene)
    system.begin(scene)
    on = scene.points[:1500]
    levels = system.model.levels_at(0.0)
    with torch.no_grad():
        assert system.model.sdf.sdf(on, levels).abs().mean() < 0.01
        assert (system.model.sdf.sdf(on * 1.2, levels) > 0).float().mean() > 0.99
        assert (system.model.sdf.sdf(on * 0.8, levels) < 0).float().mean() > 0.99
    system.before_step(0, 0.0)
    assert system.model.sampler.share < 0.5  # a sphere would leave all of it to be searched


def test_too_few_points_start_from_a_sphere():
    scene = ball_scene(40)
    assert oriented_points(scene, 1.0) is None
    from dataclasses import replace

    assert oriented_points(replace(ball_scene(), tracks=None), 1.0) is None
