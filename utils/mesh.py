"""Meshes: cleaning, culling, files and pictures. `utils/marching_cubes.py` extracts them, `utils/mesh_files.py` knows the formats."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import trimesh
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from utils.errors import UserError
from utils.files import write_atomic
from utils.mesh_files import WRITERS, area_vectors
from utils.mesh_files import vertex_colours as _colours
from utils.mesh_frame import read_frame
from utils.projection import in_frame, project
from utils.rays import Cameras

LOG = logging.getLogger("neus")
READABLE = (".ply", ".obj", ".stl", ".off", ".glb", ".xyz")
ARCHIVES = (".zip", ".3mf", ".3dxml", ".zae", ".gz", ".tgz", ".bz2", ".xz", ".tar", ".7z", ".rar")
MAX_BYTES = 1 << 31  # of a mesh file that is read; the parsers take several times as much memory


# ------------------------------------------------------------------------------------------------ cleaning
def take_faces(mesh: trimesh.Trimesh, keep: np.ndarray) -> trimesh.Trimesh:
    """The faces where keep [F] is true, with the vertices (and colours) they use."""
    faces = np.asarray(mesh.faces)[keep]
    used = np.zeros(len(mesh.vertices), bool)
    used[faces] = True
    colours = _colours(mesh)
    renumber = np.cumsum(used) - 1
    colours = None if colours is None else colours[used]
    return trimesh.Trimesh(np.asarray(mesh.vertices)[used], renumber[faces], vertex_colors=colours, process=False)


def keep_components(mesh: trimesh.Trimesh, keep: int, min_faces: int) -> trimesh.Trimesh:
    """The `keep` components of largest area (0: all) that have at least `min_faces` faces; the largest is always kept."""
    if not len(mesh.faces):
        return mesh
    faces, v = np.asarray(mesh.faces), len(mesh.vertices)
    pairs = (np.concatenate([faces[:, 0], faces[:, 1]]), np.concatenate([faces[:, 1], faces[:, 2]]))
    _, label = connected_components(coo_matrix((np.ones(len(pairs[0]), bool), pairs), shape=(v, v)), directed=False)
    label = label[faces[:, 0]]
    area = np.bincount(label, np.linalg.norm(area_vectors(np.asarray(mesh.vertices)[faces]), axis=1))
    count = np.bincount(label, minlength=len(area))
    order = np.argsort(-area, kind="stable")
    order = order[count[order] > 0]
    chosen = [c for c in order.tolist() if count[c] >= min_faces][: keep or None] or order[:1].tolist()
    kept = np.isin(label, chosen)
    return mesh if kept.all() else take_faces(mesh, kept)


def cull_by_masks(
    mesh: trimesh.Trimesh, cameras: Cameras, masks: Tensor, dilation_share: float, views: Sequence[int] | None = None
) -> trimesh.Trimesh:
    """Remove the faces outside the masks: a vertex is kept if its pixel is inside the mask in every image that contains the pixel.

    mesh: vertices in the unit sphere's frame. masks [N, H, W] uint8, above 127 on the object, dilated by
    dilation_share * W pixels (negative: nothing is culled). views: indices of the cameras used, default all. May return an empty mesh.
    """
    if dilation_share < 0:
        return mesh
    x, r = np.asarray(mesh.vertices), round(dilation_share * cameras.width)
    keep = np.ones(len(x), bool)
    for i in range(len(cameras)) if views is None else views:
        w, h = cameras.size(i)
        mask = cv2.dilate((masks[i, :h, :w].cpu().numpy() > 127).astype(np.uint8), np.ones((2 * r + 1, 2 * r + 1), np.uint8)) > 0
        uv, z = project(x, cameras.K[i], cameras.c2w[i])
        uv = np.round(uv).clip(-1, max(h, w)).astype(np.int64)
        inside = np.flatnonzero((z > 0) & (uv >= 0).all(1) & (uv < (w, h)).all(1))
        keep[inside] &= mask[uv[inside, 1], uv[inside, 0]]
    return mesh if keep.all() else take_faces(mesh, keep[np.asarray(mesh.faces)].all(1))


def cull_unseen(mesh: trimesh.Trimesh, cameras: Cameras, min_views: int, views: Sequence[int] | None = None) -> trimesh.Trimesh:
    """Remove the faces with a vertex outside all but fewer than min_views images: too few rays constrain the surface there.

    mesh: vertices in the unit sphere's frame. views: indices of the cameras used, default all. May return an empty mesh.
    """
    x, count = np.asarray(mesh.vertices), np.zeros(len(mesh.vertices), np.int64)
    for i in range(len(cameras)) if views is None else views:
        uv, z = project(x, cameras.K[i], cameras.c2w[i])
        count += in_frame(uv, z, cameras.size(i))
    keep = count >= min_views
    return mesh if keep.all() else take_faces(mesh, keep[np.asarray(mesh.faces)].all(1))


def transform(mesh: trimesh.Trimesh, matrix: Tensor | np.ndarray) -> trimesh.Trimesh:
    """A copy transformed by a 4x4 matrix (`Scene.to_world`: to the world); a mirroring matrix reverses the order of each face's vertices."""
    m = np.asarray(matrix, np.float64)
    faces = np.asarray(mesh.faces)
    faces = faces[:, ::-1] if np.linalg.det(m[:3, :3]) < 0 else faces
    vertices = np.asarray(mesh.vertices) @ m[:3, :3].T + m[:3, 3]
    attributes = dict(mesh.vertex_attributes)
    return trimesh.Trimesh(vertices, faces.copy(), vertex_colors=_colours(mesh), vertex_attributes=attributes, process=False)


# ------------------------------------------------------------------------------------------------ files
def in_world(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    """The mesh in the world of the cameras: `world_to_mesh` of its metadata undone; a mesh without it lies there already."""
    matrix = mesh.metadata.get("world_to_mesh")
    return mesh if matrix is None else transform(mesh, np.linalg.inv(matrix))


def save_mesh(mesh: trimesh.Trimesh, path: str | Path) -> None:
    """Write .ply (binary), .obj, .stl, .3mf or .glb as utils/mesh_files.py says, with vertex normals and colours (.ply: and attributes), atomically.

    Raises UserError for another suffix or a file that cannot be written.
    """
    path = Path(path)
    writer = WRITERS.get(path.suffix.lower())
    if writer is None:
        raise UserError(f"{path}: cannot write a mesh as '{path.suffix}'; use one of {', '.join(WRITERS)}")
    write_atomic(path, writer(mesh))


def load_mesh(path: str | Path, points: bool = False) -> trimesh.Trimesh:
    """Read a mesh without merging its vertices; `in_world` moves one that this program exported back to the cameras' world.

    points: a file without faces is accepted, as a mesh without faces.

    Vertices that are not finite are dropped with their faces, and counted in the log. Materials and textures are not read, nor other files
    that this one names. Raises UserError when the file is missing, of an unknown format, too large, unreadable or empty.
    """
    path = Path(path)
    _check_mesh_file(path)
    try:
        with path.open("rb") as file:  # not its name: trimesh would open the files that it refers to
            kind = path.suffix.lower().lstrip(".")
            loaded: Any = trimesh.load(file, file_type=kind, process=False, maintain_order=True, skip_materials=True)
        if isinstance(loaded, trimesh.Scene):
            loaded = loaded.to_mesh() if loaded.geometry else trimesh.Trimesh()
        if not isinstance(loaded, trimesh.Trimesh):
            loaded = trimesh.Trimesh(np.asarray(loaded.vertices), process=False)
    except Exception as error:  # the parsers of trimesh raise many kinds of exception
        what = f"{type(error).__name__}: {str(error)[:200]}"
        raise UserError(f"{path}: not a readable mesh ({what}); copy or export the file again") from error
    if len(loaded.faces) and (loaded.faces.min() < 0 or loaded.faces.max() >= len(loaded.vertices)):
        raise UserError(f"{path}: damaged: indices in faces beyond the {len(loaded.vertices)} vertices; export the mesh again")
    loaded = _finite_part(loaded, path)
    if not len(loaded.vertices) or not (points or len(loaded.faces)):
        raise UserError(f"{path}: {len(loaded.vertices)} vertices and {len(loaded.faces)} faces, so no surface; give a file with triangles")
    loaded.metadata.update(read_frame(path))
    return loaded


def _check_mesh_file(path: Path) -> None:
    """Raises UserError for a mesh file that should not be opened."""
    if not path.is_file():
        raise UserError(f"{path}: no such mesh file; give the path of a .ply or .obj")
    if path.suffix.lower() in ARCHIVES:
        raise UserError(f"{path}: '{path.suffix}' is an archive; unpack it and give the .ply or .obj inside")
    if path.suffix.lower() not in READABLE:
        raise UserError(f"{path}: '{path.suffix}' is not a kind of mesh this program reads ({', '.join(READABLE)}); use .ply or .obj")
    if path.stat().st_size > MAX_BYTES:
        size = path.stat().st_size / 2**30
        raise UserError(f"{path}: {size:.1f} GiB, expected at most {MAX_BYTES / 2**30:.0f}; simplify the mesh, or sample fewer points")


def _finite_part(mesh: trimesh.Trimesh, path: Path) -> trimesh.Trimesh:
    """The mesh without the vertices that are not finite and without their faces; the log counts them."""
    finite = np.isfinite(np.asarray(mesh.vertices)).all(axis=1)
    if finite.all():
        return mesh
    faces = np.asarray(mesh.faces)
    keep = finite[faces].all(1)
    LOG.warning("%s: %d of %d vertices are not finite: dropped with %d faces", path, (~finite).sum(), len(finite), (~keep).sum())
    return take_faces(mesh, keep) if len(faces) else trimesh.Trimesh(np.asarray(mesh.vertices)[finite], process=False)


# ------------------------------------------------------------------------------------------------ pictures
def _face_colours(mesh: trimesh.Trimesh, faces: np.ndarray, c2w: np.ndarray, color: str) -> np.ndarray:
    """Colours [F, 3], 0 to 255, of the faces of index `faces` [F].

    color: normal, (n + 1) / 2; shade, lit from the camera; vertex, the mean colour of the vertices (shade without colours).
    """
    corners = np.asarray(mesh.vertices)[mesh.faces[faces]]
    colours = _colours(mesh)
    if color == "vertex" and colours is not None:
        return colours[:, :3][mesh.faces[faces]].mean(1)
    normal = area_vectors(corners)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True).clip(1e-30)
    if color == "normal":
        return 127.5 * (normal + 1)
    to_eye = c2w[:3, 3] - corners.mean(1)
    lambert = np.abs((normal * to_eye).sum(1)) / np.linalg.norm(to_eye, axis=1).clip(1e-30)
    return np.repeat(30 + 210 * lambert[:, None], 3, 1)


def render_mesh(
    mesh: trimesh.Trimesh,
    K: Tensor | np.ndarray,
    c2w: Tensor | np.ndarray,
    h: int,
    w: int,
    color: str = "normal",
    background: int = 255,
) -> np.ndarray:
    """Rasterise a mesh on the CPU, each face in one colour, with 2 x 2 samples a pixel -> uint8 [h, w, 3].

    K [3, 3] pixels, c2w [3, 4] (OpenCV axes, frame of the mesh); color: normal, vertex or shade, as in `_face_colours`.
    """
    if color not in ("normal", "vertex", "shade"):
        raise ValueError(f"color: expected normal, vertex or shade, got {color!r}")
    c2w = np.asarray(c2w, np.float64)
    uv, z = project(np.asarray(mesh.vertices), K, c2w)
    corner, depth = (2 * uv + 0.5)[mesh.faces].astype(np.float32), z[mesh.faces].astype(np.float32)
    nearest = rasterise(corner, depth, 2 * h, 2 * w)
    image = np.full((2 * h * 2 * w, 3), background, np.uint8)
    covered = nearest >= 0
    faces, face = np.unique(nearest[covered], return_inverse=True)
    image[covered] = _face_colours(mesh, faces, c2w, color)[face]
    return cv2.resize(image.reshape(2 * h, 2 * w, 3), (w, h), interpolation=cv2.INTER_AREA)


def rasterise(corner: np.ndarray, depth: np.ndarray, h: int, w: int) -> np.ndarray:
    """Index of the nearest face at each pixel [h * w], -1 where there is none; corner [F, 3, 2] pixels, depth [F, 3].

    Faces of similar size are tested together at the pixels of their bounding boxes. Depth is interpolated linearly over the
    image: an approximation under perspective, with an error that vanishes for small faces.
    """
    low = np.ceil(corner.min(1)).astype(np.int64)
    high = np.floor(corner.max(1)).astype(np.int64)
    valid = (depth > 1e-6).all(1) & (high >= low).all(1) & (high >= 0).all(1) & (low < (w, h)).all(1) & (np.abs(corner) < 1e5).all((1, 2))
    span = (np.minimum(high, (w - 1, h - 1)) - np.maximum(low, 0)).max(1) + 1
    low = np.maximum(low, 0)
    zbuffer, nearest = np.full(h * w, np.inf, np.float32), np.full(h * w, -1, np.int64)
    begin = 0
    while begin < max(h, w):
        size = max(1, 2 * begin)
        faces = np.flatnonzero(valid & (span > begin) & (span <= size))
        step = max(1, 2_000_000 // size**2)
        grid = np.stack(np.meshgrid(np.arange(size), np.arange(size)), -1).reshape(1, -1, 2)
        for at in range(0, len(faces), step):
            f = faces[at : at + step]
            pixel = low[f][:, None] + grid  # [f, size^2, 2]
            a, b, c = (corner[f, k][:, None] - pixel for k in range(3))
            u, v, t = cross2(b, c), cross2(c, a), cross2(a, b)  # barycentric coordinates times twice the area
            inside = (((u >= 0) & (v >= 0) & (t >= 0)) | ((u <= 0) & (v <= 0) & (t <= 0))) & (pixel < (w, h)).all(-1)
            area = u + v + t
            inside &= area != 0
            row, column = np.nonzero(inside)
            area = area[row, column]
            d = depth[f][row]
            z = (u[row, column] * d[:, 0] + v[row, column] * d[:, 1] + t[row, column] * d[:, 2]) / area
            at_pixel = pixel[row, column, 1] * w + pixel[row, column, 0]
            front = np.flatnonzero(z < zbuffer[at_pixel])
            front = front[np.argsort(-z[front], kind="stable")]  # the nearest is written last
            zbuffer[at_pixel[front]] = z[front]
            nearest[at_pixel[front]] = f[row[front]]
        begin = size
    return nearest


def cross2(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cross product of vectors in the plane, [..., 2] and [..., 2] -> [...]."""
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
