"""A recovered material in files: glTF for Blender and browsers, texture maps, per-vertex arrays, the environment map."""

import io
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import trimesh
from PIL import Image
from torch import Tensor

from confs.schema import Config
from models.lights import map_directions
from models.material import MaterialModel
from systems.export import mesh_views
from utils.atlas import Atlas, spread, texels, unwrap
from utils.colour import linear_to_srgb
from utils.files import write_atomic
from utils.hdr import write_hdr
from utils.image import write_png
from utils.log import RunFolder
from utils.mesh import save_mesh
from utils.rays import Scene

log = logging.getLogger("neus")
LIGHT_ROWS = 256
Y_UP = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], np.float64)  # the world's z axis to glTF's y axis; Blender's importer inverts it


@dataclass(frozen=True)
class Maps:
    """The material as textures; T texels along a side, the first row at the top."""

    atlas: Atlas
    albedo: np.ndarray  # [T, T, 3] linear
    roughness: np.ndarray  # [T, T] perceptual
    metallic: np.ndarray  # [T, T]


@torch.no_grad()
def values_at(model: MaterialModel, points: Tensor) -> np.ndarray:
    """[P, 5] albedo (linear), roughness (perceptual), metallic at points of the unit sphere's frame."""
    parts = [model.material_at(part).stack().float().cpu() for part in points.split(65536)]
    return torch.cat(parts).numpy() if parts else np.zeros((0, 5), np.float32)


def bake(model: MaterialModel, size: int) -> Maps:
    """Unwrap the mesh and evaluate the material field at every texel."""
    vertices, faces = model.local.cpu().numpy(), model.faces.cpu().numpy()
    atlas = unwrap(vertices, faces, size)
    index, face, weights = texels(atlas)
    points = (vertices[atlas.vertex[atlas.faces[face]]] * weights[..., None]).sum(1)
    values = values_at(model, torch.as_tensor(points, dtype=torch.float32, device=model.local.device))
    image = spread(values, index, atlas.size)
    return Maps(atlas, image[..., :3], image[..., 3], image[..., 4])


def world_normals(model: MaterialModel) -> np.ndarray:
    """Vertex normals [V, 3] in the world."""
    rotation = model.to_world[:3, :3].cpu().double()
    rotation = rotation / torch.linalg.det(rotation).abs() ** (1 / 3)
    return (model.normals.cpu().double() @ rotation.T).numpy()


def _bytes(values: np.ndarray) -> np.ndarray:
    """[0, 1] -> uint8."""
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)


def encoded(linear: np.ndarray) -> np.ndarray:
    """Linear light -> sRGB."""
    return linear_to_srgb(torch.from_numpy(np.ascontiguousarray(linear))).numpy()


def gltf(model: MaterialModel, maps: Maps) -> bytes:
    """A binary glTF 2.0 file with a metallic-roughness material; y up, units of the world."""
    packed = np.stack([np.zeros_like(maps.roughness), maps.roughness, maps.metallic], -1)  # glTF: green roughness, blue metallic
    material = trimesh.visual.material.PBRMaterial(
        name="recovered",
        baseColorFactor=[255, 255, 255, 255],
        baseColorTexture=Image.fromarray(_bytes(encoded(maps.albedo))),
        metallicRoughnessTexture=Image.fromarray(_bytes(packed)),
        metallicFactor=1.0,
        roughnessFactor=1.0,
    )
    vertex = maps.atlas.vertex
    mesh = trimesh.Trimesh(
        model.vertices.cpu().numpy()[vertex] @ Y_UP.T,
        maps.atlas.faces,
        vertex_normals=world_normals(model)[vertex] @ Y_UP.T,
        visual=trimesh.visual.TextureVisuals(uv=maps.atlas.uv, material=material),
        process=False,
    )
    parts: Any = {"object": mesh}
    return trimesh.Scene(parts).export(file_type="glb", include_normals=True)


def frame_directions(model: MaterialModel, rows: int) -> Tensor:
    """Directions [rows * 2 rows, 3], in the unit sphere's frame, of the pixels of a map that stands in the world's axes."""
    rotation = model.to_world[:3, :3].float()
    rotation = rotation / torch.linalg.det(rotation.cpu()).abs().to(rotation) ** (1 / 3)
    return map_directions(rows).reshape(-1, 3).to(rotation) @ rotation


@torch.no_grad()
def light_image(model: MaterialModel, rows: int = LIGHT_ROWS) -> np.ndarray:
    """The recovered environment map [rows, 2 rows, 3], linear, in the world's axes."""
    dirs = frame_directions(model, rows)
    return model.outer(torch.zeros_like(dirs), dirs).float().view(rows, 2 * rows, 3).cpu().numpy()


def _array(values: np.ndarray) -> bytes:
    """The .npy file of an array, float32."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(values, np.float32))
    return buffer.getvalue()


def export_material(model: MaterialModel, cfg: Config, run: RunFolder, scene: Scene | None = None) -> trimesh.Trimesh:
    """Write the folder material/, and mesh/mesh.ply and .obj coloured by the albedo; returns that mesh.

    The .npy files hold a row for each vertex: albedo linear, roughness perceptual. All three under material/nero/ are
    sRGB-encoded, the form that NeRO's scripts read.
    """
    values = values_at(model, model.local)
    for name, part in (("albedo", values[:, :3]), ("roughness", values[:, 3:4]), ("metallic", values[:, 4:])):
        write_atomic(run / f"material/{name}.npy", _array(part))
        write_atomic(run / f"material/nero/{name}.npy", _array(encoded(part)))
    maps = bake(model, cfg.relight.texture)
    write_png(run / "material/albedo.png", _bytes(encoded(maps.albedo)))
    write_png(run / "material/roughness.png", _bytes(maps.roughness))
    write_png(run / "material/metallic.png", _bytes(maps.metallic))
    write_atomic(run / "material/mesh.glb", gltf(model, maps))
    light = light_image(model)
    write_hdr(run / "material/light.hdr", light)
    write_png(run / "material/light.png", np.clip(encoded(light), 0, 1))
    colours = np.concatenate([_bytes(encoded(values[:, :3])), np.full((len(values), 1), 255, np.uint8)], 1)
    mesh = trimesh.Trimesh(model.vertices.cpu().numpy(), model.faces.cpu().numpy(), vertex_colors=colours, process=False)
    for path in (run / "mesh/mesh.ply", run / "mesh/mesh.obj"):
        save_mesh(mesh, path)
    if scene is not None:
        write_png(run / "mesh/mesh.png", mesh_views(mesh, scene))
    log.info(
        "material: %d vertices, maps of %d texels, mean roughness %.2f, mean metallic %.2f -> %s",
        *(len(mesh.vertices), maps.atlas.size, values[:, 3].mean(), values[:, 4].mean(), run / "material/mesh.glb"),
    )
    return mesh
