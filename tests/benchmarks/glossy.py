"""Chamfer distance as NeRO takes it: `python -m tests.benchmarks.glossy MESH SCENE`, a mesh in world units and a GlossySynthetic folder.

Only what the cameras see counts: points from the depth maps of all views against points where rays through the same pixels
meet the mesh, both thinned to one a voxel of 0.01, the mean distance to the nearest of the others, both ways. Prints one JSON object.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from scipy.spatial import cKDTree

from models.raytrace import MeshTracer
from process_data.glossy import read_camera, read_depth, view_ids
from tests.benchmarks.report import report
from utils.errors import UserError
from utils.mesh import in_world, load_mesh

VOXEL = 0.01


def thinned(points: np.ndarray, voxel: float) -> np.ndarray:
    """The mean of the points [P, 3] in each voxel."""
    _, cell = np.unique(np.floor(points / voxel).astype(np.int64), axis=0, return_inverse=True)
    cell = cell.reshape(-1)
    sums = np.stack([np.bincount(cell, points[:, k]) for k in range(3)], 1)
    return sums / np.bincount(cell)[:, None]


def compare(mesh_path: Path, scene: Path, voxel: float = VOXEL) -> dict[str, float]:
    """Mean distances in world units: `accuracy` (ours to theirs), `completeness` (theirs to ours), `chamfer` (their mean). Raises UserError."""
    mesh, ids = in_world(load_mesh(mesh_path)), view_ids(scene)
    if not ids:
        raise UserError(f"{scene}: no 0-camera.pkl; expected a scene of GlossySynthetic")
    tracer = MeshTracer(torch.tensor(mesh.vertices, dtype=torch.float32), torch.tensor(mesh.faces, dtype=torch.int64))
    ours, theirs = [], []
    for k in ids:
        K, c2w, _ = read_camera(scene, k)
        depth = read_depth(scene / f"{k}-depth.png")
        v, u = np.mgrid[: depth.shape[0], : depth.shape[1]].astype(np.float64)
        local = np.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], np.ones_like(u)], -1).reshape(-1, 3)
        dirs, flat = local @ c2w[:, :3].T, depth.reshape(-1)
        theirs.append(c2w[:, 3] + (dirs * flat[:, None])[np.isfinite(flat)])
        unit = dirs / np.linalg.norm(dirs, axis=1, keepdims=True)
        origins = torch.tensor(c2w[:, 3], dtype=torch.float32).expand(len(unit), 3).contiguous()
        hits = tracer(origins, torch.tensor(unit, dtype=torch.float32))
        t = hits.t.double().numpy()
        ours.append(c2w[:, 3] + (unit * t[:, None])[np.isfinite(t)])
    a, b = (thinned(np.concatenate(parts), voxel) for parts in (ours, theirs))
    if not len(a) or not len(b):
        raise UserError(f"{mesh_path}: no camera of {scene} sees it; is it in world units?")
    accuracy, completeness = float(cKDTree(b).query(a)[0].mean()), float(cKDTree(a).query(b)[0].mean())
    return {"accuracy": accuracy, "completeness": completeness, "chamfer": (accuracy + completeness) / 2, "views": len(ids)}


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("mesh", type=Path)
    p.add_argument("scene", type=Path)
    args = p.parse_args()
    return report(lambda: compare(args.mesh, args.scene))


if __name__ == "__main__":
    sys.exit(main())
