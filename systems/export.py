"""From a trained field to a clean, coloured mesh; systems/placement.py says where it stands."""

import logging
from pathlib import Path

import numpy as np
import torch
import trimesh

from confs.schema import Config
from systems.placement import placement, record_placement
from systems.vertex_colour import best_views
from utils.errors import UserError
from utils.image import write_png
from utils.log import RunFolder
from utils.marching_cubes import extract
from utils.mesh import cull_by_masks, cull_unseen, keep_components, render_mesh, save_mesh, transform
from utils.rays import Scene

log = logging.getLogger("neus")


def export_mesh(system, scene: Scene, cfg: Config, run: RunFolder, device: torch.device) -> trimesh.Trimesh:
    """Marching cubes, culling by the masks, largest components, vertex colours; returns the mesh in the world.

    mesh/mesh.ply and .obj stand as `export.frame` and `export.metres_per_unit` say.
    Raises UserError that states the field's range, radius and inv_s when there is no surface.
    """
    e = cfg.export
    try:
        mesh = extract(system.surface(), cfg.model.radius, e.resolution, e.coarse, device=device, progress=True)
    except UserError as error:
        raise UserError(f"{error}; {system.diagnosis()}") from None
    found, how = len(mesh.faces), []
    kept = cull_unseen(mesh, scene.cameras, e.min_views, scene.train)
    if len(kept.faces) < len(mesh.faces):
        how.append(f"{len(mesh.faces) - len(kept.faces)} faces in fewer than {e.min_views} views culled")
    mesh = kept if len(kept.faces) else mesh
    if scene.masks is not None and cfg.dataset.apply_mask and e.mask_dilation >= 0:
        kept = cull_by_masks(mesh, scene.cameras, scene.masks, e.mask_dilation, scene.train)
        how.append(f"{len(mesh.faces) - len(kept.faces)} outside the masks dilated by {e.mask_dilation:.1%} of the width")
        if not len(kept.faces):
            log.warning("every face of the mesh falls outside the masks: it is exported unculled")
        mesh = kept if len(kept.faces) else mesh
    before = len(mesh.faces)
    mesh = keep_components(mesh, e.keep, e.min_faces)
    how.append(f"{before - len(mesh.faces)} in smaller components")
    if e.colour:
        x = torch.as_tensor(np.asarray(mesh.vertices), dtype=torch.float32, device=device)
        seen = best_views(mesh, scene.cameras, scene.train, device) if system.view_dependent else ()
        rgb = (system.colours(x, 1.0, *seen).clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
        mesh.visual = trimesh.visual.ColorVisuals(mesh, vertex_colors=np.concatenate([rgb, np.full_like(rgb[:, :1], 255)], 1))
    mesh = transform(mesh, scene.to_world.numpy())
    placed = placement(mesh, scene, cfg)
    paths = [run / "mesh/mesh.ply", run / "mesh/mesh.obj"]
    for path in paths:
        save_mesh(placed.place(mesh), path)
    record_placement(placed, run)
    log.info(
        "mesh: %d vertices, %d of %d faces kept (%s), %s -> %s",
        len(mesh.vertices),
        len(mesh.faces),
        found,
        "; ".join(how),
        placed.words,
        paths[0],
    )
    write_png(run / "mesh/mesh.png", mesh_views(mesh, scene))
    return mesh


def mesh_views(mesh: trimesh.Trimesh, scene: Scene, n: int = 3) -> np.ndarray:
    """The mesh from n cameras that are far apart: its colours above, shaded by a light at the camera below; top-aligned over white."""
    to_world, cameras = scene.to_world.numpy(), scene.cameras
    centres = cameras.c2w[:, :, 3].numpy()
    chosen = [0]
    while len(chosen) < min(n, len(centres)):
        away = np.linalg.norm(centres[:, None] - centres[chosen], axis=-1).min(1)
        chosen.append(int(away.argmax()))
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
