"""The mesh of a run for the page's viewer: turned upright, thinned to few faces, packed into short binary arrays."""

import base64
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from scipy.spatial import cKDTree

from process_data.axes import unit, up_axis
from process_data.normalize import similarity_parts
from process_data.path import GAP, orbit_target
from process_data.region import standing
from utils.decimate import cell_means, merged_vertices, simplified
from utils.mesh import area_vectors, load_mesh
from utils.mesh_files import mean_normals

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


def read_shell(path: Path) -> Shell:
    mesh = load_mesh(path)
    visual: Any = mesh.visual
    x, faces = np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces, np.int64)
    colours = np.asarray(visual.vertex_colors, np.float64)[:, :3] if visual.kind == "vertex" else None
    return Shell(x, faces, mean_normals(x, faces), colours)


def clustered(shell: Shell, side: float) -> Shell:
    """The vertices of each cube of this side merged into their mean."""
    cell, faces = merged_vertices(shell.x, shell.faces, side)
    used = np.zeros(int(cell.max()) + 1, bool)
    used[faces] = True
    x, normals = cell_means(shell.x, cell)[used], unit(cell_means(shell.normals, cell)[used])
    colours = None if shell.colours is None else cell_means(shell.colours, cell)[used]
    return Shell(x, (np.cumsum(used) - 1)[faces], normals, colours)


def roughly(shell: Shell, target: int) -> Shell:
    """`clustered` with cubes of a size that leaves at most `target` faces; the mesh itself where it has no more."""
    area = np.linalg.norm(area_vectors(shell.x[shell.faces]), axis=1).sum() / 2
    side, small = np.sqrt(3 * area / target), shell
    while len(small.faces) > target:
        small = clustered(shell, side)
        side *= max(1.05, 1.02 * np.sqrt(len(small.faces) / target))
    return small if len(small.faces) else shell


def thinned(shell: Shell, target: int = FACES) -> Shell:
    """At most about `target` faces: by quadric error where fast-simplification is installed, else by cubes.

    Normals and colours are those of the fine mesh nearby.
    """
    if len(shell.faces) <= target:
        return shell
    fine = roughly(shell, ROUGH * target)
    try:
        small = simplified(trimesh.Trimesh(fine.x, fine.faces, process=False), target)
    except ImportError:
        log.info("report: the mesh is thinned by merging vertices; pip install fast-simplification==0.2.0 keeps its shape better")
        return roughly(shell, target)
    x, faces = np.asarray(small.vertices), np.asarray(small.faces)
    nearest = cKDTree(fine.x).query(x)[1]
    own, near = mean_normals(x, faces), fine.normals[nearest]
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
