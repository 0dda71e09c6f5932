"""A tiny scene with a known material: a ball, half metal and half paint, under a light of a few lamps."""

from pathlib import Path

import numpy as np
import torch
import trimesh
from torch import nn

from confs.load import load_config
from encoder.identity import Identity
from models.lights import EnvironmentMap, map_directions
from models.material import MaterialModel, MaterialValues
from systems.embedded import render_relit
from tests.scenes import AXES, ring_cameras
from utils.image import write_png
from utils.rays import Cameras

RADIUS = 0.6


class TrueField(nn.Module):
    """Metal where x > 0, paint elsewhere."""

    encoding = Identity()

    def forward(self, points, levels=None) -> MaterialValues:
        metal = (points[:, 0] > 0).float()
        albedo = metal[:, None] * torch.tensor([0.9, 0.6, 0.4]) + (1 - metal[:, None]) * torch.tensor([0.1, 0.3, 0.7])
        return MaterialValues(albedo, 0.5 - 0.3 * metal, metal)


def lamps(rows: int = 32, seed: int = 0) -> torch.Tensor:
    """A smooth light map [rows, 2 rows, 3]: grey with four soft lamps."""
    generator = torch.Generator().manual_seed(seed)
    dirs = map_directions(rows)
    centres = nn.functional.normalize(torch.randn(4, 3, generator=generator), dim=-1)
    return 0.3 + 4 * torch.exp(8 * (dirs @ centres.T - 1)).sum(-1, keepdim=True).expand(-1, -1, 3)


def true_model(mesh: trimesh.Trimesh) -> MaterialModel:
    cfg = load_config(overrides=["model.name=material"]).model
    arrays = torch.tensor(mesh.vertices), torch.tensor(mesh.faces)
    model = MaterialModel(cfg, TrueField(), nn.Identity(), None, None, arrays, 1.0)
    model.set_frame(torch.eye(4, dtype=torch.float64))
    return model


def write_material_scene(folder, n_views: int = 16, size: int = 40) -> Path:
    """image/, mask/, cameras_sphere.npz and ball.ply (world = unit sphere's frame). Returns the folder."""
    folder = Path(folder)
    mesh = trimesh.creation.icosphere(4, RADIUS)
    folder.mkdir(parents=True, exist_ok=True)
    mesh.export(folder / "ball.ply")
    model, light = true_model(mesh), EnvironmentMap(lamps())
    K = np.array([[1.6 * size, 0, size / 2 - 0.5], [0, 1.6 * size, size / 2 - 0.5], [0, 0, 1]])
    poses = ring_cameras(n_views)
    cameras = Cameras(torch.tensor(K).float().expand(n_views, 3, 3), torch.tensor(poses).float(), size, size)
    mats = {}
    for i, c2w in enumerate(poses):
        rgba = render_relit(model, light, cameras, i, 128, True)
        write_png(folder / f"image/{i:06d}.png", rgba[..., :3] * rgba[..., 3:])
        write_png(folder / f"mask/{i:03d}.png", rgba[..., 3])
        world_mat = np.eye(4)
        world_mat[:3] = K @ np.concatenate([c2w[:, :3].T, -c2w[:, :3].T @ c2w[:, 3:]], axis=1)
        mats |= {f"world_mat_{i}": world_mat, f"scale_mat_{i}": np.eye(4)}
    np.savez(folder / "cameras_sphere.npz", **mats)
    return folder


def write_ellipsoid(folder, scale: float = 3.0, center=(10.0, -20.0, 30.0)) -> Path:
    """The mesh of `tests.scenes.write_tiny_scene`, in its world."""
    mesh = trimesh.creation.icosphere(3)
    mesh.vertices = np.asarray(mesh.vertices) * AXES * scale + center
    path = Path(folder) / "ellipsoid.ply"
    path.parent.mkdir(parents=True, exist_ok=True)
    mesh.export(path)
    return path
