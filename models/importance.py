"""Sampling without a grid: evenly spaced intervals, refined where the SDF crosses zero (NeuS, 2021, section 3.3)."""

from collections.abc import Callable

import torch
from torch import Tensor

from confs.model import SamplingConfig
from models.density import EPS
from models.method import Sampler
from models.proposal import importance
from utils.rays import Rays, Samples


def pack_dense(t: Tensor, hit: Tensor, n_rays: int) -> Samples:
    """Edges [H, n + 1] of the rays `hit` [H] (ascending) -> packed samples of n_rays rays, n each or none."""
    n = t.shape[1] - 1
    counts = torch.zeros(n_rays, dtype=torch.long, device=t.device).index_fill(0, hit, n)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return Samples(t[:, :-1].reshape(-1), t[:, 1:].reshape(-1), hit.repeat_interleave(n), offsets)


def crossing_weights(t: Tensor, sdf: Tensor, inv_s: float) -> Tensor:
    """Weights [H, n] of the intervals between edges t [H, n + 1] with signed distances sdf [H, n + 1] at sharpness inv_s.

    The slope is the steeper fall of an interval and the one before it, which finds the surface between coarse samples.
    """
    dt = t.diff(dim=1)
    slope = sdf.diff(dim=1) / dt.clamp(min=1e-6)
    slope = torch.minimum(slope, torch.cat([torch.zeros_like(slope[:, :1]), slope[:, :-1]], 1)).clamp(-1e3, 0)
    mid, half = (sdf[:, 1:] + sdf[:, :-1]) / 2, slope * dt / 2
    before, after = torch.sigmoid((mid - half) * inv_s), torch.sigmoid((mid + half) * inv_s)
    alpha = ((before - after + EPS) / (before + EPS)).clamp(0, 1)
    trans = torch.cat([torch.ones_like(alpha[:, :1]), (1 - alpha[:, :-1] + 1e-7).cumprod(1)], 1)
    return alpha * trans


class HierarchicalSampler(Sampler):
    """n_samples uniform intervals, then n_importance more in `rounds` rounds; inv_s is 64 in the first and doubles in each."""

    def __init__(self, cfg: SamplingConfig):
        super().__init__()
        self.n_samples, self.n_importance, self.rounds = cfg.n_samples, cfg.n_importance, cfg.rounds

    @torch.no_grad()
    def sample(
        self, rays: Rays, step: float, jitter: Tensor | None = None, field: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Samples, None]:
        """field: points [P, 3] -> signed distance [P]; jitter [R] in [0, 1) shifts the uniform samples; `step` is not used."""
        assert field is not None
        hit = torch.nonzero(rays.near < rays.far)[:, 0]
        some = rays[hit]

        def sdf_at(t: Tensor) -> Tensor:
            return field((some.origins[:, None] + some.dirs[:, None] * t[..., None]).reshape(-1, 3)).view(t.shape)

        u = torch.arange(self.n_samples + 1, device=rays.near.device) / self.n_samples
        u = u.expand(len(hit), -1).clone()
        if jitter is not None:
            u[:, 1:-1] += (jitter[hit, None] - 0.5) / self.n_samples
        t = some.near[:, None] + u * (some.far - some.near)[:, None]
        sdf = sdf_at(t)
        for i in range(self.rounds if len(hit) else 0):
            n = self.n_importance * (i + 1) // self.rounds - self.n_importance * i // self.rounds
            weights = crossing_weights(t, sdf, 64.0 * 2**i)
            new = importance(t, weights, n + 1, jitter is not None, floor=0.0)[:, 1:-1]
            t, order = torch.cat([t, new], 1).sort(1)
            if i + 1 < self.rounds:
                sdf = torch.cat([sdf, sdf_at(new)], 1).gather(1, order)
        return pack_dense(t, hit, len(rays)), None
