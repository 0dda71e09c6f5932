"""What the cameras look at: the points in sight, weighted by the views that have them near the middle, and a sphere around these.

It frames scenes whose object is larger than a photograph and is seen from one side: walls, trunks, reliefs.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from process_data.axes import unit
from utils.projection import project

DRAWN = 2000  # points drawn in proportion to their weight
MOST = 6000  # points that are used, drawn at random
CELLS = 24  # of a view's depth map, along its longer side
BEHIND = 1.25  # a point is hidden when its depth exceeds that of the nearest points of its cell by this factor
DEEP = 2.0  # points this many times deeper than the middle of the photographs belong to the surroundings
COVER = 0.97  # share of the weight inside the sphere
PAD = 1.2  # radius of the sphere, in radii of the ball that covers this share
NEAR = 0.9  # largest radius, as a share of the distance of the nearest camera
CLOSE_UPS = 0.02  # share of the cameras that may be nearer
FRAMED = 0.75  # share of the views that have a point in frame which belongs to the framed extent
ONE_SIDE = 0.6  # length of the mean direction to the cameras from which on they are on one side: 0.5 for a hemisphere, 1 for one direction


@dataclass(frozen=True)
class Sight:
    """Points with their weights, in the world."""

    points: np.ndarray  # [P, 3]
    weight: np.ndarray  # [P] sum of `middle_weight` over the views that see the point, times its mean over all views


def middle_weight(uv: np.ndarray, size: np.ndarray) -> np.ndarray:
    """[P] 1 in the middle of a photograph of size (width, height), falling with the square of the distance to 0 at its edge and outside."""
    off = np.abs((uv + 0.5) / size * 2 - 1).max(1)
    return np.maximum(1 - off**2, 0)


def in_front(uv: np.ndarray, depth: np.ndarray, size: np.ndarray) -> np.ndarray:
    """[P] bool: points in the frame that no nearer points hide, judged in cells of the photograph."""
    inside = (depth > 0) & (np.abs((uv + 0.5) / size * 2 - 1) < 1).all(1)
    cell = np.floor(np.where(inside[:, None], uv + 0.5, 0) / (max(size) / CELLS)).astype(int)
    index, found = cell[:, 1] * CELLS + cell[:, 0], np.flatnonzero(inside)
    nearest = np.full(CELLS * CELLS, np.inf)
    order = found[np.lexsort((depth[found], index[found]))]
    _, first, count = np.unique(index[order], return_index=True, return_counts=True)
    nearest[index[order][first]] = depth[order[first + count // 10]]  # not the very nearest, which may be an outlier
    return inside & (depth <= BEHIND * nearest[index])


def points_in_sight(
    points: np.ndarray, K: np.ndarray, c2w: np.ndarray, sizes: np.ndarray, seen: np.ndarray | None = None, seed: int = 0
) -> Sight:
    """The points [P, 3] that the cameras have in sight, without surroundings far behind the middle of the photographs.

    K [N, 3, 3], c2w [N, 3, 4], sizes [N, 2] (width, height). seen [M, 2]: pairs (point, view) of the tracks; None: views see the points
    in their frames that no others hide.
    """
    some = np.sort(np.random.default_rng(seed).permutation(len(points))[:MOST])
    x, weight, total, views, middle = points[some], *np.zeros((4, len(some)))
    tracked = None
    if seen is not None:
        tracked = np.zeros((len(points), len(c2w)), bool)
        tracked[seen[:, 0], seen[:, 1]] = True
        tracked = tracked[some]
    for i, (k, pose, size) in enumerate(zip(K, c2w, sizes)):
        uv, depth = project(x, k, pose)
        middle += np.where(depth > 0, middle_weight(uv, size), 0)
        sees = in_front(uv, depth, size) if tracked is None else tracked[:, i] & (depth > 0)
        here = np.where(sees, middle_weight(uv, size), 0)
        if here.sum() <= 0:
            continue
        weight += here
        total += np.where(sees, depth / weighted_quantile(depth, here, 0.5), 0)
        views += sees
    relative = total / np.maximum(views, 1)
    kept = (weight > 0) & (relative < DEEP)
    return Sight(x[kept], (weight * middle)[kept] / len(c2w))


def gaze(x: np.ndarray, K: np.ndarray, c2w: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """[P] mean over the views of `middle_weight` of points [P, 3], hidden or not: what the cameras look at."""
    total = np.zeros(len(x))
    for k, pose, size in zip(K, c2w, sizes):
        uv, depth = project(x, k, pose)
        total += np.where(depth > 0, middle_weight(uv, size), 0)
    return total / len(c2w)


def framed_above(
    K: np.ndarray, c2w: np.ndarray, sizes: np.ndarray, middle: np.ndarray, reach: float, normal: np.ndarray, offset: float
) -> np.ndarray:
    """Cells [P, 3] of the ball of radius `reach` around `middle` that lie above the plane normal x = offset and in most frames."""
    steps = np.linspace(-1, 1, 25)
    x = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    x = middle + reach * x[np.linalg.norm(x, axis=1) <= 1]
    x = x[x @ normal >= offset]
    frames = np.zeros(len(x))
    for k, pose, size in zip(K, c2w, sizes):
        uv, depth = project(x, k, pose)
        frames += (depth > 0) & (middle_weight(uv, size) > 0)
    return x[frames >= FRAMED * len(c2w)]


def weighted_quantile(x: np.ndarray, weight: np.ndarray, q: float) -> float:
    """The smallest value of x [P] up to which the share q of the weight [P] lies."""
    order = np.argsort(x)
    total = np.cumsum(weight[order])
    return float(x[order[min(int(np.searchsorted(total, q * total[-1])), len(x) - 1)]])


def weighted_median(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """[3] the median of points [P, 3] along each axis."""
    return np.array([weighted_quantile(x[:, k], weight, 0.5) for k in range(3)])


def clearance(centres: np.ndarray, centre: np.ndarray) -> float:
    """Largest radius around the centre [3] that keeps off the cameras at centres [N, 3], but for a few close-ups."""
    return NEAR * float(np.sort(np.linalg.norm(centres - centre, axis=1))[int(CLOSE_UPS * len(centres))])


def one_sided(centres: np.ndarray, middle: np.ndarray) -> bool:
    """Whether the cameras at centres [N, 3] see the middle [3] from one side only."""
    return bool(np.linalg.norm(unit(centres - middle).mean(0)) > ONE_SIDE)


def clear_sphere(
    x: np.ndarray, weight: np.ndarray, centres: np.ndarray, cover: float = COVER, pad: float = PAD
) -> tuple[np.ndarray, float] | None:
    """(centre [3], radius) of the smallest sphere around points [P, 3] that keeps off the cameras at centres [N, 3].

    Its radius is `pad` times that of the ball around its centre that covers the share `cover` of the weight [P]. The sphere of a wide
    surface seen from near moves back behind it. None when there is no such sphere, as where the cameras stand amid the points.
    """
    start = weighted_median(x, weight)
    some = x[np.random.default_rng(0).choice(len(x), DRAWN, p=weight / weight.sum())]  # so that no search has to sort by weight
    scale = float(np.quantile(np.linalg.norm(some - start, axis=1), 0.8))
    if scale <= 0:
        return None
    rank = int(cover * (DRAWN - 1))

    def radius(centre: np.ndarray) -> float:
        return pad * float(np.sqrt(np.partition(((some - centre) ** 2).sum(1), rank)[rank]))

    def cost(centre: np.ndarray) -> float:
        r = radius(centre)
        return (r + 20 * max(r - clearance(centres, centre), 0)) / scale

    back = unit(start - centres.mean(0))
    simplex = 0.3 * scale * np.concatenate([np.zeros((1, 3)), np.eye(3)])
    options = {"maxiter": 300, "xatol": 1e-3 * scale, "fatol": 1e-4}
    found = [
        minimize(cost, first, method="Nelder-Mead", options={**options, "initial_simplex": first + simplex})
        for first in (start + step * scale * back for step in (0.0, 0.5, 1.5))
    ]
    best = min(found, key=lambda f: f.fun).x
    r, most = radius(best), clearance(centres, best)
    return (best, min(r, most)) if r <= 1.02 * most else None
