"""Geometry of structure-from-motion points: the supporting plane, the up direction, the object on the plane."""

from collections.abc import Callable

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

LINK = 0.12  # largest gap between points of one object, in framed radii
PLANE_WIDTH = 0.02  # inliers of the supporting plane: this distance or less, in framed radii
LEVEL = 30.0  # degrees between the ground's normal and the cameras' up direction, at most


def trimmed(points: np.ndarray) -> np.ndarray:
    """Points [P, 3] without outliers, whose distance from the median exceeds six times the median distance."""
    off = np.linalg.norm(points - np.median(points, 0), axis=1)
    return points[off <= 6 * np.median(off) + 1e-12]


def dense(x: np.ndarray) -> np.ndarray:
    """Points [P, 3] without isolated ones, whose mean distance to 8 neighbours is 3 times the median: mismatches."""
    if len(x) < 20:
        return x
    gap = cKDTree(x).query(x, 9)[0][:, 1:].mean(1)
    return x[gap < 3 * np.median(gap)]


def ransac_plane(
    x: np.ndarray, width: float, trials: int, oriented: Callable[[np.ndarray, float], np.ndarray | None], rng: np.random.Generator
) -> tuple[np.ndarray, float, np.ndarray] | None:
    """The plane with the most inliers among planes through 3 random points (Fischler and Bolles 1981).

    x [P, 3]; inliers are nearer than width. oriented(normal [3], offset) returns the normal with the wanted sign, or None to reject
    the plane. Returns (normal [3], offset, inliers [P] bool) with normal x = offset, or None when every plane was rejected.
    """
    best, most = None, 0
    for _ in range(trials):
        a, b, c = x[rng.choice(len(x), 3, replace=False)]
        normal = np.cross(b - a, c - a)
        length = np.linalg.norm(normal)
        if length < 1e-12:
            continue
        normal = normal / length
        near = np.abs((x - a) @ normal) < width
        count = int(near.sum())
        if count <= most:
            continue
        signed = oriented(normal, float(a @ normal))
        if signed is not None:
            most, best = count, (signed, float(a @ signed), near)
    return best


def support_plane(x: np.ndarray, centres: np.ndarray, seed: int = 0, up: np.ndarray | None = None) -> tuple[np.ndarray, float] | None:
    """(normal [3], offset) of the plane that supports the object: normal x = offset, cameras on the positive side.

    x [P, 3] points and centres [N, 3] of cameras, in framed radii; up [3]: the normal lies within LEVEL degrees of it. None when fewer
    than 15 % of the points lie on one plane with nearly all cameras and points in front of it.
    """
    if len(x) < 50:
        return None
    rng = np.random.default_rng(seed)
    some = x[rng.choice(len(x), min(len(x), 6000), replace=False)]

    def oriented(normal: np.ndarray, offset: float) -> np.ndarray | None:
        side = centres @ normal - offset
        sign = 1.0 if np.median(side) > 0 else -1.0
        if up is not None and sign * (normal @ up) < np.cos(np.radians(LEVEL)):
            return None
        below = sign * (some @ normal - offset) < -0.05
        return sign * normal if (sign * side > 0).mean() > 0.95 and below.mean() < 0.15 else None

    found = ransac_plane(some, PLANE_WIDTH, 400, oriented, rng)
    return found[:2] if found is not None and found[2].sum() > 0.15 * len(some) else None


def ground_normal(points: np.ndarray, up: np.ndarray, seed: int = 0) -> np.ndarray | None:
    """Unit normal [3] of the plane with the most points within 45 degrees of level, on the side of `up`; None when there is none.

    points [P, 3]: world; up [3]: unit, approximate.
    """
    rng = np.random.default_rng(seed)
    x = trimmed(points)
    if len(x) < 20:
        return None
    x = x if len(x) < 20000 else x[rng.choice(len(x), 20000, replace=False)]
    width = 0.01 * float(np.median(np.linalg.norm(x - np.median(x, 0), axis=1)))
    found = ransac_plane(x, width, 300, lambda normal, _: normal if abs(normal @ up) >= np.cos(np.radians(45)) else None, rng)
    if found is None or found[2].sum() < 20:
        return None
    inliers = x[found[2]]
    normal = np.linalg.svd(inliers - inliers.mean(0), full_matrices=False)[2][2]
    return normal * np.sign(normal @ up)


def ground_up(points: np.ndarray, centres: np.ndarray, up: np.ndarray, middle: np.ndarray, reach: float) -> np.ndarray | None:
    """Unit normal [3] of the ground the object stands on, within LEVEL degrees of `up`; None where no plane clearly supports it.

    points [P, 3], centres [N, 3] (of cameras): world; reach: the framed radius. Unlike `ground_normal` it finds no plane in a scene
    without one.
    """
    x = (points - middle) / reach
    x = x[np.linalg.norm(x, axis=1) < 2]
    plane = support_plane(x, (centres - middle) / reach, up=up)
    if plane is None:
        return None
    normal, offset = plane
    for width in (PLANE_WIDTH, PLANE_WIDTH / 2, PLANE_WIDTH / 2):  # the points of the object above would tilt a wide one
        near = x[np.abs(x @ normal - offset) < width]
        if len(near) < 20:
            break
        fitted = np.linalg.svd(near - near.mean(0), full_matrices=False)[2][2]
        normal = fitted * np.sign(fitted @ normal)
        offset = float(np.median(near @ normal))
    return normal


def standing_object(points: np.ndarray, centres: np.ndarray, middle: np.ndarray, reach: float) -> np.ndarray | None:
    """Points [P, 3] of the largest connected cluster on the positive side of the supporting plane near `middle`; None if there is none.

    points, centres (of cameras): world; reach: the framed radius, of the ball around the middle that fills the images.
    """
    x = (points - middle) / reach
    x = x[np.linalg.norm(x, axis=1) < 1.5]
    plane = support_plane(x, (centres - middle) / reach)
    if plane is None:
        return None
    above = dense(x[x @ plane[0] - plane[1] > 2 * PLANE_WIDTH])
    if len(above) < 50:
        return None
    pairs = cKDTree(above).query_pairs(LINK, output_type="ndarray")
    graph = csr_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(above),) * 2)
    label = connected_components(graph, directed=False)[1]
    largest = above[label == np.bincount(label).argmax()]
    return middle + reach * largest if len(largest) >= 0.4 * len(above) and len(largest) >= 50 else None
