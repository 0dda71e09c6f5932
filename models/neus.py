"""NeuS (Wang et al., NeurIPS 2021) on a hash grid: geometry, colour, sharpness and where to sample, on one page."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.density import Variance, neus_alpha
from models.estimators import OccupancyGrid
from models.radiance import RadianceNetwork
from models.sdf import SDFNetwork
from models.volrend import composite
from utils.rays import FieldOutput, Rays, Render, Samples
from utils.schedule import Ramp

EARLY_STOP = 1e-4  # transmittance below which nothing behind is looked at


@dataclass(frozen=True)
class Traced:
    """A render and what it was made of."""

    render: Render
    samples: Samples
    field: FieldOutput  # at the samples
    weights: Tensor  # [S]
    extra: FieldOutput | None  # at points that were asked for besides


class NeuS(nn.Module):
    """Rays -> colour, opacity, depth and normals through an SDF.

    `render` is the whole method: march, field, alpha, weights, colour, composite.
    """

    def __init__(
        self, sdf: SDFNetwork, radiance: RadianceNetwork, variance: Variance, occupancy: OccupancyGrid,
        radius: float, step: float, test_step: float, levels: Ramp, cos_anneal_end: float, composite_backend: str = "torch",
    ):  # fmt: skip
        super().__init__()
        self.sdf, self.radiance, self.variance, self.occupancy = sdf, radiance, variance, occupancy
        self.radius, self.min_step, self.test_step, self.levels, self.cos_anneal_end = radius, step, test_step, levels, cos_anneal_end
        self.composite_backend = composite_backend

    def open_levels(self, progress: float) -> int:
        return max(1, min(self.sdf.grid.spec.n_levels, int(self.levels(progress) + 1e-6)))

    def anneal(self, progress: float) -> float:
        return 1.0 if self.cos_anneal_end == 0 else min(1.0, progress / self.cos_anneal_end)

    @torch.no_grad()
    def step_length(self, least: float) -> float:
        """Half the width over which the surface is smeared, between `least` and 3 % of the radius."""
        return float((0.5 / self.variance()).clamp(least, max(least, 0.03 * self.radius)))

    @torch.no_grad()
    def before_step(self, step: int, progress: float) -> None:
        """Refresh the occupancy: density relative to that on the surface, within the margin of each point."""
        inv_s, levels = self.variance(), self.open_levels(progress)

        def occupancy(x: Tensor) -> Tensor:
            sdf = torch.cat([self.sdf.sdf(part, levels) for part in x.split(65536)])
            s = torch.sigmoid((sdf.abs() - self.occupancy.margin * self.occupancy.cell).clamp(min=0) * inv_s)
            return 4 * s * (1 - s)

        self.occupancy.before_step(step, occupancy)

    def render(
        self,
        rays: Rays,
        progress: float,
        background: Tensor,
        jitter: Tensor | None = None,
        extra: Tensor | None = None,
        step: float | None = None,
    ) -> Traced:
        """Render R rays over a background colour [3] or [R, 3].

        jitter [R] in [0, 1): stratified offset in steps; extra [P, 3]: further points whose field is wanted (they share
        the pass through the network); step: length of an interval, by default that of training.
        """
        samples = self.occupancy.sampling(rays, step or self.step_length(self.min_step), jitter)
        index = samples.ray_indices
        dirs = rays.dirs.index_select(0, index)
        points = rays.origins.index_select(0, index) + dirs * samples.t_mid[:, None]
        field, more = self._field(points, extra, self.open_levels(progress))

        normal = F.normalize(field.grad, dim=-1, eps=1e-6)  # [S, 3]
        cosine = (dirs * normal).sum(-1)
        alpha = neus_alpha(field.sdf, cosine, samples.t_ends - samples.t_starts, self.variance(), self.anneal(progress))

        encoded = self.radiance.encode_dirs(rays.dirs).index_select(0, index)
        colour = self.radiance(field.feature, normal, encoded)
        per_sample = torch.cat([colour, normal, samples.t_mid[:, None], torch.ones_like(colour[:, :1])], 1)
        sums, weights = composite(alpha, per_sample, samples.offsets, index, EARLY_STOP, self.composite_backend)  # [R, 8], [S]
        opacity = sums[:, 7].clamp(0, 1)
        render = Render(sums[:, :3] + (1 - opacity)[:, None] * background, opacity, sums[:, 6], sums[:, 3:6])
        return Traced(render, samples, field, weights, more)

    def _field(self, points: Tensor, extra: Tensor | None, levels: int) -> tuple[FieldOutput, FieldOutput | None]:
        if extra is None:
            return self.sdf(points, levels), None
        n = len(points)
        both = self.sdf(torch.cat([points, extra]), levels)
        return FieldOutput(both.sdf[:n], both.grad[:n], both.feature[:n]), FieldOutput(both.sdf[n:], both.grad[n:], both.feature[n:])

    def colour_at(self, x: Tensor, progress: float) -> Tensor:
        """Colour [P, 3] of surface points [P, 3], seen against the normal."""
        field = self.sdf(x, self.open_levels(progress))
        normal = F.normalize(field.grad, dim=-1, eps=1e-6)
        return self.radiance(field.feature, normal, self.radiance.encode_dirs(-normal))
