"""Fewer faces on the same surface: quadric edge collapses (Garland and Heckbert 1997) by fast-simplification, or vertices merged in cells
(Rossignac and Borrel 1993), which is quick on millions."""

import logging

import numpy as np
import trimesh
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

log = logging.getLogger("neus")


def _edge_keys(faces: np.ndarray) -> np.ndarray:
    """[3 F] one number for each edge of faces [F, 3], the same for both directions: corners 0 and 1 of a face, 1 and 2, 2 and 0."""
    edges = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2).astype(np.int64), axis=1)
    return edges[:, 0] << 32 | edges[:, 1]


def edge_counts(faces: np.ndarray) -> np.ndarray:
    """The number of faces at each edge of faces [F, 3]."""
    return np.unique(_edge_keys(faces), return_counts=True)[1]


def crowded_edges(faces: np.ndarray) -> int:
    """How many edges have more than two faces: 0 for a manifold, with or without a boundary."""
    return int((edge_counts(faces) > 2).sum())


def is_closed(faces: np.ndarray) -> bool:
    """Whether every edge of faces [F, 3] has exactly two."""
    return bool(len(faces)) and bool((edge_counts(faces) == 2).all())


def clean_faces(faces: np.ndarray) -> np.ndarray:
    """faces [F, 3] without those that use a vertex twice, and one of each that is there several times; two back to back both go."""
    faces = faces[(faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])]
    _, first, group, count = np.unique(np.sort(faces, axis=1), axis=0, return_index=True, return_inverse=True, return_counts=True)
    if len(first) == len(faces):
        return faces
    turn = np.where(((faces[:, 1] > faces[:, 0]) ^ (faces[:, 2] > faces[:, 1]) ^ (faces[:, 0] > faces[:, 2])), 1, -1)
    balance = np.bincount(group.reshape(-1), turn)
    return faces[np.sort(first[(count == 1) | (balance != 0)])]


def parted(x: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(x, faces) where sheets that touch along an edge (more than two faces there) are parted: each has vertices of its own at it.

    Around a vertex of such an edge, faces that follow each other over other edges stay together. No face changes its shape.
    """
    key = _edge_keys(faces)
    keys, group, count = np.unique(key, return_inverse=True, return_counts=True)
    if count.max(initial=0) <= 2:
        return x, faces
    at = np.unique(np.stack([keys[count > 2] >> 32, keys[count > 2] & 0xFFFFFFFF]))  # vertices of crowded edges
    corner = np.arange(faces.size).reshape(faces.shape)
    first, second = corner.reshape(-1), np.roll(corner, -1, 1).reshape(-1)  # corners at both ends of each edge
    order = np.argsort(group.reshape(-1), kind="stable")
    begin = np.concatenate([[0], count.cumsum()[:-1]])[count == 2]
    a, b = order[begin], order[begin + 1]  # the two faces' edges, of which each edge has two
    flat = faces.reshape(-1)
    same = flat[first[a]] == flat[first[b]]
    joined = np.concatenate(
        [np.stack([first[a], np.where(same, first[b], second[b])]), np.stack([second[a], np.where(same, second[b], first[b])])], 1
    )
    touched = np.isin(flat, at)
    joined = joined[:, touched[joined[0]]]
    fan = connected_components(coo_matrix((np.ones(joined.shape[1]), joined), (faces.size,) * 2), directed=False)[1]
    corners = np.flatnonzero(touched)
    fans, which = np.unique(fan[corners], return_inverse=True)
    vertex = np.zeros(len(fans), np.int64)
    vertex[which] = flat[corners]  # of each fan
    _, leads = np.unique(vertex, return_index=True)
    new = vertex.copy()
    extra = np.setdiff1d(np.arange(len(fans)), leads)
    new[extra] = len(x) + np.arange(len(extra))
    flat = flat.copy()
    flat[corners] = new[which]
    return np.concatenate([x, x[vertex[extra]]]), flat.reshape(faces.shape)


def cell_means(values: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """The means [C, k] of values [V, k] over the cells [V] of 0 to C - 1."""
    total = np.stack([np.bincount(cell, column) for column in values.T.astype(np.float64)], 1)
    return total / np.bincount(cell)[:, None].clip(1)


def merged_vertices(x: np.ndarray, faces: np.ndarray, side: float) -> tuple[np.ndarray, np.ndarray]:
    """(the cell [V] of vertices x [V, 3], cubes of this side numbered from 0; the faces [F', 3] between cells, without those that collapse)."""
    key = np.floor((x - x.min(0)) / side).astype(np.int64)
    size = key.max(0) + 1
    cell = np.unique((key[:, 0] * size[1] + key[:, 1]) * size[2] + key[:, 2], return_inverse=True)[1].reshape(-1)
    between = cell[faces]
    return cell, between[(between != np.roll(between, 1, 1)).all(1)]


def simplified(mesh: trimesh.Trimesh, faces: int) -> trimesh.Trimesh:
    """The mesh with about `faces` faces and no unused vertices. Raises ImportError without fast-simplification."""
    import fast_simplification

    corner = np.asarray(mesh.vertices)[mesh.faces[:: max(1, len(mesh.faces) // 10_000)]]
    edge = float(np.median(np.linalg.norm(corner - corner[:, [1, 2, 0]], axis=2))) or 1.0
    middle = np.asarray(mesh.vertices).mean(0)  # its thresholds are squared lengths, right for edges of length 1
    x, f = fast_simplification.simplify(
        (np.asarray(mesh.vertices, np.float64) - middle) / edge,
        np.asarray(mesh.faces, np.int32),
        target_count=faces,
    )[:2]
    x, f = parted(x, clean_faces(np.asarray(f, np.int64)))
    used = np.zeros(len(x), bool)
    used[f] = True
    return trimesh.Trimesh(x[used] * edge + middle, (np.cumsum(used) - 1)[f], process=False)


def decimate(mesh: trimesh.Trimesh, faces: int) -> trimesh.Trimesh:
    """The mesh with at most about `faces` faces (0: all), its vertices moved by a fraction of an edge; colours are not carried over.

    A mesh where every edge has at most two faces stays one, and a closed one stays closed, or it comes back with all its faces; the log
    says so, as it does where fast-simplification is not installed. Orientation is kept.
    """
    if not faces or len(mesh.faces) <= faces:
        return mesh
    try:
        found = simplified(mesh, faces)
    except ImportError:
        log.warning("the mesh keeps its %d faces: fast-simplification is not installed (pip install fast-simplification)", len(mesh.faces))
        return mesh
    kept = crowded_edges(found.faces) <= crowded_edges(mesh.faces) and (is_closed(found.faces) or not is_closed(mesh.faces))
    if not (len(found.faces) and kept):
        log.warning("the mesh keeps its %d faces: with %d it would not be a manifold any more", len(mesh.faces), faces)
        return mesh
    return found
