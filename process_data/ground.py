"""Geometry of structure-from-motion points: the supporting plane, the up direction, the object on the plane."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

LINK = (0.05, 0.12)  # least and largest gap between points of one object, in framed radii
LINK_GAPS = 5  # the gap, in mean distances of a point to its 8 neighbours
FOOT = 0.15  # share of the object's points that are repeated on the plane below them
FEW = 0.15  # an object has few points when their density is less than this share of the density on the plane
PLANE_WIDTH = 0.02  # inliers of the supporting plane: this distance or less, in framed radii
LEVEL = 30.0  # degrees between the ground's normal and the cameras' up direction, at most


def trimmed(points: np.ndarray) -> np.ndarray:
    """Points [P, 3] without outliers, whose distance from the median exceeds six times the median distance."""
    off = np.linalg.norm(points - np.median(points, 0), axis=1)
    return points[off <= 6 * np.median(off) + 1e-12]


def dense_mask(x: np.ndarray) -> np.ndarray:
    """[P] bool: points [P, 3] but for isolated ones, whose mean distance to 8 neighbours is 3 times the median: mismatches."""
    if len(x) < 20:
        return np.ones(len(x), bool)
    gap = cKDTree(x).query(x, 9)[0][:, 1:].mean(1)
    return gap < 3 * np.median(gap)


def dense(x: np.ndarray) -> np.ndarray:
    """Points [P, 3] without isolated ones."""
    return x[dense_mask(x)]


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


@dataclass(frozen=True)
class Standing:
    """A supporting plane, normal x = offset in the world, and the object on it."""

    normal: np.ndarray  # [3] unit, towards the cameras
    offset: float
    points: np.ndarray | None = None  # [P, 3] of the object; None when it has too few of them to tell its extent
    gaze: np.ndarray | None = None  # [P] of these points
    height: float = 0.0  # of the object over the plane


def _components(x: np.ndarray) -> np.ndarray:
    """[P] numbers of the connected components of points [P, 3], in framed radii."""
    tree = cKDTree(x)
    gap = float(np.median(tree.query(x, min(9, len(x)))[0][:, 1:].mean(1)))
    pairs = tree.query_pairs(float(np.clip(LINK_GAPS * gap, *LINK)), output_type="ndarray")
    graph = csr_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(x),) * 2)
    return connected_components(graph, directed=False)[1]


def _object(x: np.ndarray, gaze: np.ndarray, normal: np.ndarray) -> np.ndarray | None:
    """[P] bool: the component of points [P, 3] above the plane with the largest mean gaze [P], and those above or below it.

    None when no component has 10 points. x: in framed radii.
    """
    label = _components(x)
    count = np.bincount(label)
    mean = np.where(count >= 10, np.bincount(label, gaze) / count, -1)
    if mean.max() < 0:
        return None
    flat = x - np.outer(x @ normal, normal)
    chosen = label == mean.argmax()
    foot = np.median(flat[chosen], 0)
    width = float(np.linalg.norm(flat[chosen] - foot, axis=1).max())
    for k in np.flatnonzero(count >= 10):
        part = label == k
        chosen |= part & (np.linalg.norm(np.median(flat[part], 0) - foot) < width)
    return chosen


def standing_object(points: np.ndarray, centres: np.ndarray, middle: np.ndarray, reach: float, gaze: np.ndarray) -> Standing | None:
    """The supporting plane near `middle`, and the object on it that the cameras look at; None when no plane supports the scene.

    points [P, 3], centres [N, 3] (of cameras): world; reach: the framed radius, of the ball around the middle that fills the images; gaze
    [P]: the share of the views that have a point in their middle. The object is the connected component of points above the plane with
    the largest gaze, not the largest component: a neighbour may be larger.
    """
    x = (points - middle) / reach
    close = np.linalg.norm(x, axis=1) < 1.5
    x, gaze = x[close], gaze[close]
    plane = support_plane(x, (centres - middle) / reach)
    if plane is None:
        return None
    normal, offset = plane
    world = float(offset * reach + normal @ middle)
    height = x @ normal - offset
    above, looked_at = x[height > 2 * PLANE_WIDTH], gaze[height > 2 * PLANE_WIDTH]
    solid = dense_mask(above)
    above, looked_at = above[solid], looked_at[solid]
    part = _object(above, looked_at, normal) if len(above) >= 10 else None
    if part is None:
        return Standing(normal, world)
    found = above[part]
    on_plane = int(((np.abs(height) < PLANE_WIDTH) & (np.linalg.norm(x, axis=1) < 1)).sum())
    centre = found.mean(0)
    size = float(np.quantile(np.linalg.norm(found - centre, axis=1), 0.9))
    off = float(np.linalg.norm(centre - (centre @ normal) * normal))  # the middle is at 0
    few = len(found) < max(30, FEW * on_plane * size**2) or off > size + 0.3
    if few:
        return Standing(normal, world)
    tall = found @ normal - offset
    low = tall < np.quantile(tall, FOOT)
    foot = found[low] - np.outer(tall[low], normal)  # points near the plane do not tell which they belong to
    both = middle + reach * np.concatenate([found, foot])
    weight = np.concatenate([looked_at[part], looked_at[part][low]])
    return Standing(normal, world, both, weight, reach * float(np.quantile(tall, 0.98)))
