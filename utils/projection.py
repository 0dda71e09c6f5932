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
