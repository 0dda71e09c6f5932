"""A sparse point cloud for cameras that are known: SIFT features (Lowe 2004), matched between neighbouring views and triangulated.

For `--auto-mask` in scenes whose files hold no points of structure from motion: seconds on small images, without pycolmap. Points that
are kept and trained with are those of process_data/triangulate.py.
"""

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

from process_data.axes import unit
from process_data.capture import WORKERS
from utils.projection import project

FEATURES = 3000  # of a view, at most
PARTNERS = 4  # views that each view is matched with
ANGLES = (4.0, 35.0)  # degrees between the optical axes' origins as seen from the middle: less is imprecise, more does not match
RATIO = 0.8  # of the distances to the nearest and the second nearest feature (Lowe 2004)
ERROR = 1.5  # pixels of reprojection
Features = tuple[np.ndarray, np.ndarray]  # pixels [F, 2], descriptors [F, 128]


def neighbours(c2w: np.ndarray, middle: np.ndarray, most: int = PARTNERS, angles: tuple[float, float] = ANGLES) -> list[list[int]]:
    """For each camera [N, 3, 4] the `most` nearest ones that see the middle [3] from directions which differ by these angles in degrees."""
    away = unit(c2w[:, :, 3] - middle)
    angle = np.degrees(np.arccos(np.clip(away @ away.T, -1, 1)))
    angle[(angle < angles[0]) | (angle > angles[1])] = np.inf
    order = np.argsort(angle, 1, kind="stable")[:, :most]
    return [[int(j) for j in row if np.isfinite(angle[i, j])] for i, row in enumerate(order)]


def _features(image: np.ndarray) -> Features:
    keys, found = cv2.SIFT.create(FEATURES, contrastThreshold=0.02).detectAndCompute(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), None)
    if found is None:
        return np.zeros((0, 2)), np.zeros((0, 128), np.float32)
    return np.array([k.pt for k in keys], np.float64), np.sqrt(found / np.maximum(found.sum(1, keepdims=True), 1e-6))  # RootSIFT


def _matched(a: Features, b: Features) -> np.ndarray:
    """[M, 2] indices of mutual nearest neighbours that pass the ratio test."""
    if min(len(a[1]), len(b[1])) < 2:
        return np.zeros((0, 2), int)
    near = a[1] @ b[1].T
    rows, best = np.arange(len(near)), near.argmax(1)
    first = near[rows, best]
    mutual = near.argmax(0)[best] == rows
    near[rows, best] = -1
    second = near.max(1)
    kept = mutual & (1 - first < RATIO**2 * (1 - second))  # squared distances of unit vectors are 2 - 2 cos
    return np.stack([rows[kept], best[kept]], 1)


def _pair(features: list[Features], K: np.ndarray, c2w: np.ndarray, i: int, j: int) -> np.ndarray:
    """[P, 3] triangulated matches of views i and j whose reprojection is within ERROR in both."""
    match = _matched(features[i], features[j])
    pixels = features[i][0][match[:, 0]], features[j][0][match[:, 1]]
    rays = []
    for k, uv in zip((i, j), pixels):
        rays.append(unit(np.concatenate([uv, np.ones((len(uv), 1))], 1) @ np.linalg.inv(K[k]).T @ c2w[k, :, :3].T))
    apart, cosine = c2w[j, :, 3] - c2w[i, :, 3], (rays[0] * rays[1]).sum(1)
    t = (rays[0] @ apart - cosine * (rays[1] @ apart)) / np.maximum(1 - cosine**2, 1e-9)  # along ray i, nearest to ray j
    x = c2w[i, :, 3] + t[:, None] * rays[0]
    good = (t > 0) & (cosine < np.cos(np.radians(2.0)))
    for k, uv in zip((i, j), pixels):
        seen, depth = project(x, K[k], c2w[k])
        good &= (depth > 0) & (np.linalg.norm(seen - uv, axis=1) < ERROR)
    return x[good]


def sift_points(images: list[np.ndarray], K: np.ndarray, c2w: np.ndarray, middle: np.ndarray) -> np.ndarray:
    """Points [P, 3] in the frame of the cameras; images: N uint8 [h, w, 3], K [N, 3, 3], c2w [N, 3, 4], middle [3]: the look-at point."""
    pairs = sorted({(min(i, j), max(i, j)) for i, row in enumerate(neighbours(c2w, middle)) for j in row})
    with ThreadPoolExecutor(WORKERS) as pool:
        features = list(pool.map(_features, images))
        found = list(pool.map(lambda pair: _pair(features, K, c2w, *pair), pairs))
    return np.concatenate(found) if found else np.zeros((0, 3))
