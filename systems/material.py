"""The system of NeRO's second stage: the material of a fixed mesh and its light (Liu et al., SIGGRAPH 2023)."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import trimesh
from torch import Tensor
from torch.nn import functional as F

from confs.schema import Config
from models.lights import TextureLight
from models.material import Counts, MaterialModel
from systems import losses
from systems.base import RaySystem
from systems.material_export import export_material
from utils.colour import linear_to_srgb, srgb_to_linear
from utils.errors import UserError
from utils.log import RunFolder
from utils.mesh import in_world, load_mesh
from utils.rays import RayBatch, Scene
from utils.schedule import ramp

log = logging.getLogger("neus")
INSIDE = 0.9  # mask value above which a pixel shows the object alone
ROUND = 0.02  # eps of the Charbonnier loss: the noise of an estimate lies in its quadratic part, where crossed estimates are unbiased
COLOUR_TERMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "rgb": losses.rgb_l1,
    "rgb_mse": losses.rgb_mse,
    "rgb_smooth_l1": losses.rgb_smooth_l1,
    "rgb_charbonnier": partial(losses.rgb_charbonnier, eps=ROUND),
}


def find_mesh(where: str | None) -> tuple[Tensor, Tensor]:
    """(vertices [V, 3] float64 in the world, faces [F, 3]) of a mesh file, or of the run folder that holds mesh/mesh.ply.

    Raises UserError.
    """
    if not where:
        raise UserError("model.mesh is missing: the material needs a mesh; give model.mesh=MESH.ply, or the run folder of its shape")
    path = Path(where)
    if path.is_dir():
        if not (path / "mesh/mesh.ply").is_file():
            raise UserError(f"model.mesh: {path} is a folder without mesh/mesh.ply; extract it: python run.py --mesh --resume {path}")
        path = path / "mesh/mesh.ply"
    try:
        mesh = in_world(load_mesh(path))
    except UserError as error:
        raise UserError(f"model.mesh: {error}") from None
    return torch.tensor(mesh.vertices, dtype=torch.float64), torch.tensor(mesh.faces, dtype=torch.int64)


class MaterialSystem(RaySystem):
    """Rays stop at the mesh; the hit points are shaded with the material and the recovered light."""

    model: MaterialModel

    def __init__(self, model: MaterialModel, cfg: Config, device: torch.device):
        super().__init__(model, cfg, device)
        self.options = model.options
        self.binary, self.smooth, self.smooth_roughness = (ramp(getattr(self.options, n)) for n in ("binary", "smooth", "smooth_roughness"))
        self.colour_weights = {name: self.weights[name] for name in COLOUR_TERMS}

    def prepare(self, scene: Scene) -> None:
        """Transform the mesh into the scene's frame and compute its vertices' mean radiance from the photographs."""
        self.model.set_frame(scene.to_world)
        if not self.model.has_vertex_radiance:
            self._check(scene)
            self.model.vertex_radiance.copy_(vertex_radiance(self.model, scene, self.cfg.dataset.apply_mask))
            self.model.has_vertex_radiance.fill_(True)

    def _check(self, scene: Scene) -> None:
        reach = self.model.local.norm(dim=1)
        if float(reach.median()) > 2 * self.cfg.model.radius:
            raise UserError(
                f"model.mesh: the mesh lies {float(reach.median()):.3g} radii from the scene's middle; is it of this scene, in world units? "
                "A mesh that stands upright or in metres must keep the comment world_to_mesh of its file"
            )

    # ------------------------------------------------------------------ training

    def losses(self, batch: RayBatch, progress: float) -> dict[str, Tensor]:
        """Weighted, named scalars of one step, over the rays that hit the mesh inside the mask."""
        model, o = self.model, self.options
        rays, truth, view = batch.rays, batch.rgb, batch.view
        if self.cfg.dataset.apply_mask and batch.mask is not None:
            inside = torch.nonzero(batch.mask > INSIDE)[:, 0]
            rays, truth, view = rays[inside], truth[inside], view[inside]
        _, surface = model.first_hits(rays.origins, rays.dirs)
        truth, n = truth[surface.ray], len(surface.ray)
        shift, noise = torch.rand(2, n, 6, device=self.device), torch.randn(n, 3, device=self.device)
        if n == 0:
            self.stats = {"psnr": 0.0, "rays": len(batch.rays), "samples": 1, "points": 0}
            return {"none": torch.stack([p.sum() for p in model.parameters()]).sum() * 0}
        material = model.material_at(surface.points, progress)
        half = Counts(max(1, o.n_diffuse // 2), max(1, o.n_specular // 2), o.n_light // 2)
        shaded = [model.reflected(surface, material, half, part, rays.origins[surface.ray]) for part in shift]
        first, second = (linear_to_srgb(part.colour) for part in shaded)
        if model.appearance is not None:  # linear in the colours: two unbiased estimates stay so
            first, second = (model.appearance.photographed(rgb, 1.0, view[surface.ray]) for rgb in (first, second))
        overexposed = truth >= 0.996  # a lower bound
        first, second = (torch.where(overexposed, rgb.clamp(max=1), rgb) for rgb in (first, second))
        terms = {name: w * losses.crossed(COLOUR_TERMS[name], first, second, truth) for name, w in self._colour_weights(progress).items()}
        if weight := self.smooth(progress):
            size = o.jitter * (o.jitter_far / o.jitter) ** torch.rand(n, 1, device=self.device)
            near = model.material_at(surface.points + size * noise, progress)
            terms["smooth"] = weight * change(material.stack(), near.stack(), o.edge, self.smooth_roughness(progress))
        if weight := self.binary(progress):
            terms["binary"] = weight * (4 * material.metallic * (1 - material.metallic)).mean()
        if o.neutral:
            light = (shaded[0].diffuse_light + shaded[1].diffuse_light) / 2
            terms["neutral"] = o.neutral * (light - light.mean(-1, keepdim=True)).abs().mean()
        if o.light_smooth and isinstance(model.outer, TextureLight):
            terms["light_smooth"] = o.light_smooth * model.outer.roughness()
        with torch.no_grad():
            mse = (((first + second) / 2 - truth) ** 2).mean().clamp(min=1e-10)
            self.stats = {
                "psnr": float(-10 * torch.log10(mse)),
                "rays": len(batch.rays),
                "samples": 2 * n * (half.cosine + half.lobe + half.light),
                "points": n,
                "roughness": float(material.roughness.mean()),
                "metallic": float(material.metallic.mean()),
                "occluded": float(shaded[0].occluded),
            }
        return terms

    def _colour_weights(self, progress: float) -> dict[str, float]:
        return {name: w for name, schedule in self.colour_weights.items() if (w := schedule(progress))}

    def export(self, scene: Scene, run: RunFolder) -> trimesh.Trimesh:
        return export_material(self.model, self.cfg, run, scene)


def change(a: Tensor, b: Tensor, edge: float, of_roughness: float = 1.0) -> Tensor:
    """Mean difference of materials [P, 5] over albedo, roughness and metallic, in [0, 1); beyond `edge` it hardly grows.

    of_roughness: factor of the roughness, which counts only between points of equal albedo and metallic. Albedo is divided by its
    mean square (1 for an albedo of 0.5): else dark materials under bright lights would lower the term, and the reflectance of
    non-metals, which is fixed, would then be wrong.

    The penalty of Geman and McClure (1987): few sharp edges cost less than gradual variation everywhere.
    """
    level = (a[:, :3] ** 2 + b[:, :3] ** 2).mean() / (2 * 0.5**2)
    colour, rough, metal = ((a - b) ** 2).split((3, 1, 1), 1)
    square = torch.cat([colour.sum(1, keepdim=True) / level.clamp(min=1e-4), rough, metal], 1)
    share = square / (square + edge**2)
    equal = (1 - share[:, :1]) * (1 - share[:, 2:])  # two materials have two roughnesses
    return torch.cat([share[:, :1], of_roughness * equal.detach() * share[:, 1:2], share[:, 2:]], 1).mean()


@torch.no_grad()
def vertex_radiance(model: MaterialModel, scene: Scene, apply_mask: bool, most: int = 4_000_000) -> Tensor:
    """Mean linear light [V, 3] that leaves each vertex towards the training views in which it is visible; the mean where it is in none.

    It approximates the light that the object reflects onto itself. most: upper bound of the pairs of vertex and view.
    """
    x, device = model.local, model.local.device
    total, weight = torch.zeros_like(x), torch.zeros(len(x), 1, device=device)
    every = max(1, -(-len(scene.train) * len(x) // most))
    for i in scene.train[::every]:
        w, h = scene.cameras.size(i)
        c2w, K = scene.cameras.c2w[i].to(x), scene.cameras.K[i].to(x)
        away = x - c2w[:, 3]
        pixel = away @ c2w[:, :3] @ K.T
        uv = (pixel[:, :2] / pixel[:, 2:].clamp(min=1e-6)).round().long()
        facing = -(F.normalize(away, dim=-1) * model.normals).sum(-1)
        at = torch.nonzero((pixel[:, 2] > 1e-6) & (uv >= 0).all(1) & (uv[:, 0] < w) & (uv[:, 1] < h) & (facing > 0.1))[:, 0]
        flat = uv[at, 1] * scene.cameras.width + uv[at, 0]
        if apply_mask and scene.masks is not None:
            inside = scene.masks[i].reshape(-1).to(device)[flat] > 255 * INSIDE
            at, flat = at[inside], flat[inside]
        starts = x[at] + 1e-3 * model.normals[at]
        visible = ~model.trace(starts, F.normalize(c2w[:, 3] - starts, dim=-1)).found
        at, flat = at[visible], flat[visible]
        colour = srgb_to_linear(scene.images[i].reshape(-1, 3).to(device)[flat].float() / 255)
        total.index_add_(0, at, colour * facing[at, None])
        weight.index_add_(0, at, facing[at, None])
    mean = total.sum(0) / weight.sum().clamp(min=1e-6) if float(weight.sum()) > 0 else torch.full((3,), 0.5, device=device)
    return torch.where(weight > 1e-6, total / weight.clamp(min=1e-6), mean)
