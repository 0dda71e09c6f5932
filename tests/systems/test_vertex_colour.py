"""Which cameras colour a vertex: those that see it, by how squarely they do."""

import numpy as np
import torch
import trimesh

from systems.vertex_colour import best_views
from utils.rays import Cameras

CPU = torch.device("cpu")


def looking_at_the_middle(*centres) -> Cameras:
    """Cameras of 100x100 pixels, a field of view of 53 degrees."""
    poses = []
    for centre in np.array(centres, float):
        forward = -centre / np.linalg.norm(centre)
        right = np.cross(forward, [0.1, 0.2, 1.0])
        right /= np.linalg.norm(right)
        poses.append(np.stack([right, np.cross(forward, right), forward, centre], 1))
    K = torch.tensor([[100.0, 0, 49.5], [0, 100, 49.5], [0, 0, 1]]).expand(len(poses), 3, 3)
    return Cameras(K, torch.tensor(np.array(poses), dtype=torch.float32), 100, 100)


def nearest(mesh, point):
    return int(np.linalg.norm(mesh.vertices - point, axis=1).argmin())


def test_a_vertex_is_seen_by_the_cameras_it_faces():
    ball = trimesh.creation.icosphere(3, 0.5)
    cameras = looking_at_the_middle((3, 0, 0), (0, 3, 0), (-3, 0, 0))
    dirs, weights = best_views(ball, cameras, (0, 1, 2), CPU)
    assert torch.allclose(weights.sum(1), torch.ones(len(weights))) and torch.allclose(dirs.norm(dim=2)[weights > 0], torch.tensor(1.0))
    front = nearest(ball, (0.5, 0, 0))
    assert weights[front].max() == 1 and torch.allclose(dirs[front, weights[front].argmax()], torch.tensor([-1.0, 0, 0]), atol=1e-3)
    between = nearest(ball, np.array([0.5, 0.5, 0]) / 2**0.5)
    assert sorted(weights[between].tolist())[-2:] == sorted(weights[between].tolist())[1:] and (weights[between] > 0.3).sum() == 2


def test_what_is_hidden_or_out_of_the_picture_does_not_count():
    """A plate before the ball hides it from the first camera; the second looks past it. The vertex is then seen from the one it faces."""
    ball, plate = trimesh.creation.icosphere(3, 0.3), trimesh.creation.box((0.05, 1.0, 1.0))
    plate.apply_translation((0.8, 0, 0))
    mesh = trimesh.util.concatenate([ball, plate])
    cameras = looking_at_the_middle((3, 0, 0), (2, 2, 0), (0, 0, 3))
    front = nearest(mesh, (0.3, 0, 0))
    seen, weights = best_views(mesh, cameras, (0, 1), CPU)
    direct = weights[front].argmax()
    assert weights[front, direct] == 1 and torch.allclose(
        seen[front, direct], torch.tensor([-0.65, -0.76, 0.0]), atol=0.02
    )  # past the plate
    hidden, weights = best_views(mesh, cameras, (0, 2), CPU)
    assert torch.allclose(hidden[front, weights[front].argmax()], torch.tensor([-1.0, 0, 0]), atol=1e-3)  # by none: as if from the first
    turned = Cameras(cameras.K, cameras.c2w.clone(), 100, 100)
    turned.c2w[1, :, :3] = turned.c2w[1, :, [0, 2, 1]]  # looks away
    _, weights = best_views(mesh, turned, (1,), CPU)
    assert weights[front, 0] == 1 and (weights[front, 1:] == 0).all()


def test_at_most_n_cameras_the_best_ones():
    ball = trimesh.creation.icosphere(2, 0.3)
    cameras = looking_at_the_middle(*[(3 * np.cos(a), 3 * np.sin(a), 0) for a in (0, 0.2, 0.5, 0.9, 1.2)])
    dirs, weights = best_views(ball, cameras, range(5), CPU, n=2)
    front = nearest(ball, (0.3, 0, 0))
    assert weights.shape[1] == 2 and (weights[front] > 0.4).all() and (dirs[front, :, 0] < -0.95).all()
