"""The world behind the object: a second field over contracted space, from the far side of the sphere to the horizon.

Its density is per unit of contracted length. Sampled evenly in 1/t by a small proposal density (`models/proposal.py`). The
last interval is opaque, so the colour is a convex mixture of colours in (0, 1): it can become neither negative nor NaN.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.field import DensityNetwork, contract
from models.network import open_levels
from models.proposal import PropNetEstimator, Proposed, dense_weights
from models.radiance import RadianceNetwork
from utils.rays import Rays
from utils.schedule import Ramp

ANYWHERE = 0.3  # share of the samples that follow no proposal: the horizon explains everything a little and would keep all of them
BESIDE = 0.8  # share of the way past the sphere from which on rays beside it look: nearer, each camera would paint a wall
FINER = 2  # times as many samples without jitter: training averages over places, a picture does not
OPAQUE = 0.999  # foreground opacity from which on nobody sees the background


@dataclass(frozen=True)
class Behind:
    """The background of R rays, of which B were looked at."""

    rgb: Tensor  # [R, 3], 0 for rays that were not looked at
    seen: Tensor  # [B] int64, the rays that were
    proposed: Proposed  # their intervals, n each
    weights: Tensor  # [B, n], sum 1


class Background(nn.Module):
    """Rays -> colour of what lies behind the sphere (or, for a ray beside it, from shortly before it passes).

    far: the horizon, in radii. levels: open levels of the field over progress; while they are few it cannot paint in each
    view what belongs into the sphere, where all views must agree.
    """

    def __init__(
        self, proposal: DensityNetwork, field: DensityNetwork, radiance: RadianceNetwork, n_proposal: int, n_samples: int, far: float, levels: Ramp
    ):  # fmt: skip
        super().__init__()
        self.proposal, self.field, self.radiance = proposal, field, radiance
        self.n_proposal, self.n_samples, self.far, self.levels = n_proposal, n_samples, far, levels
        self.estimator = PropNetEstimator(floor=ANYWHERE)

    def forward(self, rays: Rays, opacity: Tensor, progress: float, stratified: bool = False, everywhere: bool = False) -> Behind:
        """Look behind the rays [R] whose foreground opacity [R] leaves something to be seen, or behind all (`everywhere`)."""
        with torch.no_grad():
            seen = torch.nonzero((opacity < OPAQUE) | everywhere)[:, 0]
            some = rays[seen]
            beside = BESIDE * -(some.origins * some.dirs).sum(-1)  # of the distance to the point nearest the centre
            start = torch.where(some.near < some.far, some.far, torch.maximum(beside, some.near)).clamp(min=1e-2)
            end = torch.full_like(start, self.far * self.field.radius)

        def sigma(t_starts: Tensor, t_ends: Tensor) -> Tensor:
            x = _at(some[slice(0, len(t_starts))], (t_starts + t_ends) / 2)
            return self.proposal.density(x.view(-1, 3)).view(t_starts.shape) * self.shrink(some[slice(0, len(t_starts))], t_starts, t_ends)

        grad = stratified and torch.is_grad_enabled()
        finer = 1 if stratified else FINER
        n_proposal, n_samples = finer * self.n_proposal, finer * self.n_samples
        proposed = self.estimator.sampling([sigma], [n_proposal], n_samples, start, end, "lindisp", stratified, grad, opaque_end=True)
        x = _at(some, (proposed.t_starts + proposed.t_ends) / 2)  # [B, n, 3]
        density, feature = self.field(x.reshape(-1, 3), open_levels(self.field.grid, self.levels, progress))
        density = density.view(x.shape[:2]) * self.shrink(some, proposed.t_starts, proposed.t_ends)
        weights = dense_weights(density, proposed.t_starts, proposed.t_ends, opaque_end=True)
        dirs = self.radiance.encode_dirs(some.dirs)
        dirs = dirs[:, None].expand(-1, n_samples, -1).reshape(len(feature), dirs.shape[-1])
        colour = self.radiance(feature, None, dirs).view(*x.shape[:2], 3)
        rgb = (weights[..., None] * colour).sum(1)
        return Behind(rgb.new_zeros(len(rays), 3).index_copy(0, seen, rgb), seen, proposed, weights)

    @torch.no_grad()
    def shrink(self, rays: Rays, t_starts: Tensor, t_ends: Tensor) -> Tensor:
        """Contracted length of intervals [R, n] over their length.

        Densities count by contracted length: else the far intervals, hundreds of radii long, are opaque from the start and
        the horizon is never seen.
        """
        edges = torch.cat([t_starts, t_ends[:, -1:]], 1)
        length = contract(_at(rays, edges) / self.field.radius).diff(dim=1).norm(dim=-1)
        return self.field.radius * length / (t_ends - t_starts).clamp(min=1e-9)


def _at(rays: Rays, t: Tensor) -> Tensor:
    """Points [R, n, 3] of rays at distances t [R, n]."""
    return rays.origins[:, None] + rays.dirs[:, None] * t[..., None]
