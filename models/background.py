"""The learned background: a second radiance field over contracted space, from the far side of the sphere to the horizon.

Its density is per unit of contracted length. It is sampled uniformly in 1/t by a small proposal network (`models/proposal.py`).
The last interval is opaque, so the colour is a convex combination of colours in (0, 1).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from confs.model import BackgroundFieldConfig
from models.field import DensityNetwork, contract
from models.method import RenderContext
from models.network import open_levels
from models.proposal import PropNetEstimator, ProposalSamples, dense_weights
from models.radiance import RadianceNetwork
from utils.rays import Rays
from utils.schedule import ramp

UNIFORM = 0.3  # share of the samples drawn uniformly: every interval of the horizon has some weight and would take all of them
BESIDE = 0.8  # share of the way to the sphere's nearest point from which rays beside it are sampled; nearer, cameras overfit
FINER = 2  # factor on the samples of pictures: training averages over random samples, a picture does not
OPAQUE, OPAQUE_PICTURE = 0.999, 0.995  # foreground opacity from which the background is not evaluated: half a percent is one grey level


@dataclass(frozen=True)
class BackgroundOutput:
    """The background of R rays, evaluated for B of them."""

    rgb: Tensor  # [R, 3], 0 for rays that were not evaluated
    rays: Tensor  # [B] int64, indices of the evaluated rays
    proposals: ProposalSamples  # their intervals, n each
    weights: Tensor  # [B, n], sum 1


class Background(nn.Module):
    """Rays -> colour behind the sphere (for a ray beside the sphere: from shortly before it passes)."""

    def __init__(self, cfg: BackgroundFieldConfig, proposal: DensityNetwork, field: DensityNetwork, radiance: RadianceNetwork):
        super().__init__()
        self.cfg, self.levels = cfg, ramp(cfg.levels)
        self.proposal, self.field, self.radiance = proposal, field, radiance
        self.estimator = PropNetEstimator(floor=UNIFORM)
        self.every_ray = False  # in training: shapes that do not depend on what is opaque

    def forward(self, rays: Rays, opacity: Tensor, context: RenderContext) -> BackgroundOutput:
        """Evaluate the rays [R] whose foreground opacity [R] is below OPAQUE (OPAQUE_PICTURE), or all (context.full_background).

        Cameras get no gradient through the background: it is blurred where few views see it.
        """
        with torch.no_grad():
            if self.every_ray and context.training:
                chosen = torch.arange(len(rays), device=opacity.device)
            else:
                chosen = torch.nonzero((opacity < (OPAQUE if context.training else OPAQUE_PICTURE)) | context.full_background)[:, 0]
            some = rays[chosen]  # without gradient
            beside = BESIDE * -(some.origins * some.dirs).sum(-1)  # of the distance to the point nearest the centre
            start = torch.where(some.near < some.far, some.far, torch.maximum(beside, some.near)).clamp(min=1e-2)
            end = torch.full_like(start, self.cfg.far * self.field.radius)

        def sigma(t_starts: Tensor, t_ends: Tensor) -> Tensor:
            part = some[slice(0, len(t_starts))]
            x = _at(part, (t_starts + t_ends) / 2)
            return self.proposal.density(x.view(-1, 3)).view(t_starts.shape) * self.contracted_share(part, t_starts, t_ends)

        stratified = context.training
        grad = stratified and torch.is_grad_enabled()
        finer = 1 if stratified else FINER
        n_proposal, n_samples = finer * self.cfg.n_proposal, finer * self.cfg.n_samples
        proposals = self.estimator.sampling([sigma], [n_proposal], n_samples, start, end, "lindisp", stratified, grad, opaque_end=True)
        x = _at(some, (proposals.t_starts + proposals.t_ends) / 2)  # [B, n, 3]
        density, feature = self.field(x.reshape(-1, 3), open_levels(self.field.encoding, self.levels, context.progress))
        density = density.view(x.shape[:2]) * self.contracted_share(some, proposals.t_starts, proposals.t_ends)
        weights = dense_weights(density, proposals.t_starts, proposals.t_ends, opaque_end=True)
        embedding = None if context.embedding is None else context.embedding.index_select(0, chosen)
        dirs = self.radiance.encode_dirs(some.dirs, embedding)
        dirs = dirs[:, None].expand(-1, n_samples, -1).reshape(len(feature), dirs.shape[-1])
        colour = self.radiance(feature, None, dirs).view(*x.shape[:2], 3)
        rgb = (weights[..., None] * colour).sum(1)
        return BackgroundOutput(rgb.new_zeros(len(rays), 3).index_copy(0, chosen, rgb), chosen, proposals, weights)

    @torch.no_grad()
    def contracted_share(self, rays: Rays, t_starts: Tensor, t_ends: Tensor) -> Tensor:
        """Contracted length of intervals [R, n] over their length.

        Densities count per contracted length: else the far intervals, hundreds of radii long, are opaque from the start and
        hide the horizon.
        """
        edges = torch.cat([t_starts, t_ends[:, -1:]], 1)
        length = contract(_at(rays, edges) / self.field.radius).diff(dim=1).norm(dim=-1)
        return self.field.radius * length / (t_ends - t_starts).clamp(min=1e-9)


def _at(rays: Rays, t: Tensor) -> Tensor:
    """Points [R, n, 3] of rays at distances t [R, n]."""
    return rays.origins[:, None] + rays.dirs[:, None] * t[..., None]
