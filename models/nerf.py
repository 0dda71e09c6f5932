"""NeRF (Mildenhall et al., 2020) on a hash grid (Instant NGP, 2022): density, colour and sampling, on one page."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from confs.model import NeRFConfig
from encoder.frequency import cone_variance
from models.background import Background
from models.estimators import OccupancyGrid, dilate
from models.field import DensityNetwork
from models.importance import pack_dense
from models.method import Method, RenderContext, RenderOutput, Sampler, in_parts
from models.network import open_levels, scale_gradient, step_lengths
from models.neus import EARLY_STOP
from models.proposal import PropNetEstimator, ProposalSamples
from models.radiance import RadianceNetwork
from models.volrend import accumulate, weights_from_density
from utils.rays import Rays, Render, Samples
from utils.schedule import Spec, ramp


class ProposalSampler(Sampler):
    """Samples of the sphere by small density networks, each evaluated at n_proposal points a ray (mip-NeRF 360, 2022)."""

    def __init__(self, densities: list[DensityNetwork], n_proposal: list[int], n_samples: int):
        super().__init__()
        self.densities, self.n_proposal, self.n_samples = nn.ModuleList(densities), n_proposal, n_samples
        self.estimator = PropNetEstimator()

    def sample(
        self, rays: Rays, step: float, jitter: Tensor | None, field: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Samples, ProposalSamples]:
        """n_samples intervals for every ray that hits the sphere."""
        hit = torch.nonzero(rays.near < rays.far)[:, 0]
        some = rays[hit]

        def density_along(net: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
            def sigma(t_starts: Tensor, t_ends: Tensor) -> Tensor:
                x = some.origins[: len(t_starts), None] + some.dirs[: len(t_starts), None] * ((t_starts + t_ends) / 2)[..., None]
                assert isinstance(net, DensityNetwork)
                return net.density(x.view(-1, 3)).view(t_starts.shape)

            return sigma

        grad = jitter is not None and torch.is_grad_enabled()
        fns = [density_along(net) for net in self.densities]
        proposals = self.estimator.sampling(fns, self.n_proposal, self.n_samples, some.near, some.far, "uniform", jitter is not None, grad)
        return pack_dense(proposals.t, hit, len(rays)), proposals


class NeRF(Method):
    """Rays -> colour, opacity and depth through a density inside the sphere; with a learned background, unbounded."""

    sampler: Sampler
    cfg: NeRFConfig
    view_dependent = True

    def __init__(
        self, cfg: NeRFConfig, field: DensityNetwork, radiance: RadianceNetwork, sampler: Sampler, levels: Spec,
        background: Background | None = None, composite_backend: str = "torch",
    ):  # fmt: skip
        """levels: schedule of the open levels of the field's encoding."""
        super().__init__(cfg)
        self.field, self.radiance, self.sampler, self.background = field, radiance, sampler, background
        self.composite_backend = composite_backend
        self.levels, self.steps = ramp(levels), step_lengths(cfg)
        self.cone = cfg.frequency.cone if cfg.encoding.endswith("ipe") else 0.0  # radius of a pixel at distance 1

    def levels_at(self, progress: float) -> float:
        return open_levels(self.field.encoding, self.levels, progress)

    def step_at(self, progress: float, training: bool) -> float:
        return self.steps(progress, training)

    @torch.no_grad()
    def before_step(self, step: int, context: RenderContext) -> None:
        """Refresh the occupancy grid with the opacity of one step."""

        def occupancy(x: Tensor) -> Tensor:
            return in_parts(lambda part: -torch.expm1(-self.field.density(part, context.levels) * context.step), x)

        self.sampler.refresh(step, occupancy)

    def render(self, rays: Rays, context: RenderContext) -> RenderOutput:
        """Render R rays over context.background, or over the learned background where there is one. Normals in pictures alone."""
        samples, proposals = self.sampler.sample(rays, context.step, context.jitter)
        index = samples.ray_indices
        dirs = rays.dirs.index_select(0, index)
        points = rays.origins.index_select(0, index) + dirs * samples.t_mid[:, None]
        blur = cone_variance(dirs, samples.t_starts, samples.t_ends, self.cone) if self.cone else None
        sigma, feature = self.field(points, context.levels, blur)

        colour = self.radiance(feature, None, self.radiance.encode_dirs(rays.dirs, context.embedding).index_select(0, index))
        if self.cfg.gradient_scaling:
            sigma, colour = scale_gradient(samples.t_mid, sigma, colour)
        weights, _ = weights_from_density(
            sigma, samples.t_starts, samples.t_ends, samples.offsets, EARLY_STOP, backend=self.composite_backend
        )
        normal = torch.zeros_like(points) if context.training else self.normal(points, context)
        per_sample = torch.cat([colour, normal, samples.t_mid[:, None], torch.ones_like(colour[:, :1])], 1)
        sums = accumulate(weights, per_sample, samples.offsets, index, backend=self.composite_backend)  # [R, 8]
        opacity = sums[:, 7].clamp(0, 1)
        rgb, background = self.composited(sums[:, :3], opacity, rays, context)
        render = Render(rgb, opacity, sums[:, 6], sums[:, 3:6], None if background is None else background.rgb)
        return RenderOutput(render, samples, weights, background=background, proposals=proposals)

    def normal(self, x: Tensor, context: RenderContext) -> Tensor:
        """Unit vectors [P, 3] down the density's slope."""
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            log_sigma, _ = self.field.raw(x, context.levels)
            (grad,) = torch.autograd.grad(log_sigma.sum(), x)
        return F.normalize(-grad, dim=-1, eps=1e-6)

    def surface(self, context: RenderContext) -> Callable[[Tensor], Tensor]:
        """(points [P, 3] -> [P]) negative where the density exceeds `model.density.level`."""
        return lambda x: self.distance(x, context)

    @torch.no_grad()
    def distance(self, x: Tensor, context: RenderContext) -> Tensor:
        """[P] negative where the density exceeds `level`; in the logarithm, which varies smoothly where a density jumps.

        Scaled down so that its slope stays below 1, as the mesh extraction requires; positive in unoccupied cells.
        """
        log_sigma, _ = self.field.raw(x, context.levels)
        outside = (math.log(self.cfg.density.level) - log_sigma).clamp(-10, 10) * (0.01 * self.radius)
        if not isinstance(self.sampler, OccupancyGrid):
            return outside
        cells = dilate(self.sampler.binaries[0])
        res = len(cells)
        i, j, k = ((x / self.radius + 1) / 2 * res).long().clamp(0, res - 1).unbind(-1)
        return torch.where(cells[i, j, k], outside, outside.abs().clamp(min=0.01 * self.radius))

    def colour_at(self, points: Tensor, context: RenderContext) -> Tensor:
        """sRGB [P, 3] of surface points [P, 3], viewed along the normal."""
        return self.colour_from(points, -self.normal(points, context), context)

    @torch.no_grad()
    def colour_from(self, points: Tensor, dirs: Tensor, context: RenderContext) -> Tensor:
        _, feature = self.field(points, context.levels)
        return self.radiance(feature, None, self.radiance.encode_dirs(dirs))

    def diagnosis(self) -> str:
        return f"density level {self.cfg.density.level:g} (model.density.level), occupied {self.sampler.share:.2%}"
