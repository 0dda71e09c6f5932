"""A tiny scene in the DTU layout, ray-traced in closed form: an ellipsoid with a smooth texture, lit from one side."""

from pathlib import Path

import numpy as np

from utils.image import write_png

AXES = (0.6, 0.5, 0.4)  # of the ellipsoid, in units of the unit sphere


def ring_cameras(n_views: int, distance: float = 3.0) -> np.ndarray:
    """Camera-to-frame [n, 3, 4], OpenCV axes, on a ring of varying elevation (z up), looking at the origin."""
    turn = 2 * np.pi * np.arange(n_views) / n_views
    height = 0.5 + 0.4 * np.sin(3 * turn + 1)
    centres = np.stack([np.cos(turn) * np.cos(height), np.sin(turn) * np.cos(height), np.sin(height)], 1) * distance
    forward = -centres / distance
    right = np.cross(forward, [0, 0, 1.0])
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    return np.stack([right, np.cross(forward, right), forward, centres], axis=2)


def trace(K: np.ndarray, c2w: np.ndarray, hw: tuple[int, int], axes=AXES, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(rgb [H, W, 3] in [0, 1], black outside; mask [H, W] bool) as seen through pixel centres at integers."""
    v, u = np.mgrid[: hw[0], : hw[1]].astype(float)
    dirs = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(K).T @ c2w[:, :3].T
    o, d = c2w[:, 3] / axes, dirs / axes
    a, b, c = (d * d).sum(-1), (d * o).sum(-1), (o * o).sum(-1) - 1
    disc = b * b - a * c
    t = (-b - np.sqrt(np.maximum(disc, 0))) / a
    point = c2w[:, 3] + t[..., None] * dirs
    normal = point / np.square(axes)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    phase = np.random.default_rng(seed).uniform(0, 6.28, 3)
    albedo = 0.6 + 0.35 * np.sin(9 * point + phase + 4 * point[..., [1, 2, 0]])
    shade = 0.4 + 0.6 * np.clip(normal @ np.array([0.48, 0.36, 0.8]), 0, 1)
    return np.where(disc[..., None] > 0, albedo * shade[..., None], 0), disc > 0


def write_tiny_scene(
    folder, n_views: int = 8, hw=(24, 32), seed: int = 0, masks: bool = True, scale: float = 3.0, center=(10.0, -20.0, 30.0), axes=AXES
) -> Path:
    """Write image/, mask/ (unless masks is false) and cameras_sphere.npz; x_world = scale x + center. Returns the folder."""
    folder = Path(folder)
    to_world = np.diag([scale, scale, scale, 1.0])
    to_world[:3, 3] = center
    focal = 1.3 * min(hw)
    K = np.array([[focal, 0, hw[1] / 2 - 0.8], [0, 1.02 * focal, hw[0] / 2 - 0.3], [0, 0, 1]])
    mats = {}
    for i, c2w in enumerate(ring_cameras(n_views)):
        rgb, mask = trace(K, c2w, hw, axes, seed)
        write_png(folder / "image" / f"{i:06d}.png", rgb)
        if masks:
            write_png(folder / "mask" / f"{i:03d}.png", mask.astype(np.float32))
        world_mat = np.eye(4)
        centre = to_world[:3, :3] @ c2w[:, 3] + center
        world_mat[:3] = K @ np.concatenate([c2w[:, :3].T, -c2w[:, :3].T @ centre[:, None]], axis=1)
        mats |= {f"world_mat_{i}": world_mat, f"scale_mat_{i}": to_world}
    np.savez(folder / "cameras_sphere.npz", **mats)
    return folder
