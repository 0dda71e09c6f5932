"""Proposal sampling: a small density network proposes the intervals at which the large one is evaluated (mip-NeRF 360, 2022).

A ray's distances t in [near, far] are counted by s in [0, 1]: evenly in t ("uniform") or in 1/t ("lindisp"). Edges are
[R, n + 1], weights [R, n]. The interface is that of nerfacc's PropNetEstimator, whose kernels run on CUDA alone, with a span for
each ray in place of one for all; nothing is kept between calls: what the loss needs is handed back.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Spacing = Literal["uniform", "lindisp"]
EPS = 1e-7


@dataclass(frozen=True)
class ProposalSamples:
    """Intervals of R rays, n each, and the proposals they were drawn from."""

    s: Tensor  # [R, n + 1] in [0, 1]
    t: Tensor  # [R, n + 1] the same as distances
    levels: tuple[tuple[Tensor, Tensor], ...]  # (edges s [r, m + 1], weights [r, m]) with gradient, of the first r rays

    @property
    def t_starts(self) -> Tensor:
        return self.t[:, :-1]

    @property
    def t_ends(self) -> Tensor:
        return self.t[:, 1:]


def to_distance(s: Tensor, near: Tensor, far: Tensor, spacing: Spacing) -> Tensor:
    """s [R, n] -> t [R, n] between near and far [R]."""
    near, far = near[:, None], far[:, None]
    if spacing == "uniform":
        return near + s * (far - near)
    return 1 / ((1 - s) / near + s / far)


def dense_weights(sigma: Tensor, t_starts: Tensor, t_ends: Tensor, opaque_end: bool = False) -> Tensor:
    """Weights [R, n] of densities [R, n] per unit length; `opaque_end`: the last interval swallows what is left."""
    depth = sigma * (t_ends - t_starts)
    trans = torch.exp(-torch.cat([torch.zeros_like(depth[:, :1]), depth[:, :-1].cumsum(1)], 1))
    alpha = -torch.expm1(-depth)
    if opaque_end:
        alpha = torch.cat([alpha[:, :-1], torch.ones_like(alpha[:, :1])], 1)
    return trans * alpha


def importance(edges: Tensor, weights: Tensor, n: int, stratified: bool = False, floor: float = 0.01) -> Tensor:
    """n + 1 edges [R, n + 1], ascending, that cut the histogram (edges [R, m + 1], weights [R, m]) into equal shares.

    `floor`: share of the samples spread evenly over the histogram's cells, so that nothing is lost for good.
    stratified: one random shift a ray.
    """
    share = weights.clamp(min=0) + EPS
    share = (1 - floor) * share / share.sum(1, keepdim=True) + floor / weights.shape[1]
    cdf = torch.cat([torch.zeros_like(share[:, :1]), share.cumsum(1)], 1)
    cdf = cdf / cdf[:, -1:]
    u = (torch.arange(n + 1, device=edges.device, dtype=edges.dtype) / n).expand(len(edges), -1)
    if stratified:  # inner edges move by up to half a share either way; the ends stay
        shift = (torch.rand(len(edges), 1, device=edges.device, dtype=edges.dtype) - 0.5) / n
        u = torch.cat([u[:, :1], (u[:, 1:-1] + shift), u[:, -1:]], 1)
    u = u.contiguous()
    right = torch.searchsorted(cdf.contiguous(), u, right=True).clamp(1, weights.shape[1])
    lo, hi = cdf.gather(1, right - 1), cdf.gather(1, right)
    a, b = edges.gather(1, right - 1), edges.gather(1, right)
    return a + (b - a) * ((u - lo) / (hi - lo).clamp(min=EPS)).clamp(0, 1)


def outer_sum(edges: Tensor, outer_edges: Tensor, outer_weights: Tensor) -> Tensor:
    """For each interval of edges [R, n + 1] the sum of the outer weights [R, m] whose intervals touch it -> [R, n]."""
    total = torch.cat([torch.zeros_like(outer_weights[:, :1]), outer_weights.cumsum(1)], 1)  # [R, m + 1]
    m = outer_weights.shape[1]
    first = (torch.searchsorted(outer_edges.contiguous(), edges[:, :-1].contiguous(), right=True) - 1).clamp(0, m)
    last = torch.searchsorted(outer_edges.contiguous(), edges[:, 1:].contiguous(), right=False).clamp(0, m)
    return total.gather(1, last) - total.gather(1, first)


def interlevel(edges: Tensor, weights: Tensor, outer_edges: Tensor, outer_weights: Tensor) -> Tensor:
    """How far weights [R, n] exceed the proposal that should enclose them (mip-NeRF 360 eq. 13); a gradient to the proposal alone."""
    w = weights.detach()
    excess = (w - outer_sum(edges.detach(), outer_edges, outer_weights)).clamp(min=0)
    return (excess**2 / (w + 1e-5)).sum(1).mean() if len(w) else outer_weights.sum()


class PropNetEstimator:
    """Draws intervals through one or more proposals.

    grad_share: share of the rays whose proposals are computed with a gradient; they learn fast and cost as much as the rest.
    floor: share of the samples that go anywhere (`importance`).
    """

    def __init__(self, grad_share: float = 0.25, floor: float = 0.01):
        self.grad_share, self.floor = grad_share, floor

    def sampling(
        self,
        prop_sigma_fns: list[Callable[[Tensor, Tensor], Tensor]],
        prop_samples: list[int],
        num_samples: int,
        near: Tensor,
        far: Tensor,
        sampling_type: Spacing = "lindisp",
        stratified: bool = False,
        requires_grad: bool = False,
        opaque_end: bool = False,
    ) -> ProposalSamples:
        """num_samples intervals of R rays between near and far [R].

        prop_sigma_fns: (t_starts [r, m], t_ends [r, m]) of the first r rays -> density [r, m]. opaque_end: what passes all
        else belongs to the last interval, as it must where the final weights are closed so.
        """

        def weights_of(sigma_fn: Callable, t: Tensor) -> Tensor:
            return dense_weights(sigma_fn(t[:, :-1], t[:, 1:]), t[:, :-1], t[:, 1:], opaque_end)

        s = torch.stack([torch.zeros_like(near), torch.ones_like(near)], 1)
        weights, levels = torch.ones_like(near)[:, None], []
        some = max(1, round(len(near) * self.grad_share))
        for sigma_fn, n in zip(prop_sigma_fns, prop_samples):
            with torch.no_grad():
                s = importance(s, weights, n, stratified, self.floor)
                t = to_distance(s, near, far, sampling_type)
                weights = weights_of(sigma_fn, t)
            if requires_grad and len(near):
                levels.append((s[:some], weights_of(sigma_fn, t[:some])))
        with torch.no_grad():
            s = importance(s, weights, num_samples, stratified, self.floor)
        return ProposalSamples(s, to_distance(s, near, far, sampling_type), tuple(levels))

    @staticmethod
    def compute_loss(proposals: ProposalSamples, weights: Tensor) -> Tensor:
        """Interlevel loss of the final weights [R, n] against every proposal."""
        terms = [interlevel(proposals.s[: len(s)], weights[: len(s)], s, w) for s, w in proposals.levels]
        return torch.stack(terms).sum() if terms else weights.new_zeros(())
