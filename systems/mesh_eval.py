"""A mesh against the truth: accuracy (prediction to truth), completeness (truth to prediction), Chamfer, F-score, normals.

Distances go from samples of one surface, uniform by area, to the nearest point of the other surface's triangles. They are
neither squared nor clipped. `counted` may restrict both to the part of the truth that was seen. The nearest triangle comes from Warp's bounding
volume hierarchy, or from a k-d tree of centroids; the distance to it is computed in float64. Letters: P points, F faces.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import trimesh
from scipy.spatial import cKDTree

from utils.device import missing
from utils.mesh import area_vectors

Counted = Callable[[np.ndarray, np.ndarray], np.ndarray]  # points [P, 3], normals [P, 3] of the truth -> [P] bool
THRESHOLDS = (0.0025, 0.005, 0.01, 0.02)
STEP = 50_000  # points whose distances are computed at once
PAIRS = 1_000_000  # pairs of a point and a triangle at once


# ------------------------------------------------------------------------------------------------ nearest triangle
def distances(points: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Exact distance of each of P points [P, 3] to its own triangle [P, 3, 3] -> [P], float64."""
    parts = [
        np.linalg.norm(trimesh.triangles.closest_point(triangles[a : a + STEP], points[a : a + STEP]) - points[a : a + STEP], axis=1)
        for a in range(0, len(points), STEP)
    ]
    return np.concatenate(parts)


def nearest_numpy(triangles: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Index of the nearest of F triangles [F, 3, 3] for each of P points [P, 3] -> [P] int64: the specification, on the CPU.

    A point's distance to the triangle of the nearest centroid bounds the search: no triangle is nearer whose centroid lies
    further away than that bound plus the largest distance from its centroid to a corner. Triangles are searched in groups
    of like size.
    """
    centroids = triangles.mean(1)
    radius = np.linalg.norm(triangles - centroids[:, None], axis=2).max(1)
    face = cKDTree(centroids).query(points, workers=-1)[1].astype(np.int64)
    best = distances(points, triangles[face])
    size = np.ceil(np.log2(np.maximum(radius, 1e-30)))
    for group in (np.flatnonzero(size == s) for s in np.unique(size)):
        tree, reach = cKDTree(centroids[group]), radius[group].max() * (1 + 1e-9)
        count = tree.query_ball_point(points, best + reach, workers=-1, return_length=True)
        for part in np.split(np.arange(len(points)), _cuts(count)):
            found = tree.query_ball_point(points[part], best[part] + reach, workers=-1)
            length = np.array([len(f) for f in found])
            if not length.sum():
                continue
            row = np.repeat(part, length)
            candidate = group[np.concatenate([f for f in found if f]).astype(np.int64)]
            d = distances(points[row], triangles[candidate])
            order = np.lexsort((d, row))
            first = order[np.unique(row[order], return_index=True)[1]]  # the nearest candidate of each point
            first = first[d[first] < best[row[first]]]
            best[row[first]], face[row[first]] = d[first], candidate[first]
    return face


def _cuts(count: np.ndarray) -> np.ndarray:
    """Indices that split [P] counts into runs of about PAIRS in sum."""
    run = np.cumsum(count) // PAIRS
    return np.flatnonzero(np.diff(run)) + 1


@functools.cache
def _kernel():
    import warp as wp

    @wp.kernel(module="unique", enable_backward=False)
    def nearest(mesh: wp.uint64, points: wp.array(dtype=wp.vec3), far: float, begin: int, stop: int, run: int, face: wp.array(dtype=int)):
        first = begin + wp.tid() * run  # type: ignore[operator]
        for i in range(first, wp.min(first + run, stop)):
            hit = wp.mesh_query_point_no_sign(mesh, points[i], far)
            if hit.result:  # type: ignore[attr-defined]
                face[i] = hit.face  # type: ignore[attr-defined]

    return nearest


def nearest_warp(triangles: np.ndarray, points: np.ndarray, device: torch.device) -> np.ndarray:
    """`nearest_numpy` by Warp's bounding volume hierarchy, in float32 about the centre of the mesh, on `device`."""
    import warp as wp

    from utils import warp_launch

    low, high = triangles.min((0, 1)), triangles.max((0, 1))
    centre, scale = (low + high) / 2, max(float((high - low).max()) / 2, 1e-30)
    vertices, query = (
        torch.from_numpy(np.ascontiguousarray(((x - centre) / scale).reshape(-1, 3), np.float32)).to(device) for x in (triangles, points)
    )
    mesh = warp_launch.triangle_mesh(vertices, torch.arange(len(vertices), dtype=torch.int32, device=device).view(-1, 3))
    far = 2 * (float(query.abs().max()) + 1)  # beyond every distance from a point to a triangle
    face = torch.full((len(query),), -1, dtype=torch.int32, device=device)
    arrays = warp_launch.array(query, wp.vec3), warp_launch.array(face, wp.int32)

    def part(begin: int, stop: int) -> None:
        run = 1 if device.type == "cuda" else stop - begin
        inputs = [mesh.id, arrays[0], far, begin, stop, run, arrays[1]]
        warp_launch.launch(_kernel(), -(-(stop - begin) // run), inputs, device)

    warp_launch.run([functools.partial(part, *edge) for edge in warp_launch.split(len(query), device, 256)])
    return face.long().cpu().numpy()


def nearest_triangles(triangles: np.ndarray, points: np.ndarray, device: torch.device | str = "cpu") -> np.ndarray:
    """`nearest_warp` where Warp runs, else `nearest_numpy`."""
    device = torch.device(device)
    return nearest_numpy(triangles, points) if missing("warp", device) else nearest_warp(triangles, points, device)


# ------------------------------------------------------------------------------------------------ the comparison
class Surface:
    """A mesh, or a point cloud (a mesh without faces): samples of it, and distances to it."""

    def __init__(self, mesh: trimesh.Trimesh, n: int, seed: int, device: torch.device | str) -> None:
        vertices = np.asarray(mesh.vertices, np.float64)
        if not len(vertices):
            raise ValueError("evaluate_mesh: one of the meshes is empty")
        self.is_cloud, self.device = not len(getattr(mesh, "faces", ())), device
        self.normals: np.ndarray | None = None  # of the samples
        if self.is_cloud:
            chosen = np.random.default_rng(seed).permutation(len(vertices))[:n]
            self.samples, self.tree = vertices[chosen], cKDTree(vertices)
            return
        triangles = vertices[np.asarray(mesh.faces)]
        normals = area_vectors(triangles)
        area = np.linalg.norm(normals, axis=1)
        if not area.max() > 0:
            raise ValueError("evaluate_mesh: one of the meshes has no area")
        self.triangles, self.face_normals = triangles[area > 0], normals[area > 0] / area[area > 0, None]
        points, face = trimesh.sample.sample_surface(mesh, n, seed=seed)
        self.samples = np.asarray(points)
        self.normals = normals[face] / area[face, None]

    def distance(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Distance of points [P, 3] to this surface [P] and its unit normal at the nearest point [P, 3] (None for a point cloud)."""
        if self.is_cloud:
            return self.tree.query(points, workers=-1)[0], None
        face = nearest_triangles(self.triangles, points, self.device)
        return distances(points, self.triangles[face]), self.face_normals[face]


def evaluate_mesh(
    pred: trimesh.Trimesh,
    gt: trimesh.Trimesh,
    n: int = 200_000,
    thresholds: Sequence[float] = THRESHOLDS,
    unit: float = 1.0,
    seed: int = 0,
    device: torch.device | str = "cpu",
    counted: Counted | None = None,
    pixel: float | None = None,
) -> dict[str, Any]:
    """Compare pred with gt (a mesh, or points: a mesh without faces) in the same frame.

    n: samples of each surface. unit: length that distances are divided by (the unit sphere's radius in world units).
    thresholds: distances of the F-score, after that division. device: where Warp's mesh queries run. Normal consistency is
    the mean |cosine| between the normals of a sample and of its nearest point, both ways averaged; None when gt has no
    faces. counted: which samples of the truth count, by points [P, 3] and normals [P, 3]; a sample of pred counts where the nearest
    sample of the truth does. pixel: width of a pixel at the object after that division: gives `half_px`, Chamfer in half
    pixels, and `fscore_px`. Errors: ValueError for an empty mesh, or when nothing counts.
    """
    if n < 1 or not unit > 0:
        raise ValueError(f"evaluate_mesh: n and unit must be positive, got {n} and {unit}")
    if not len(getattr(pred, "faces", ())):
        raise ValueError("evaluate_mesh: the predicted mesh has no faces")
    a, b = Surface(pred, n, seed, device), Surface(gt, n, seed, device)
    (to_gt, gt_normal), (to_pred, pred_normal) = b.distance(a.samples), a.distance(b.samples)
    to_gt, to_pred = to_gt / unit, to_pred / unit
    there, back = np.ones(len(to_gt), bool), np.ones(len(to_pred), bool)
    if counted is not None and b.normals is not None:
        back = counted(b.samples, b.normals)
        there = back[cKDTree(b.samples).query(a.samples, workers=-1)[1]]
        if not (there.any() and back.any()):
            raise ValueError("evaluate_mesh: no part of the surface counts")
    normals = None
    if a.normals is not None and b.normals is not None:
        cosines = np.abs((a.normals * gt_normal).sum(1)), np.abs((b.normals * pred_normal).sum(1))
        normals = float(cosines[0][there].mean() + cosines[1][back].mean()) / 2
    to_gt, to_pred = to_gt[there], to_pred[back]
    accuracy, completeness = float(to_gt.mean()), float(to_pred.mean())
    chamfer = (accuracy + completeness) / 2
    result = {
        "accuracy": accuracy,
        "completeness": completeness,
        "chamfer": chamfer,
        "fscore": {float(t): _fscore(to_gt, to_pred, t) for t in thresholds},
        "normal_consistency": normals,
        "n_samples": [len(a.samples), len(b.samples)],
        "unit": float(unit),
        "seed": seed,
        "gt_kind": "points" if b.is_cloud else "mesh",
    }
    if counted is not None and b.normals is not None:
        result |= {"seen": float(back.mean())}
    if pixel is not None:
        result |= {"pixel": pixel, "half_px": chamfer / (pixel / 2), "fscore_px": _fscore(to_gt, to_pred, pixel)}
    return result


def _fscore(to_gt: np.ndarray, to_pred: np.ndarray, t: float) -> float:
    precision, recall = float((to_gt < t).mean()), float((to_pred < t).mean())
    return 2 * precision * recall / max(precision + recall, 1e-12)


def report(result: dict[str, Any]) -> str:
    """The result of `evaluate_mesh` as text, with every choice that the numbers depend on."""
    r, (n_pred, n_gt) = result, result["n_samples"]
    normal = "none (the truth has no faces)"
    if r["normal_consistency"] is not None:
        normal = f"{r['normal_consistency']:.4f} (mean |cosine|, both ways)"
    target = "the nearest point of the cloud" if r["gt_kind"] == "points" else "the nearest point of its triangles"
    sampling = "points of the cloud as they are" if r["gt_kind"] == "points" else "uniform by area"
    seen = f"of the truth {r['seen']:.1%} is judged, what at least two training views see" if "seen" in r else "nothing left out as unseen"
    lines = [
        f"accuracy            {r['accuracy']:.6f}   prediction to truth ({target})",
        f"completeness        {r['completeness']:.6f}   truth to prediction (the nearest point of its triangles)",
        f"chamfer             {r['chamfer']:.6f}   mean of the two",
        *[f"F-score at {t:<8g} {f:.4f}" for t, f in r["fscore"].items()],
        *([f"F-score at 1 pixel  {r['fscore_px']:.4f}   a pixel at the object is {r['pixel']:.5f}"] if "pixel" in r else []),
        *([f"half_px             {r['half_px']:.3f}   chamfer over half a pixel"] if "pixel" in r else []),
        f"normal consistency  {normal}",
        f"Distances are not squared and not clipped, divided by {r['unit']:g} (world units); {n_pred} samples of the prediction",
        f"and {n_gt} of the truth, {sampling}, seed {r['seed']}; {seen};",
        f"culled by masks: {r.get('culled') or 'no, nothing culled'}; aligned (ICP): no",
    ]
    return "\n".join(lines)
