"""What the points of structure from motion say of the scene: the plane under the object, which way is up, the object itself."""

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

LINK = 0.12  # of the framed radius: points of one object are no further apart


def trimmed(points: np.ndarray) -> np.ndarray:
    """Points without those far off: further from the median than six times the median distance."""
    off = np.linalg.norm(points - np.median(points, 0), axis=1)
    return points[off <= 6 * np.median(off) + 1e-12]


def dense(x: np.ndarray) -> np.ndarray:
    """Points without those far from their neighbours, which are mismatches."""
    if len(x) < 20:
        return x
    gap = cKDTree(x).query(x, 9)[0][:, 1:].mean(1)
    return x[gap < 3 * np.median(gap)]


def support_plane(x: np.ndarray, centres: np.ndarray, seed: int = 0) -> tuple[np.ndarray, float] | None:
    """(normal [3], offset) of the plane that holds most points, cameras on its positive side: n x = offset. None when it holds few."""
    rng, best, most = np.random.default_rng(seed), None, 0
    if len(x) < 50:
        return None
    some = x[rng.choice(len(x), min(len(x), 6000), replace=False)]
    for _ in range(400):
        a, b, c = some[rng.choice(len(some), 3, replace=False)]
        normal = np.cross(b - a, c - a)
        length = np.linalg.norm(normal)
        if length < 1e-9:
            continue
        normal = normal / length
        side = centres @ normal - a @ normal
        normal, side = (normal, side) if np.median(side) > 0 else (-normal, -side)
        near = np.abs((some - a) @ normal) < 0.02
        # a table has all cameras and nearly all points in front of it
        if near.sum() > most and (side > 0).mean() > 0.95 and ((some - a) @ normal < -0.05).mean() < 0.15:
            most, best = int(near.sum()), (normal, float(a @ normal))
    return best if best is not None and most > 0.15 * len(some) else None


def ground_up(points: np.ndarray, up: np.ndarray, seed: int = 0) -> np.ndarray | None:
    """Normal of the plane that holds most points (RANSAC), on the side of `up`; None when it stands steeper than 45 degrees."""
    rng = np.random.default_rng(seed)
    x = trimmed(points)
    if len(x) < 20:
        return None
    x = x if len(x) < 20000 else x[rng.choice(len(x), 20000, replace=False)]
    width = 0.01 * np.median(np.linalg.norm(x - np.median(x, 0), axis=1))
    best, most = None, 0
    for _ in range(300):
        a, b, c = x[rng.choice(len(x), 3, replace=False)]
        normal = np.cross(b - a, c - a)
        length = np.linalg.norm(normal)
        if length < 1e-12 or abs(normal @ up) < np.cos(np.radians(45)) * length:
            continue
        near = np.abs((x - a) @ (normal / length)) < width
        if near.sum() > most:
            most, best = int(near.sum()), near
    if best is None or most < 20:
        return None
    normal = np.linalg.svd(x[best] - x[best].mean(0), full_matrices=False)[2][2]
    return normal * np.sign(normal @ up)


def standing_object(points: np.ndarray, centres: np.ndarray, middle: np.ndarray, reach: float) -> np.ndarray | None:
    """Points [P, 3] of the largest thing that stands on (or hangs from) the supporting plane near `middle`; None if there is none.

    points, centres (of cameras): world; reach: radius of the ball around the middle that the cameras frame.
    """
    x = (points - middle) / reach
    x = x[np.linalg.norm(x, axis=1) < 1.5]
    plane = support_plane(x, (centres - middle) / reach)
    if plane is None:
        return None
    above = dense(x[x @ plane[0] - plane[1] > 0.04])
    if len(above) < 50:
        return None
    pairs = cKDTree(above).query_pairs(LINK, output_type="ndarray")
    graph = csr_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(above),) * 2)
    label = connected_components(graph, directed=False)[1]
    largest = above[label == np.bincount(label).argmax()]
    return middle + reach * largest if len(largest) >= 0.4 * len(above) and len(largest) >= 50 else None
