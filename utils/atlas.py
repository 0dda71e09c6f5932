"""Texture atlas of a mesh: its faces laid out in the unit square, and the surface point of each texel.

Texture coordinates have v upwards; images have their first row at the top, v = 1.
"""

import logging
from dataclasses import dataclass

import cv2
import numpy as np

from utils.charts import flatten
from utils.mesh import cross2
from utils.packing import pack
from utils.scanlines import covers

log = logging.getLogger("neus")
MOST_FACES = 20_000  # beyond, xatlas takes minutes


@dataclass(frozen=True)
class Atlas:
    """Texture coordinates of a mesh, its vertices duplicated along the seams."""

    vertex: np.ndarray  # [U] int64, index of the vertex in the mesh
    faces: np.ndarray  # [F, 3] int64, into these U vertices; faces in the order of the mesh
    uv: np.ndarray  # [U, 2] in [0, 1]
    size: int  # texels along a side


def unwrap(vertices: np.ndarray, faces: np.ndarray, size: int) -> Atlas:
    """An atlas by xatlas where that is installed and the mesh has at most MOST_FACES faces, else by `chart_atlas`."""
    if len(faces) <= MOST_FACES:
        try:
            import xatlas

            vertex, split, uv = xatlas.parametrize(np.asarray(vertices, np.float32), np.asarray(faces, np.uint32))
            if len(split) == len(faces):
                return Atlas(vertex.astype(np.int64), split.astype(np.int64), uv.astype(np.float64), size)
        except ImportError:
            log.info("texture atlas: plain charts; pip install xatlas for ones with less distortion")
        except Exception as error:  # it fails on some broken meshes
            log.warning("texture atlas: xatlas failed (%s), so plain charts", error)
    return chart_atlas(vertices, faces, size)


def chart_atlas(vertices: np.ndarray, faces: np.ndarray, size: int, density: np.ndarray | None = None) -> Atlas:
    """An atlas of the charts of `utils/charts.py`: some seconds for 200,000 faces. density [F]: as in `flatten`."""
    flat = flatten(vertices, faces, density)
    corner, _ = pack(flat, size)
    n = len(vertices)
    key, first, split = np.unique(flat.chart[:, None] * n + faces, return_index=True, return_inverse=True)
    return Atlas(key % n, split.reshape(-1, 3).astype(np.int64), corner.reshape(-1, 2)[first] / size, size)


def patches(faces: np.ndarray, size: int) -> Atlas:
    """An atlas of square cells with two faces in each, two texels apart; `size` is raised where a cell would have under 4 texels a side."""
    n = len(faces)
    across = int(np.ceil(np.sqrt(np.ceil(n / 2))))
    size = max(size, 4 * across)
    c = size // across
    lower, upper = np.array([[0, 0], [c - 3, 0], [0, c - 3]]), np.array([[c - 1, c - 1], [2, c - 1], [c - 1, 2]])
    index = np.arange(n)
    cell = np.stack([index // 2 % across, index // 2 // across], 1) * c
    corner = cell[:, None] + np.where((index % 2 == 0)[:, None, None], lower, upper)  # [F, 3, 2] texels
    return Atlas(np.asarray(faces, np.int64).reshape(-1), np.arange(3 * n).reshape(n, 3), (corner.reshape(-1, 2) + 0.5) / size, size)


def texels(atlas: Atlas, reach: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the M texels inside a face: index in the flattened image [M], face [M], barycentric weights [M, 3].

    reach: also the texels so many texels outside; theirs are the weights of the point on the plane of the nearest texel's face.
    """
    t = atlas.size
    corner = atlas.uv[atlas.faces] * t - 0.5  # [F, 3, 2] texels, v upwards
    corner[..., 1] = t - 1 - corner[..., 1]
    pixel, covered = covers(corner, t)
    covering = np.full(t * t, -1, np.int64)
    covering[pixel] = covered
    index = np.flatnonzero(covering >= 0)
    if reach > 0 and len(index):
        near, distance = nearest(index, t)
        inside = index
        index = np.flatnonzero(distance <= reach)
        face = covering[inside[near[index]]]
    else:
        face = covering[index]
    a, b, c = corner[:, 0], corner[:, 1], corner[:, 2]
    area = cross2(b - a, c - a)
    area = np.where(np.abs(area) < 1e-12, 1e-12, area)
    # weights of b and c grow linearly from 0 at a
    slope = (np.stack([c - a, a - b], 1)[..., ::-1] * (1, -1) / area[:, None, None]).astype(np.float32)  # [F, 2, 2]
    away = (np.stack([index % t, index // t], 1) - a[face]).astype(np.float32)
    v, w = (slope[face] * away[:, None]).sum(2).T
    weights = np.stack([1 - v - w, v, w], 1)
    beyond = covering[index] < 0
    far = beyond & (np.abs(weights).max(1) > 3)  # of a sliver
    cut = ~beyond | far
    weights[cut] = np.clip(weights[cut], 0, 1)
    return index, face, weights / weights.sum(1, keepdims=True)


def nearest(index: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Of every texel of an image: the position [size^2] in index [M] of about the nearest of these flattened texels; the distance to it."""
    empty = np.ones(size * size, np.uint8)
    empty[index] = 0
    distance, label = cv2.distanceTransformWithLabels(empty.reshape(size, size), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    label = label.reshape(-1)
    position = np.zeros(int(label.max(initial=0)) + 1, np.int64)
    position[label[index]] = np.arange(len(index))
    return position[label], distance.reshape(-1)


def spread(values: np.ndarray, index: np.ndarray, size: int) -> np.ndarray:
    """Values [M, C] at the flattened texels index [M] -> image [size, size, C]; every other texel has the value of about the nearest."""
    if not len(index):
        return np.zeros((size, size, values.shape[1]), values.dtype)
    return values[nearest(index, size)[0]].reshape(size, size, -1)
