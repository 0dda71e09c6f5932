"""The evaluation of the DTU data set (Jensen et al., 2014; Aanaes et al., 2016), in millimetres of its world.

The prediction is sampled, shuffled and thinned. Its points that the scanner observed (ObsMask) go to the nearest point of the scan
(d2s, accuracy); the scan's points above the ground plane go to the nearest of the prediction, observed or not (s2d, completeness).
Distances from 20 mm up are left out of both means. Nothing is aligned here.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from scipy.spatial import cKDTree

from systems.error_cloud import Compared, ErrorCloud
from systems.point_clouds import nearest, sample_triangles, thin
from utils.errors import UserError, raise_all
from utils.mesh import load_mesh

DENSITY = 0.2  # mm: spacing of the samples, and radius of the thinning
PATCH = 60  # mm: the prediction is judged from this far below the box to twice as far above it
FAR = 20.0  # mm: distances from here up do not count
SCANS = (24, 37, 40, 55, 63, 65, 69, 83, 97, 105, 106, 110, 114, 118, 122)  # whose means papers print


@dataclass(frozen=True)
class DtuTruth:
    """What the data set says of one scan."""

    scan: int
    points: np.ndarray  # [P, 3] the scanned surface
    observed: np.ndarray  # [X, Y, Z] bool: voxels that the scanner saw
    box: np.ndarray  # [2, 3] corners of those voxels
    resolution: float  # side of a voxel
    plane: np.ndarray  # [4]: a point x lies above the ground where plane . (x, 1) > 0


def _find(data: Path, folders: tuple[str, ...], name: str, problems: list[str]) -> Path:
    for folder in folders:
        if (data / folder / name).is_file():
            return data / folder / name
    problems.append(f"{data}: no {folders[0]}/{name}")
    return data / name


def _read_mat(path: Path, keys: tuple[str, ...]) -> list[np.ndarray]:
    """The arrays of a .mat file. Raises UserError."""
    from scipy.io import loadmat

    try:
        found = loadmat(path)
    except Exception as error:  # noqa: BLE001 - scipy raises many types on files that are not MATLAB's
        raise UserError(f"{path}: not a readable .mat file ({str(error)[:120]}); copy it again from the DTU data set") from None
    missing = [key for key in keys if key not in found]
    if missing:
        raise UserError(f"{path}: no {', '.join(missing)} in it, expected {', '.join(keys)}; copy it again from the DTU data set")
    return [np.asarray(found[key]) for key in keys]


def load_truth(data: str | Path, scan: int) -> DtuTruth:
    """Read ObsMask/ObsMask<scan>_10.mat, ObsMask/Plane<scan>.mat, Points/stl/stl<scan>_total.ply below `data`. Raises UserError."""
    data, problems = Path(data), list[str]()
    if not data.is_dir():
        raise UserError(f"--dtu-data {data}: no such folder; give the one that holds ObsMask/ and Points/ of the DTU data set")
    mask = _find(data, ("ObsMask", "."), f"ObsMask{scan}_10.mat", problems)
    ground = _find(data, ("ObsMask", "."), f"Plane{scan}.mat", problems)
    stl = _find(data, ("Points/stl", "stl", "."), f"stl{scan:03}_total.ply", problems)
    raise_all(problems, "DTU data missing: ")
    observed, box, resolution = _read_mat(mask, ("ObsMask", "BB", "Res"))
    (plane,) = _read_mat(ground, ("P",))
    if observed.ndim != 3 or box.shape != (2, 3) or resolution.size != 1 or not float(resolution.ravel()[0]) > 0:
        raise UserError(
            f"{mask}: ObsMask {list(observed.shape)}, BB {list(box.shape)}, Res {list(resolution.shape)}; expected 3-D, [2, 3], one"
        )
    if plane.size != 4:
        raise UserError(f"{ground}: P has {plane.size} numbers, expected 4")
    points = np.asarray(load_mesh(stl, points=True).vertices, np.float64)
    return DtuTruth(
        scan, points, observed > 0, box.astype(np.float32).astype(float), float(resolution.ravel()[0]), plane.ravel().astype(float)
    )


def in_box(points: np.ndarray, truth: DtuTruth) -> np.ndarray:
    """[P] bool: inside the box, widened by PATCH below and twice PATCH above (as the data set's own programs have it)."""
    return ((points >= truth.box[0] - PATCH) & (points < truth.box[1] + 2 * PATCH)).all(1)


def in_observed(points: np.ndarray, truth: DtuTruth) -> np.ndarray:
    """[P] bool: the nearest voxel exists and was observed."""
    voxel = np.around((points - truth.box[0]) / truth.resolution).astype(np.int64)
    inside = ((voxel >= 0) & (voxel < truth.observed.shape)).all(1)
    inside[inside] = truth.observed[tuple(voxel[inside].T)]
    return inside


def _mean_below(distance: np.ndarray, what: str) -> float:
    """Mean of the distances below FAR. Raises UserError where there is none."""
    near = distance[distance < FAR]
    if not len(near):
        raise UserError(f"{what}: no distance below {FAR:g} mm; the mesh must lie in DTU's world, in millimetres (not in the unit sphere)")
    return float(near.mean())


def evaluate_dtu(mesh: trimesh.Trimesh, truth: DtuTruth, seed: int = 0) -> Compared:
    """Accuracy (d2s), completeness (s2d) and their mean, mm, of a mesh (or a point cloud: no faces) in DTU's world.

    Raises UserError where nothing is left to judge.
    """
    faces = np.asarray(mesh.faces) if len(getattr(mesh, "faces", ())) else None
    points = np.asarray(mesh.vertices, np.float64)
    points = points if faces is None else sample_triangles(points, faces, DENSITY)
    sampled = len(points)
    points = thin(points, DENSITY, seed)
    thinned = len(points)
    points = points[in_box(points, truth)]
    if not len(points):
        low, high = (np.round(v, 1).tolist() for v in (truth.box[0] - PATCH, truth.box[1] + 2 * PATCH))
        raise UserError(f"the prediction lies outside the box of scan {truth.scan}, {low} to {high} mm; it must lie in DTU's world")
    observed = in_observed(points, truth)
    d2s = np.full(len(points), np.nan)
    d2s[observed] = nearest(points[observed], cKDTree(truth.points))
    above = np.concatenate(
        [truth.points[a : a + 1_000_000] @ truth.plane[:3] + truth.plane[3] > 0 for a in range(0, len(truth.points), 1_000_000)]
    )
    s2d = np.full(len(truth.points), np.nan)
    s2d[above] = nearest(truth.points[above], cKDTree(points))
    accuracy, completeness = _mean_below(d2s[observed], "d2s"), _mean_below(s2d[above], "s2d")
    result: dict[str, Any] = {
        "protocol": "dtu", "scan": truth.scan, "unit": "mm", "d2s": accuracy, "s2d": completeness, "overall": (accuracy + completeness) / 2,
        "n_sampled": sampled, "n_thinned": thinned, "n_in_box": len(points), "n_observed": int(observed.sum()),
        "n_beyond": [int((d2s >= FAR).sum()), int((s2d >= FAR).sum())], "n_scan": len(truth.points), "n_above_plane": int(above.sum()),
        "density": DENSITY, "patch": PATCH, "max_distance": FAR, "seed": seed, "sampled_faces": faces is not None, "icp": False, "culled": None,
    }  # fmt: skip
    return Compared(result, ErrorCloud(points, d2s, d2s < FAR), ErrorCloud(truth.points, s2d, s2d < FAR))


def report(r: dict[str, Any]) -> str:
    """The result of `evaluate_dtu` as text, with every choice that the numbers depend on."""
    source = f"triangles sampled at {r['density']:g} mm, and vertices" if r["sampled_faces"] else "points as they are"
    return "\n".join(
        [
            f"DTU protocol, scan {r['scan']}, millimetres" + ("" if r["scan"] in SCANS else " (not one of the 15 scans of the usual mean)"),
            f"d2s (accuracy)      {r['d2s']:.4f}   prediction to scan, {r['n_observed'] - r['n_beyond'][0]} points",
            f"s2d (completeness)  {r['s2d']:.4f}   scan to prediction, {r['n_above_plane'] - r['n_beyond'][1]} points",
            f"overall             {r['overall']:.4f}   mean of the two",
            f"prediction: {source}: {r['n_sampled']} points; shuffled with seed {r['seed']}, thinned at {r['density']:g} mm: {r['n_thinned']};",
            f"  in the box -{r['patch']} / +{2 * r['patch']} mm: {r['n_in_box']}; in ObsMask (d2s alone): {r['n_observed']}",
            f"scan: {r['n_above_plane']} of {r['n_scan']} points above the plane (s2d alone)",
            f"distances from {r['max_distance']:g} mm up left out: {r['n_beyond'][0]} of d2s, {r['n_beyond'][1]} of s2d",
            f"culled by masks: {r['culled'] or 'no'}; aligned (ICP): no",
        ]
    )
