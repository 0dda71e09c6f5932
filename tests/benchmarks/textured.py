"""Held-out views by the textured mesh: `python -m tests.benchmarks.textured RUN`, a run exported with export.texture=true.

PSNR of the field's own render, of mesh/mesh.glb and of mesh/mesh.ply with its vertex colours: inside the masks, or, where photographs are
not cut out, where the textured mesh covers the picture, after the fit of colours (psnr_cc). Prints one JSON object.
"""

import argparse
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from confs.schema import Config
from models.raytrace import MeshTracer
from process_data.load import load_scene
from process_data.rays import view_rays
from systems.base import cut_out, picture_background
from systems.build import restore_system
from systems.cameras import align_held_out, refined
from systems.metrics import colour_corrected, psnr
from systems.run import prepare, trained_frame
from systems.validate import truth_of
from tests.benchmarks.report import report
from utils.device import pick_device, setup_threads
from utils.errors import UserError
from utils.gltf import Y_UP
from utils.image import sheet, write_png
from utils.log import RunFolder
from utils.mesh import in_world, load_mesh
from utils.rays import Cameras, Scene


class Painted:
    """A mesh in the unit sphere's frame with a colour at each point: of a texture, or between those of its vertices."""

    def __init__(self, x: np.ndarray, faces: np.ndarray, colour: np.ndarray, uv: np.ndarray | None = None):
        """colour: picture [T, T, 3] where uv [V, 2] (v downwards) is given, else [V, 3]; uint8."""
        self.tracer = MeshTracer(torch.tensor(x, dtype=torch.float32), torch.tensor(faces, dtype=torch.int64))
        self.colour = torch.tensor(np.ascontiguousarray(colour), dtype=torch.float32) / 255
        self.uv = None if uv is None else torch.tensor(uv, dtype=torch.float32)

    def colours(self, face: Tensor, weights: Tensor) -> Tensor:
        """[P, 3]; bilinear in the texture."""
        corner = self.tracer.faces[face]
        values = self.colour if self.uv is None else self.uv
        at = (values[corner] * weights[..., None]).sum(1)
        if self.uv is None:
            return at
        picture = self.colour.permute(2, 0, 1)[None]
        return F.grid_sample(picture, (2 * at - 1)[None, None], align_corners=False, padding_mode="border")[0, :, 0].T

    def render(self, cameras: Cameras, view: int, radius: float, background: Tensor) -> tuple[Tensor, Tensor]:
        """(picture [h, w, 3] with 2 x 2 samples a pixel, share of each pixel that the mesh covers [h, w])."""
        w, h = cameras.size(view)
        rays = view_rays(cameras[view : view + 1].resized(2 * w, 2 * h), 0, radius)
        hits = self.tracer(rays.origins, rays.dirs)
        rgb = background.expand(len(rays), 3).clone()
        at = torch.nonzero(hits.found)[:, 0]
        rgb[at] = self.colours(hits.face[at], hits.weights[at])
        small = F.avg_pool2d(torch.cat([rgb, hits.found[:, None].float()], 1).T.view(1, 4, 2 * h, 2 * w), 2)[0]
        return small[:3].permute(1, 2, 0), small[3]


def read_glb(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]:
    """(points [V, 3] in the mesh's frame, faces [F, 3], uv [V, 2] v downwards, picture [T, T, 3], extras) of a .glb of this program."""
    data = path.read_bytes()
    length = int.from_bytes(data[12:16], "little")
    document, binary = json.loads(data[20 : 20 + length]), data[28 + length :]

    def view(i: int) -> bytes:
        part = document["bufferViews"][i]
        return binary[part["byteOffset"] : part["byteOffset"] + part["byteLength"]]

    def array(i: int) -> np.ndarray:
        found = document["accessors"][i]
        values = np.frombuffer(view(found["bufferView"]), np.uint32 if found["componentType"] == 5125 else np.float32)
        return values.reshape(found["count"], -1)

    part = document["meshes"][0]["primitives"][0]
    shift = np.array(document["nodes"][0].get("translation", (0, 0, 0)))
    points = (array(part["attributes"]["POSITION"]) + shift) @ Y_UP
    picture = cv2.imdecode(np.frombuffer(view(document["images"][0]["bufferView"]), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    faces = array(part["indices"]).reshape(-1, 3).astype(np.int64)
    return points, faces, array(part["attributes"]["TEXCOORD_0"]), picture, document["asset"]["extras"]


def painted_meshes(folder: Path, scene: Scene) -> dict[str, Painted]:
    """The textured mesh and the one with vertex colours, where the folder holds them. Raises UserError."""
    if not (folder / "mesh.glb").is_file():
        raise UserError(f"{folder}: no mesh.glb; export it first: python run.py --mesh --resume RUN export.texture=true")
    back = np.linalg.inv(scene.to_world.numpy())
    points, faces, uv, picture, extras = read_glb(folder / "mesh.glb")
    turn = back @ np.linalg.inv(np.array(extras.get("world_to_mesh", np.eye(4))))
    found = {"textured": Painted(points @ turn[:3, :3].T + turn[:3, 3], faces, picture, uv)}
    if (folder / "mesh.ply").is_file():
        mesh = in_world(load_mesh(folder / "mesh.ply"))
        x = np.asarray(mesh.vertices) @ back[:3, :3].T + back[:3, 3]
        found["vertex_colours"] = Painted(x, np.asarray(mesh.faces), np.asarray(mesh.visual.vertex_colors)[:, :3])
    return found


def judge(run: Path, folder: Path | None = None, pictures: Path | None = None, overrides: list[str] | None = None) -> dict:
    """Figures of the run: mean PSNR of the field and of each mesh. Raises UserError."""
    job = prepare(None, str(run), overrides or [])
    cfg: Config = job.cfg
    setup_threads(cfg.trainer.threads)
    device = pick_device(cfg.trainer.device)
    root = RunFolder.__new__(RunFolder)  # nothing is written into it
    root.root = run
    scene = trained_frame(load_scene(cfg.dataset, cfg.model.radius), root)
    assert job.state is not None and job.path is not None
    system = restore_system(cfg, device, job.state, job.path, scene)
    align_held_out(system, scene, cfg)
    scene = refined(system, scene)
    meshes = painted_meshes(folder or run / "mesh", scene)
    rows: dict[str, list[float]] = {}
    for view in scene.test or scene.train:
        truth, mask, background = truth_of(scene, view, cfg)
        h, w = truth.shape[:2]
        rays = view_rays(scene.cameras, view, cfg.model.radius).to(device)
        field = system.render_view(rays, background.to(device), 1.0, cfg.trainer.chunk).rgb.view(h, w, 3).float().cpu()
        shown = {name: mesh.render(scene.cameras, view, cfg.model.radius, background) for name, mesh in meshes.items()}
        masked = mask is not None and cut_out(cfg, scene)
        used = mask if masked and mask is not None else (shown["textured"][1] > 0.99).float()
        views = {"field": field.clamp(0, 1), **{name: rgb for name, (rgb, _) in shown.items()}}
        for name, rgb in views.items():
            rows.setdefault(name, []).append(psnr(rgb, truth, used))
            rows.setdefault(f"{name}_cc", []).append(psnr(colour_corrected(rgb, truth, used), truth, used))
        if pictures is not None:
            write_png(pictures / f"{view:03d}.png", sheet([truth, *views.values()], ["photograph", *views]))
    return {
        "where": "inside the masks" if cut_out(cfg, scene) else "where the textured mesh covers the picture",
        "background": picture_background(cfg, scene).tolist(),
        **{name: round(float(np.mean(values)), 3) for name, values in rows.items()},
        "views": len(rows["field"]),
    }


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run", type=Path)
    p.add_argument("--mesh", type=Path, help="the folder of mesh.glb and mesh.ply, where it is not RUN/mesh")
    p.add_argument("--pictures", type=Path, help="folder for the photograph, the field and the meshes side by side")
    p.add_argument("overrides", nargs="*", help="key=value")
    args = p.parse_intermixed_args()
    return report(lambda: judge(args.run, args.mesh, args.pictures, args.overrides))


if __name__ == "__main__":
    sys.exit(main())
