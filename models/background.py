"""The world behind the object: a second field over contracted space, from the far side of the sphere to the horizon.

Sampled evenly in 1/t by a small proposal density (`models/proposal.py`). The last interval is opaque, so the colour is a
convex mixture of colours in (0, 1): it can become neither negative nor NaN.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.field import DensityNetwork
from models.proposal import PropNetEstimator, Proposed, dense_weights
from models.radiance import RadianceNetwork
from utils.rays import Rays

OPAQUE = 0.999  # foreground opacity from which on nobody sees the background


@dataclass(frozen=True)
class Behind:
    """The background of R rays, of which B were looked at."""

    rgb: Tensor  # [R, 3], 0 for rays that were not looked at
    seen: Tensor  # [B] int64, the rays that were
    proposed: Proposed  # their intervals, n each
    weights: Tensor  # [B, n], sum 1


class Background(nn.Module):
    """Rays -> colour of what lies behind the sphere (or, for a ray beside it, from `near` on).

    far: the horizon, in radii.
    """

    def __init__(
        self, proposal: DensityNetwork, field: DensityNetwork, radiance: RadianceNetwork, n_proposal: int, n_samples: int, far: float = 1e3
    ):
        super().__init__()
        self.proposal, self.field, self.radiance = proposal, field, radiance
        self.n_proposal, self.n_samples, self.far = n_proposal, n_samples, far
        self.estimator = PropNetEstimator()

    def forward(self, rays: Rays, opacity: Tensor, stratified: bool = False, everywhere: bool = False) -> Behind:
        """Look behind the rays [R] whose foreground opacity [R] leaves something to be seen, or behind all (`everywhere`)."""
        with torch.no_grad():
            seen = torch.nonzero((opacity < OPAQUE) | everywhere)[:, 0]
            some = rays[seen]
            start = torch.where(some.near < some.far, some.far, some.near).clamp(min=1e-2)
            end = torch.full_like(start, self.far * self.field.radius)

        def sigma(t_starts: Tensor, t_ends: Tensor) -> Tensor:
            x = some.origins[: len(t_starts), None] + some.dirs[: len(t_starts), None] * ((t_starts + t_ends) / 2)[..., None]
            return self.proposal.density(x.view(-1, 3)).view(t_starts.shape)

        grad = stratified and torch.is_grad_enabled()
        counts = [self.n_proposal], self.n_samples
        proposed = self.estimator.sampling([sigma], *counts, start, end, "lindisp", stratified, grad, opaque_end=True)
        x = some.origins[:, None] + some.dirs[:, None] * ((proposed.t_starts + proposed.t_ends) / 2)[..., None]  # [B, n, 3]
        density, feature = self.field(x.reshape(-1, 3))
        weights = dense_weights(density.view(x.shape[:2]), proposed.t_starts, proposed.t_ends, opaque_end=True)
        dirs = self.radiance.encode_dirs(some.dirs)
        dirs = dirs[:, None].expand(-1, self.n_samples, -1).reshape(len(density), dirs.shape[-1])
        colour = self.radiance(feature, None, dirs).view(*x.shape[:2], 3)
        rgb = (weights[..., None] * colour).sum(1)
        return Behind(rgb.new_zeros(len(rays), 3).index_copy(0, seen, rgb), seen, proposed, weights)
