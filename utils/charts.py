"""Charts of a mesh: faces that one direction looks at are laid into the plane along it. For large meshes, where xatlas takes minutes.

Faces are sorted by which of a few directions their smoothed normal faces most; specks join their surroundings; connected parts become
charts. A chart that covers itself in the plane, as a spiral staircase does from above, is cut into its layers.
"""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components

from utils.mesh import area_vectors, cross2
from utils.scanlines import covers

STEEP = 0.35  # cosine between a face and the direction of its chart, at least; specks may be steeper
STEEPEST = 0.12  # the same where a speck joins its surroundings
SPECK = 200  # faces, but at most a 200th of all: smaller parts join their surroundings where these see them well enough
ROUNDS = 12  # of smoothing the normals that decide, in a mesh of USUAL faces; as far in others
USUAL = 200_000
GROWTH = 40  # faces that surroundings reach into a speck
LAYERS = 4  # rounds of cutting charts that cover themselves
_corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) / np.sqrt(3)
DIRECTIONS = np.concatenate([np.eye(3), -np.eye(3), _corners])  # [14, 3]


@dataclass(frozen=True)
class Flat:
    """Charts in the plane, each in its own coordinates and of the mesh's scale."""

    chart: np.ndarray  # [F] int64, of each face, 0 .. C - 1
    corner: np.ndarray  # [F, 3, 2] its corners in the plane, counter-clockwise as seen from outside
    depth: np.ndarray  # [F, 3] how far below the plane

    @property
    def n(self) -> int:
        return int(self.chart.max()) + 1 if len(self.chart) else 0


def neighbours(faces: np.ndarray) -> np.ndarray:
    """Pairs [E, 2] of faces that share an edge."""
    edges = np.sort(faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), 1).astype(np.int64)
    key = edges[:, 0] * (int(faces.max(initial=0)) + 1) + edges[:, 1]
    order = np.argsort(key, kind="stable")
    same = key[order[1:]] == key[order[:-1]]
    return np.stack([order[:-1][same] // 3, order[1:][same] // 3], 1)


def _smooth(normals: np.ndarray, pairs: np.ndarray, rounds: int) -> np.ndarray:
    """Area vectors [F, 3], averaged with those of neighbours `rounds` times."""
    n = len(normals)
    i, j = np.concatenate([pairs, pairs[:, ::-1], np.arange(n)[:, None].repeat(2, 1)]).T
    mean: csr_matrix = coo_matrix((np.ones(len(i), np.float32), (i, j)), shape=(n, n)).tocsr()
    array = normals.astype(np.float32)
    for _ in range(rounds):
        array = mean @ array
        array /= np.abs(array).max()
    return array


def _parts(label: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """[F] connected parts of faces of one label, numbered from 0."""
    same = label[pairs[:, 0]] == label[pairs[:, 1]]
    i, j = pairs[same].T
    return connected_components(coo_matrix((np.ones(len(i), bool), (i, j)), shape=(len(label),) * 2), directed=False)[1].astype(np.int64)


def segment(normals: np.ndarray, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(part [F], index of its direction [F] among DIRECTIONS) of faces with area vectors [F, 3]."""
    unit = normals / np.linalg.norm(normals, axis=1, keepdims=True).clip(1e-30)
    facing = (unit @ DIRECTIONS.T).astype(np.float32)  # [F, 14]
    rounds = round(ROUNDS * min(1.0, np.sqrt(len(normals) / USUAL)))
    score = _smooth(normals, pairs, rounds) @ DIRECTIONS.T.astype(np.float32)
    label = np.where(facing > STEEP, score, -np.inf).argmax(1)
    for limit in (STEEP, STEEPEST):
        part = _parts(label, pairs)
        small = np.bincount(part)[part] < min(SPECK, len(part) // 200)
        label = _absorb(label, small, facing, pairs, limit)
    return _parts(label, pairs), label


def _absorb(label: np.ndarray, small: np.ndarray, facing: np.ndarray, pairs: np.ndarray, limit: float) -> np.ndarray:
    """Labels [F] after larger parts have grown into small ones, where a face's cosine to the direction exceeds the limit."""
    label, small = label.copy(), small.copy()
    both = np.concatenate([pairs, pairs[:, ::-1]])
    both = both[small[both[:, 0]]]
    for _ in range(GROWTH):
        edge = both[small[both[:, 0]] & ~small[both[:, 1]]]
        face, offered = edge[:, 0], label[edge[:, 1]]
        fits = facing[face, offered] > limit
        if not fits.any():
            break
        face, offered = face[fits], offered[fits]
        order = np.argsort(facing[face, offered], kind="stable")  # the best is written last
        label[face[order]] = offered[order]
        small[face] = False
    return label


def _axes(direction: np.ndarray) -> np.ndarray:
    """Rows x, y, z [C, 3, 3] of right-handed frames whose z is the unit direction [C, 3]."""
    side = np.where(np.abs(direction[:, 2:]) < 0.9, [[0.0, 0, 1]], [[1.0, 0, 0]])
    x = np.cross(side, direction)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return np.stack([x, np.cross(direction, x), direction], 1)


def flatten(vertices: np.ndarray, faces: np.ndarray, density: np.ndarray | None = None) -> Flat:
    """Charts of a mesh, none of which covers itself (as far as a picture of it of 1024 pixels a side tells).

    density [F]: texels per length that the faces deserve, up to a factor; a chart has those of the faces that deserve most. None: all alike.
    """
    triangles = np.asarray(vertices, np.float64)[faces]
    normals, pairs = area_vectors(triangles), neighbours(faces)
    part, label = segment(normals, pairs)
    flat = _project(triangles, normals, part, label)
    suspect = np.arange(len(faces))
    for _ in range(LAYERS):
        below = np.zeros(len(faces), bool)
        below[suspect] = _covered(_subset(flat, suspect))
        if not below.any():
            break
        cut = np.isin(flat.chart, flat.chart[below])
        part = _parts(2 * flat.chart + below, pairs)
        flat, suspect = _project(triangles, normals, part, label), np.flatnonzero(cut)
    return flat if density is None else _scaled(flat, np.linalg.norm(normals, axis=1), np.asarray(density, np.float64))


def _scaled(flat: Flat, area: np.ndarray, density: np.ndarray) -> Flat:
    """The charts scaled by their densities: the mean over their faces by area and density, which the dense ones decide."""
    high, low = (np.bincount(flat.chart, area * density**power, flat.n) for power in (5, 4))
    scale = high / np.maximum(low, 1e-300)
    return Flat(flat.chart, flat.corner * scale[flat.chart, None, None], flat.depth)


def _subset(flat: Flat, faces: np.ndarray) -> Flat:
    """The charts of some faces alone."""
    return Flat(np.unique(flat.chart[faces], return_inverse=True)[1].reshape(-1), flat.corner[faces], flat.depth[faces])


def _project(triangles: np.ndarray, normals: np.ndarray, part: np.ndarray, label: np.ndarray) -> Flat:
    """Each part along its mean normal, or along its direction of DIRECTIONS where some face turns away from that."""
    n = int(part.max(initial=-1)) + 1
    mean = np.stack([np.bincount(part, normals[:, k], n) for k in range(3)], 1)
    mean = mean / np.linalg.norm(mean, axis=1, keepdims=True).clip(1e-30)
    given = np.zeros_like(mean)
    given[part] = DIRECTIONS[label]
    unit = normals / np.linalg.norm(normals, axis=1, keepdims=True).clip(1e-30)
    least = [np.full(n, 1.0), np.full(n, 1.0)]
    for low, direction in zip(least, (mean, given)):
        np.minimum.at(low, part, (unit * direction[part]).sum(1))
    direction = np.where((least[0] >= np.minimum(least[1], STEEP))[:, None], mean, given)
    direction[~(np.abs(direction).max(1) > 0)] = (0, 0, 1)  # a part without area
    local = np.einsum("fij,fkj->fki", _axes(direction)[part], triangles)  # [F, 3 corners, xyz]
    flat = local[..., :2]
    area3 = np.bincount(part, np.linalg.norm(normals, axis=1), n)
    area2 = np.bincount(part, np.abs(cross2(flat[:, 1] - flat[:, 0], flat[:, 2] - flat[:, 0])), n)
    scale = np.sqrt(area3 / np.maximum(area2, 1e-3 * area3 + 1e-300)).clip(1, 3)  # steep charts keep their share of texels
    return Flat(part, flat * scale[part, None, None], -local[..., 2])


def _covered(flat: Flat, side: int = 1024) -> np.ndarray:
    """[F] bool: faces that lie below another face of their chart."""
    from utils.packing import pack  # it needs this module

    corner, scale = pack(flat, side)
    pixel, face = covers(corner, side)
    a, b, c = (corner[face, k] for k in range(3))
    at = np.stack([pixel % side, pixel // side], 1)
    area = cross2(b - a, c - a)
    area = np.where(np.abs(area) < 1e-12, 1e-12, area)
    u, v = cross2(b - at, c - at) / area, cross2(c - at, a - at) / area
    depth = (flat.depth[face] * np.stack([u, v, 1 - u - v], 1)).sum(1)
    top = np.full(side * side, np.inf)
    np.minimum.at(top, pixel, depth)
    found = np.zeros(len(flat.chart), bool)
    found[face[depth > top[pixel] + 1 / scale]] = True  # by a pixel: on a shared edge both faces have one depth
    return found
