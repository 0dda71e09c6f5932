"""How well masks agree: each with the visual hull of the others, projected into its view."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from process_data.seeds import part_at
from utils.projection import project

CELLS = 112  # along the longest side of the hull's box, for the comparison
FORGIVEN = 0.1  # share of the masks that may cut off a cell
FRAMED = 0.3  # share of the views in whose frame a cell must lie
Pixels = tuple[np.ndarray, np.ndarray]  # (inside the frame [M] bool, flat pixel [M])


@dataclass(frozen=True)
class Hull:
    """Cells [P, 3] with half their side."""

    cells: np.ndarray
    half: float


def _lookup(x: np.ndarray, K: np.ndarray, c2w: np.ndarray, shape: tuple[int, int]) -> Pixels:
    uv, depth = project(x, K, c2w)
    u, v = np.rint(np.clip(uv, -1e6, 1e6)).astype(int).T
    h, w = shape
    framed = (depth > 1e-6) & (u >= 0) & (u < w) & (v >= 0) & (v < h)
    return framed, np.where(framed, v * w + u, 0)


def _grown(mask: np.ndarray, x: np.ndarray, K: np.ndarray, c2w: np.ndarray, half: float) -> np.ndarray:
    """The mask, dilated by the projection of half a cell."""
    depth = float(np.median((x - c2w[:, 3]) @ c2w[:, 2]))
    by = min(40, round(K[0, 0] * half / max(depth, 1e-6)))
    return cv2.dilate(mask.astype(np.uint8), np.ones((2 * by + 1,) * 2, np.uint8)) > 0 if by else mask


def outline_hull(masks: Sequence[np.ndarray], K: np.ndarray, c2w: np.ndarray, x: np.ndarray, middle: np.ndarray) -> Hull:
    """The part at `middle` of the cells x [M, 3] of a grid that project into nearly all masks, bool [h, w] each."""
    half = float(np.abs(np.diff(np.unique(x[:, 0].round(9)))).min()) / 2 if len(x) > 1 else 0.0
    missed, framed = np.zeros(len(x), int), np.zeros(len(x), int)
    for mask, k, pose in zip(masks, K, c2w):
        inside, at = _lookup(x, k, pose, mask.shape)
        missed += inside & ~_grown(mask, x, k, pose, half).ravel()[at]
        framed += inside
    kept = x[(missed <= FORGIVEN * framed) & (framed >= FRAMED * len(masks))]
    return Hull(kept[part_at(kept, 2.1 * half, middle)], half)


def _box(hull: Hull) -> tuple[np.ndarray, float]:
    """(finer cells [M, 3] of the hull's bounding box, half their side)."""
    low, high = hull.cells.min(0) - 2 * hull.half, hull.cells.max(0) + 2 * hull.half
    side = float((high - low).max()) / CELLS
    axes = [np.arange(low[k] + side / 2, high[k], side) for k in range(3)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3), side / 2


def _silhouette(at: np.ndarray, shape: tuple[int, int], reach: int) -> np.ndarray:
    image = np.zeros(shape[0] * shape[1], np.uint8)
    image[at] = 1
    return cv2.morphologyEx(image.reshape(shape), cv2.MORPH_CLOSE, np.ones((2 * reach + 1,) * 2, np.uint8)) > 0


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of bool arrays, 1 when both are empty."""
    union = int((a | b).sum())
    return float((a & b).sum()) / union if union else 1.0


def reprojected(masks: Sequence[np.ndarray], K: np.ndarray, c2w: np.ndarray, hull: Hull) -> list[np.ndarray]:
    """For each view, the silhouette, bool [h, w], of the visual hull of the other views' masks, bool [h, w] each."""
    x, half = _box(hull)
    lookups = []
    missed, framed = np.zeros(len(x), np.int16), np.zeros(len(x), np.int16)
    for mask, k, pose in zip(masks, K, c2w):
        inside, at = _lookup(x, k, pose, mask.shape)
        miss = inside & ~mask.ravel()[at]
        lookups.append((inside, at.astype(np.int32), miss))
        missed += miss
        framed += inside
    result = []
    for (inside, at, miss), mask, k, pose in zip(lookups, masks, K, c2w):
        others = framed - inside
        kept = inside & (missed - miss <= FORGIVEN * others) & (others >= FRAMED * (len(masks) - 1))
        depth = float(np.median((x - pose[:, 3]) @ pose[:, 2]))
        result.append(_silhouette(at[kept], mask.shape, max(1, int(np.ceil(k[0, 0] * half / max(depth, 1e-6))))))
    return result
