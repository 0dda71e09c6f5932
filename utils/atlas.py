"""Texture atlas of a mesh: its faces laid out in the unit square, and the surface point of each texel.

Texture coordinates have v upwards; images have their first row at the top, v = 1.
"""

import logging
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import distance_transform_edt

from utils.mesh import cross2, rasterise

log = logging.getLogger("neus")
MOST_FACES = 100_000  # beyond, xatlas takes minutes


@dataclass(frozen=True)
class Atlas:
    """Texture coordinates of a mesh, its vertices duplicated along the seams."""

    vertex: np.ndarray  # [U] int64, index of the vertex in the mesh
    faces: np.ndarray  # [F, 3] int64, into these U vertices; faces in the order of the mesh
    uv: np.ndarray  # [U, 2] in [0, 1]
    size: int  # texels along a side


def unwrap(vertices: np.ndarray, faces: np.ndarray, size: int) -> Atlas:
    """An atlas by xatlas where that is installed and the mesh has at most MOST_FACES faces, else by `patches`."""
    if len(faces) <= MOST_FACES:
        try:
            import xatlas

            vertex, split, uv = xatlas.parametrize(np.asarray(vertices, np.float32), np.asarray(faces, np.uint32))
            if len(split) == len(faces):
                return Atlas(vertex.astype(np.int64), split.astype(np.int64), uv.astype(np.float64), size)
        except ImportError:
            log.info("texture atlas: one patch for each face; pip install xatlas for larger patches")
        except Exception as error:  # it fails on some broken meshes
            log.warning("texture atlas: xatlas failed (%s), so one patch for each face", error)
    return patches(faces, size)


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


def texels(atlas: Atlas) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the M texels inside a face: index in the flattened image [M], face [M], barycentric weights [M, 3]."""
    t = atlas.size
    corner = atlas.uv[atlas.faces] * t - 0.5  # [F, 3, 2] texels, v upwards
    corner[..., 1] = t - 1 - corner[..., 1]
    face = rasterise(corner.astype(np.float32), np.ones((len(corner), 3), np.float32), t, t)
    index = np.flatnonzero(face >= 0)
    face = face[index]
    a, b, c = (corner[face, k] for k in range(3))
    p = np.stack([index % t, index // t], 1)
    area = cross2(b - a, c - a)
    area = np.where(np.abs(area) < 1e-12, 1e-12, area)
    u, v = cross2(b - p, c - p) / area, cross2(c - p, a - p) / area
    weights = np.clip(np.stack([u, v, 1 - u - v], 1), 0, 1)
    return index, face, weights / weights.sum(1, keepdims=True)


def spread(values: np.ndarray, index: np.ndarray, size: int) -> np.ndarray:
    """Values [M, C] at the flattened texels index [M] -> image [size, size, C]; every other texel has the value of the nearest of these."""
    image, empty = np.zeros((size * size, values.shape[1]), values.dtype), np.ones(size * size, bool)
    image[index], empty[index] = values, False
    if not len(index):
        return image.reshape(size, size, -1)
    nearest = distance_transform_edt(empty.reshape(size, size), return_distances=False, return_indices=True)
    return image.reshape(size, size, -1)[nearest[0], nearest[1]]
