"""The system of a method: truth over a background, weighted loss terms, views in chunks. The trainer uses this class alone."""

import logging
from dataclasses import fields, replace
from typing import Any

import torch
import trimesh
from torch import Tensor, nn
from torch.nn import functional as F

from confs.schema import Config, loss_weights
from encoder.hashgrid import HashGrid
from models.background import Background
from models.method import Method, RenderContext, RenderOutput
from systems.export import export_mesh
from systems.losses import LossInputs, weighted_terms
from systems.parallel import ALONE, Ranks
from systems.patches import Patches
from systems.together import EVERY, value_counts
from utils.errors import UserError
from utils.log import RunFolder
from utils.rays import RayBatch, Rays, Render, Scene
from utils.schedule import ramp

log = logging.getLogger("neus")
REFRESH = 16  # steps between looks at what the photographs' errors say about distractors
COLOURS = {"black": 0.0, "white": 1.0}


def hash_tables(module: nn.Module) -> list[Tensor]:
    """The tables [N, F] of every hash grid within."""
    return [m.table for m in module.modules() if isinstance(m, HashGrid)]


def cut_out(cfg: Config, scene: Scene) -> bool:
    """Whether photographs are cut out by their masks and composited on a background."""
    return cfg.dataset.apply_mask and scene.masks is not None and scene.test_background != "image"


def picture_background(cfg: Config, scene: Scene) -> Tensor:
    """[3] behind pictures of views and the video: the test background of cut-out photographs, else the training background."""
    white = scene.test_background == "white" if cut_out(cfg, scene) else cfg.model.background == "white"
    return torch.full((3,), float(white))


class RaySystem:
    """Binds a `Method` to its losses and optimiser groups.

    stats: figures of the last `losses` call (samples, rays, ...), for the log and the ray count; tensors [] after `hold`.
    """

    def __init__(self, model: Method, cfg: Config, device: torch.device):
        self.model, self.cfg, self.device = model, cfg, device
        self.weights = {name: ramp(getattr(cfg.loss, name)) for name in loss_weights()}
        if not (cfg.dataset.apply_mask or cfg.model.background == "learned"):
            self.weights["mask"] = ramp(0.0)  # masks are not to be used; with a learned background loss.mask uses them
        self.stats: dict[str, Any] = {}
        self.held = False
        self.ranks: Ranks = ALONE  # the processes that share the rays of a step
        self._counts: dict[str, int] | None = None
        self.patches: Patches | None = None

    @property
    def shown(self) -> tuple[str, ...]:
        """Figures on the progress bar."""
        return self.model.shown

    @property
    def view_dependent(self) -> bool:
        """Whether the colour of a point depends on the direction it is seen along."""
        return self.model.view_dependent

    # ------------------------------------------------------------------ around a run

    def prepare(self, scene: Scene) -> None:
        """Check the scene before training: warns of loss terms that need data it does not have."""
        patches = self.weights["patches"]
        self.patches = Patches(scene, self.device) if patches.start or patches.end else None
        needed = {
            "mask": (scene.masks, "masks"),
            "points": (scene.points, "points on its surface"),
            "free": (scene.free, "known free space"),
        }
        for name, (data, what) in needed.items():
            weight = self.weights[name]
            if data is None and (weight.start or weight.end):
                log.warning("loss.%s has no effect: %s has no %s", name, scene.name, what)

    def begin(self, scene: Scene) -> None:
        """Before the first step of a run (not of a resumed one)."""

    def export(self, scene: Scene, run: RunFolder) -> trimesh.Trimesh:
        """Write what `--mesh` writes; returns the mesh in the world of the cameras, in its units."""
        return export_mesh(self, scene, self.cfg, run, self.device)

    def slow_stats(self, progress: float) -> dict[str, float]:
        """Figures that cost a little, for the log alone."""
        found = {"occupied": self.model.sampler.share} if self.model.sampler is not None else {}
        if self.model.pose is not None:
            found["pose_degrees"], found["pose_shift"] = self.model.pose.largest()
        return found

    # ------------------------------------------------------------------ training

    def hold(self, room: int) -> bool:
        """`Method.hold`: training steps of fixed shapes; False where the method cannot."""
        self.held = self.model.hold(room)
        return self.held

    def param_groups(self) -> list[dict]:
        """Groups for AdamW, each with the learning rate it starts from; hash tables are updated lazily."""
        o = self.cfg.optim
        background = [table for m in self.model.modules() if isinstance(m, Background) for table in hash_tables(m)]
        own = self.model.own_groups(o)
        parts = (("pose", self.model.pose, ramp(o.lr_pose, log=True).start), ("appearance", self.model.appearance, o.lr_appearance))
        photographs = [{"name": k, "params": list(m.parameters()), "lr": lr, "weight_decay": 0.0} for k, m, lr in parts if m is not None]
        taken = {id(p) for p in background} | {id(p) for group in [*own, *photographs] for p in group["params"]}
        tables = [p for p in hash_tables(self.model) if id(p) not in taken]
        taken |= {id(p) for p in tables}
        networks = [p for p in self.model.parameters() if id(p) not in taken]
        lazy = [("grid", tables, o.lr_grid), ("background", background, o.lr_background)]
        grids = [{"name": name, "params": p, "lr": lr, "weight_decay": 0.0, "lazy": True} for name, p, lr in lazy if p]
        return [*grids, {"name": "networks", "params": networks, "lr": o.lr, "weight_decay": o.weight_decay}, *own, *photographs]

    def due(self, step: int) -> bool:
        """Whether the sampler is refreshed before this step."""
        return self.model.sampler is not None and self.model.sampler.due(step)

    def before_step(self, step: int, progress: float) -> None:
        """Refresh the sampler."""
        self.model.before_step(step, self.model.context(progress, training=True))
        if self.model.distractors is not None and step % REFRESH == 0:
            self.model.distractors.refresh(None if self.ranks.alone else self.ranks.sum_tensors)

    def parts(self, progress: float) -> frozenset[str]:
        """What a step at this progress computes that one at another may not."""
        o, terms = self.cfg.optim, frozenset(name for name, schedule in self.weights.items() if schedule(progress))
        return terms | {"pose"} if self.model.pose is not None and progress >= o.pose_begin else terms

    def losses(self, batch: RayBatch, progress: float) -> dict[str, Tensor]:
        """Weighted, named scalars of one step."""
        weight = {name: schedule(progress) for name, schedule in self.weights.items()}
        background = self._train_background(len(batch.rays))
        truth = batch.rgb
        if self.cfg.dataset.apply_mask and batch.mask is not None:
            truth = truth * batch.mask[:, None] + background * (1 - batch.mask[:, None])
        jitter = self.ranks.drawn(torch.rand, len(batch.rays), device=self.device)
        appearance, pose = self.model.appearance, self.model.pose
        embedding = None if appearance is None else appearance.embedding(batch.view)
        context = self.model.context(progress, True, background, jitter, self._extra_points(weight), embedding=embedding)
        self.ranks.part_ways()
        if pose is not None and progress >= self.cfg.optim.pose_begin:
            batch = replace(batch, rays=pose.refine(batch.rays, batch.view, self.cfg.model.radius))
        output = self.model.render(batch.rays, context)
        if appearance is not None:
            output = replace(output, render=self.photographed(output.render, batch.view, background))
        cut = None if output.samples is None else output.samples.cut
        if cut is not None:  # a ray that lost samples teaches nothing
            truth = torch.where(cut[:, None], output.render.rgb.detach(), truth)
            mask = None if batch.mask is None else torch.where(cut, output.render.opacity.detach(), batch.mask)
            batch = replace(batch, mask=mask)
        distractors = self.model.distractors
        if distractors is not None and batch.uv is not None:
            rgb = distractors.trusted(batch.view, batch.uv, truth, output.render.rgb, progress)
            output = replace(output, render=replace(output.render, rgb=rgb))
        inputs = LossInputs(batch, truth, output, self.model, self.cfg.loss, context, self.patches)
        terms = weighted_terms(inputs, weight)
        self._counts = None if self.ranks.alone else value_counts(inputs)
        self._note(output, truth, context)
        return terms

    def counts(self) -> dict[str, int]:
        """Of how many values the terms of the last step are means, where that differs between processes (`systems/together.py`)."""
        return {EVERY: self.stats.get("points", 0)} if self._counts is None else self._counts

    def photographed(self, render: Render, view: Tensor, background: Tensor) -> Render:
        """The render [R] with the exposure and white balance of photographs view [R]; a constant background [R, 3] is no part of them."""
        appearance = self.model.appearance
        assert appearance is not None
        if self.model.background is not None:
            return replace(render, rgb=appearance.photographed(render.rgb, 1.0, view))
        behind = (1 - render.opacity)[:, None] * background
        return replace(render, rgb=appearance.photographed(render.rgb - behind, render.opacity, view) + behind)

    def _train_background(self, n: int) -> Tensor:
        """[n, 3]; a learned background replaces it."""
        kind = self.cfg.model.background
        if kind == "random":
            return self.ranks.drawn(torch.rand, n, 3, device=self.device)
        return torch.full((n, 3), COLOURS.get(kind, 0.0), device=self.device)

    def _extra_points(self, weight: dict[str, float]) -> Tensor | None:
        """Uniform points [P, 3] of the sphere for the eikonal and sparsity terms of a method with an SDF."""
        needed = "sdf" in self.model.capabilities and (weight["eikonal"] or weight["sparsity"])
        n = self.cfg.loss.eikonal_points if needed else 0
        if not n:
            return None
        direction = F.normalize(self.ranks.drawn(torch.randn, n, 3, device=self.device), dim=-1)
        return direction * self.ranks.drawn(torch.rand, n, 1, device=self.device) ** (1 / 3) * self.cfg.model.radius

    @torch.no_grad()
    def _note(self, output: RenderOutput, truth: Tensor, context: RenderContext) -> None:
        n = len(truth)
        samples: Any = n if output.samples is None else len(output.samples)
        if output.samples is not None and output.samples.found is not None:
            samples = output.samples.found
        psnr = -10 * torch.log10(((output.render.rgb - truth) ** 2).mean().clamp(min=1e-10))
        self.stats = {
            "psnr": psnr if self.held else float(psnr),
            "rays": n,
            "samples": samples + (0 if output.background is None else output.background.weights.numel()),
            "samples_per_ray": samples / max(n, 1),
            **self.model.stats(context),
        }
        if output.background is not None:
            self.stats["background_rays"] = len(output.background.rays) / max(n, 1)

    # ------------------------------------------------------------------ pictures

    @torch.no_grad()
    def render_view(
        self, rays: Rays, background: Tensor, progress: float = 1.0, chunk: int = 4096, full_background: bool = False
    ) -> Render:
        """All rays of a view [R] over a background colour [3], `chunk` at a time; no random numbers.

        full_background: the learned background also where the object hides it.
        """
        parts: list[Render] = []
        start = 0
        context = self.model.context(progress, False, background, full_background=full_background)
        while start < len(rays):
            try:
                parts.append(self.model.render(rays[slice(start, start + chunk)], context).render)
                start += chunk
                continue
            except torch.OutOfMemoryError:
                pass  # inside this block the traceback still holds the tensors of the chunk
            torch.cuda.empty_cache()
            if chunk <= 64:
                raise UserError("CUDA is out of memory rendering 64 rays; lower model.grid.log2_size")
            chunk //= 2
            log.warning("CUDA is out of memory: rendering %d rays at once (trainer.chunk)", chunk)
        whole: dict[str, Any] = {}
        for name in (f.name for f in fields(Render)):
            column = [getattr(part, name) for part in parts]
            whole[name] = None if column[0] is None else torch.cat(column)
        return Render(**whole)

    def maps(self, rays: Rays, render: Render, progress: float = 1.0, chunk: int = 4096) -> dict[str, Tensor]:
        """The method's own pictures of a rendered view, by label: [R, 3] in [0, 1]."""
        return self.model.maps(rays, render, self.model.context(progress), chunk)

    @torch.no_grad()
    def colours(self, x: Tensor, progress: float = 1.0, dirs: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """sRGB colours [P, 3] of surface points [P, 3]: along their normals, or the mean over n unit dirs [P, n, 3] by weights [P, n]."""
        context = self.model.context(progress)
        if not len(x) or dirs is None or weights is None:
            return torch.cat([self.model.colour_at(part, context) for part in x.split(65536)]) if len(x) else x
        found = torch.zeros_like(x)
        for k in range(dirs.shape[1]):
            pick = torch.nonzero(weights[:, k] > 0)[:, 0]
            for part in pick.split(65536):
                found[part] += weights[part, k, None] * self.model.colour_from(x[part], dirs[part, k], context)
        return found

    def surface(self, progress: float = 1.0):
        """(points [P, 3] -> [P], negative inside) of the surface a mesh is extracted from."""
        return self.model.surface(self.model.context(progress))

    def diagnosis(self) -> str:
        """One clause on the state of the geometry, for errors."""
        return self.model.diagnosis()
