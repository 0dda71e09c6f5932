"""Samples along rays through an occupancy grid of nested levels (nerfacc 0.5's marching, Li et al. 2023).

The grid is centred at 0; level l is a cube of half side radius * 2^l with res^3 cells, and a point belongs to the finest
level that holds it. A ray has a lattice of its own: t_0 = near + jitter * step, t_{k+1} = t_k + clamp(t_k * cone_angle,
step, 1e10). The interval [t_k, t_{k+1}] is a sample when its midpoint lies before far and in an occupied cell.

Where nerfacc differs: it adds steps up one by one (its lattice drifts by rounding; here t_k = t_0 + k * step), and with a
cone angle it crosses an empty cell with steps as long as the first, so that its samples depend on what was skipped.
The torch code here is the specification; `models/march_warp.py` gives the same samples to the last bit.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from utils.rays import Rays, Samples

FARTHEST_STEP = 1e10
MAX_POINTS = 2**24  # of a ray's lattice: a float32 counts no further
CHUNK = 2**19  # lattice points evaluated together


@dataclass(frozen=True)
class GridRays:
    """R rays in the grid's own units: a midpoint t lies at origins + t * dirs, in cells of level 0 from the grid's centre."""

    origins: Tensor  # [R, 3]
    dirs: Tensor  # [R, 3]
    t_first: Tensor  # [R] t_0
    end: Tensor  # [R] midpoints lie before it: far, or where the ray leaves the grid; -inf for a ray beside the grid
    span: Tensor  # [R, 2] int32: no samples but of first <= k < stop (a constant step's; two or three points too wide)


def grid_rays(rays: Rays, levels: int, res: int, radius: float, step: float, jitter: Tensor | None) -> GridRays:
    """What both backends start from."""
    reach = radius * 2.0 ** (levels - 1) * (1 + 1e-4)  # a little too far: cells decide
    a, b = (-reach - rays.origins) / rays.dirs, (reach - rays.origins) / rays.dirs
    enter, leave = torch.minimum(a, b).amax(-1), torch.maximum(a, b).amin(-1)
    t_first = rays.near if jitter is None else rays.near + jitter * step
    end = torch.minimum(rays.far, leave)
    hits = (enter <= end) & (t_first < end) & (end < torch.inf)  # false where anything is nan
    end = torch.where(hits, end, -torch.inf)
    first = ((enter - t_first) / step).floor() - 1
    stop = ((end - t_first) / step).ceil() + 1
    span = torch.where(hits[:, None], torch.stack([first, stop], -1), 0).clamp(0, MAX_POINTS).int()
    per_cell = res / (2 * radius)
    return GridRays((rays.origins * per_cell).contiguous(), (rays.dirs * per_cell).contiguous(), t_first.contiguous(), end, span)


def occupied(x: Tensor, y: Tensor, z: Tensor, binaries: Tensor) -> Tensor:
    """Whether points (coordinates in cells of level 0 from the centre, equal shapes) lie in an occupied cell; outside: no."""
    levels, res = binaries.shape[:2]
    half, odd = res / 2, (res % 2) / 2
    cell = torch.full_like(x, -1, dtype=torch.long)
    for level in reversed(range(levels)):
        index: Tensor | int = level
        inside = torch.ones_like(x, dtype=torch.bool)
        for v in (x, y, z):
            w = v * 0.5**level
            inside &= (w >= -half) & (w < half)
            index = index * res + ((w + odd).floor().clamp(-half, half).long() + res // 2).clamp(max=res - 1)
        cell = torch.where(inside, index, cell)
    return binaries.reshape(-1).index_select(0, cell.clamp(min=0).reshape(-1)).view_as(cell) & (cell >= 0)


def pack(t_starts: Tensor, t_ends: Tensor, ray_indices: Tensor, n_rays: int, at: Tensor | None = None) -> Samples:
    """Samples sorted by ray, with their offsets."""
    counts = torch.bincount(ray_indices, minlength=n_rays)
    return Samples(t_starts, t_ends, ray_indices, torch.cat([counts.new_zeros(1), counts.cumsum(0)]), at)


def _march_constant(c: GridRays, binaries: Tensor, step: float) -> Samples:
    """All lattice points of a chunk of rays at once."""
    n_rays, parts = len(c.end), []
    longest = int((c.span[:, 1] - c.span[:, 0]).max())
    for rows in torch.arange(n_rays, device=c.end.device).split(max(1, CHUNK // max(longest, 1))):
        span = c.span[rows]
        k = span[:, :1] + torch.arange(int((span[:, 1] - span[:, 0]).max()), device=rows.device)  # [r, K]
        t_first = c.t_first[rows, None]
        t_starts, t_ends = t_first + k.to(t_first.dtype) * step, t_first + (k + 1).to(t_first.dtype) * step
        mid = (t_starts + t_ends) * 0.5
        x, y, z = (c.origins[rows, i, None] + c.dirs[rows, i, None] * mid for i in range(3))
        keep = occupied(x, y, z, binaries) & (mid < c.end[rows, None]) & (k < span[:, 1:])
        parts.append((t_starts[keep], t_ends[keep], rows[keep.nonzero()[:, 0]]))
    t_starts, t_ends, rays = (torch.cat(p) for p in zip(*parts))
    return pack(t_starts, t_ends, rays, n_rays)


def _march_cone(c: GridRays, binaries: Tensor, step: float, cone_angle: float) -> Samples:
    """All rays one step at a time."""
    t, rows, parts = c.t_first, torch.arange(len(c.end), device=c.end.device), []
    while len(rows):
        t_next = t + (t * cone_angle).clamp(step, FARTHEST_STEP)
        mid = (t + t_next) * 0.5
        going = (mid < c.end[rows]) & (t_next > t)
        t, t_next, mid, rows = t[going], t_next[going], mid[going], rows[going]
        x, y, z = (c.origins[rows, i] + c.dirs[rows, i] * mid for i in range(3))
        keep = occupied(x, y, z, binaries)
        parts.append((t[keep], t_next[keep], rows[keep]))
        t = t_next
    t_starts, t_ends, rays = (torch.cat(p) for p in zip(*parts))
    order = rays.argsort(stable=True)
    return pack(t_starts[order], t_ends[order], rays[order], len(c.end))


@torch.no_grad()
def march(
    rays: Rays,
    binaries: Tensor,
    radius: float,
    step: float,
    jitter: Tensor | None = None,
    cone_angle: float = 0.0,
    backend: str = "torch",
    room: int = 0,
) -> Samples:
    """Intervals of R rays whose midpoints lie in occupied cells; no gradient.

    binaries [levels, res, res, res] bool, cells in x, y, z order; radius: half side of level 0; step: (least) length of an
    interval, in the same units as t; jitter [R] in [0, 1) shifts a ray's lattice by so many steps; cone_angle: intervals
    at t are at least t * cone_angle long. Rays with near > far have no samples. room: a fixed number of samples, whatever is found
    (`Samples.found`), so that nothing waits for the device; Warp alone. Raises ValueError for a step <= 0.
    """
    levels, res = binaries.shape[:2]
    if binaries.dtype != torch.bool or tuple(binaries.shape) != (levels, res, res, res):
        raise ValueError(f"binaries: expected bool [levels, res, res, res], got {binaries.dtype} {list(binaries.shape)}")
    if not (step > 0 and cone_angle >= 0):
        raise ValueError(f"step must be positive and cone_angle not negative, got {step} and {cone_angle}")
    if not len(rays):
        none = rays.near.new_empty(0)
        return pack(none, none, none.long(), 0)
    c = grid_rays(rays, levels, res, radius, step, jitter)
    if backend == "warp":
        from models.march_warp import march_warp

        return march_warp(c, binaries, step, cone_angle, room)
    return _march_cone(c, binaries, step, cone_angle) if cone_angle > 0 else _march_constant(c, binaries, step)
