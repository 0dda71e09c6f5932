"""The visual hull of masks (Laurentini 1994) as a set of grid cells: a bound on the object."""

from dataclasses import dataclass

import cv2
import numpy as np

from process_data.normalize import resize_intrinsics
from utils.projection import project

WIDTH = 256  # pixels to which wider masks are reduced for carving
CELLS = 64  # along a side of the grid
MAX_VIEWS = 48  # views that are used, evenly chosen
FORGIVEN = 0.04  # share of the views in which a point may lie outside the mask, since single masks can be wrong


@dataclass(frozen=True)
class Silhouettes:
    """Reduced masks of V views with their cameras, in any frame."""

    masks: list[np.ndarray]  # [h, w] bool each
    K: np.ndarray  # [V, 3, 3] of the reduced masks
    c2w: np.ndarray  # [V, 3, 4]


def silhouettes(masks: np.ndarray, K: np.ndarray, c2w: np.ndarray, views: list[int], sizes: np.ndarray | None = None) -> Silhouettes:
    """Reduced masks of at most MAX_VIEWS of the given views; masks [N, H, W] uint8 (or bool), above 0 on the object.

    sizes [N, 2]: width and height of each view, in the top-left corner of its mask; all of it by default.
    """
    chosen = [views[i] for i in np.unique(np.linspace(0, len(views) - 1, min(MAX_VIEWS, len(views))).round().astype(int))]
    f = min(1.0, WIDTH / masks.shape[2])
    small, reduced = [], []
    for i in chosen:
        width, height = masks.shape[:0:-1] if sizes is None else sizes[i].tolist()
        w, h = max(1, round(width * f)), max(1, round(height * f))
        small.append(cv2.resize(np.asarray(masks[i, :height, :width], np.uint8), (w, h), interpolation=cv2.INTER_AREA) > 0)
        reduced.append(resize_intrinsics(K[i], w / width, h / height))
    return Silhouettes(small, np.stack(reduced), c2w[chosen])


def carve(sil: Silhouettes, x: np.ndarray, reach: float, forgiven: float = FORGIVEN, in_frame: float = 0.5) -> np.ndarray:
    """[P] bool: points x [P, 3] that project into the masks of all but the share `forgiven` of the views.

    Points in the frame of less than the share `in_frame` of the views are removed. reach: half a cell, in scene units; masks are dilated
    by its projection.
    """
    misses, frames = np.zeros(len(x), int), np.zeros(len(x), int)
    for mask, K, c2w in zip(sil.masks, sil.K, sil.c2w):
        uv, depth = project(x, K, c2w)
        grow = int(np.ceil(K[0, 0] * reach / max(float(np.median(depth)), 1e-9)))
        wide = cv2.dilate(mask.astype(np.uint8), np.ones((2 * min(grow, 40) + 1,) * 2, np.uint8)) > 0
        h, w = mask.shape
        inside = (depth > 0) & (np.abs(uv[:, 0] - (w - 1) / 2) <= w / 2) & (np.abs(uv[:, 1] - (h - 1) / 2) <= h / 2)
        u, v = (np.clip(np.rint(np.where(inside, uv[:, k], 0)).astype(int), 0, n - 1) for k, n in ((0, w), (1, h)))
        frames += inside
        misses += inside & ~wide[v, u]
    return (misses <= int(forgiven * len(sil.masks))) & (frames >= in_frame * len(sil.masks))


def _grid(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, float]:
    """(cell centres [CELLS^3, 3] of the box, half a cell's diagonal)."""
    cell = (high - low) / CELLS
    axes = [low[k] + cell[k] * (np.arange(CELLS) + 0.5) for k in range(3)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3), float(np.linalg.norm(cell)) / 2


def visual_hull(sil: Silhouettes, centre: np.ndarray, radius: float) -> tuple[np.ndarray, float] | None:
    """(cells [P, 3], half a cell's diagonal) of the hull within the cube around the centre, refined once in its bounding box.

    None when the hull is empty, because masks and cameras do not fit together.
    """
    low, high = centre - radius, centre + radius
    kept, reach = np.zeros((0, 3)), 0.0
    for _ in range(2):
        x, reach = _grid(low, high)
        kept = x[carve(sil, x, reach)]
        if not len(kept):
            return None
        low, high = kept.min(0) - reach, kept.max(0) + reach
    return kept, reach
