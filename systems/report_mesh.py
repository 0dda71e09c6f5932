"""The mesh of a run for the page's viewer: turned upright, thinned to few faces, packed into short binary arrays."""

import base64
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from process_data.axes import unit, up_axis
from process_data.normalize import similarity_parts
from process_data.path import GAP, orbit_target
from process_data.region import standing
from utils.mesh import area_vectors, load_mesh

log = logging.getLogger("neus")
FACES = 40_000  # of the mesh that is shown
ROUGH = 6  # times as many are left for the exact thinning, which is slow on millions
SHORT = 32767  # of int16
ELEVATION = (8.0, 30.0)  # degrees above the horizon at which the page first looks
SWING = 40.0  # degrees to either side, for photographs that leave a side of the object out
SNAP = 0.94  # cosine: an axis of the world this near to the cameras' up is taken for it


@dataclass(frozen=True)
class Shell:
    """A triangle mesh: vertices x [V, 3], faces [F, 3], unit normals [V, 3], colours [V, 3] in 0 to 255 or None."""

    x: np.ndarray
    faces: np.ndarray
    normals: np.ndarray
    colours: np.ndarray | None


def summed(values: np.ndarray, index: np.ndarray, n: int) -> np.ndarray:
    """values [K, 3] added up by their index [K] -> [n, 3]."""
    return np.stack([np.bincount(index, values[:, k], n) for k in range(values.shape[1])], 1)


def vertex_normals(x: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Unit normals [V, 3]: the mean of the faces around a vertex, weighted by area."""
    across = area_vectors(x[faces])
    return unit(np.sum([summed(across, faces[:, k], len(x)) for k in range(3)], 0))


def read_shell(path: Path) -> Shell:
    mesh = load_mesh(path)
    visual: Any = mesh.visual
    x, faces = np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces, np.int64)
    colours = np.asarray(visual.vertex_colors, np.float64)[:, :3] if visual.kind == "vertex" else None
    return Shell(x, faces, vertex_normals(x, faces), colours)


def clustered(shell: Shell, cell: float) -> Shell:
    """The vertices of each cube of this side merged into their mean (Rossignac and Borrel, 1993); faces that collapse are dropped."""
    key = np.floor((shell.x - shell.x.min(0)) / cell).astype(np.int64)
    size = key.max(0) + 1
    _, label = np.unique((key[:, 0] * size[1] + key[:, 1]) * size[2] + key[:, 2], return_inverse=True)
    n = int(label.max()) + 1
    count = np.bincount(label, minlength=n)[:, None]
    faces = label[shell.faces]
    faces = faces[(faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])]
    used = np.zeros(n, bool)
    used[faces] = True
    colours = None if shell.colours is None else (summed(shell.colours, label, n) / count)[used]
    normals = unit(summed(shell.normals, label, n))
    return Shell((summed(shell.x, label, n) / count)[used], (np.cumsum(used) - 1)[faces], normals[used], colours)


def roughly(shell: Shell, target: int) -> Shell:
    """`clustered` with cubes of a size that leaves at most `target` faces; the mesh itself where it has no more."""
    area = np.linalg.norm(area_vectors(shell.x[shell.faces]), axis=1).sum() / 2
    cell, small = np.sqrt(3 * area / target), shell
    while len(small.faces) > target:
        small = clustered(shell, cell)
        cell *= max(1.05, 1.02 * np.sqrt(len(small.faces) / target))
    return small if len(small.faces) else shell


def thinned(shell: Shell, target: int = FACES) -> Shell:
    """At most about `target` faces: by quadric error (Garland and Heckbert, 1997) where fast-simplification is installed, else by cubes.

    Normals and colours are those of the fine mesh nearby.
    """
    if len(shell.faces) <= target:
        return shell
    try:
        import fast_simplification
    except ImportError:
        log.info("report: the mesh is thinned by merging vertices; pip install fast-simplification==0.2.0 keeps its shape better")
        return roughly(shell, target)
    fine = roughly(shell, ROUGH * target)
    x, faces = fast_simplification.simplify(fine.x.astype(np.float32), fine.faces.astype(np.int32), target_count=target)
    x, faces = np.asarray(x, np.float64), np.asarray(faces, np.int64)
    nearest = cKDTree(fine.x).query(x)[1]
    own, near = vertex_normals(x, faces), fine.normals[nearest]
    normals = np.where((own * near).sum(1, keepdims=True) > 0, near, own)  # on thin parts the nearest may lie on the other side
    return Shell(x, faces, normals, None if fine.colours is None else fine.colours[nearest])


def viewpoint(c2w: np.ndarray, to_world: np.ndarray, up: np.ndarray | None = None) -> dict:
    """How cameras [N, 3, 4] in the unit sphere's frame look at the object, in the world: `up` and `toward` the camera amid the others.

    up: in the world; estimated where it is not given. `swing`: degrees to either side by which a page should turn the object, 0 for
    full turns.
    """
    _, turn, _ = similarity_parts(to_world)
    away = unit(c2w[:, :, 3] - orbit_target(c2w)) @ turn.T
    if up is None:
        up = turn @ up_axis(c2w)
        nearest = int(np.abs(up).argmax())
        up = np.sign(up[nearest]) * np.eye(3)[nearest] if abs(up[nearest]) > SNAP else up
    first, second, _ = standing(up).T
    angles = np.sort(np.arctan2(away @ second, away @ first))
    gap = np.diff(np.append(angles, angles[0] + 2 * np.pi)).max()
    level = unit(away - (away @ up)[:, None] * up)  # seen from above: the camera over a dome stands amid all of them
    middle = away[int((level @ level.sum(0)).argmax())]
    return {"up": up.tolist(), "toward": middle.tolist(), "swing": SWING if gap > GAP else 0.0}


def _array(value: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    """Numbers of a file as an array of this shape; None where they are something else."""
    try:
        array = np.array(value, float)
    except (TypeError, ValueError):
        return None
    return array if array.shape == shape and np.isfinite(array).all() else None


def viewer_axes(seen: dict, frame: dict) -> tuple[np.ndarray, float]:
    """(rotation [3, 3] from the mesh's file to the viewer, z up and the first camera above the x axis; its elevation in degrees).

    seen: `viewpoint` in the world, {}: z is up. frame: `mesh` of scene.json. Raises UserError when its matrix is not a similarity.
    """
    matrix, up, toward = _array(frame.get("world_to_mesh"), (4, 4)), _array(seen.get("up"), (3,)), _array(seen.get("toward"), (3,))
    turn = np.eye(3) if matrix is None else similarity_parts(matrix)[1]
    up = np.array([0, 0, 1.0]) if up is None or frame.get("upright") else turn @ up
    toward = np.array([1.0, 0, 0]) if toward is None else turn @ toward
    level = toward - up * (toward @ up)
    first = unit(level) if np.linalg.norm(level) > 1e-3 else standing(up)[:, 0]
    elevation = np.degrees(np.arcsin(np.clip(unit(toward) @ up, -1, 1)))
    return np.stack([first, np.cross(up, first), up]), float(np.clip(elevation, *ELEVATION))


def encoded(array: np.ndarray) -> str:
    """The bytes of an array, little endian, as base64."""
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def packed(shell: Shell, turn: np.ndarray, elevation: float) -> dict:
    """What the viewer reads: positions and normals as int16 [V, 3] over 32767, colours uint8 [V, 3], indices [F, 3] uint16 or uint32.

    The mesh is turned, its box is centred and its longest side reaches from -1 to 1.
    """
    x = shell.x @ turn.T
    low, high = x.min(0), x.max(0)
    x = (x - (low + high) / 2) / max(float((high - low).max()) / 2, 1e-30)
    wide = len(x) > 1 << 16
    return {
        "vertices": len(x),
        "faces": len(shell.faces),
        "wide": wide,
        "elevation": elevation,
        "positions": encoded(np.rint(x * SHORT).astype("<i2")),
        "normals": encoded(np.rint(shell.normals @ turn.T * SHORT).astype("<i2")),
        "colours": None if shell.colours is None else encoded(np.rint(shell.colours.clip(0, 255)).astype(np.uint8)),
        "indices": encoded(shell.faces.astype("<u4" if wide else "<u2")),
    }


def viewer_mesh(path: Path, seen: dict, frame: dict) -> dict:
    """`packed` of a mesh file, thinned, with `total` faces and vertices of the file and its `extent` [3] there. Raises UserError.

    seen, frame: as in `viewer_axes`.
    """
    shell = read_shell(path)
    extent = shell.x.max(0) - shell.x.min(0)
    total = {
        "swing": SWING if seen.get("swing") else 0.0,
        "total_vertices": len(shell.x),
        "total_faces": len(shell.faces),
        "extent": extent.tolist(),
    }
    return {**packed(thinned(shell), *viewer_axes(seen, frame)), **total}
