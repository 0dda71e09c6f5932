"""The F-score of Tanks and Temples (Knapitsch et al., 2017): precision and recall at a distance tau.

Both clouds are cropped by the scene's polygon and reduced to voxel means of side tau / 2. Nothing is registered here: the prediction
lies in the world of the truth, or a matrix brings it there.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from scipy.spatial import cKDTree

from systems.error_cloud import Compared, ErrorCloud
from systems.point_clouds import STEP, nearest, sample_triangles, voxel_means
from utils.errors import UserError

AXES = {"X": (1, 2, 0), "Y": (0, 2, 1), "Z": (0, 1, 2)}  # the polygon's two axes, then the one orthogonal to it


@dataclass(frozen=True)
class CropVolume:
    """A prism: a polygon [K, 2] along one axis, between two coordinates of that axis."""

    axis: str
    polygon: np.ndarray
    low: float
    high: float

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Which of points [P, 3] lie inside -> [P] bool."""
        return np.concatenate([self._inside(points[a : a + STEP]) for a in range(0, len(points), STEP)] or [np.zeros(0, bool)])

    def _inside(self, points: np.ndarray) -> np.ndarray:
        u, v, w = AXES[self.axis]
        x, y = points[:, u], points[:, v]
        odd = np.zeros(len(points), bool)  # edges crossed to the right of the point
        for (x0, y0), (x1, y1) in zip(self.polygon, np.roll(self.polygon, -1, axis=0)):
            if y0 != y1:
                odd ^= ((y0 > y) != (y1 > y)) & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
        return odd & (points[:, w] >= self.low) & (points[:, w] <= self.high)


def load_crop(path: str | Path) -> CropVolume:
    """Read a crop volume, the JSON of Open3D's SelectionPolygonVolume. Raises UserError."""
    path = Path(path)
    try:
        d = json.loads(path.read_bytes())
        axis = d["orthogonal_axis"].upper()
        u, v, _ = AXES[axis]
        corners = np.array(d["bounding_polygon"], float).reshape(-1, 3)[:, [u, v]]
        volume = CropVolume(axis, corners, float(d["axis_min"]), float(d["axis_max"]))
        if len(corners) < 3 or not np.isfinite([*corners.ravel(), volume.low, volume.high]).all():
            raise ValueError(f"{len(corners)} corners, or numbers that are not finite")
    except OSError as error:
        raise UserError(f"--tnt-crop {path}: cannot be read ({error.strerror}); give the scene's crop volume, a .json") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        wanted = "orthogonal_axis, axis_min, axis_max, bounding_polygon"
        raise UserError(f"--tnt-crop {path}: not a crop volume ({type(error).__name__}: {error}), expected {wanted}") from None
    return volume


def load_alignment(path: str | Path) -> np.ndarray:
    """A text file of 4 x 4 numbers, prediction to truth -> [4, 4]. Raises UserError."""
    try:
        matrix = np.loadtxt(path, dtype=float)
    except OSError:
        raise UserError(f"--tnt-align {path}: no such file; give a text file of 4 x 4 numbers") from None
    except ValueError as error:
        raise UserError(f"--tnt-align {path}: not numbers ({str(error)[:100]}), expected 4 lines of 4") from None
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or not np.allclose(matrix[3], [0, 0, 0, 1]):
        raise UserError(f"--tnt-align {path}: {list(matrix.shape)} numbers, expected 4 x 4 finite ones, the last line 0 0 0 1")
    return matrix


def _reduced(points: np.ndarray, crop: CropVolume, size: float, what: str) -> np.ndarray:
    inside = points[crop(points)]
    if not len(inside):
        raise UserError(
            f"{what}: no point inside the crop volume; it must lie in the world of the truth (--tnt-align FILE brings it there)"
        )
    return voxel_means(inside, size)


def evaluate_tnt(mesh: trimesh.Trimesh, truth: trimesh.Trimesh, crop: CropVolume, tau: float, align: np.ndarray | None = None) -> Compared:
    """Precision, recall and F-score, in [0, 1], at the distance tau (units of the truth). A mesh is sampled at tau / 2.

    align [4, 4]: prediction to the truth's world. Raises UserError where nothing lies inside the crop volume.
    """
    faces = np.asarray(mesh.faces) if len(getattr(mesh, "faces", ())) else None
    points = np.asarray(mesh.vertices, np.float64)
    points = points if align is None else points @ align[:3, :3].T + align[:3, 3]
    points = points if faces is None else sample_triangles(points, faces, tau / 2)
    sampled, n_truth = len(points), len(truth.vertices)
    points = _reduced(points, crop, tau / 2, "the prediction")
    target = _reduced(np.asarray(truth.vertices, np.float64), crop, tau / 2, "the truth")
    there, back = nearest(points, cKDTree(target)), nearest(target, cKDTree(points))
    precision, recall = float((there < tau).mean()), float((back < tau).mean())
    result: dict[str, Any] = {
        "protocol": "tnt", "tau": tau, "precision": precision, "recall": recall,
        "fscore_tau": 2 * precision * recall / max(precision + recall, 1e-12), "voxel": tau / 2,
        "n_sampled": sampled, "n_prediction": len(points), "n_truth": [n_truth, len(target)], "sampled_faces": faces is not None,
        "icp": False, "aligned": None if align is None else align.tolist(), "culled": None,
    }  # fmt: skip
    every = np.ones(len(points), bool), np.ones(len(target), bool)
    return Compared(result, ErrorCloud(points, there, every[0]), ErrorCloud(target, back, every[1]))


def report(r: dict[str, Any]) -> str:
    """The result of `evaluate_tnt` as text, with every choice that the numbers depend on."""
    source = f"triangles sampled at {r['voxel']:g}, and vertices" if r["sampled_faces"] else "points as they are"
    return "\n".join(
        [
            f"Tanks and Temples, tau {r['tau']:g} (units of the truth)",
            f"precision  {r['precision']:.4f}   share of the prediction nearer than tau to the truth",
            f"recall     {r['recall']:.4f}   share of the truth nearer than tau to the prediction",
            f"F-score    {r['fscore_tau']:.4f}",
            f"prediction: {source}: {r['n_sampled']} points; cropped, then voxel means of {r['voxel']:g}: {r['n_prediction']}",
            f"truth: {r['n_truth'][0]} points; cropped, then voxel means of {r['voxel']:g}: {r['n_truth'][1]}",
            f"aligned: {'no' if r['aligned'] is None else 'by the matrix given'}; ICP: no; culled by masks: no",
        ]
    )
