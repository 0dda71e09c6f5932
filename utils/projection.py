"""Projection of points into pinhole cameras."""

import numpy as np
from torch import Tensor


def project(x: np.ndarray, K: np.ndarray | Tensor, c2w: np.ndarray | Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Points [P, 3] -> (pixels [P, 2] with centres at integers, depth [P] along the optical axis), in float64.

    K [3, 3]; c2w [3, 4], OpenCV axes, in the frame of the points. Pixels are undefined, but finite, where depth <= 0.
    """
    K, c2w = np.asarray(K, np.float64), np.asarray(c2w, np.float64)
    camera = (x - c2w[:3, 3]) @ c2w[:3, :3]  # [P, 3]
    homogeneous = camera @ K.T
    w = homogeneous[:, 2:]
    return homogeneous[:, :2] / np.where(np.abs(w) < 1e-12, 1e-12, w), camera[:, 2]


def in_frame(uv: np.ndarray, z: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Whether projected points, pixels uv [P, 2] at depths z [P], lie in a picture of this width and height -> [P] bool."""
    w, h = size
    return (z > 0) & (uv >= -0.5).all(1) & (uv < (w - 0.5, h - 0.5)).all(1)
