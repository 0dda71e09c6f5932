"""Where a mesh ends below: the plane of the ground that the object stands on, or the lowest part that photographs show.

Everything is in the unit sphere's frame.
"""

import logging
from dataclasses import dataclass

import numpy as np
import torch
import trimesh
from torch import Tensor

from models.raytrace import MeshTracer
from process_data.ground import PLANE_WIDTH, support_plane
from systems.visibility import seen_from
from utils.mesh import take_faces
from utils.rays import Scene

log = logging.getLogger("neus")
SAMPLES = 20_000  # points on the mesh
LEAST = 0.2  # cosine between normal and direction to a camera, below which a photograph does not show the surface
LIFT = 5e-3  # where sight lines start, above the mesh
ABOVE = (0.003, 0.02)  # least and largest height of the cut over the ground, which is rough
LOWEST = 0.002  # share of the seen surface below the lowest level
UNSEEN = 0.02  # the mesh is cut at that level when at least this share of it lies below and was not seen


@dataclass(frozen=True)
class Plane:
    """What lies below is cut: normal x < offset."""

    normal: np.ndarray  # [3] unit, upwards
    offset: float
    words: str  # for the log

    def outside(self, x: Tensor) -> Tensor:
        """Signed distance [P] of points [P, 3] to the plane, positive below."""
        return self.offset - x @ torch.as_tensor(self.normal, dtype=x.dtype, device=x.device)

    def cut(self, mesh: trimesh.Trimesh) -> trimesh.Trimesh:
        """The part of the mesh above the plane, open below."""
        x, faces = np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces)
        height = x @ self.normal - self.offset
        height[height == 0] = -1e-12
        above = (height > 0)[faces]
        new = [faces[above.all(1)]]  # a vertex where an edge crosses the plane has the number V + that of the edge
        edges, ends = np.zeros((0, 2), np.int64), [np.zeros((0, 3), np.int64)]
        for count in (1, 2):
            part = faces[above.sum(1) == count]
            odd = (height[part] > 0 if count == 1 else height[part] <= 0).argmax(1)  # the corner alone on its side comes first
            a, b, c = (part[np.arange(len(part)), (odd + k) % 3] for k in range(3))
            n = len(x) + len(edges) + np.arange(len(part))  # of the crossings on a b, then on a c
            m = n + len(part)
            edges = np.concatenate([edges, np.sort(np.stack([a, b], 1), 1), np.sort(np.stack([a, c], 1), 1)])
            ends += [np.stack([a, n, m], 1)] if count == 1 else [np.stack([n, b, c], 1), np.stack([n, c, m], 1)]
        crossed, number = np.unique(edges, axis=0, return_inverse=True)
        p, q = crossed.T
        t = (height[p] / (height[p] - height[q]))[:, None]
        together = np.concatenate([*new, *ends])
        beyond = together >= len(x)
        together[beyond] = len(x) + number.reshape(-1)[together[beyond] - len(x)]
        whole = trimesh.Trimesh(np.concatenate([x, x[p] + t * (x[q] - x[p])]), together, process=False)
        return take_faces(whole, np.ones(len(together), bool))


@dataclass(frozen=True)
class Seen:
    """Points drawn on a mesh, uniformly by area."""

    points: np.ndarray  # [P, 3]
    normals: np.ndarray  # [P, 3]
    views: np.ndarray  # [P] the photographs that show the point from the front, nothing of the mesh between


def look(mesh: trimesh.Trimesh, scene: Scene, device: torch.device, count: int = SAMPLES) -> Seen:
    """Which parts of the mesh the training photographs show."""
    points, face = trimesh.sample.sample_surface(mesh, count, seed=0)
    points, normals = np.asarray(points, np.float64), np.asarray(mesh.face_normals)[face]
    tracer = MeshTracer(
        torch.as_tensor(np.asarray(mesh.vertices), dtype=torch.float32, device=device),
        torch.as_tensor(np.asarray(mesh.faces), device=device),
    )
    views = (seen_from(points, normals, scene.cameras, scene.train, tracer, LEAST, LIFT) > 0).sum(0)
    return Seen(points, normals, views)


def ground_plane(seen: Seen, scene: Scene, up: np.ndarray, in_mesh: bool, in_points: bool) -> Plane | None:
    """The ground, looked for in the structure-from-motion points (in_points), then in the mesh's seen surface that faces up (in_mesh).

    None where no plane holds a clear share of them with the cameras above it and next to nothing below it.
    """
    centres = scene.cameras.c2w[:, :, 3].double().numpy()
    shown = seen.views >= 2
    surface = seen.points[shown]
    candidates = []
    if in_points and scene.points is not None:
        points = scene.points.double().numpy()
        points = points[np.linalg.norm(points, axis=1) < 2]
        candidates.append((points, points, "in the points"))
    if in_mesh:
        candidates.append((surface, surface[seen.normals[shown] @ up > 0.8], "in the mesh"))
    for everything, level, words in candidates:
        plane = support_plane(everything, centres, up=up)
        fitted = None if plane is None else _fitted(level, *plane)
        if fitted is not None and (surface @ fitted[0] > fitted[1]).mean() > (0.02 if in_mesh else 0.8):  # the object is more than that
            return Plane(*fitted, f"cut at the ground plane {words}")
    return None


def _fitted(x: np.ndarray, normal: np.ndarray, offset: float) -> tuple[np.ndarray, float] | None:
    """(normal [3], offset) of a cut just above the ground, from points x [P, 3] on the ground and above; None where few are on it."""
    residual = np.zeros(0)
    for width in (PLANE_WIDTH, PLANE_WIDTH, PLANE_WIDTH / 2):
        near = x[np.abs(x @ normal - offset) < width]
        if len(near) < max(20, 0.1 * len(x)):
            return None
        fitted = np.linalg.svd(near - near.mean(0), full_matrices=False)[2][2]
        normal = fitted * np.sign(fitted @ normal)
        residual = near @ normal
        offset = float(np.median(residual))
    spread = 1.4826 * float(np.median(np.abs(residual - offset)))
    return normal, offset + float(np.clip(3 * spread, *ABOVE))


def lowest_seen(seen: Seen, up: np.ndarray) -> Plane | None:
    """The level of the lowest surface that two photographs show, where much of the mesh lies below it and none shows that; else None."""
    height = seen.points @ up
    shown = seen.views >= 2
    if not shown.any():
        return None
    level = float(np.quantile(height[shown], LOWEST))
    below = height < level
    if (below & ~shown).mean() < UNSEEN:
        return None
    return Plane(up, level, "capped at the lowest level that photographs show")
