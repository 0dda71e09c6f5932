"""NeRF (Mildenhall et al., 2020) on a hash grid (Instant NGP, 2022): density, colour and where to sample, on one page."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoder.frequency import cone_variance
from models.background import Background
from models.estimators import OccupancyGrid, dilate
from models.field import DensityNetwork
from models.importance import pack_dense
from models.network import open_levels, scale_gradient
from models.neus import EARLY_STOP
from models.proposal import PropNetEstimator, Proposed
from models.radiance import RadianceNetwork
from models.traced import Traced
from models.volrend import accumulate, weights_from_density
from utils.rays import Rays, Render, Samples
from utils.schedule import Ramp


class Proposals(nn.Module):
    """Samples of the sphere by small densities, each asked at n_proposal places, in the place of an occupancy grid."""

    share = 1.0  # of space that is looked at

    def __init__(self, densities: nn.ModuleList, n_proposal: list[int], n_samples: int):
        super().__init__()
        self.densities, self.n_proposal, self.n_samples = densities, n_proposal, n_samples
        self.estimator = PropNetEstimator()

    def before_step(self, step: int, occupancy) -> None:
        """Nothing to refresh."""

    def propose(self, rays: Rays, jitter: Tensor | None) -> tuple[Samples, Proposed]:
        """n_samples intervals for every ray that meets the sphere."""
        hit = torch.nonzero(rays.near < rays.far)[:, 0]
        some = rays[hit]

        def ask(net: DensityNetwork):
            def sigma(t_starts: Tensor, t_ends: Tensor) -> Tensor:
                x = some.origins[: len(t_starts), None] + some.dirs[: len(t_starts), None] * ((t_starts + t_ends) / 2)[..., None]
                return net.density(x.view(-1, 3)).view(t_starts.shape)

            return sigma

        grad = jitter is not None and torch.is_grad_enabled()
        fns = [ask(net) for net in self.densities]
        proposed = self.estimator.sampling(fns, self.n_proposal, self.n_samples, some.near, some.far, "uniform", jitter is not None, grad)
        return pack_dense(proposed.t, hit, len(rays)), proposed


class NeRF(nn.Module):
    """Rays -> colour, opacity and depth through a density inside the sphere; with a learned background, unbounded.

    cone: radius of a pixel at distance 1, for encodings that average over it (0: points).
    """

    def __init__(
        self, field: DensityNetwork, radiance: RadianceNetwork, occupancy: OccupancyGrid | Proposals, radius: float, steps: Ramp,
        test_step: float, levels: Ramp, level: float, composite_backend: str = "torch", backdrop: Background | None = None, gradient_scaling: bool = False,
        cone: float = 0.0,
    ):  # fmt: skip
        super().__init__()
        self.field, self.radiance, self.occupancy, self.backdrop = field, radiance, occupancy, backdrop
        self.radius, self.steps, self.min_step, self.test_step, self.levels, self.level = radius, steps, steps(0), test_step, levels, level
        self.composite_backend, self.gradient_scaling, self.cone = composite_backend, gradient_scaling, cone

    def open_levels(self, progress: float) -> float:
        return open_levels(self.field.grid, self.levels, progress)

    @torch.no_grad()
    def before_step(self, step: int, progress: float) -> None:
        """Refresh the occupancy: opacity over one step."""
        levels, self.min_step = self.open_levels(progress), self.steps(progress)

        def occupancy(x: Tensor) -> Tensor:
            return torch.cat([-torch.expm1(-self.field.density(part, levels) * self.min_step) for part in x.split(65536)])

        self.occupancy.before_step(step, occupancy)

    def render(
        self,
        rays: Rays,
        progress: float,
        background: Tensor,
        jitter: Tensor | None = None,
        step: float | None = None,
        everywhere: bool = False,
        normals: bool = False,
    ) -> Traced:
        """Render R rays over a background colour [3] or [R, 3], or over the learned background where there is one.

        jitter [R] in [0, 1): stratified offset; step: length of an interval, by default that of training; everywhere: the background of all rays; normals: of the density's slope
        (else 0).
        """
        if isinstance(self.occupancy, Proposals):
            samples, proposed = self.occupancy.propose(rays, jitter)
        else:
            samples, proposed = self.occupancy.sampling(rays, step or self.min_step, jitter), None
        index = samples.ray_indices
        dirs = rays.dirs.index_select(0, index)
        points = rays.origins.index_select(0, index) + dirs * samples.t_mid[:, None]
        blur = cone_variance(dirs, samples.t_starts, samples.t_ends, self.cone) if self.cone else None
        sigma, feature = self.field(points, self.open_levels(progress), blur)

        colour = self.radiance(feature, None, self.radiance.encode_dirs(rays.dirs).index_select(0, index))
        if self.gradient_scaling:
            sigma, colour = scale_gradient(samples.t_mid, sigma, colour)
        weights, _ = weights_from_density(
            sigma, samples.t_starts, samples.t_ends, samples.offsets, EARLY_STOP, backend=self.composite_backend
        )
        normal = self.normal(points, progress) if normals else torch.zeros_like(points)
        per_sample = torch.cat([colour, normal, samples.t_mid[:, None], torch.ones_like(colour[:, :1])], 1)
        sums = accumulate(weights, per_sample, samples.offsets, index, backend=self.composite_backend)  # [R, 8]
        opacity = sums[:, 7].clamp(0, 1)
        behind = self.backdrop(rays, opacity, progress, jitter is not None, everywhere) if self.backdrop else None
        background = behind.rgb if behind else background
        render = Render(sums[:, :3] + (1 - opacity)[:, None] * background, opacity, sums[:, 6], sums[:, 3:6], behind and behind.rgb)
        return Traced(render, samples, None, weights, None, behind, proposed)

    def normal(self, x: Tensor, progress: float) -> Tensor:
        """Unit vectors [P, 3] down the density's slope."""
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            log_sigma, _ = self.field.raw(x, self.open_levels(progress))
            (grad,) = torch.autograd.grad(log_sigma.sum(), x)
        return F.normalize(-grad, dim=-1, eps=1e-6)

    @torch.no_grad()
    def distance(self, x: Tensor, progress: float) -> Tensor:
        """[P] negative where the density exceeds `level`, in the logarithm, which is smooth where a density leaps.

        Scaled down so that a mesher which trusts slopes below 1 finds its surface; positive where no cell is occupied.
        """
        log_sigma, _ = self.field.raw(x, self.open_levels(progress))
        outside = (math.log(self.level) - log_sigma).clamp(-10, 10) * (0.01 * self.radius)
        if isinstance(self.occupancy, Proposals):
            return outside
        cells = dilate(self.occupancy.binaries[0])
        res = len(cells)
        i, j, k = ((x / self.radius + 1) / 2 * res).long().clamp(0, res - 1).unbind(-1)
        return torch.where(cells[i, j, k], outside, outside.abs().clamp(min=0.01 * self.radius))

    def colour_at(self, x: Tensor, progress: float) -> Tensor:
        """Colour [P, 3] of surface points [P, 3], seen against the normal."""
        with torch.no_grad():
            _, feature = self.field(x, self.open_levels(progress))
            return self.radiance(feature, None, self.radiance.encode_dirs(-self.normal(x, progress)))
