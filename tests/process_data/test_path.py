"""The orbit of the video."""

import numpy as np
import pytest
import torch

from process_data.axes import up_axis
from process_data.path import look_at, orbit, orbit_target
from tests.scenes import ring_cameras
from utils.rays import Cameras


def cameras(c2w: np.ndarray) -> Cameras:
    K = torch.tensor([[50.0, 0, 20], [0, 50, 15], [0, 0, 1]]).expand(len(c2w), 3, 3)
    return Cameras(K, torch.tensor(c2w, dtype=torch.float32), 30, 40)


def arc(n: int, degrees: float, axis=(0.0, 0, 1), distance: float = 2.5) -> np.ndarray:
    axis = np.asarray(axis) / np.linalg.norm(axis)
    first = np.cross(axis, [0.3, 0.9, 0.1])
    first /= np.linalg.norm(first)
    turn, rise = np.radians(np.linspace(0, degrees, n)), np.radians(30)
    level = np.cos(turn)[:, None] * first + np.sin(turn)[:, None] * np.cross(axis, first)
    return look_at(distance * (np.cos(rise) * level + np.sin(rise) * axis), np.zeros(3), axis)


SETS = {
    "ring": ring_cameras(12),
    "arc": arc(9, 100),
    "arc about -y": arc(9, 100, axis=(0.1, -1, 0.2)),
    "two": arc(2, 40),
    "opposite": arc(2, 180),
    "identical": np.repeat(arc(1, 0), 3, 0),
    "one": arc(1, 0),
    "inside": arc(5, 90, distance=0.2),
    "from above": look_at(np.array([[0.01, 0, 3], [0, 0.02, 3], [0.0, 0, 3.1]]), np.zeros(3), np.array([0.0, 1, 0])),
}


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("n", [1, 24])
def test_every_orbit(name, n):
    path = orbit(cameras(SETS[name]), n)
    c2w = path.c2w.double()
    assert len(path) == n and (path.height, path.width) == (30, 40) and torch.isfinite(c2w).all()
    assert (c2w[:, :, 3].norm(dim=1) > 1.05).all()
    target = torch.tensor(orbit_target(SETS[name]))
    aim = torch.nn.functional.normalize(target - c2w[:, :, 3], dim=1)
    assert ((aim * c2w[:, :, 2]).sum(1) > 1 - 1e-5).all()
    eye = torch.eye(3, dtype=torch.float64).expand(n, 3, 3)
    torch.testing.assert_close(c2w[:, :, :3].mT @ c2w[:, :, :3], eye, atol=1e-5, rtol=0)
    assert (torch.linalg.det(c2w[:, :, :3]) > 0).all()
    assert (c2w[:, :, 0] @ torch.tensor(up_axis(SETS[name]))).abs().max() < 1e-5  # upright
    if n > 1:
        assert 1e-3 < (c2w[:, :, 3] - c2w.roll(1, 0)[:, :, 3]).norm(dim=1).max() < 1.5  # moves, smoothly, and closes


@pytest.mark.parametrize("axis", [(0, 0, 1), (0.1, -1, 0.2)])
def test_an_arc_is_followed_to_and_fro(axis):
    c2w = arc(9, 100, axis=axis)
    np.testing.assert_allclose(up_axis(c2w), np.asarray(axis) / np.linalg.norm(axis), atol=0.02)
    np.testing.assert_allclose(orbit_target(c2w), 0, atol=1e-3)
    path = orbit(cameras(c2w), 48).c2w[:, :, 3].double().numpy()
    nearest = np.linalg.norm(path[:, None] - c2w[None, :, :, 3], axis=-1).min(1)
    assert nearest.max() < 0.5  # stays near the captured cameras
    np.testing.assert_allclose(np.linalg.norm(path, axis=1), 2.5, atol=1e-2)


def test_a_ring_is_gone_round_once():
    path = orbit(cameras(ring_cameras(12)), 36).c2w[:, :, 3].numpy()
    turn = np.unwrap(np.arctan2(path[:, 1], path[:, 0]))
    assert abs(abs(turn[-1] - turn[0]) - 2 * np.pi * 35 / 36) < 0.05
