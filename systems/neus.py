"""The NeuS system: what a training step computes, what is validated, what a mesh is taken from."""

import logging

import torch
from torch import Tensor
from torch.nn import functional as F

from confs.schema import Config
from models.neus import NeuS, Traced
from systems import losses
from utils.errors import UserError
from utils.rays import RayBatch, Rays, Render
from utils.schedule import ramp

log = logging.getLogger("neus")
COLOURS = {"black": 0.0, "white": 1.0}


class NeuSSystem:
    """Binds model, losses and optimiser groups; the trainer knows nothing of the method.

    stats: what the last `losses` call saw (samples, rays, inv_s, ...), for the log and the ray count.
    """

    def __init__(self, model: NeuS, cfg: Config, device: torch.device):
        self.model, self.cfg, self.device = model, cfg, device
        self.weights = {name: ramp(getattr(cfg.loss, name)) for name in ("rgb", "mask", "eikonal", "curvature")}
        self.masked = cfg.dataset.apply_mask
        self.stats: dict[str, float] = {}

    def param_groups(self) -> list[dict]:
        """Groups for AdamW, each with the learning rate it starts from."""
        o, m = self.cfg.optim, self.model
        networks = [p for n, p in m.named_parameters() if not n.startswith(("sdf.grid", "variance"))]
        return [
            {"name": "grid", "params": list(m.sdf.grid.parameters()), "lr": o.lr_grid, "weight_decay": 0.0, "lazy": True},
            {"name": "networks", "params": networks, "lr": o.lr, "weight_decay": o.weight_decay},
            {"name": "variance", "params": list(m.variance.parameters()), "lr": o.lr_variance, "weight_decay": 0.0},
        ]

    def before_step(self, step: int, progress: float) -> None:
        self.model.before_step(step, progress)

    def losses(self, batch: RayBatch, progress: float) -> dict[str, Tensor]:
        """Weighted, named scalars of one step."""
        weight = {name: schedule(progress) for name, schedule in self.weights.items()}
        masked = self.masked and batch.mask is not None
        background = self._train_background(len(batch.rays))
        truth = batch.rgb if not masked else batch.rgb * batch.mask[:, None] + background * (1 - batch.mask[:, None])
        jitter = torch.rand(len(batch.rays), device=self.device)
        extra = self._extra_points(weight)
        traced = self.model.render(batch.rays, progress, background, jitter, extra)

        terms = {"rgb": weight["rgb"] * losses.rgb_l1(traced.render.rgb, truth)}
        if weight["mask"] and masked:
            terms["mask"] = weight["mask"] * losses.mask_bce(traced.render.opacity, batch.mask)
        if weight["eikonal"]:
            grads = [traced.field.grad] + ([traced.extra.grad] if traced.extra is not None else [])
            terms["eikonal"] = weight["eikonal"] * losses.eikonal(torch.cat(grads))
        if weight["curvature"]:
            terms["curvature"] = weight["curvature"] * self._curvature(traced, batch.rays, progress)
        self._note(traced, truth, progress)
        return terms

    def _train_background(self, n: int) -> Tensor:
        kind = self.cfg.model.background
        if kind == "random":
            return torch.rand(n, 3, device=self.device)
        return torch.full((n, 3), COLOURS[kind], device=self.device)

    def _extra_points(self, weight: dict[str, float]) -> Tensor | None:
        n = self.cfg.loss.eikonal_points if weight["eikonal"] else 0
        if not n:
            return None
        direction = F.normalize(torch.randn(n, 3, device=self.device), dim=-1)
        return direction * torch.rand(n, 1, device=self.device) ** (1 / 3) * self.cfg.model.radius

    def _curvature(self, traced: Traced, rays: Rays, progress: float) -> Tensor:
        """Normals at a share of the samples against those a small random step along the surface away."""
        n = len(traced.samples)
        pick = torch.randperm(n, device=self.device)[: max(1, n // 8)] if n else torch.empty(0, dtype=torch.long, device=self.device)
        index = traced.samples.ray_indices[pick]
        points = rays.origins[index] + rays.dirs[index] * traced.samples.t_mid[pick, None]
        normal = F.normalize(traced.field.grad[pick], dim=-1, eps=1e-6)
        tangent = torch.cross(normal, F.normalize(torch.randn_like(normal), dim=-1), dim=-1).detach()
        levels = self.model.open_levels(progress)
        near = self.model.sdf(points + tangent * self.model.min_step, levels)
        return losses.curvature(normal, F.normalize(near.grad, dim=-1, eps=1e-6))

    @torch.no_grad()
    def _note(self, traced: Traced, truth: Tensor, progress: float) -> None:
        n = traced.samples.n_rays
        self.stats = {
            "psnr": float(-10 * torch.log10(((traced.render.rgb - truth) ** 2).mean().clamp(min=1e-10))),
            "inv_s": float(self.model.variance().detach()),
            "rays": n,
            "samples": len(traced.samples),
            "samples_per_ray": len(traced.samples) / max(n, 1),
            "levels": self.model.open_levels(progress),
        }

    def slow_stats(self) -> dict[str, float]:
        """Figures that cost a little, for the log alone."""
        return {"occupied": self.model.occupancy.share}

    @torch.no_grad()
    def render_view(self, rays: Rays, background: Tensor, progress: float = 1.0, chunk: int = 4096) -> Render:
        """All rays of a view [R] over a background colour [3], `chunk` at a time; no jitter, no random numbers."""
        parts, start, step = [], 0, self.model.step_length(self.model.test_step)
        while start < len(rays):
            try:
                parts.append(self.model.render(rays[slice(start, start + chunk)], progress, background, step=step).render)
                start += chunk
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                if chunk <= 64:
                    raise UserError("CUDA is out of memory rendering 64 rays; lower model.grid.log2_size") from None
                chunk //= 2
                log.warning("CUDA is out of memory: rendering %d rays at once (trainer.chunk)", chunk)
        return Render(*(torch.cat([getattr(p, f) for p in parts]) for f in ("rgb", "opacity", "depth", "normal")))

    def surface(self, progress: float = 1.0):
        """(points [P, 3] -> signed distance [P]) of the surface a mesh is taken from."""
        levels = self.model.open_levels(progress)
        return torch.no_grad()(lambda x: self.model.sdf.sdf(x, levels))

    @torch.no_grad()
    def colours(self, x: Tensor, progress: float = 1.0) -> Tensor:
        """sRGB colours [P, 3] of surface points [P, 3]."""
        return torch.cat([self.model.colour_at(part, progress) for part in x.split(65536)]) if len(x) else x

    def diagnosis(self) -> str:
        """One clause on the state of the geometry, for errors."""
        return f"inv_s {float(self.model.variance().detach()):.0f}, occupied {self.model.occupancy.share:.2%}"
