"""NeuS (Wang et al., NeurIPS 2021) on a hash grid: geometry, colour, sharpness and where to sample, on one page."""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.background import Background
from models.density import Variance, neus_alpha
from models.estimators import OccupancyGrid
from models.importance import HierarchicalSampler
from models.network import open_levels, scale_gradient
from models.radiance import RadianceNetwork
from models.sdf import SDFNetwork
from models.sdf_mlp import SDFMLP
from models.traced import Traced
from models.volrend import composite
from utils.rays import FieldOutput, Rays, Render, Samples
from utils.schedule import Ramp

WIDE = 2.0  # intervals times inv_s from which on they are long beside the surface's width
EARLY_STOP = 1e-4  # transmittance below which nothing behind is looked at


class NeuS(nn.Module):
    """Rays -> colour, opacity, depth and normals through an SDF.

    `render` is the whole method: march, field, alpha, weights, colour, composite.
    """

    def __init__(
        self, sdf: SDFNetwork | SDFMLP, radiance: RadianceNetwork, variance: Variance, occupancy: OccupancyGrid | HierarchicalSampler,
        radius: float, steps: Ramp, test_step: float, levels: Ramp, cos_anneal_end: float, composite_backend: str = "torch",
        backdrop: Background | None = None, gradient_scaling: bool = False, refine: float = 1.0,
    ):  # fmt: skip
        super().__init__()
        self.sdf, self.radiance, self.variance, self.occupancy = sdf, radiance, variance, occupancy
        self.radius, self.levels, self.cos_anneal_end = radius, levels, cos_anneal_end
        self.steps, self.min_step, self.test_step = steps, steps(0), test_step
        self.composite_backend, self.backdrop, self.gradient_scaling, self.refine = composite_backend, backdrop, gradient_scaling, refine

    def open_levels(self, progress: float) -> float:
        return open_levels(self.sdf.grid, self.levels, progress)

    def anneal(self, progress: float) -> float:
        return 1.0 if self.cos_anneal_end == 0 else min(1.0, progress / self.cos_anneal_end)

    @torch.no_grad()
    def step_length(self, least: float) -> float:
        """Half the width over which the surface is smeared, between `least` and 5 % of the radius."""
        return float((0.5 / self.variance()).clamp(least, max(least, 0.05 * self.radius)))

    @torch.no_grad()
    def before_step(self, step: int, progress: float) -> None:
        """Move the cap of the sharpness and the step; refresh the occupancy: density relative to that on the surface, within the margin of each point."""
        self.variance.before_step(progress)
        self.min_step = self.steps(progress)
        inv_s, levels = self.variance(), self.open_levels(progress)

        def occupancy(x: Tensor) -> Tensor:
            sdf = torch.cat([self.sdf.sdf(part, levels) for part in x.split(65536)])
            away = (sdf.abs() - self.occupancy.margin * self.occupancy.cell).clamp(min=0) * inv_s
            return 4 * torch.sigmoid(away) * torch.sigmoid(-away)  # not s (1 - s): that is 0 from 17 on

        self.occupancy.before_step(step, occupancy)

    def render(
        self,
        rays: Rays,
        progress: float,
        background: Tensor,
        jitter: Tensor | None = None,
        extra: Tensor | None = None,
        step: float | None = None,
        everywhere: bool = False,
    ) -> Traced:
        """Render R rays over a background colour [3] or [R, 3], or over the learned background where there is one.

        jitter [R] in [0, 1): stratified offset in steps; extra [P, 3]: further points whose field is wanted (they share
        the pass through the network); step: length of an interval, by default that of training; everywhere: the learned
        background of all rays, also of those that do not see it.
        """
        levels = self.open_levels(progress)
        length = step or self.step_length(self.min_step)
        samples = self.occupancy.sampling(rays, length, jitter, lambda x: self.sdf.sdf(x, levels))
        if self.refine <= progress and self.refine < 1 and length * self.variance() > WIDE:
            samples = self.onto_surface(rays, samples, levels)
        index, t = samples.ray_indices, samples.t
        dirs = rays.dirs.index_select(0, index)
        points = rays.origins.index_select(0, index) + dirs * t[:, None]
        field, more = self._field(points, extra, levels)

        normal = F.normalize(field.grad, dim=-1, eps=1e-6)  # [S, 3]
        cosine = (dirs * normal).sum(-1)
        within = None if samples.at is None else t - samples.t_starts
        alpha = neus_alpha(field.sdf, cosine, samples.t_ends - samples.t_starts, self.variance(), self.anneal(progress), within)
        colour = self.colour(rays, samples, points, field, normal, alpha)
        if self.gradient_scaling:
            alpha, colour = scale_gradient(t, alpha, colour)

        per_sample = torch.cat([colour, normal, t[:, None], torch.ones_like(colour[:, :1])], 1)
        sums, weights = composite(alpha, per_sample, samples.offsets, index, EARLY_STOP, self.composite_backend)  # [R, 8], [S]
        opacity = sums[:, 7].clamp(0, 1)
        behind = self.backdrop(rays, opacity, progress, jitter is not None, everywhere) if self.backdrop else None
        background = behind.rgb if behind else background
        render = Render(sums[:, :3] + (1 - opacity)[:, None] * background, opacity, sums[:, 6], sums[:, 3:6], behind and behind.rgb)
        return Traced(render, samples, field, weights, more, behind)

    def colour(self, rays: Rays, samples: Samples, points: Tensor, field: FieldOutput, normal: Tensor, alpha: Tensor) -> Tensor:
        """sRGB [S, 3] of samples at points [S, 3] with unit normals [S, 3] and opacities alpha [S]."""
        encoded = self.radiance.encode_dirs(rays.dirs).index_select(0, samples.ray_indices)
        return self.radiance(field.feature, normal, encoded)

    @torch.no_grad()
    def onto_surface(self, rays: Rays, samples: Samples, levels: float) -> Samples:
        """Intervals that cross the surface, looked at where they do (secant of the sdf at their ends).

        For intervals that are long beside the surface's width: then the colour belongs to the surface, and the opacity does not
        rest on a slope far from it. Else nothing holds the surface to its place within an interval, and it drifts.
        """
        if not len(samples):
            return samples
        index, start, end = samples.ray_indices, samples.t_starts, samples.t_ends
        last = torch.ones_like(index, dtype=torch.bool)  # of a run of intervals that touch: their ends are the next one's starts
        last[:-1] = (index[1:] != index[:-1]) | ((start[1:] - end[:-1]).abs() > 1e-6)
        ray, t = torch.cat([index, index[last]]), torch.cat([start, end[last]])
        sdf = self.sdf.sdf(rays.origins.index_select(0, ray) + rays.dirs.index_select(0, ray) * t[:, None], levels)
        before = sdf[: len(index)]
        after = before.roll(-1).masked_scatter(last, sdf[len(index) :])
        share = torch.where((before > 0) & (after < 0), before / (before - after), 0.5)
        return replace(samples, at=start + (end - start) * share)

    def _field(self, points: Tensor, extra: Tensor | None, levels: int) -> tuple[FieldOutput, FieldOutput | None]:
        if extra is None:
            return self.sdf(points, levels), None
        n = len(points)
        both = self.sdf(torch.cat([points, extra]), levels)
        bent = both.laplacian
        return (
            FieldOutput(both.sdf[:n], both.grad[:n], both.feature[:n], None if bent is None else bent[:n]),
            FieldOutput(both.sdf[n:], both.grad[n:], both.feature[n:], None if bent is None else bent[n:]),
        )

    def colour_at(self, x: Tensor, progress: float) -> Tensor:
        """Colour [P, 3] of surface points [P, 3], seen against the normal."""
        field = self.sdf(x, self.open_levels(progress))
        normal = F.normalize(field.grad, dim=-1, eps=1e-6)
        return self.radiance(field.feature, normal, self.radiance.encode_dirs(-normal))
