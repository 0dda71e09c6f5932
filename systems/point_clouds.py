"""Point clouds of surfaces, in bounded memory: samples of triangles, thinning, voxel means, nearest distances. P points, F faces."""

from collections.abc import Iterator

import numpy as np
from scipy.spatial import cKDTree

from utils.errors import UserError
from utils.mesh import area_vectors

FACES = 500_000  # faces sampled at once
STEP = 1_000_000  # points whose nearest neighbour is looked for at once
FIRST = 1024  # points of the first block that is thinned
MOST = 50_000_000  # samples of a mesh, above which its unit is taken to be wrong


def nearest(points: np.ndarray, tree: cKDTree) -> np.ndarray:
    """Distance of points [P, 3] to the nearest point of a tree -> [P]."""
    parts = [tree.query(points[a : a + STEP], workers=-1)[0] for a in range(0, len(points), STEP)]
    return np.concatenate(parts) if parts else np.zeros(0)


# ------------------------------------------------------------------------------------------------ samples of triangles
def _divisions(triangles: np.ndarray, spacing: float) -> np.ndarray:
    """Parts [F, 2] that the first and second side of triangles [F, 3, 3] are divided into; 0 where the triangle is too small."""
    sides = np.linalg.norm(triangles[:, 1:] - triangles[:, :1], axis=2)
    area = np.linalg.norm(area_vectors(triangles), axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        step = spacing * np.sqrt(sides.prod(1) / area)  # a lattice of this step along both sides has spacing^2 of area a point
        parts = np.floor(sides / step[:, None])
    parts[~(area > 0)] = 0
    return parts


def _samples(vertices: np.ndarray, faces: np.ndarray, spacing: float) -> Iterator[np.ndarray]:
    for begin in range(0, len(faces), FACES):
        triangles = vertices[faces[begin : begin + FACES]]
        parts = _divisions(triangles, spacing)
        large = np.flatnonzero((parts > 0).all(1))
        kinds, kind = np.unique(parts[large].astype(np.int64), axis=0, return_inverse=True)
        order = np.argsort(kind.ravel(), kind="stable")
        ends = np.cumsum(np.bincount(kind.ravel(), minlength=len(kinds)))
        for (n1, n2), same in zip(kinds, np.split(large[order], ends[:-1])):
            u, v = np.meshgrid((np.arange(n1) + 0.5) / n1, (np.arange(n2) + 0.5) / n2, indexing="ij")
            inside = u + v < 1
            uv = np.stack([u[inside], v[inside]], 1)  # [K, 2]
            if len(uv):
                corner, edges = triangles[same, 0], triangles[same, 1:] - triangles[same, :1]
                yield (corner[:, None] + uv @ edges).reshape(-1, 3)


def sample_triangles(vertices: np.ndarray, faces: np.ndarray, spacing: float) -> np.ndarray:
    """The vertices [V, 3], and on each triangle of faces [F, 3] a regular lattice with one point per spacing^2 of area -> [P, 3].

    Raises UserError where that would be more than MOST points: then the mesh is not in the unit of the spacing.
    """
    vertices = np.asarray(vertices, np.float64)
    total = sum(_divisions(vertices[faces[a : a + FACES]], spacing).prod(1).sum() / 2 for a in range(0, len(faces), FACES))
    if total > MOST:
        size = np.linalg.norm(np.ptp(vertices, axis=0))
        raise UserError(f"sampled at {spacing:g}, the mesh of size {size:.4g} would be {total:.2g} points; is it in the unit of the truth?")
    return np.concatenate([vertices, *_samples(vertices, faces, spacing)])


# ------------------------------------------------------------------------------------------------ fewer points
def first_come(n: int, pairs: np.ndarray) -> np.ndarray:
    """Which of n points are kept [n] when each, in order, is kept unless a kept one is its neighbour; pairs [M, 2], first < second."""
    undecided, kept = np.ones(n, bool), np.zeros(n, bool)
    first, second = pairs[:, 0], pairs[:, 1]
    while len(first):
        waits = np.zeros(n, bool)
        waits[second] = True  # an undecided neighbour comes before it
        now = undecided & ~waits
        kept |= now
        undecided &= waits
        undecided[second[now[first]]] = False
        left = undecided[first] & undecided[second]
        first, second = first[left], second[left]
    return kept | undecided


def thin(points: np.ndarray, radius: float, seed: int = 0) -> np.ndarray:
    """Points [P, 3] in random order, each dropped that lies within `radius` of one kept before it -> [K, 3].

    Exactly the sequential rule, by blocks that double: what the kept points cover is dropped first, so that few pairs within a
    block remain, and memory stays a small multiple of the points.
    """
    order = np.random.default_rng(seed).permutation(len(points))
    kept, end = np.zeros((0, 3)), 0
    while end < len(order):
        begin, end = end, min(len(order), max(FIRST, 2 * end))
        block = points[order[begin:end]]
        if len(kept):
            block = block[nearest_beyond(block, cKDTree(kept), radius)]
        pairs = cKDTree(block).query_pairs(radius, output_type="ndarray") if len(block) else np.zeros((0, 2), np.int64)
        kept = np.concatenate([kept, block[first_come(len(block), pairs)]])
    return kept


def nearest_beyond(points: np.ndarray, tree: cKDTree, radius: float) -> np.ndarray:
    """Which of points [P, 3] have no point of the tree within radius -> [P] bool."""
    bound = np.nextafter(radius, np.inf)  # the search leaves out the bound itself
    parts = [tree.query(points[a : a + STEP], distance_upper_bound=bound, workers=-1)[0] for a in range(0, len(points), STEP)]
    return np.concatenate(parts) > radius


def voxel_means(points: np.ndarray, size: float) -> np.ndarray:
    """The mean of the points [P, 3] in each occupied voxel of side `size` -> [K, 3]. The grid begins half a voxel below the least ones.

    Raises UserError where the grid has too many voxels to number.
    """
    if not len(points):
        return np.zeros((0, 3))
    low = points.min(0) - size / 2
    count = np.floor((points.max(0) - low) / size) + 1
    if not count.prod() < 2.0**62:
        raise UserError(f"voxels of {size:g} in a cloud of size {np.linalg.norm(np.ptp(points, axis=0)):.4g} are too many; check its unit")
    index = np.floor((points - low) / size).astype(np.int64)
    _, voxel, n = np.unique(np.ravel_multi_index(index.T, count.astype(np.int64)), return_inverse=True, return_counts=True)  # type: ignore[call-overload]
    return np.stack([np.bincount(voxel.ravel(), points[:, k]) for k in range(3)], 1) / n[:, None]
