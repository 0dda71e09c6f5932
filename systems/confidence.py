"""How sure each vertex of a mesh is, from the photographs and the field alone. `systems/advice.py` says it in words.

    confidence = sqrt(p / (p + 0.5)  *  (1 + max(a, 0)) / 2  *  0.1 / (0.1 + c)  *  (o + 2) / (o + 4))

p, what the views tell of the place along the normal n: 1 / (n' H^-1 n), H the sum of k (I - d d') over the training views that see the
vertex, along the unit direction d and at the cosine k to the normal. One view, or several from one place, tell nothing (p = 0); two
from 45 degrees on either side have 0.71, ten all around about 3.
a, whether the photographs agree: the median normalised cross-correlation of small patches tangent to the surface, between the most
facing view and up to three others that face the vertex and stand apart; then the mean over its neighbours within four pixels. Blind to
exposure; 1/2 where there is no texture to compare.
c, the crease: how far the solid rises above the tangent plane, the mean over a ring of six pixels, in parts of its radius. Creases
and hollows are filled in more than anything else that the cameras see.
o, the outlines: the training views in which the vertex lies within a pixel of the mask's edge, where its surface is seen edge-on: they fix
it along the normal as nothing else does. The factor is left out where the scene has no masks.

The constants are round: the ranking hardly depends on them (`tests/benchmarks/confidence.py` measures it against a true mesh).
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import cv2
import numpy as np
import torch
import trimesh
from scipy.spatial import cKDTree
from torch import Tensor

from models.method import in_parts
from models.raytrace import MeshTracer, vertex_normals
from systems.visibility import seen_from
from utils.projection import project
from utils.rays import Scene

PAIRS = 4_000_000  # pairs of a vertex and a view that are looked at; of a mesh with more a part of the vertices
ENOUGH, CREASE = 0.5, 0.1  # p and c at which their factor is a half
APART = 45.0  # degrees between two views from which their agreement counts in full
OTHERS = 3  # views compared with the most facing one
PATCH = 2  # pixels from the middle of a patch to its edge
NOISE = 3 / 255  # standard deviation of grey below which a patch shows nothing
NEAR, NEIGHBOURS = 4, 16  # pixels, and vertices at most, over which agreement is averaged
RING = 6  # pixels, radius of the ring around a vertex
EDGE_ON = 0.5  # cosine between normal and line of sight below which a surface may be the outline
STEP = 30_000  # patches at once: OpenCV samples fewer than 2^15 rows


@dataclass(frozen=True)
class Cues:
    """What is known of P vertices without the truth."""

    views: np.ndarray  # [P] int64, training views that see it
    facing: np.ndarray  # [P] largest cosine between its normal and the direction to one of them, 0 without
    parallax: np.ndarray  # [P] p
    agreement: np.ndarray  # [P] a, from -1 to 1
    texture: np.ndarray  # [P] standard deviation of grey in the patch of the most facing view, 0 to 1
    crease: np.ndarray  # [P] c
    outlines: np.ndarray | None  # [P] o; None without masks
    normal: np.ndarray  # [P, 3] unit, in the unit sphere's frame

    def __getitem__(self, index: np.ndarray) -> "Cues":
        columns: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        picked: dict[str, Any] = {name: None if column is None else column[index] for name, column in columns.items()}
        return Cues(**picked)

    @property
    def confidence(self) -> np.ndarray:
        """[P] in [0, 1]."""
        product = self.parallax / (self.parallax + ENOUGH) * (1 + self.agreement.clip(0, 1)) / 2 * CREASE / (CREASE + self.crease)
        return np.sqrt(product if self.outlines is None else product * (self.outlines + 2) / (self.outlines + 4))


# ------------------------------------------------------------------------------------------------ views
def directions(x: np.ndarray, scene: Scene, row: int) -> np.ndarray:
    """Unit directions [P, 3] from points to the training view of number `row`."""
    away = scene.cameras.c2w[scene.train[row], :, 3].double().numpy() - x
    return away / np.linalg.norm(away, axis=1, keepdims=True).clip(1e-12)


def parallax(x: np.ndarray, normal: np.ndarray, cosine: np.ndarray, scene: Scene) -> np.ndarray:
    """p [P] of points with normals [P, 3] that are seen at the cosines [N, P]."""
    h = np.zeros((len(x), 3, 3)) + 1e-6 * np.eye(3)
    for row, k in enumerate(cosine):
        at = np.flatnonzero(k)
        d = directions(x[at], scene, row)
        h[at] += k[at, None, None] * (np.eye(3) - d[:, :, None] * d[:, None, :])
    return 1 / (normal * np.linalg.solve(h, normal[:, :, None])[:, :, 0]).sum(1)


def outlines(x: np.ndarray, normal: np.ndarray, scene: Scene) -> np.ndarray | None:
    """o [P] of points with normals [P, 3]; None without masks."""
    if scene.masks is None:
        return None
    count = np.zeros(len(x), np.int64)
    for row, i in enumerate(scene.train):
        mask = (scene.masks[i, : scene.cameras.size(i)[1], : scene.cameras.size(i)[0]].numpy() > 127).astype(np.uint8)
        near = cv2.dilate(mask, np.ones((3, 3), np.uint8)) != cv2.erode(mask, np.ones((3, 3), np.uint8), borderValue=1)
        uv, z = project(x, scene.cameras.K[i], scene.cameras.c2w[i])
        pixel = np.round(uv.clip(-1, max(mask.shape))).astype(np.int64)
        at = np.flatnonzero((z > 0) & (pixel >= 0).all(1) & (pixel < mask.shape[::-1]).all(1))
        at = at[near[pixel[at, 1], pixel[at, 0]]]
        count[at] += np.abs((directions(x[at], scene, row) * normal[at]).sum(1)) < EDGE_ON
    return count


def compared_views(x: np.ndarray, cosine: np.ndarray, scene: Scene) -> np.ndarray:
    """[1 + OTHERS, P] rows of `cosine`: the most facing view, then those that face it and stand apart; -1: none."""
    points = np.arange(len(x))
    first = cosine.argmax(0)
    eye = scene.cameras.c2w[list(scene.train), :, 3].double().numpy()
    towards = eye[first] - x
    towards /= np.linalg.norm(towards, axis=1, keepdims=True).clip(1e-12)
    score = np.zeros_like(cosine)
    for row, k in enumerate(cosine):
        at = np.flatnonzero(k)
        angle = np.degrees(np.arccos((directions(x[at], scene, row) * towards[at]).sum(1).clip(-1, 1)))
        score[row, at] = k[at] * (angle / APART).clip(0.05, 1)
    score[first, points] *= 1e6
    n = min(1 + OTHERS, len(score))
    chosen = np.argpartition(-score, n - 1, axis=0)[:n]
    chosen = np.take_along_axis(chosen, np.argsort(-np.take_along_axis(score, chosen, 0), axis=0), 0)
    return np.where(np.take_along_axis(score, chosen, 0) > 0, chosen, -1)


# ------------------------------------------------------------------------------------------------ photographs and field
def tangents(normal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two unit vectors [P, 3] each, orthogonal to the normals and to each other."""
    a = np.cross(normal, np.eye(3)[np.abs(normal).argmin(1)])
    a /= np.linalg.norm(a, axis=1, keepdims=True).clip(1e-12)
    return a, np.cross(normal, a)


def footprint(x: np.ndarray, view: np.ndarray, scene: Scene) -> np.ndarray:
    """Width [P] of a pixel at the points, in the training views of number `view` [P]; the median where it is -1."""
    width = np.full(len(x), np.nan)
    for row in np.unique(view[view >= 0]):
        at, i = np.flatnonzero(view == row), scene.train[row]
        width[at] = project(x[at], scene.cameras.K[i], scene.cameras.c2w[i])[1] / float(scene.cameras.K[i, 0, 0])
    known = width[np.isfinite(width)]
    return np.where(np.isfinite(width), width, np.median(known) if len(known) else 0.005)


def patches(x: np.ndarray, normal: np.ndarray, width: np.ndarray, views: np.ndarray, scene: Scene) -> np.ndarray:
    """Grey values [M, P, K], 0 to 1, of tangent patches of points in M views each [M, P], NaN where there is none; width [P] of a pixel."""
    side = np.arange(-PATCH, PATCH + 1, dtype=np.float32)
    a, b = (grid.ravel() for grid in np.meshgrid(side, side))
    grey = np.full((*views.shape, len(a)), np.nan, np.float32)
    along = [t * width[:, None] for t in tangents(normal)]
    for row, i in enumerate(scene.train):
        picture = cv2.cvtColor(scene.image(i).numpy(), cv2.COLOR_RGB2GRAY)
        rank, which = np.nonzero(views == row)
        for r, at in ((rank[k : k + STEP], which[k : k + STEP]) for k in range(0, len(which), STEP)):
            middle, *ends = (project(p, scene.cameras.K[i], scene.cameras.c2w[i])[0] for p in (x[at], *(x[at] + t[at] for t in along)))
            du, dv = ((e - middle).astype(np.float32) for e in ends)
            u, v = (middle[:, None, k].astype(np.float32) + a * du[:, None, k] + b * dv[:, None, k] for k in (0, 1))
            grey[r, at] = cv2.remap(picture, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE).astype(np.float32) / 255
    return grey


def agreement(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(a [P], standard deviation [P] in the first view) of patches [M, P, K]: the first view's against the others'.

    NOISE is added to both patches as if its halves agreed: without texture, as without a second view, a is 1/2.
    """
    seen = np.isfinite(grey[:, :, 0])
    part = np.where(seen[..., None], grey, 0)
    part = part - part.mean(-1, keepdims=True)
    variance = (part**2).mean(-1)
    same = ((part[:1] * part[1:]).mean(-1) + NOISE**2 / 2) / np.sqrt((variance[:1] + NOISE**2) * (variance[1:] + NOISE**2))
    both = seen[1:] & seen[:1]
    if not len(both):
        return np.full(grey.shape[1], 0.5), np.sqrt(variance[0])
    same = np.where(both, same, np.nan)
    same[0, ~both.any(0)] = 0.5
    return np.nanmedian(same, axis=0), np.sqrt(variance[0])


def smoothed(value: np.ndarray, x: np.ndarray, normal: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """Mean [P] of a value over the NEIGHBOURS nearest points [P, 3] within `reach` [P] on the same side of the surface."""
    distance, index = cKDTree(x).query(x, k=min(NEIGHBOURS, len(x)), workers=-1)
    distance, index = distance.reshape(len(x), -1), index.reshape(len(x), -1)
    weight = (distance <= reach[:, None]) & ((normal[index] * normal[:, None]).sum(-1) > 0)
    weight[:, 0] = True
    return (value[index] * weight).sum(1) / weight.sum(1)


def crease(x: np.ndarray, normal: np.ndarray, reach: np.ndarray, surface: Callable[[Tensor], Tensor], radius: float, device) -> np.ndarray:
    """c [P]: the depth below the surface of points on a ring of radius `reach` [P] in the tangent plane, in parts of it; 0 where all lie outside."""
    a, b = tangents(normal)
    total = np.zeros(len(x))
    for turn in np.arange(8) * np.pi / 4:
        ring = (x + reach[:, None] * (np.cos(turn) * a + np.sin(turn) * b)).clip(-radius, radius)
        total += (-in_parts(surface, torch.from_numpy(ring).float().to(device)).double().cpu().numpy()).clip(0) / reach
    return total / 8


# ------------------------------------------------------------------------------------------------ together
@torch.no_grad()
def measure(
    mesh: trimesh.Trimesh, surface: Callable[[Tensor], Tensor], scene: Scene, radius: float, device: torch.device, pairs: int = PAIRS
) -> Cues:
    """The cues of all vertices of a mesh in the unit sphere's frame; surface: of the field it was extracted from.

    Where vertices and views have more than `pairs` pairs, an even part of the vertices is measured, and the others are like the nearest of them.
    """
    x = np.asarray(mesh.vertices, np.float64)
    on_device = torch.from_numpy(x).float().to(device), torch.as_tensor(np.asarray(mesh.faces), device=device)
    normal = vertex_normals(*on_device).double().cpu().numpy()
    n = max(pairs // max(len(scene.train), 1), 1000)
    part = np.arange(len(x)) if len(x) <= n else np.sort(np.random.default_rng(0).permutation(len(x))[:n])
    at, facing = x[part], normal[part]
    cosine = seen_from(at, facing, scene.cameras, scene.train, MeshTracer(*on_device))
    views = compared_views(at, cosine, scene)
    width = footprint(at, views[0], scene)
    same, texture = agreement(patches(at, facing, width, views, scene))
    cues = Cues(
        (cosine > 0).sum(0),
        cosine.max(0),
        parallax(at, facing, cosine, scene),
        smoothed(same, at, facing, NEAR * width),
        texture,
        crease(at, facing, RING * width, surface, radius, device),
        outlines(at, facing, scene),
        facing,
    )
    return cues if len(part) == len(x) else cues[cKDTree(at).query(x, workers=-1)[1]]
