"""How true a mesh's normals are on the metal of a scene: the angle to those of the true mesh, pixel by pixel.

    python -m tests.benchmarks.copper outputs/NAME/TRIAL data/spot_glossy
    python -m tests.benchmarks.copper mesh.ply data/spot_glossy --truth data/spot_glossy/gt_mesh.ply

The scene folder holds `transforms_relight.json` (NeRF-synthetic, pixel centres at +0.5) and, for each of its frames, an image
of the same name in `truth_metallic/`. Rays through the pixels are cast on both meshes (Warp's bounding-volume hierarchy, CPU)
where the metal is surer than one half and has no edge beside it; normals are interpolated between vertices. Prints one JSON object.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import cv2
import numpy as np
import trimesh
import warp as wp

from tests.benchmarks.report import report
from utils.device import warp_available
from utils.errors import UserError
from utils.image import read_raster
from utils.mesh import in_world, load_mesh


@wp.kernel(enable_backward=False)
def _cast(
    mesh: wp.uint64, origins: wp.array(dtype=wp.vec3), dirs: wp.array(dtype=wp.vec3), face: wp.array(dtype=int), at: wp.array(dtype=wp.vec3)
):
    i = wp.tid()
    hit = wp.mesh_query_ray(mesh, origins[i], dirs[i], 1.0e6)
    face[i] = -1
    if hit.result:
        face[i] = hit.face
        at[i] = wp.vec3(hit.u, hit.v, 1.0 - hit.u - hit.v)


class Caster:
    """Rays against one mesh."""

    def __init__(self, mesh: trimesh.Trimesh):
        self.faces, self.normals = np.asarray(mesh.faces), vertex_normals(mesh)
        points = wp.array(np.asarray(mesh.vertices, np.float32), dtype=wp.vec3, device="cpu")
        self.mesh = wp.Mesh(points, wp.array(self.faces.astype(np.int32).ravel(), dtype=int, device="cpu"))

    def __call__(self, origins: np.ndarray, dirs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(whether rays [N, 3] hit it [N] bool, unit normals there [N, 3])."""
        o, d = (wp.array(a.astype(np.float32), dtype=wp.vec3, device="cpu") for a in (origins, dirs))
        face, at = wp.empty(len(origins), dtype=int, device="cpu"), wp.zeros(len(origins), dtype=wp.vec3, device="cpu")
        wp.launch(_cast, dim=len(origins), inputs=[self.mesh.id, o, d, face, at], device="cpu")
        face, at = face.numpy(), at.numpy()
        normal = (self.normals[self.faces[face]] * at[..., None]).sum(1)
        return face >= 0, normal / np.linalg.norm(normal, axis=1, keepdims=True).clip(1e-12)


def vertex_normals(mesh: trimesh.Trimesh) -> np.ndarray:
    """[V, 3], faces weighed by area."""
    faces, corners = np.asarray(mesh.faces), np.asarray(mesh.vertices)[mesh.faces]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    total = np.zeros((len(mesh.vertices), 3))
    for k in range(3):
        np.add.at(total, faces[:, k], normal)
    return total / np.linalg.norm(total, axis=1, keepdims=True).clip(1e-30)


def pixel_rays(c2w: np.ndarray, angle_x: float, h: int, w: int) -> tuple[np.ndarray, np.ndarray]:
    """(origins, unit dirs) [h * w, 3] of a NeRF-synthetic camera (OpenGL axes, c2w [4, 4], horizontal field of view in radians)."""
    v, u = np.mgrid[:h, :w] + 0.5
    focal = w / 2 / math.tan(angle_x / 2)
    local = np.stack([(u - w / 2) / focal, -(v - h / 2) / focal, -np.ones_like(u)], -1).reshape(-1, 3)
    dirs = local @ c2w[:3, :3].T
    return np.broadcast_to(c2w[:3, 3], dirs.shape), dirs / np.linalg.norm(dirs, axis=1, keepdims=True)


def normals_on_metal(mesh: trimesh.Trimesh, truth: trimesh.Trimesh, scene: Path) -> dict[str, float]:
    """Angles in degrees between the normals of two meshes in the scene's world, on its metal and on the rest of the object.

    Errors: `UserError` when the scene has no truth_metallic or no metal in it.
    """
    if warp_available():
        raise UserError(f"rays cannot be cast: {warp_available()}")
    path = scene / "transforms_relight.json"
    if not path.is_file() or not (scene / "truth_metallic").is_dir():
        raise UserError(f"{scene}: expected transforms_relight.json and truth_metallic/ (a scene rendered with its materials)")
    data, found, true = json.loads(path.read_text()), Caster(mesh), Caster(truth)
    angles: dict[str, list[np.ndarray]] = {"metal": [], "rest": []}
    missed = wanted = 0
    for frame in data["frames"]:
        raster = read_raster(scene / "truth_metallic" / f"{Path(frame['file_path']).stem}.png")
        h, w = raster.shape[:2]
        inside = raster[..., 3] > 254 if raster.shape[2] == 4 else np.ones((h, w), bool)
        metal = raster[..., 0] > 127
        rays = pixel_rays(np.array(frame["transform_matrix"]), data["camera_angle_x"], h, w)
        for name, where in (("metal", inside & metal), ("rest", inside & ~metal)):
            pick = cv2.erode(where.astype(np.uint8), np.ones((3, 3), np.uint8)).ravel() > 0
            o, d = rays[0][pick], rays[1][pick]
            if not len(o):
                continue
            (hit, n), (hit_true, n_true) = found(o, d), true(o, d)
            both = hit & hit_true
            angles[name].append(np.degrees(np.arccos(np.clip((n[both] * n_true[both]).sum(1), -1, 1))))
            missed, wanted = missed + int((hit_true & ~hit).sum()), wanted + int(hit_true.sum())
    if not angles["metal"]:
        raise UserError(f"{scene}/truth_metallic: no pixel is metal")
    result = {"missed": missed / max(wanted, 1)}
    for name, parts in angles.items():
        a = np.concatenate(parts) if parts else np.zeros(0)
        if len(a):
            result |= {f"{name}_deg": float(a.mean()), f"{name}_median_deg": float(np.median(a)), f"{name}_pixels": len(a)}
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mesh", type=Path, help="a mesh, or a run folder")
    parser.add_argument("scene", type=Path)
    parser.add_argument("--truth", type=Path, help="default: gt_mesh.ply of the scene")
    args = parser.parse_args()
    folders = [
        folder for folder in (args.mesh / "shape", args.mesh) if (folder / "mesh/mesh.ply").is_file()
    ]  # of a run of stages: its shape
    mesh = folders[0] / "mesh/mesh.ply" if folders else args.mesh

    def judge() -> dict:
        result = normals_on_metal(in_world(load_mesh(mesh)), load_mesh(args.truth or args.scene / "gt_mesh.ply"), args.scene)
        return {k: round(v, 4) for k, v in result.items()}

    return report(judge)


if __name__ == "__main__":
    sys.exit(main())
