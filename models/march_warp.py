"""Marching as NVIDIA Warp kernels: count a ray's samples, then write them; rays are shared out over CPU threads or CUDA's.

`walk` crosses a whole cell, or a block of empty cells, at once, up to the last lattice point that is short of the exit by
more than rounding can move it. Rounding is monotone in t, so everything between is in that cell too, and the samples are
the twin's to the last bit (multiply-adds are not fused for the same reason).
"""

import functools

import torch
import warp as wp
from torch import Tensor

from models.march import FARTHEST_STEP, GridRays
from utils import warp_launch
from utils.rays import Samples

OPTIONS = {"fuse_fp": False}
RUNS = wp.constant(8)  # runs of samples a ray stores in the first pass; a ray with more walks again in the second
SLACK = wp.constant(1e-6)  # of a coordinate's largest terms: eight roundings


@wp.struct
class Grid:
    """Shape of the grid. Beside it go cells [levels * res^3] and blocks [levels * (res / side)^3] that hold an occupied cell."""

    levels: wp.int32
    res: wp.int32
    shift: wp.int32  # a block's side is 2^shift cells; 0: no blocks
    nested: wp.int32  # 1: a coarse cell lies wholly inside or outside the next finer level


@wp.struct
class CellIndex:
    level: wp.int32  # -1: outside
    cell: wp.float32  # 2^level, a cell's side
    x: wp.int32
    y: wp.int32
    z: wp.int32


@wp.func
def floor_int(x: float) -> int:
    i = int(x)
    if float(i) > x:
        i -= 1
    return i


@wp.func
def cell_index(v: wp.vec3, g: Grid) -> CellIndex:
    out = CellIndex()
    out.level = wp.int32(-1)
    half = float(g.res) * 0.5
    odd = half - float(g.res // 2)
    low = wp.min(wp.min(v[0], v[1]), v[2])
    high = wp.max(wp.max(v[0], v[1]), v[2])
    scale = float(1.0)
    cell = float(1.0)
    for level in range(g.levels):
        if low * scale >= -half and high * scale < half:
            out.level = level
            out.cell = cell
            out.x = wp.min(floor_int(v[0] * scale + odd) + g.res // 2, g.res - 1)
            out.y = wp.min(floor_int(v[1] * scale + odd) + g.res // 2, g.res - 1)
            out.z = wp.min(floor_int(v[2] * scale + odd) + g.res // 2, g.res - 1)
            break
        scale *= 0.5
        cell *= 2.0
    return out


@wp.func
def lookup(values: wp.array(dtype=wp.uint8), p: CellIndex, n: int, shift: int) -> int:
    return int(values[((p.level * n + (p.x >> shift)) * n + (p.y >> shift)) * n + (p.z >> shift)])


@wp.func
def middle(t_first: float, k: int, step: float) -> float:
    return ((t_first + float(k) * step) + (t_first + float(k + 1) * step)) * 0.5


@wp.func
def position(o: wp.vec3, d: wp.vec3, t: float) -> wp.vec3:
    return wp.vec3(o[0] + d[0] * t, o[1] + d[1] * t, o[2] + d[2] * t)


@wp.func
def exit_axis(v: float, inv: float, slack: float, i: int, shift: int, cell: float, half: float) -> float:
    """Distance in t, less the slack, from coordinate v to the far face of the block of cell i along one axis."""
    face = (i >> shift) << shift
    if inv > 0.0:
        face += 1 << shift
    return (float(face) * cell - half - v) * inv - slack


@wp.func
def inverse(d: float) -> float:
    if wp.abs(d) < 1.0e-20:
        return 1.0e20
    return 1.0 / d


@wp.func
def write(
    t_starts: wp.array(dtype=float), t_ends: wp.array(dtype=float), ray_indices: wp.array(dtype=wp.int64),
    i: wp.int64, t: float, t_next: float, ray: int,
):  # fmt: skip
    if i < wp.int64(t_starts.shape[0]):
        t_starts[i] = t
        t_ends[i] = t_next
        ray_indices[i] = wp.int64(ray)


@wp.kernel(module="unique", enable_backward=False, module_options=OPTIONS)
def walk(
    origins: wp.array(dtype=wp.vec3), dirs: wp.array(dtype=wp.vec3), t_first: wp.array(dtype=float), end: wp.array(dtype=float),
    cells: wp.array(dtype=wp.uint8), g: Grid, blocks: wp.array(dtype=wp.uint8), span: wp.array2d(dtype=int), step: float,
    stretches: wp.array2d(dtype=int), n_stretches: wp.array(dtype=int), begin: int, stop: int, run: int, fill: int,
    counts: wp.array(dtype=int), offsets: wp.array(dtype=wp.int64), t_starts: wp.array(dtype=float), t_ends: wp.array(dtype=float),
    ray_indices: wp.array(dtype=wp.int64),
):  # fmt: skip
    start = begin + wp.tid() * run
    half = float(g.res) * 0.5
    per_step = 1.0 / step
    for r in range(start, wp.min(start + run, stop)):
        t0 = t_first[r]
        out = wp.int64(0)
        if fill == 1:
            out = offsets[r]
            if n_stretches[r] <= RUNS:
                for m in range(n_stretches[r]):
                    for i in range(stretches[r, 2 * m], stretches[r, 2 * m + 1]):
                        write(t_starts, t_ends, ray_indices, out, t0 + float(i) * step, t0 + float(i + 1) * step, r)
                        out += wp.int64(1)
                continue
        k = span[r, 0]
        last = span[r, 1]
        while last > k and middle(t0, last - 1, step) >= end[r]:
            last -= 1
        o = origins[r]
        d = dirs[r]
        inv = wp.vec3(inverse(d[0]), inverse(d[1]), inverse(d[2]))
        slack = wp.vec3(0.0, 0.0, 0.0)  # in t
        if k < last:
            far = float(last) * step + wp.abs(t0)
            for i in range(3):
                slack[i] = SLACK * (wp.abs(o[i]) + wp.abs(d[i]) * far + 2.0 * half) * wp.abs(inv[i])
        n = int(0)
        past = int(-1)  # one past the last sample
        m = int(0)
        while k < last:
            v = position(o, d, middle(t0, k, step))
            p = cell_index(v, g)
            j = k  # last lattice point known to lie in this cell or empty block
            full = int(0)
            if p.level >= 0:
                shift = g.shift
                if shift > 0:
                    full = lookup(blocks, p, g.res >> shift, shift)
                if shift == 0 or full != 0:
                    shift = int(0)
                    full = lookup(cells, p, g.res, 0)
                if p.level == 0 or g.nested == 1:
                    reach = half * p.cell
                    t_exit = exit_axis(v[0], inv[0], slack[0], p.x, shift, p.cell, reach)
                    t_exit = wp.min(t_exit, exit_axis(v[1], inv[1], slack[1], p.y, shift, p.cell, reach))
                    t_exit = wp.min(t_exit, exit_axis(v[2], inv[2], slack[2], p.z, shift, p.cell, reach))
                    j = wp.min(k + int(wp.clamp(t_exit * per_step, 0.0, 1.0e8)), last - 1)
            if full != 0:
                if fill == 1:
                    for i in range(k, j + 1):
                        write(t_starts, t_ends, ray_indices, out, t0 + float(i) * step, t0 + float(i + 1) * step, r)
                        out += wp.int64(1)
                else:
                    if k != past:
                        if m < RUNS:
                            stretches[r, 2 * m] = k
                        m += 1
                    past = j + 1
                    if m <= RUNS:
                        stretches[r, 2 * m - 1] = past
                    n += past - k
            k = j + 1
        if fill == 0:
            counts[r] = n
            n_stretches[r] = m


@wp.kernel(module="unique", enable_backward=False, module_options=OPTIONS)
def walk_cone(
    origins: wp.array(dtype=wp.vec3), dirs: wp.array(dtype=wp.vec3), t_first: wp.array(dtype=float), end: wp.array(dtype=float),
    cells: wp.array(dtype=wp.uint8), g: Grid, step: float, cone_angle: float, begin: int, stop: int, run: int, fill: int,
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
            if not (mid < end[r] and t_next > t):
                break
            p = cell_index(position(origins[r], dirs[r], mid), g)
            if p.level >= 0:
                if lookup(cells, p, g.res, 0) != 0:
                    n += 1
                    if fill == 1:
                        write(t_starts, t_ends, ray_indices, out, t, t_next, r)
                        out += wp.int64(1)
            t = t_next
        if fill == 0:
            counts[r] = n


def block_shift(levels: int, res: int) -> int:
    """log2 of the side of the blocks of empty cells crossed at once; blocks must not straddle the face of a finer level."""
    fits = [shift for shift in (3, 2) if res % ((1 if levels == 1 else 4) << shift) == 0]
    return fits[0] if fits else 0


def any_in_blocks(cells: Tensor, side: int) -> Tensor:
    """bool [L, n, n, n] -> uint8 [L, n / side, ...]: whether a block has an occupied cell. side 8 or 4: a row of a block is one word."""
    levels, n = cells.shape[0], cells.shape[1] // side
    words = cells.view(torch.uint8).view(torch.int64 if side == 8 else torch.int32)
    return (words.view(levels, n, side, n, side, n).amax(2).amax(2 + 1) > 0).to(torch.uint8)


def _grid(binaries: Tensor, with_blocks: bool) -> tuple[Tensor, Tensor, Grid]:
    """(cells, blocks, their shape), flat bytes."""
    levels, res = binaries.shape[:2]
    cells = binaries.contiguous()
    if cells.data_ptr() % 8:  # rows are read as words
        cells = cells.clone()
    grid = Grid()
    grid.levels, grid.res, grid.shift, grid.nested = levels, res, block_shift(levels, res) if with_blocks else 0, int(res % 4 == 0)
    blocks = any_in_blocks(cells, 1 << grid.shift) if grid.shift else torch.empty(0, dtype=torch.uint8, device=cells.device)
    return cells.view(torch.uint8).view(-1), blocks.view(-1), grid


def march_warp(c: GridRays, binaries: Tensor, step: float, cone_angle: float, room: int = 0) -> Samples:
    """Samples of rays (float32); `models.march.march` is the public entry."""
    device, n_rays, conical = binaries.device, len(c.end), cone_angle > 0
    cells, blocks, grid = _grid(binaries, not conical)
    counts = torch.zeros(n_rays, dtype=torch.int32, device=device)
    offsets = torch.zeros(n_rays + 1, dtype=torch.long, device=device)
    stretches, n_stretches = (
        torch.empty(n_rays, 2 * RUNS, dtype=torch.int32, device=device),
        torch.empty(n_rays, dtype=torch.int32, device=device),
    )
    lead = [
        warp_launch.array(t, kind)
        for t, kind in [(c.origins, wp.vec3), (c.dirs, wp.vec3), (c.t_first, wp.float32), (c.end, wp.float32), (cells, wp.uint8)]
    ]
    lead += (
        [grid, step, cone_angle]
        if conical
        else [
            grid,
            warp_launch.array(blocks, wp.uint8),
            warp_launch.array(c.span, wp.int32),
            step,
            warp_launch.array(stretches, wp.int32),
            warp_launch.array(n_stretches, wp.int32),
        ]
    )
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

    def buffers(size: int) -> tuple[Tensor, Tensor, Tensor]:
        make = torch.zeros if room else torch.empty
        floats = make(2, size, device=device)
        return floats[0], floats[1], make(size, dtype=torch.long, device=device)

    sweep(0, *buffers(0))
    torch.cumsum(counts, 0, out=offsets[1:])
    samples = buffers(room or int(offsets[-1]))
    if len(samples[0]):
        sweep(1, *samples)
    return Samples(*samples, offsets.clamp(max=room), found=offsets[-1]) if room else Samples(*samples, offsets)
