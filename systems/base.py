"""What the systems of radiance methods share: truth over a background, weighted terms, views in chunks."""

import logging
from dataclasses import fields

import torch
import trimesh
from torch import Tensor, nn
from torch.nn import functional as F

from confs.schema import Config, loss_weights
from encoder.hashgrid import HashGrid
from models.background import Background
from models.traced import Traced
from systems.export import export_mesh
from systems.losses import Evidence, weighted_terms
from utils.errors import UserError
from utils.log import RunFolder
from utils.rays import RayBatch, Rays, Render, Scene
from utils.schedule import ramp

log = logging.getLogger("neus")
COLOURS = {"black": 0.0, "white": 1.0}


def hash_tables(module: nn.Module) -> list[Tensor]:
    """The tables [N, F] of every hash grid within."""
    return [m.table for m in module.modules() if isinstance(m, HashGrid)]


class RaySystem:
    """Binds model, losses and optimiser groups; the trainer knows nothing of the method.

    A method says how its model is rendered (`trace`, `view`), what its own parameters are (`own_groups`) and what is noted.
    stats: what the last `losses` call saw (samples, rays, ...), for the log and the ray count; shown: those on the bar.
    """

    shown = ("psnr",)

    def __init__(self, model: nn.Module, cfg: Config, device: torch.device):
        self.model, self.cfg, self.device = model, cfg, device
        self.weights = {name: ramp(getattr(cfg.loss, name)) for name in loss_weights()}
        if not (cfg.dataset.apply_mask or cfg.model.background == "learned"):
            self.weights["mask"] = ramp(0.0)  # masks are not to be used; under a learned background loss.mask asks for them
        self.stats: dict[str, float] = {}

    # ------------------------------------------------------------------ what a method says

    def trace(self, batch: RayBatch, background: Tensor, jitter: Tensor, extra: Tensor | None, progress: float) -> Traced:
        """A training step's render."""
        raise NotImplementedError

    def view(self, rays: Rays, background: Tensor, progress: float, everywhere: bool) -> Render:
        """A picture's render, without random numbers."""
        raise NotImplementedError

    def maps(self, rays: Rays, render: Render, progress: float = 1.0, chunk: int = 4096) -> dict[str, Tensor]:
        """What else a picture can show, by name: [R, 3] in [0, 1] for the rays of a view that was rendered."""
        return {}

    def own_groups(self) -> list[dict]:
        """Optimiser groups of parameters with a rate of their own."""
        return []

    def slow_stats(self, progress: float) -> dict[str, float]:
        """Figures that cost a little, for the log alone."""
        return {"occupied": self.model.occupancy.share}

    def prepare(self, scene: Scene) -> None:
        """A look at the scene before anything else; most methods need none."""

    def export(self, scene: Scene, run: RunFolder) -> trimesh.Trimesh:
        """What `--mesh` writes; returns the mesh in world units."""
        return export_mesh(self, scene, self.cfg, run, self.device)

    # ------------------------------------------------------------------ what the trainer asks

    def param_groups(self) -> list[dict]:
        """Groups for AdamW, each with the learning rate it starts from; hash tables are updated lazily."""
        o = self.cfg.optim
        behind = [table for m in self.model.modules() if isinstance(m, Background) for table in hash_tables(m)]
        own = self.own_groups()
        taken = {id(p) for p in behind} | {id(p) for group in own for p in group["params"]}
        tables = [p for p in hash_tables(self.model) if id(p) not in taken]
        taken |= {id(p) for p in tables}
        networks = [p for p in self.model.parameters() if id(p) not in taken]
        lazy = [("grid", tables, o.lr_grid), ("backdrop", behind, o.lr_backdrop)]
        grids = [{"name": name, "params": p, "lr": lr, "weight_decay": 0.0, "lazy": True} for name, p, lr in lazy if p]
        return [*grids, {"name": "networks", "params": networks, "lr": o.lr, "weight_decay": o.weight_decay}, *own]

    def before_step(self, step: int, progress: float) -> None:
        self.model.before_step(step, progress)

    def losses(self, batch: RayBatch, progress: float) -> dict[str, Tensor]:
        """Weighted, named scalars of one step."""
        weight = {name: schedule(progress) for name, schedule in self.weights.items()}
        background = self._train_background(len(batch.rays))
        truth = batch.rgb
        if self.cfg.dataset.apply_mask and batch.mask is not None:
            truth = truth * batch.mask[:, None] + background * (1 - batch.mask[:, None])
        jitter = torch.rand(len(batch.rays), device=self.device)
        traced = self.trace(batch, background, jitter, self._extra_points(weight), progress)
        terms = weighted_terms(Evidence(batch, truth, traced, self.model, self.cfg.loss, progress), weight)
        self._note(traced, truth, progress)
        return terms

    @torch.no_grad()
    def render_view(self, rays: Rays, background: Tensor, progress: float = 1.0, chunk: int = 4096, everywhere: bool = False) -> Render:
        """All rays of a view [R] over a background colour [3], `chunk` at a time; no jitter, no random numbers.

        everywhere: the learned background also where the object hides it.
        """
        parts, start = [], 0
        while start < len(rays):
            try:
                parts.append(self.view(rays[slice(start, start + chunk)], background, progress, everywhere))
                start += chunk
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                if chunk <= 64:
                    raise UserError("CUDA is out of memory rendering 64 rays; lower model.grid.log2_size") from None
                chunk //= 2
                log.warning("CUDA is out of memory: rendering %d rays at once (trainer.chunk)", chunk)
        columns = ([getattr(p, f.name) for p in parts] for f in fields(Render))
        return Render(*(None if column[0] is None else torch.cat(column) for column in columns))

    @torch.no_grad()
    def colours(self, x: Tensor, progress: float = 1.0) -> Tensor:
        """sRGB colours [P, 3] of surface points [P, 3]."""
        return torch.cat([self.model.colour_at(part, progress) for part in x.split(65536)]) if len(x) else x

    # ------------------------------------------------------------------ parts

    def _train_background(self, n: int) -> Tensor:
        """[n, 3]; under a learned background it is seen by nobody."""
        kind = self.cfg.model.background
        if kind == "random":
            return torch.rand(n, 3, device=self.device)
        return torch.full((n, 3), COLOURS.get(kind, 0.0), device=self.device)

    def _extra_points(self, weight: dict[str, float]) -> Tensor | None:
        n = self.cfg.loss.eikonal_points if weight["eikonal"] or weight["sparsity"] else 0
        if not n:
            return None
        direction = F.normalize(torch.randn(n, 3, device=self.device), dim=-1)
        return direction * torch.rand(n, 1, device=self.device) ** (1 / 3) * self.cfg.model.radius

    @torch.no_grad()
    def _note(self, traced: Traced, truth: Tensor, progress: float) -> None:
        n, behind = traced.samples.n_rays, 0 if traced.behind is None else traced.behind.weights.numel()
        self.stats = {
            "psnr": float(-10 * torch.log10(((traced.render.rgb - truth) ** 2).mean().clamp(min=1e-10))),
            "rays": n,
            "samples": len(traced.samples) + behind,
            "samples_per_ray": len(traced.samples) / max(n, 1),
            "levels": self.model.open_levels(progress),
        }
        if traced.behind is not None:
            self.stats["behind"] = len(traced.behind.seen) / max(n, 1)
