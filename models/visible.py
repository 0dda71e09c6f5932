"""Which samples of a ray can be seen, and where intervals cross the surface: from the SDF alone, before gradients and colours.

A ray has samples wherever a cell near the surface is occupied, also behind what hides them. Their SDF costs a seventh to a ninth of
what a training step spends on a sample, so it is evaluated first, front to back, and the samples are kept that weigh something. Of a
training ray that nothing stops faint ones are kept too: the surface that it may miss is found by their gradient. The gradient of an
opacity is proportional to it, where the SDF is far from 0 in the measure of 1 / inv_s; so the samples that are left out have no say.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from models.density import EPS, alpha_between
from models.march import pack
from models.volrend import weights_from_alpha
from utils.rays import Rays, Samples

FIRST = 8  # samples of each ray that are looked at first; then twice as many, and so on
SEEN = 1e-3  # weight from which a sample of a picture is kept, and transmittance up to which its ray goes on
STOPPED = 0.9  # opacity from which the surface stops a ray
FAINT = 2 * EPS  # weight of a sample that is kept of a training ray that nothing stops


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
def visible(
    rays: Rays, samples: Samples, sdf: Callable[[Tensor], Tensor], inv_s: float, at_crossings: bool, backend: str = "torch",
    least: float = SEEN, passing: bool = False,
) -> Samples:  # fmt: skip
    """The samples of R rays that weigh more than `least` by the SDF at their ends, at their crossings where that is asked.

    sdf: points [P, 3] -> [P]. backend: of the compositing. passing: rays that the surface does not stop keep those from FAINT on.
    """
    offsets, device = samples.offsets, samples.offsets.device
    position, stop = offsets[:-1].clone(), offsets[1:]
    light = torch.ones(len(position), device=device)  # transmittance as far as looked
    active = torch.nonzero(stop > position)[:, 0]
    weight, at = torch.zeros_like(samples.t_starts), samples.t_starts.clone()
    count = FIRST
    while len(active):
        n = torch.minimum(stop[active] - position[active], torch.full_like(active, count))
        local = torch.cat([n.new_zeros(1), n.cumsum(0)])
        ray = torch.repeat_interleave(torch.arange(len(active), device=device), n)
        index = torch.arange(len(ray), device=device) - local[ray] + position[active][ray]
        part = Samples(samples.t_starts[index], samples.t_ends[index], samples.ray_indices[index], local)
        before, after = ends(rays, part, sdf)
        alpha = alpha_between(before, after, inv_s)
        weights, transmittance = weights_from_alpha(alpha, local, 0.0, backend)
        weight[index] = weights * light[active][ray]
        at[index] = crossing(part, before, after)
        final = local[1:] - 1
        light[active] *= transmittance[final] * (1 - alpha[final])
        position[active] += n
        active = active[(light[active] > least) & (position[active] < stop[active])]
        count *= 2
    enough = torch.where(light > 1 - STOPPED, min(FAINT, least), least) if passing else torch.full_like(light, least)
    index = torch.nonzero(weight > enough[samples.ray_indices])[:, 0]
    where = at[index] if at_crossings else None
    return pack(samples.t_starts[index], samples.t_ends[index], samples.ray_indices[index], len(position), where)
