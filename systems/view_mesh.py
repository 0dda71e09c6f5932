"""Meshes of the page of `--view`: the one of the moment, the one of a run folder, and the file that a browser takes."""

from pathlib import Path

import numpy as np
import torch
import trimesh

from confs.schema import Config
from models.material import MaterialModel
from process_data.normalize import points_to_sphere
from systems.surface import Surface
from utils.colour import srgb_to_linear
from utils.decimate import cell_means, merged_vertices
from utils.glb import INDICES, Buffer, matt
from utils.mesh import in_world, load_mesh
from utils.mesh_files import vertex_colours, vertex_normals
from utils.rays import Scene

RESOLUTION = 128  # cells along the longest side
MOST = 400_000  # faces of a mesh that a browser gets


def live_mesh(system, scene: Scene, cfg: Config, device: torch.device, progress: float) -> trimesh.Trimesh:
    """The mesh of the moment in the unit sphere's frame, coarse, coloured and culled as the exported one is; of a material its own mesh.

    Raises UserError where there is no surface.
    """
    model = system.model
    if isinstance(model, MaterialModel):
        mesh = trimesh.Trimesh(model.local.cpu().numpy(), model.frame_faces.cpu().numpy(), process=False)
        return coloured_mesh(thinned(mesh) if len(mesh.faces) > MOST else mesh, system, device, progress)
    return coloured_mesh(Surface(system, scene, cfg, device, progress).rough(RESOLUTION), system, device, progress)


def coloured_mesh(mesh: trimesh.Trimesh, system, device: torch.device, progress: float) -> trimesh.Trimesh:
    """The mesh with the field's colours at its vertices, seen along their normals."""
    x = torch.as_tensor(np.asarray(mesh.vertices), dtype=torch.float32, device=device)
    rgb = (system.colours(x, progress).clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return trimesh.Trimesh(mesh.vertices, mesh.faces, vertex_colors=rgb, process=False)


def saved_mesh(path: Path, scene: Scene) -> trimesh.Trimesh:
    """The mesh of a run folder, in whatever frame it was written, in the unit sphere's frame. Raises UserError."""
    mesh = in_world(load_mesh(path))
    mesh.vertices = points_to_sphere(np.asarray(mesh.vertices), scene.to_world.numpy())
    return thinned(mesh) if len(mesh.faces) > MOST else mesh


def thinned(mesh: trimesh.Trimesh, cells: int = 256) -> trimesh.Trimesh:
    """The mesh with the vertices of each cell of a grid merged into their mean; cells: along its longest side."""
    x, colours = np.asarray(mesh.vertices), vertex_colours(mesh)
    cell, faces = merged_vertices(x, np.asarray(mesh.faces), float(np.ptp(x, 0).max() or 1) / cells)
    merged = None if colours is None else cell_means(colours, cell).round().astype(np.uint8)
    return trimesh.Trimesh(cell_means(x, cell), faces, vertex_colors=merged, process=False)


# S. Hill's fit of the ACES film curve, which the page's library applies to all it draws: linear light -> A -> curve -> B
EXPOSURE = 1 / 0.6
A = np.array([[0.59719, 0.35458, 0.04823], [0.07600, 0.90834, 0.01566], [0.02840, 0.13383, 0.83777]])
B = np.array([[1.60475, -0.53108, -0.07367], [-0.10208, 1.10813, -0.00605], [-0.00327, -0.07276, 1.07602]])
CURVE = (0.0245786, 0.000090537, 0.983729, 0.4329510, 0.238081)  # y = (x (x + a) - b) / (x (c x + d) + e)


def before_film(linear: np.ndarray) -> np.ndarray:
    """The linear light [V, 3] that the film curve turns into this one, in [0, 1]; it may lie outside [0, 1]."""
    a, b, c, d, e = CURVE
    y = linear @ np.linalg.inv(B).T
    p, q, r = 1 - c * y, a - d * y, -b - e * y  # of p x^2 + q x + r = 0
    x = (-q + np.sqrt(q * q - 4 * p * r)) / (2 * p)
    return x @ np.linalg.inv(A).T / EXPOSURE


def glb(mesh: trimesh.Trimesh, coloured: bool) -> bytes:
    """A binary glTF 2.0 file: sRGB vertex colours as they are, without light; without colours grey, under the page's lights.

    glTF takes vertex colours as linear light; the film curve is undone, so that they look as in the photographs.
    """
    colours, buffer = vertex_colours(mesh) if coloured else None, Buffer()
    attributes = {
        "POSITION": buffer.array(np.asarray(mesh.vertices, np.float32), bounds=True),
        "NORMAL": buffer.array(vertex_normals(mesh).astype(np.float32)),
    }
    material = {**matt(baseColorFactor=[0.5, 0.5, 0.5, 1], roughnessFactor=0.9), "doubleSided": True}
    if colours is not None:
        srgb = torch.from_numpy(colours[:, :3].astype(float)) / 255
        attributes["COLOR_0"] = buffer.array(before_film(srgb_to_linear(srgb).numpy()).astype(np.float32))
        material = {**matt(), "doubleSided": True, "extensions": {"KHR_materials_unlit": {}}}
    indices = buffer.array(np.asarray(mesh.faces, np.uint32).reshape(-1), INDICES)
    return buffer.file(attributes, indices, material, {}, {})
