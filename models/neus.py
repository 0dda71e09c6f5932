"""NeuS (Wang et al., NeurIPS 2021) on a hash grid: geometry, colour, sharpness and sampling, on one page."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from confs.model import NeuSConfig, SurfaceConfig
from models.background import Background
from models.density import Variance, neus_alpha
from models.estimators import OccupancyGrid
from models.method import Method, RenderContext, RenderOutput, Sampler, in_parts
from models.network import open_levels, scale_gradient, step_lengths
from models.radiance import RadianceNetwork
from models.sdf import SDFNetwork
from models.sdf_mlp import SDFMLP
from models.visible import to_crossings, visible
from models.volrend import composite
from utils.rays import FieldOutput, Rays, Render, Samples
from utils.schedule import Spec, ramp

LONG = 2.0  # an interval is long when its length times inv_s exceeds this
DIRS_RAMP = 0.1  # of the run, over which the view direction comes in
EARLY_STOP = 1e-4  # samples behind this transmittance have weight 0


class NeuS(Method):
    """Rays -> colour, opacity, depth and normals through an SDF.

    `render` is the whole method: sample, field, alpha, colour, composite.
    """

    cfg: SurfaceConfig
    shown = ("psnr", "inv_s")
    sampler: Sampler
    view_dependent = True

    def __init__(
        self, cfg: SurfaceConfig, sdf: SDFNetwork | SDFMLP, radiance: nn.Module, sampler: Sampler, levels: Spec,
        background: Background | None = None, composite_backend: str = "torch",
    ):  # fmt: skip
        """levels: schedule of the open levels of the SDF's encoding."""
        super().__init__(cfg)
        self.refine, self.cos_anneal_end = cfg.refine, cfg.cos_anneal_end
        self.dirs_begin = cfg.dirs_begin if isinstance(cfg, NeuSConfig) else 0.0
        self.sdf, self.radiance, self.variance = sdf, radiance, Variance(cfg.variance.init)
        self.sampler, self.background, self.composite_backend = sampler, background, composite_backend
        self.levels, self.steps = ramp(levels), step_lengths(cfg)
        self.min_inv_s, self.max_inv_s = ramp(cfg.variance.min_inv_s, log=True), ramp(cfg.variance.max_inv_s, log=True)
        self.known_inv_s: float | None = None  # of the last refresh, where steps must not wait for the device (`hold`)

    # ------------------------------------------------------------------ schedules

    def levels_at(self, progress: float) -> float:
        return open_levels(self.sdf.encoding, self.levels, progress)

    def step_at(self, progress: float, training: bool) -> float:
        return self.steps(progress, training)

    def min_inv_s_at(self, progress: float) -> float:
        return self.min_inv_s(progress)

    def max_inv_s_at(self, progress: float) -> float:
        return self.max_inv_s(progress)

    def inv_s(self, context: RenderContext) -> Tensor:
        """The sharpness within its bounds."""
        return self.variance(context.max_inv_s, context.min_inv_s)

    def dirs_share(self, progress: float) -> float:
        """What the view direction counts for colours, in [0, 1]."""
        return 1.0 if self.dirs_begin == 0 else min(max((progress - self.dirs_begin) / DIRS_RAMP, 0.0), 1.0)

    def anneal(self, progress: float) -> float:
        return 1.0 if self.cos_anneal_end == 0 else min(1.0, progress / self.cos_anneal_end)

    def hold(self, room: int) -> bool:
        """The sharpness is that of the last refresh of the occupancy grid where it decides lengths."""
        if not (isinstance(self.sampler, OccupancyGrid) and self.sampler.backend == self.composite_backend == "warp"):
            return False
        if self.background is not None:
            self.background.every_ray = True
        self.sampler.room = room
        self.known_inv_s = float(self.variance().detach())
        return True

    @torch.no_grad()
    def step_length(self, context: RenderContext) -> float:
        """Half the width over which the surface is smeared, between context.step and 5 % of the radius."""
        least = context.step
        most = max(least, 0.05 * self.radius)
        if self.known_inv_s is not None and context.training:
            return min(max(0.5 / self.known_inv_s, least), most)
        return float((0.5 / self.inv_s(context)).clamp(least, most))

    @torch.no_grad()
    def before_step(self, step: int, context: RenderContext) -> None:
        """Refresh the occupancy grid with the density relative to that on the surface, within the margin of each point."""
        if not self.sampler.due(step):
            return
        inv_s = self.inv_s(context)
        if self.known_inv_s is not None:
            self.known_inv_s = float(inv_s)
        reach = self.sampler.margin * self.sampler.cell if isinstance(self.sampler, OccupancyGrid) else 0.0

        def occupancy(x: Tensor) -> Tensor:
            sdf = in_parts(lambda part: self.sdf.sdf(part, context.levels), x)
            away = (sdf.abs() - reach).clamp(min=0) * inv_s
            return 4 * torch.sigmoid(away) * torch.sigmoid(-away)  # not s (1 - s): in float32 that is 0 from 17 on

        self.sampler.refresh(step, occupancy)

    # ------------------------------------------------------------------ rendering

    def render(self, rays: Rays, context: RenderContext) -> RenderOutput:
        """Render R rays over context.background, or over the learned background where there is one."""
        inv_s, length = self.inv_s(context), self.step_length(context)
        samples = self.sample(rays, length, inv_s, context)
        index, t = samples.ray_indices, samples.t
        dirs = rays.dirs.index_select(0, index)
        points = rays.origins.index_select(0, index) + dirs * t[:, None]
        field, extra = self._fields(points, context.extra, context)

        normal = F.normalize(field.grad, dim=-1, eps=1e-6)  # [S, 3]
        cosine = (dirs * normal).sum(-1)
        within = None if samples.at is None else t - samples.t_starts
        alpha = neus_alpha(field.sdf, cosine, samples.t_ends - samples.t_starts, inv_s, self.anneal(context.progress), within)
        colour = self.colour(rays, samples, points, field, normal, alpha, context)
        if self.cfg.gradient_scaling:
            alpha, colour = scale_gradient(t, alpha, colour)

        per_sample = torch.cat([colour, normal, t[:, None], torch.ones_like(colour[:, :1])], 1)
        sums, weights = composite(alpha, per_sample, samples.offsets, index, EARLY_STOP, self.composite_backend, samples.found is not None)
        opacity = sums[:, 7].clamp(0, 1)
        rgb, background = self.composited(sums[:, :3], opacity, rays, context)
        render = Render(rgb, opacity, sums[:, 6], sums[:, 3:6], None if background is None else background.rgb)
        return RenderOutput(render, samples, weights, field, extra, background)

    def sample(self, rays: Rays, length: float, inv_s: Tensor, context: RenderContext) -> Samples:
        """Intervals at which the field is evaluated: those alone that can be seen.

        While the surface is so soft that steps follow it, a training step takes all of them, and so it does on a card, which it would
        wait for.
        """

        def sdf(x: Tensor) -> Tensor:
            return self.sdf.sdf(x, context.levels)

        samples, _ = self.sampler.sample(rays, length, context.jitter, sdf)
        known = self.known_inv_s if context.training else None
        sharp = float(inv_s.detach()) if known is None else known
        long = self.refine <= context.progress and self.refine < 1 and length * sharp > LONG
        if isinstance(self.sampler, OccupancyGrid) and samples.found is None:
            if not context.training:
                return visible(rays, samples, sdf, sharp, long, self.composite_backend)
            soft = length > 1.001 * context.step  # in float32
            if self.cfg.min_weight and not soft and samples.t_starts.device.type == "cpu":
                return visible(rays, samples, sdf, sharp, long, self.composite_backend, self.cfg.min_weight, passing=True)
        return to_crossings(rays, samples, sdf) if long else samples

    def colour(
        self, rays: Rays, samples: Samples, points: Tensor, field: FieldOutput, normal: Tensor, alpha: Tensor, context: RenderContext
    ) -> Tensor:
        """sRGB [S, 3] of samples at points [S, 3] with unit normals [S, 3] and opacities alpha [S]."""
        assert isinstance(self.radiance, RadianceNetwork)
        encoded = self.radiance.encode_dirs(rays.dirs, context.embedding, self.dirs_share(context.progress))
        encoded = encoded.index_select(0, samples.ray_indices)
        return self.radiance(field.feature, normal, encoded)

    def _fields(self, points: Tensor, extra: Tensor | None, context: RenderContext) -> tuple[FieldOutput, FieldOutput | None]:
        if extra is None:
            return self.field_at(points, context), None
        both = self.field_at(torch.cat([points, extra]), context)
        return both[: len(points)], both[len(points) :]

    # ------------------------------------------------------------------ the field

    def field_at(self, points: Tensor, context: RenderContext) -> FieldOutput:
        return self.sdf(points, context.levels)

    def sdf_at(self, points: Tensor, context: RenderContext) -> Tensor:
        return self.sdf.sdf(points, context.levels)

    def surface(self, context: RenderContext) -> Callable[[Tensor], Tensor]:
        return torch.no_grad()(lambda x: self.sdf.sdf(x, context.levels))

    def colour_at(self, points: Tensor, context: RenderContext) -> Tensor:
        """sRGB [P, 3] of surface points [P, 3], viewed along the normal."""
        return self.colour_from(points, None, context)

    def colour_from(self, points: Tensor, dirs: Tensor | None, context: RenderContext) -> Tensor:
        assert isinstance(self.radiance, RadianceNetwork)
        field = self.field_at(points, context)
        normal = F.normalize(field.grad, dim=-1, eps=1e-6)
        return self.radiance(field.feature, normal, self.radiance.encode_dirs(-normal if dirs is None else dirs))

    # ------------------------------------------------------------------ training and log

    def own_groups(self, optim) -> list[dict]:
        return [{"name": "variance", "params": list(self.variance.parameters()), "lr": optim.lr_variance, "weight_decay": 0.0}]

    def stats(self, context: RenderContext) -> dict[str, Any]:
        inv_s = self.inv_s(context).detach()
        return {"levels": context.levels, "inv_s": float(inv_s) if self.known_inv_s is None else inv_s}

    def diagnosis(self) -> str:
        return f"inv_s {float(self.variance(self.max_inv_s(1.0), self.min_inv_s(1.0)).detach()):.0f}, occupied {self.sampler.share:.2%}"
