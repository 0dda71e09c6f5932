"""The visual hull: what no silhouette excludes (Laurentini 1994), as a cloud of cells. It bounds an object that has masks."""

from dataclasses import dataclass

import cv2
import numpy as np

WIDTH = 256  # pixels of the masks while carving
CELLS = 64  # along a side
MOST_VIEWS = 48  # evenly chosen ones
FORGIVEN = 0.04  # share of the views that may contradict: a mask may be wrong


@dataclass(frozen=True)
class Silhouettes:
    """Some views' masks made small, with their cameras in any frame."""

    masks: list[np.ndarray]  # [h, w] bool each
    K: np.ndarray  # [V, 3, 3] of the small masks
    c2w: np.ndarray  # [V, 3, 4]


def silhouettes(masks: np.ndarray, K: np.ndarray, c2w: np.ndarray, views: list[int]) -> Silhouettes:
    """Of at most MOST_VIEWS of the given views; masks [N, H, W] uint8 (or bool), 255 on the object."""
    chosen = [views[i] for i in np.unique(np.linspace(0, len(views) - 1, min(MOST_VIEWS, len(views))).round().astype(int))]
    height, width = masks.shape[1:3]
    f = min(1.0, WIDTH / width)
    w, h = max(1, round(width * f)), max(1, round(height * f))
    fx, fy = w / width, h / height
    scaling = np.array([[fx, 0, (fx - 1) / 2], [0, fy, (fy - 1) / 2], [0, 0, 1]])
    small = [cv2.resize(np.asarray(masks[i], np.uint8), (w, h), interpolation=cv2.INTER_AREA) > 0 for i in chosen]
    return Silhouettes(small, scaling @ K[chosen], c2w[chosen])


def project(K: np.ndarray, c2w: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(pixels [P, 2], depth [P]) of the points x [P, 3]; pixels are meaningless where the depth is not positive."""
    q = (x - c2w[:, 3]) @ c2w[:, :3]
    depth = q[:, 2]
    safe = np.where(np.abs(depth) < 1e-12, 1e-12, depth)[:, None]
    return (q / safe) @ K[:2].T, depth


def carve(sil: Silhouettes, x: np.ndarray, reach: float, forgiven: float = FORGIVEN, seen: float = 0.5) -> np.ndarray:
    """[P] bool: points that all but the forgiven share of the views hold, in sight of the share `seen` of them.

    reach: half a cell, in scene units.
    """
    misses, sights = np.zeros(len(x), int), np.zeros(len(x), int)
    for mask, K, c2w in zip(sil.masks, sil.K, sil.c2w):
        uv, depth = project(K, c2w, x)
        grow = int(np.ceil(K[0, 0] * reach / max(float(np.median(depth)), 1e-9)))
        wide = cv2.dilate(mask.astype(np.uint8), np.ones((2 * min(grow, 40) + 1,) * 2, np.uint8)) > 0
        h, w = mask.shape
        inside = (depth > 0) & (np.abs(uv[:, 0] - (w - 1) / 2) <= w / 2) & (np.abs(uv[:, 1] - (h - 1) / 2) <= h / 2)
        u, v = (np.clip(np.rint(np.where(inside, uv[:, k], 0)).astype(int), 0, n - 1) for k, n in ((0, w), (1, h)))
        sights += inside
        misses += inside & ~wide[v, u]
    return (misses <= int(forgiven * len(sil.masks))) & (sights >= seen * len(sil.masks))


def _grid(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, float]:
    """(cell centres [CELLS^3, 3] of the box, half a cell's diagonal)."""
    cell = (high - low) / CELLS
    axes = [low[k] + cell[k] * (np.arange(CELLS) + 0.5) for k in range(3)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3), float(np.linalg.norm(cell)) / 2


def visual_hull(sil: Silhouettes, centre: np.ndarray, radius: float) -> tuple[np.ndarray, float] | None:
    """(cells [P, 3], half a cell's diagonal) of the hull within the cube around the centre, found twice, the second time in its tight box.

    None when nothing is left: then masks and cameras do not belong together.
    """
    low, high = centre - radius, centre + radius
    for _ in range(2):
        x, reach = _grid(low, high)
        kept = x[carve(sil, x, reach)]
        if not len(kept):
            return None
        low, high = kept.min(0) - reach, kept.max(0) + reach
    return kept, reach
