"""From a trained field to a clean, coloured mesh: systems/surface.py extracts it, systems/placement.py says where it stands."""

import logging
import time
from pathlib import Path

import numpy as np
import torch
import trimesh

from confs.schema import Config
from systems.confidence_files import add_confidence
from systems.mesh_formats import textured, write_formats
from systems.placement import frame_facts, placement
from systems.solid import checked
from systems.surface import Surface
from systems.vertex_colour import best_views
from systems.visibility import far_apart
from utils.decimate import decimate
from utils.files import add_facts
from utils.image import write_png
from utils.log import RunFolder
from utils.mesh import render_mesh, transform
from utils.rays import Scene

log = logging.getLogger("neus")


def export_mesh(system, scene: Scene, cfg: Config, run: RunFolder, device: torch.device) -> trimesh.Trimesh:
    """Extract, cull (or close), simplify, colour and write the mesh; returns it in the world, as it is in the files.

    mesh/mesh.* stand as `export.frame` and `export.metres_per_unit` say.
    Raises UserError that states the field's range, radius and inv_s when there is no surface.
    """
    began = time.perf_counter()
    surface = Surface(system, scene, cfg, device)
    mesh, how = surface.solid() if cfg.export.closed else surface.sheet()
    found, began_decimation = len(mesh.faces), time.perf_counter()
    mesh = decimate(mesh, cfg.export.faces)
    simplified = time.perf_counter() - began_decimation
    if len(mesh.faces) < found:
        how.append(f"{found} faces simplified to {len(mesh.faces)}")
    if cfg.export.colour:
        mesh = coloured(mesh, system, scene, device)
    mesh = transform(mesh, scene.to_world.numpy())
    if cfg.export.confidence:
        add_confidence(mesh, system, scene, cfg, run, device)
    placed = placement(mesh, scene, cfg)
    names, printed = write_formats(mesh, placed, cfg.export, run)
    add_facts(run / "scene.json", mesh={"upright": placed.upright, **frame_facts(placed.units, placed.world_to_mesh), **printed})
    if textured(cfg.export):
        from systems.texture import write_textured  # it needs the system's module, which needs this one

        names += [path.name for path in write_textured(mesh, system, scene, cfg, run, device)]
    log.info(
        "mesh: %d vertices, %d faces (%s), %s -> %s: %s",
        *(len(mesh.vertices), len(mesh.faces), "; ".join(how), placed.words, run / "mesh", ", ".join(names)),
    )
    if cfg.export.closed:
        report_solid(mesh)
    write_png(run / "mesh/mesh.png", mesh_views(mesh, scene))
    log.info("mesh: %.0f s, of which %.0f s to simplify it", time.perf_counter() - began, simplified)
    return mesh


def coloured(mesh: trimesh.Trimesh, system, scene: Scene, device: torch.device) -> trimesh.Trimesh:
    """The mesh, in the unit sphere's frame, with the colours of its vertices."""
    x = torch.as_tensor(np.asarray(mesh.vertices), dtype=torch.float32, device=device)
    seen = best_views(mesh, scene.cameras, scene.train, device) if system.view_dependent else ()
    rgb = (system.colours(x, 1.0, *seen).clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    colours = np.concatenate([rgb, np.full_like(rgb[:, :1], 255)], 1)
    return trimesh.Trimesh(mesh.vertices, mesh.faces, vertex_colors=colours, process=False)


def report_solid(mesh: trimesh.Trimesh) -> None:
    """Say in the log whether the mesh, in the world, is a solid."""
    good, words = checked(mesh)
    if good:
        log.info("export.closed: %s; volume %.4g cubic world units", words, mesh.volume)
    else:
        log.warning(
            "export.closed: the mesh is NOT a solid: %s. Try another export.resolution, or repair it in the program that prints", words
        )


def mesh_views(mesh: trimesh.Trimesh, scene: Scene, n: int = 3) -> np.ndarray:
    """The mesh from n cameras that are far apart: its colours above, shaded by a light at the camera below; top-aligned over white."""
    to_world, cameras = scene.to_world.numpy(), scene.cameras
    centres = cameras.c2w[:, :, 3].numpy()
    chosen = far_apart(cameras, range(len(cameras)), n)
    scale = float(np.cbrt(np.linalg.det(to_world[:3, :3])))
    rows = []
    for color in ("vertex", "shade"):
        row = []
        for i in chosen:
            c2w = np.concatenate(
                [to_world[:3, :3] @ cameras.c2w[i, :, :3].numpy() / scale, (to_world[:3, :3] @ centres[i] + to_world[:3, 3])[:, None]], 1
            )
            w, h = cameras.size(i)
            row.append(render_mesh(mesh, cameras.K[i], c2w, h, w, color))
        tallest = max(len(picture) for picture in row)
        rows.append(np.concatenate([np.pad(p, ((0, tallest - len(p)), (0, 0), (0, 0)), constant_values=255) for p in row], 1))
    return np.concatenate(rows, 0)


def compare_with_truth(mesh: trimesh.Trimesh, scene: Scene, cfg: Config, run: RunFolder) -> dict | None:
    """Chamfer and the like of a mesh in the world against `gt_mesh.ply` when the scene folder holds one (the demo does)."""
    truth = Path(cfg.dataset.root_dir) / "gt_mesh.ply"
    if not truth.is_file():
        return None
    import json

    from systems.mesh_eval import evaluate_mesh, report
    from utils.files import write_atomic
    from utils.mesh import load_mesh

    unit = float(np.cbrt(np.linalg.det(scene.to_world.numpy()[:3, :3])))
    result = evaluate_mesh(mesh, load_mesh(truth), unit=unit)
    write_atomic(run / "mesh/metrics.json", json.dumps(result, indent=1).encode())
    log.info("against %s (lengths over the unit sphere's radius, %.4g world units)\n%s", truth, unit, report(result))
    return result
