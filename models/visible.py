"""Which samples of a ray can be seen, and where intervals cross the surface: from the SDF alone, before gradients and colours.

A ray has samples wherever a cell near the surface is occupied, also behind what hides them. Their SDF costs a fifth of what gradient
and colour cost, so it is evaluated first, and the samples are kept that weigh something: of a picture front to back (`visible`), in
training all at once (`pruned`), where rays that nothing stops keep all of theirs: the surface they may miss is found by its gradient.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from models.density import alpha_between
from models.march import pack
from models.volrend import weights_from_alpha
from utils.rays import Rays, Samples

FIRST = 8  # samples of each ray that are looked at first; then twice as many, and so on
SEEN = 1e-3  # weight from which a sample is kept, and transmittance up to which a ray goes on
STOPPED = 0.9  # opacity from which the surface stops a ray


def ends(rays: Rays, samples: Samples, sdf: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """SDF [S], [S] at both ends of packed samples; of adjoining intervals the shared end is evaluated once."""
    index, start, end = samples.ray_indices, samples.t_starts, samples.t_ends
    if samples.found is not None:  # fixed shapes: both ends of each
        ray, t = torch.cat([index, index]), torch.cat([start, end])
        before, after = sdf(rays.origins.index_select(0, ray) + rays.dirs.index_select(0, ray) * t[:, None]).chunk(2)
        return before, after
    last = torch.ones_like(index, dtype=torch.bool)  # of a run of adjoining intervals, whose ends are the next one's starts
    last[:-1] = (index[1:] != index[:-1]) | ((start[1:] - end[:-1]).abs() > 1e-6)
    ray, t = torch.cat([index, index[last]]), torch.cat([start, end[last]])
    found = sdf(rays.origins.index_select(0, ray) + rays.dirs.index_select(0, ray) * t[:, None])
    before = found[: len(index)]
    return before, before.roll(-1).masked_scatter(last, found[len(index) :])


def crossing(samples: Samples, before: Tensor, after: Tensor) -> Tensor:
    """Where [S] the SDF, `before` and `after` an interval, crosses 0 from outside (secant); the middle of other intervals."""
    share = torch.where((before > 0) & (after < 0), before / (before - after), 0.5)
    return samples.t_starts + (samples.t_ends - samples.t_starts) * share


@torch.no_grad()
def to_crossings(rays: Rays, samples: Samples, sdf: Callable[[Tensor], Tensor]) -> Samples:
    """Move the evaluated point of intervals that cross the surface to the crossing.

    For long intervals: the colour then belongs to the surface, and the opacity does not rest on a slope far from it.
    Evaluated at midpoints, the surface drifts within an interval.
    """
    return replace(samples, at=crossing(samples, *ends(rays, samples, sdf))) if len(samples) else samples


@torch.no_grad()
def pruned(
    rays: Rays, samples: Samples, sdf: Callable[[Tensor], Tensor], inv_s: float, least: float, at_crossings: bool, backend: str = "torch"
) -> Samples:
    """The samples of R rays that weigh more than `least` by the SDF at their ends, and all those of rays that the surface does not stop.

    The gradient of an opacity is proportional to it, where the SDF is far from 0 in the measure of 1 / inv_s: of a stopped ray the
    samples without weight have no say. at_crossings, as in `to_crossings`; backend: of the compositing.
    """
    if not len(samples):
        return samples
    before, after = ends(rays, samples, sdf)
    alpha = alpha_between(before, after, inv_s)
    weights, transmittance = weights_from_alpha(alpha, samples.offsets, 0.0, backend)
    passed = torch.zeros(len(rays), dtype=torch.bool, device=alpha.device)
    last = samples.offsets[1:][samples.offsets.diff() > 0] - 1
    passed[samples.ray_indices[last]] = transmittance[last] * (1 - alpha[last]) > 1 - STOPPED
    kept = torch.nonzero((weights > least) | passed[samples.ray_indices])[:, 0]
    at = crossing(samples, before, after)[kept] if at_crossings else None
    return pack(samples.t_starts[kept], samples.t_ends[kept], samples.ray_indices[kept], len(rays), at)


@torch.no_grad()
def visible(
    rays: Rays, samples: Samples, sdf: Callable[[Tensor], Tensor], inv_s: float, at_crossings: bool, backend: str = "torch"
) -> Samples:
    """The samples of R rays that weigh at least SEEN by the SDF at their ends, at their crossings where that is asked.

    sdf: points [P, 3] -> [P]. backend: of the compositing.
    """
    offsets, device = samples.offsets, samples.offsets.device
    position, stop = offsets[:-1].clone(), offsets[1:]
    light = torch.ones(len(position), device=device)  # transmittance as far as looked
    active = torch.nonzero(stop > position)[:, 0]
    kept, at, count = [offsets.new_empty(0)], [samples.t_starts.new_empty(0)], FIRST
    while len(active):
        n = torch.minimum(stop[active] - position[active], torch.full_like(active, count))
        local = torch.cat([n.new_zeros(1), n.cumsum(0)])
        ray = torch.repeat_interleave(torch.arange(len(active), device=device), n)
        index = torch.arange(len(ray), device=device) - local[ray] + position[active][ray]
        part = Samples(samples.t_starts[index], samples.t_ends[index], samples.ray_indices[index], local)
        before, after = ends(rays, part, sdf)
        alpha = alpha_between(before, after, inv_s)
        weights, transmittance = weights_from_alpha(alpha, local, 0.0, backend)
        chosen = weights * light[active][ray] > SEEN
        kept.append(index[chosen])
        if at_crossings:
            at.append(crossing(part, before, after)[chosen])
        final = local[1:] - 1
        light[active] *= transmittance[final] * (1 - alpha[final])
        position[active] += n
        active = active[(light[active] > SEEN) & (position[active] < stop[active])]
        count *= 2
    index = torch.cat(kept)
    order = index.argsort()
    index = index[order]
    where = torch.cat(at)[order] if at_crossings else None
    return pack(samples.t_starts[index], samples.t_ends[index], samples.ray_indices[index], len(position), where)
