"""A mesh against the truth: accuracy (prediction to truth), completeness (truth to prediction), Chamfer, F-score, normals.

Distances go from uniform samples of one surface to the other surface itself: the distance to a triangle is exact, and the
triangles tried are those of the nearest centroids (small faces) and of the nearest of a dense sampling (large faces). Not
squared, not clipped. Nothing is culled here.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import trimesh
from scipy.spatial import cKDTree

THRESHOLDS = (0.0025, 0.005, 0.01, 0.02)
NEAREST = (6, 4)  # triangles tried, by centroid and by sample
STEP = 50_000  # points at once


class _Surface:
    """A mesh, or the vertices of a point cloud (a mesh without faces), that tells distances."""

    def __init__(self, mesh: trimesh.Trimesh, n: int, seed: int) -> None:
        self.mesh, self.cloud = mesh, not len(getattr(mesh, "faces", ()))
        vertices = np.asarray(mesh.vertices, np.float64)
        if not len(vertices):
            raise ValueError("evaluate_mesh: one of the meshes is empty")
        if self.cloud:
            chosen = np.random.default_rng(seed).permutation(len(vertices))[:n]
            self.samples, self.normals, self.tree = vertices[chosen], None, cKDTree(vertices)
        else:
            points, face = trimesh.sample.sample_surface(mesh, n, seed=seed)
            self.samples, self.normals = np.asarray(points), self._normals(face)
            points, self.face = trimesh.sample.sample_surface(mesh, 3 * n, seed=seed + 1)
            self.tree, self.centroids = cKDTree(points), cKDTree(vertices[np.asarray(mesh.faces)].mean(1))

    def _normals(self, face: np.ndarray) -> np.ndarray:
        corner = np.asarray(self.mesh.vertices)[np.asarray(self.mesh.faces)[face]]
        normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
        return normal / np.linalg.norm(normal, axis=1, keepdims=True).clip(1e-30)

    def distance(self, q: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Distance of q [P, 3] to this surface [P] and its unit normal there [P, 3] (None for a point cloud)."""
        if self.cloud:
            return self.tree.query(q, workers=-1)[0], None
        parts = [self._to_triangles(q[a : a + STEP]) for a in range(0, len(q), STEP)]
        return np.concatenate([d for d, _ in parts]), self._normals(np.concatenate([f for _, f in parts]))

    def _to_triangles(self, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        _, small = self.centroids.query(q, k=range(1, 1 + min(NEAREST[0], self.centroids.n)), workers=-1)
        _, large = self.tree.query(q, k=range(1, 1 + min(NEAREST[1], self.tree.n)), workers=-1)
        face = np.concatenate([small, self.face[large]], 1)  # [P, T]
        triangle = np.asarray(self.mesh.vertices)[np.asarray(self.mesh.faces)[face]]  # [P, T, 3, 3]
        foot = trimesh.triangles.closest_point(triangle.reshape(-1, 3, 3), np.repeat(q, face.shape[1], 0))
        d = np.linalg.norm(foot.reshape(*face.shape, 3) - q[:, None], axis=2)
        best = d.argmin(1)
        return d[np.arange(len(q)), best], face[np.arange(len(q)), best]


def evaluate_mesh(
    pred: trimesh.Trimesh,
    gt: trimesh.Trimesh,
    n: int = 200_000,
    thresholds: Sequence[float] = THRESHOLDS,
    unit: float = 1.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare pred with gt (a mesh, or points: a mesh without faces) in the same frame.

    n: samples of each surface. unit: length that distances are divided by (the unit sphere's radius in world units).
    thresholds: distances of the F-score, after that division. Normal consistency is the mean |cosine| between the normals
    of a sample and of its nearest point, both ways averaged; None when gt has no faces. Errors: ValueError for an empty mesh.
    """
    if n < 1 or not unit > 0:
        raise ValueError(f"evaluate_mesh: n and unit must be positive, got {n} and {unit}")
    if not len(getattr(pred, "faces", ())):
        raise ValueError("evaluate_mesh: the predicted mesh has no faces")
    a, b = _Surface(pred, n, seed), _Surface(gt, n, seed)
    (to_gt, gt_normal), (to_pred, pred_normal) = b.distance(a.samples), a.distance(b.samples)
    to_gt, to_pred = to_gt / unit, to_pred / unit
    normals = None
    if gt_normal is not None:
        there, back = np.abs((a.normals * gt_normal).sum(1)), np.abs((b.normals * pred_normal).sum(1))
        normals = float(there.mean() + back.mean()) / 2
    accuracy, completeness = float(to_gt.mean()), float(to_pred.mean())
    return {
        "accuracy": accuracy,
        "completeness": completeness,
        "chamfer": (accuracy + completeness) / 2,
        "fscore": {float(t): _fscore(to_gt, to_pred, t) for t in thresholds},
        "normal_consistency": normals,
        "n_samples": [len(a.samples), len(b.samples)],
        "unit": float(unit),
        "seed": seed,
        "gt_kind": "points" if b.cloud else "mesh",
    }


def _fscore(to_gt: np.ndarray, to_pred: np.ndarray, t: float) -> float:
    precision, recall = float((to_gt < t).mean()), float((to_pred < t).mean())
    return 2 * precision * recall / max(precision + recall, 1e-12)


def report(result: dict[str, Any]) -> str:
    """The result of `evaluate_mesh` as lines to read, with every choice that the numbers depend on."""
    r, (n_pred, n_gt) = result, result["n_samples"]
    normal = "none (the truth has no faces)"
    if r["normal_consistency"] is not None:
        normal = f"{r['normal_consistency']:.4f} (mean |cosine|, both ways)"
    way = "the nearest point of the cloud" if r["gt_kind"] == "points" else "the nearest point of its triangles"
    how = "points of the cloud as they are" if r["gt_kind"] == "points" else "uniform by area"
    lines = [
        f"accuracy            {r['accuracy']:.6f}   prediction to truth ({way})",
        f"completeness        {r['completeness']:.6f}   truth to prediction (the nearest point of its triangles)",
        f"chamfer             {r['chamfer']:.6f}   mean of the two",
        *[f"F-score at {t:<8g} {f:.4f}" for t, f in r["fscore"].items()],
        f"normal consistency  {normal}",
        f"Distances are not squared and not clipped, divided by {r['unit']:g} (world units); {n_pred} samples of the prediction",
        f"and {n_gt} of the truth, {how}, seed {r['seed']}; both as they were handed in, nothing culled or aligned here.",
    ]
    return "\n".join(lines)
