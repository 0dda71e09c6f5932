"""A textured mesh: charts, colours from the photographs (or the field), files for Blender and browsers."""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import trimesh
from torch import Tensor

from confs.schema import Config
from models.raytrace import MeshTracer, vertex_normals
from systems.placement import placement
from systems.texture_blend import Surface, Texels, Votes, bake, levelled, votes
from systems.texture_views import Photograph, Photographs, photograph
from systems.vertex_colour import best_views
from utils.atlas import Atlas, chart_atlas, spread, texels
from utils.files import write_atomic
from utils.gltf import Textured, glb, jpeg, mtl, obj, png
from utils.log import RunFolder
from utils.mesh import area_vectors, cross2, transform
from utils.rays import Scene

log = logging.getLogger("neus")
FILLED = 0.5  # share of the square that charts fill, about
SIZES = (1024, 2048, 4096, 8192)  # of a texture whose size is chosen
OVERSAMPLED = 1.25  # texels per pixel
COARSEST = 0.25  # of the usual texels per length: what places have that no photograph shows
GUTTER = 2.0  # texels around a chart that are coloured as its surface goes on there
FINE = 60_000  # faces: a coarser mesh is divided for the weights of the views
SMOOTH = 8  # rounds of smoothing the normals that choose the views
LARGEST_PNG = 2048  # side of a texture that lies in the .glb without loss; a larger one is a JPEG there


def write_textured(mesh: trimesh.Trimesh, system, scene: Scene, cfg: Config, run: RunFolder, device: torch.device) -> list[Path]:
    """Write mesh/mesh.glb and mesh/textured.obj, .mtl, .png; returns their paths.

    mesh: in the world. The files stand as mesh/mesh.ply does; the .glb with y up.
    """
    began = time.perf_counter()
    local = transform(mesh, np.linalg.inv(scene.to_world.numpy()))
    x = torch.as_tensor(np.asarray(local.vertices), dtype=torch.float32, device=device)
    faces = torch.as_tensor(np.asarray(local.faces), dtype=torch.int64, device=device)
    tracer, cameras = MeshTracer(x, faces), scene.cameras.to(device)
    photos: Sequence[Photograph] = Photographs(scene.train, lambda i: photograph(system, scene, cfg, cameras, i, tracer, device))
    if not scene.on_disk:
        photos = list(photos)
    times = 0
    while len(faces) << (2 * times) < FINE:
        times += 1
    surface = divided(x, faces, times)
    vote = votes(photos, surface)
    density = face_density(surface, vote)
    size = cfg.export.texture_size or chosen_size(surface, density)
    own = density.view(len(faces), -1).amax(1).cpu().numpy()  # of the mesh's faces
    atlas = chart_atlas(np.asarray(local.vertices), np.asarray(local.faces), size, own)
    index, face, weights = texels(atlas, GUTTER)
    on = finer(Texels(torch.from_numpy(face).to(device), torch.from_numpy(weights).to(device)), times)
    if cfg.export.texture_from == "field":
        colour = from_field(surface, on, system, scene, device)
    else:
        field = field_colours(surface, system, scene, device)
        fallback = levelled(field, vote, surface.faces)
        colour = bake(photos, surface, on, vote, fallback, texel_side(local, atlas))
    picture = spread((255 * colour).round().to(torch.uint8).cpu().numpy(), index, atlas.size)
    paths = _write(mesh, atlas, picture, scene, cfg, run)
    log.info(
        "texture: %d texels a side from the %s, %.1f%% of the surface in no photograph, %.0f s -> %s",
        *(atlas.size, cfg.export.texture_from, 100 * unseen(surface, vote), time.perf_counter() - began, paths[0]),
    )
    return paths


# ------------------------------------------------------------------ geometry


def areas(surface: Surface) -> Tensor:
    """[F]."""
    a, b, c = (surface.x[surface.faces[:, k]] for k in range(3))
    return torch.linalg.cross(b - a, c - a).norm(dim=1) / 2


def divided(x: Tensor, faces: Tensor, times: int) -> Surface:
    """The mesh with each face divided into four, `times` times; face f becomes 4 f .. 4 f + 3: at its three corners, then the middle."""
    for _ in range(times):
        n = len(x)
        edges = torch.stack([faces, faces.roll(-1, 1)], 2)  # 01, 12, 20
        key = edges.amin(2) * n + edges.amax(2)
        unique, which = torch.unique(key, return_inverse=True)
        middle = n + which  # [F, 3]
        x = torch.cat([x, (x[unique // n] + x[unique % n]) / 2])
        (a, b, c), (ab, bc, ca) = faces.T, middle.T
        corners = [torch.stack(corner, 1) for corner in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (bc, ca, ab))]
        faces = torch.stack(corners, 1).view(-1, 3)
    return Surface(x, faces, vertex_normals(x, faces, SMOOTH))


def finer(on: Texels, times: int) -> Texels:
    """The texels on the faces of `divided`."""
    face, w = on.face, on.weights
    for _ in range(times):
        high, corner = w.max(1)
        middle = high < 0.5
        own = torch.nn.functional.one_hot(corner, 3).bool()
        w = torch.where(middle[:, None], 1 - 2 * w, torch.where(own, 2 * w - 1, 2 * w))
        face = 4 * face + torch.where(middle, 3, corner)
    return Texels(face, w)


def texel_side(mesh: trimesh.Trimesh, atlas: Atlas) -> float:
    """Length of the side of a texel where they are fine: a tenth of the faces have finer ones."""
    corner = atlas.uv[atlas.faces] * atlas.size
    flat = np.abs(cross2(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]))
    area = np.linalg.norm(area_vectors(np.asarray(mesh.vertices)[mesh.faces]), axis=1)
    return float(np.sqrt(np.percentile(area[flat > 0] / flat[flat > 0], 10))) if (flat > 0).any() else 1.0


def face_density(surface: Surface, vote: Votes) -> Tensor:
    """[F] pixels per length of the photograph that sees a face best, not below COARSEST of the usual value."""
    density = vote.density[surface.faces].amax(1)
    some = density[density > 0]
    return density.clamp(min=COARSEST * float(some.median())) if len(some) else torch.ones_like(density)


def chosen_size(surface: Surface, density: Tensor) -> int:
    """Side of the texture whose texels are a little finer than the pixels of the photograph that sees each place best."""
    needed = OVERSAMPLED * float((areas(surface) * density.square()).sum() / FILLED) ** 0.5
    return next((size for size in SIZES if size >= 0.85 * needed), SIZES[-1])


def unseen(surface: Surface, vote: Votes) -> float:
    """Share of the surface."""
    area = areas(surface)
    return float((area * (vote.seen[surface.faces].amax(1) == 0)).sum() / area.sum())


# ------------------------------------------------------------------ colours of the field


def field_colours(surface: Surface, system, scene: Scene, device: torch.device) -> Tensor:
    """[V, 3] in [0, 1], as the vertices of mesh/mesh.ply are coloured."""
    sight = _sight(surface, scene, device) if system.view_dependent else ()
    return system.colours(surface.x, 1.0, *sight).float().clamp(0, 1)


def _sight(surface: Surface, scene: Scene, device: torch.device) -> tuple[Tensor, Tensor]:
    mesh = trimesh.Trimesh(surface.x.cpu().numpy(), surface.faces.cpu().numpy(), process=False)
    return best_views(mesh, scene.cameras, scene.train, device)


def from_field(surface: Surface, on: Texels, system, scene: Scene, device: torch.device, chunk: int = 1 << 18) -> Tensor:
    """Colours [M, 3] of the texels by the field, along the mean of the lines of sight of the views that see a place best."""
    towards: Tensor | None = None
    if system.view_dependent:
        dirs, weights = _sight(surface, scene, device)
        towards = (dirs * weights[..., None]).sum(1)
    parts = []
    for part in torch.arange(len(on.face), device=device).split(chunk):
        x = on.of(surface.x, surface.faces, part)
        sight: tuple[Tensor, ...] = ()
        if towards is not None:
            d = torch.nn.functional.normalize(on.of(towards, surface.faces, part), dim=-1)
            sight = (d[:, None], torch.ones_like(d[:, :1]))
        parts.append(system.colours(x, 1.0, *sight).float().clamp(0, 1))
    return torch.cat(parts) if parts else torch.zeros(0, 3, device=device)


# ------------------------------------------------------------------ files


def _normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Unit normals of the vertices [V, 3], the faces' weighted by area."""
    area = area_vectors(vertices[faces]).repeat(3, 0)
    normal = np.stack([np.bincount(faces.reshape(-1), area[:, k], len(vertices)) for k in range(3)], 1)
    length = np.linalg.norm(normal, axis=1, keepdims=True)
    return np.where(length > 0, normal / np.maximum(length, 1e-300), (0.0, 0, 1))


def _write(mesh: trimesh.Trimesh, atlas: Atlas, picture: np.ndarray, scene: Scene, cfg: Config, run: RunFolder) -> list[Path]:
    placed = placement(mesh, scene, cfg).place(mesh)
    if np.linalg.det(scene.to_world.numpy()[:3, :3]) < 0:  # the order of a face's vertices was reversed
        atlas = replace(atlas, faces=atlas.faces[:, ::-1])
    vertices, faces = np.asarray(placed.vertices), np.asarray(placed.faces)
    textured = Textured(vertices, _normals(vertices, faces), faces, atlas, picture, dict(placed.metadata))
    lossless = png(picture)
    small = atlas.size <= LARGEST_PNG
    paths = [run / f"mesh/{name}" for name in ("mesh.glb", "textured.obj", "textured.mtl", "textured.png")]
    write_atomic(paths[3], lossless)
    write_atomic(paths[2], mtl(paths[3].name))
    write_atomic(paths[1], obj(textured, paths[2].name))
    write_atomic(paths[0], glb(textured, lossless if small else jpeg(picture), "image/png" if small else "image/jpeg"))
    return paths
