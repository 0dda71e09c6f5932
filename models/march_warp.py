"""Marching as NVIDIA Warp kernels: count a ray's samples, then write them; rays are shared out over CPU threads or CUDA's.

`walk` crosses a whole cell, or a block of empty cells, at once: the lattice point before the exit is guessed by a division
and taken only if it lies in the same cell. Rounding is monotone in t, so everything between is in that cell too, and the
samples are the twin's to the last bit (multiply-adds are not fused for the same reason).
"""

import functools

import torch
from torch import Tensor

import warp as wp
from models.march import FARTHEST_STEP, Course
from utils import warp_launch
from utils.rays import Samples

OPTIONS = {"fuse_fp": False}


@wp.struct
class Grid:
    """The occupancy grid: cells [levels * res^3], blocks [levels * (res / side)^3] whether a block of side^3 has an occupied cell."""

    cells: wp.array(dtype=wp.uint8)
    blocks: wp.array(dtype=wp.uint8)
    levels: wp.int32
    res: wp.int32
    side: wp.int32  # 1: no blocks
    nested: wp.int32  # 1: a coarse cell lies wholly inside or outside the next finer level


@wp.struct
class Place:
    level: wp.int32  # -1: outside
    scale: wp.float32  # 2^-level
    x: wp.int32
    y: wp.int32
    z: wp.int32


@wp.func
def place(v: wp.vec3, g: Grid) -> Place:
    out = Place()
    out.level = wp.int32(-1)
    half = float(g.res) * 0.5
    odd = float(g.res % 2) * 0.5
    low = wp.min(v)
    high = wp.max(v)
    scale = float(1.0)
    for level in range(g.levels):
        if low * scale >= -half and high * scale < half:
            out.level = level
            out.scale = scale
            out.x = wp.min(int(wp.floor(v[0] * scale + odd)) + g.res // 2, g.res - 1)
            out.y = wp.min(int(wp.floor(v[1] * scale + odd)) + g.res // 2, g.res - 1)
            out.z = wp.min(int(wp.floor(v[2] * scale + odd)) + g.res // 2, g.res - 1)
            break
        scale *= 0.5
    return out


@wp.func
def lookup(values: wp.array(dtype=wp.uint8), p: Place, n: int, side: int) -> int:
    return int(values[((p.level * n + p.x // side) * n + p.y // side) * n + p.z // side])


@wp.func
def middle(t_first: float, k: int, step: float) -> float:
    return ((t_first + float(k) * step) + (t_first + float(k + 1) * step)) * 0.5


@wp.func
def position(o: wp.vec3, d: wp.vec3, t: float) -> wp.vec3:
    return wp.vec3(o[0] + d[0] * t, o[1] + d[1] * t, o[2] + d[2] * t)


@wp.func
def exit_axis(v: float, inv: float, i: int, side: int, scale: float, centre: float) -> float:
    """Distance in t from coordinate v to the far face of the block of cell i along one axis."""
    face = i // side * side
    if inv > 0.0:
        face += side
    return wp.max((float(face) - centre - v * scale) * inv, 0.0)


@wp.func
def inverse(d: float) -> float:
    if wp.abs(d) < 1.0e-20:
        return 1.0e20
    return 1.0 / d


@wp.kernel(module="unique", enable_backward=False, module_options=OPTIONS)
def walk(
    origins: wp.array(dtype=wp.vec3), dirs: wp.array(dtype=wp.vec3), t_first: wp.array(dtype=float), end: wp.array(dtype=float),
    span: wp.array2d(dtype=int), g: Grid, step: float, begin: int, stop: int, run: int, fill: int,
    counts: wp.array(dtype=int), offsets: wp.array(dtype=wp.int64), t_starts: wp.array(dtype=float), t_ends: wp.array(dtype=float),
    ray_indices: wp.array(dtype=wp.int64),
):  # fmt: skip
    start = begin + wp.tid() * run
    centre = float(g.res) * 0.5
    per_step = 1.0 / step
    for r in range(start, wp.min(start + run, stop)):
        k = span[r, 0]
        last = span[r, 1]
        t0 = t_first[r]
        while last > k and middle(t0, last - 1, step) >= end[r]:
            last -= 1
        o = origins[r]
        d = dirs[r]
        inv = wp.vec3(inverse(d[0]), inverse(d[1]), inverse(d[2]))
        n = int(0)
        seen = int(-1)  # first lattice point of a sample, and one past the last: the second pass looks no further
        past = int(0)
        out = wp.int64(0)
        if fill == 1:
            out = offsets[r]
        while k < last:
            v = position(o, d, middle(t0, k, step))
            p = place(v, g)
            j = k  # last lattice point of this cell or empty block that is known
            full = int(0)
            if p.level >= 0:
                side = g.side
                if side > 1:
                    full = lookup(g.blocks, p, g.res // side, side)
                if side == 1 or full != 0:
                    side = int(1)
                    full = lookup(g.cells, p, g.res, 1)
                if p.level == 0 or g.nested == 1:
                    t_exit = wp.min(
                        exit_axis(v[0], inv[0], p.x, side, p.scale, centre),
                        wp.min(exit_axis(v[1], inv[1], p.y, side, p.scale, centre), exit_axis(v[2], inv[2], p.z, side, p.scale, centre)),
                    )  # fmt: skip
                    guess = wp.min(k + int(wp.min(t_exit / p.scale * per_step, 1.0e8)), last - 1)
                    if guess > k:
                        q = place(position(o, d, middle(t0, guess, step)), g)
                        if q.level == p.level and q.x // side == p.x // side and q.y // side == p.y // side and q.z // side == p.z // side:
                            j = guess
            if full != 0:
                if seen < 0:
                    seen = k
                past = j + 1
                n += past - k
                if fill == 1:
                    for i in range(k, past):
                        t_starts[out] = t0 + float(i) * step
                        t_ends[out] = t0 + float(i + 1) * step
                        ray_indices[out] = wp.int64(r)
                        out += wp.int64(1)
            k = j + 1
        if fill == 0:
            counts[r] = n
            span[r, 0] = wp.max(seen, 0)
            span[r, 1] = past


@wp.kernel(module="unique", enable_backward=False, module_options=OPTIONS)
def walk_cone(
    origins: wp.array(dtype=wp.vec3), dirs: wp.array(dtype=wp.vec3), t_first: wp.array(dtype=float), end: wp.array(dtype=float),
    g: Grid, step: float, cone_angle: float, begin: int, stop: int, run: int, fill: int,
    counts: wp.array(dtype=int), offsets: wp.array(dtype=wp.int64), t_starts: wp.array(dtype=float), t_ends: wp.array(dtype=float),
    ray_indices: wp.array(dtype=wp.int64),
):  # fmt: skip
    start = begin + wp.tid() * run
    for r in range(start, wp.min(start + run, stop)):
        t = t_first[r]
        n = int(0)
        out = wp.int64(0)
        if fill == 1:
            out = offsets[r]
        while True:
            t_next = t + wp.clamp(t * cone_angle, step, wp.static(FARTHEST_STEP))
            mid = (t + t_next) * 0.5
            if not mid < end[r]:
                break
            p = place(position(origins[r], dirs[r], mid), g)
            if p.level >= 0:
                if lookup(g.cells, p, g.res, 1) != 0:
                    n += 1
                    if fill == 1:
                        t_starts[out] = t
                        t_ends[out] = t_next
                        ray_indices[out] = wp.int64(r)
                        out += wp.int64(1)
            t = t_next
        if fill == 0:
            counts[r] = n


def block_side(levels: int, res: int) -> int:
    """Side of the blocks of empty cells crossed at once; blocks must not straddle the face of a finer level."""
    fits = [side for side in (8, 4) if res % (side if levels == 1 else 4 * side) == 0]
    return fits[0] if fits else 1


def any_in_blocks(cells: Tensor, side: int) -> Tensor:
    """bool [L, n, n, n] -> uint8 [L, n / side, ...]: whether a block has an occupied cell. side 8 or 4: a row of a block is one word."""
    levels, n = cells.shape[0], cells.shape[1] // side
    words = cells.view(torch.uint8).view(torch.int64 if side == 8 else torch.int32)
    return (words.view(levels, n, side, n, side, n).amax(2).amax(2 + 1) > 0).to(torch.uint8)


def _grid(binaries: Tensor, with_blocks: bool) -> Grid:
    levels, res = binaries.shape[:2]
    cells = binaries.contiguous()
    if cells.data_ptr() % 8:  # rows are read as words
        cells = cells.clone()
    side = block_side(levels, res) if with_blocks else 1
    blocks = any_in_blocks(cells, side) if side > 1 else torch.empty(0, dtype=torch.uint8, device=cells.device)
    grid = Grid()
    grid.cells = wp.from_torch(cells.view(torch.uint8).view(-1))
    grid.blocks = wp.from_torch(blocks.view(-1))
    grid.levels, grid.res, grid.side, grid.nested = levels, res, side, int(res % 4 == 0)
    return grid


def march_warp(c: Course, binaries: Tensor, step: float, cone_angle: float) -> Samples:
    """Samples of rays on their course (float32); `models.march.march` is the way in."""
    device, n_rays, conical = binaries.device, len(c.end), cone_angle > 0
    grid = _grid(binaries, not conical)
    counts = torch.zeros(n_rays, dtype=torch.int32, device=device)
    offsets = torch.zeros(n_rays + 1, dtype=torch.long, device=device)
    rays = [warp_launch.array(c.origins, wp.vec3), warp_launch.array(c.dirs, wp.vec3), warp_launch.array(c.t_first, wp.float32), warp_launch.array(c.end, wp.float32)]
    lead = [*rays, grid, step, cone_angle] if conical else [*rays, warp_launch.array(c.span, wp.int32), grid, step]
    kernel = walk_cone if conical else walk

    def sweep(fill: int, t_starts: Tensor, t_ends: Tensor, ray_indices: Tensor) -> None:
        outs = [
            fill, warp_launch.array(counts, wp.int32), warp_launch.array(offsets, wp.int64), warp_launch.array(t_starts, wp.float32),
            warp_launch.array(t_ends, wp.float32), warp_launch.array(ray_indices, wp.int64),
        ]  # fmt: skip

        def part(start: int, stop: int) -> None:
            instances, run = (stop - start, 1) if device.type == "cuda" else (1, stop - start)
            warp_launch.launch(kernel, instances, [*lead, start, stop, run, *outs], device)

        warp_launch.run([functools.partial(part, *edge) for edge in warp_launch.split(n_rays, device, 64)])

    def room(size: int) -> tuple[Tensor, Tensor, Tensor]:
        floats = torch.empty(2, size, device=device)
        return floats[0], floats[1], torch.empty(size, dtype=torch.long, device=device)

    sweep(0, *room(0))
    torch.cumsum(counts, 0, out=offsets[1:])
    samples = room(int(offsets[-1]))
    if len(samples[0]):
        sweep(1, *samples)
    return Samples(*samples, offsets)
