"""Meshes of the page of `--view`: the one of the moment, the one of a run folder, and the file that a browser takes."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh

from confs.schema import Config
from models.material import MaterialModel
from process_data.normalize import points_to_sphere
from utils.colour import srgb_to_linear
from utils.marching_cubes import extract
from utils.mesh import cull_by_masks, cull_unseen, in_world, keep_components, load_mesh
from utils.rays import Scene

RESOLUTION = 128  # cells along the longest side
MOST = 400_000  # faces of a mesh that a browser gets


def live_mesh(system, scene: Scene, cfg: Config, device: torch.device, progress: float) -> trimesh.Trimesh:
    """The mesh of the moment in the unit sphere's frame, coarse, coloured and culled as the exported one is; of a material its own mesh.

    Raises UserError where there is no surface.
    """
    e, model = cfg.export, system.model
    if isinstance(model, MaterialModel):
        mesh = trimesh.Trimesh(model.local.cpu().numpy(), model.frame_faces.cpu().numpy(), process=False)
        return coloured_mesh(thinned(mesh) if len(mesh.faces) > MOST else mesh, system, device, progress)
    mesh = extract(system.surface(progress), cfg.model.radius, RESOLUTION, min(e.coarse, RESOLUTION // 2), device=device)
    culled = cull_unseen(mesh, scene.cameras, e.min_views, scene.train)
    if scene.masks is not None and cfg.dataset.apply_mask:
        culled = cull_by_masks(culled, scene.cameras, scene.masks, e.mask_dilation, scene.train)
    return coloured_mesh(keep_components(culled if len(culled.faces) else mesh, e.keep, e.min_faces), system, device, progress)


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


def vertex_colours(mesh: trimesh.Trimesh) -> np.ndarray | None:
    """[V, 4] uint8, or None for a mesh without them."""
    visual: Any = mesh.visual
    return np.asarray(visual.vertex_colors) if visual.kind == "vertex" else None


def thinned(mesh: trimesh.Trimesh, cells: int = 256) -> trimesh.Trimesh:
    """The mesh with the vertices of each cell of a grid merged into their mean; cells: along its longest side.

    Vertex clustering (Rossignac and Borrel 1993).
    """
    x, colours = np.asarray(mesh.vertices), vertex_colours(mesh)
    low = x.min(0)
    cell = np.floor((x - low) * (cells / float((x.max(0) - low).max() or 1))).astype(np.int64)
    _, group, count = np.unique(cell @ [(cells + 1) ** 2, cells + 1, 1], return_inverse=True, return_counts=True)

    def mean(values: np.ndarray) -> np.ndarray:
        return np.stack([np.bincount(group, column) for column in values.T.astype(float)], 1) / count[:, None]

    faces = group[np.asarray(mesh.faces)]
    faces = faces[(faces != np.roll(faces, 1, 1)).all(1)]
    merged = None if colours is None else mean(colours).round().astype(np.uint8)
    return trimesh.Trimesh(mean(x), faces, vertex_colors=merged, process=False)


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
    normal, faces = np.asarray(mesh.vertex_normals, np.float32), np.asarray(mesh.faces, np.uint32)
    blobs: list[tuple[np.ndarray, str, int, int]] = [
        (np.asarray(mesh.vertices, np.float32), "VEC3", 5126, 34962),
        (normal, "VEC3", 5126, 34962),
    ]
    colours = vertex_colours(mesh) if coloured else None
    coloured = colours is not None
    if colours is not None:
        srgb = torch.from_numpy(colours[:, :3].astype(float)) / 255
        blobs.append((before_film(srgb_to_linear(srgb).numpy()).astype(np.float32), "VEC3", 5126, 34962))
    blobs.append((faces.reshape(-1), "SCALAR", 5125, 34963))
    views: list[dict] = []
    accessors: list[dict] = []
    binary = b""
    for values, kind, number, target in blobs:
        data = np.ascontiguousarray(values).tobytes()
        views.append({"buffer": 0, "byteOffset": len(binary), "byteLength": len(data), "target": target})
        accessors.append({"bufferView": len(accessors), "componentType": number, "count": len(values), "type": kind})
        binary += data + bytes(-len(data) % 4)
    box = {"min": blobs[0][0].min(0).tolist(), "max": blobs[0][0].max(0).tolist()} if len(mesh.vertices) else {}
    accessors[0].update(box)
    plain = {"baseColorFactor": [1, 1, 1, 1] if coloured else [0.5, 0.5, 0.5, 1], "metallicFactor": 0, "roughnessFactor": 0.9}
    material = {"pbrMetallicRoughness": plain, "doubleSided": True, **({"extensions": {"KHR_materials_unlit": {}}} if coloured else {})}
    attributes = {"POSITION": 0, "NORMAL": 1, **({"COLOR_0": 2} if coloured else {})}
    primitive = {"attributes": attributes, "indices": len(accessors) - 1, "material": 0}
    tree = {
        "asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0}], "meshes": [{"primitives": [primitive]}],
        "materials": [material], "buffers": [{"byteLength": len(binary)}], "bufferViews": views, "accessors": accessors,
        **({"extensionsUsed": ["KHR_materials_unlit"]} if coloured else {}),
    }  # fmt: skip
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    head = struct.pack("<4sII", b"glTF", 2, 28 + len(text) + len(binary))
    return head + struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(binary), b"BIN\0") + binary
