"""The hash grid as NVIDIA Warp kernels: one source for CPU threads and CUDA, nothing to compile beforehand.

Two passes over the table serve a training step: `_forward` (values and, if asked, their derivative by position) and
`_scatter` (gradients of both to the table in one go). Kernels are made once per number of features; a kernel instance
walks a run of points of one level, so that on the CPU a thread keeps a level's rows in cache.
"""

import functools

import torch
from torch import Tensor

import warp as wp
from encoder.hashgrid import HashGridSpec
from utils import warp_launch

wp.set_module_options({"enable_backward": False})


@wp.struct
class Level:
    """A point's place in a level: corner rows come from cell and `rows`, weights from `w`."""

    x: wp.int32
    y: wp.int32
    z: wp.int32
    w: wp.vec3
    dw: wp.vec3


@wp.func
def place(p: wp.vec3, scale: float, smooth: int) -> Level:
    out = Level()
    q = wp.vec3(
        wp.clamp(p[0], 0.0, 1.0) * scale + 0.5, wp.clamp(p[1], 0.0, 1.0) * scale + 0.5, wp.clamp(p[2], 0.0, 1.0) * scale + 0.5
    )
    out.x = int(q[0])
    out.y = int(q[1])
    out.z = int(q[2])
    f = wp.vec3(q[0] - float(out.x), q[1] - float(out.y), q[2] - float(out.z))
    if smooth == 1:
        out.w = wp.vec3(f[0] * f[0] * (3.0 - 2.0 * f[0]), f[1] * f[1] * (3.0 - 2.0 * f[1]), f[2] * f[2] * (3.0 - 2.0 * f[2]))
        out.dw = wp.vec3(6.0 * f[0] * (1.0 - f[0]), 6.0 * f[1] * (1.0 - f[1]), 6.0 * f[2] * (1.0 - f[2])) * scale
    else:
        out.w = f
        out.dw = wp.vec3(scale, scale, scale)
    return out


@wp.func
def row_of(x: int, y: int, z: int, res: int, rows: int, dense: int) -> int:
    if dense == 1:
        row = x + y * res + z * res * res
        if row >= rows:
            row -= rows
        return row
    h = wp.uint32(x) ^ (wp.uint32(y) * wp.uint32(2654435761)) ^ (wp.uint32(z) * wp.uint32(805459861))
    return int(h & wp.uint32(rows - 1))


@functools.cache
def kernels(n_features: int, half: bool = False) -> tuple:
    """(forward, scatter, contract) for F features a level; `half`: the table holds float16 (CUDA)."""
    vec = wp.types.vector(length=n_features, dtype=wp.float32)
    store = wp.types.vector(length=n_features, dtype=wp.float16) if half else vec

    @wp.func
    def load(table: wp.array(dtype=store), i: int):
        v = table[i]
        return vec(v) if wp.static(half) else v

    @wp.kernel(module="unique", enable_backward=False)
    def forward(
        x: wp.array(dtype=wp.vec3), table: wp.array(dtype=store), scales: wp.array(dtype=float), shape: wp.array2d(dtype=int),
        smooth: int, start: int, stop: int, run: int, first: int, y: wp.array2d(dtype=vec), want_jac: int, jac: wp.array4d(dtype=float),
    ):  # fmt: skip
        slot, block = wp.tid()
        level = slot + first
        scale, res, rows, offset, dense = scales[level], shape[level, 0], shape[level, 1], shape[level, 2], shape[level, 3]
        begin = start + block * run
        for i in range(begin, wp.min(begin + run, stop)):
            g = place(x[i], scale, smooth)
            c000 = load(table, offset + row_of(g.x, g.y, g.z, res, rows, dense))
            c100 = load(table, offset + row_of(g.x + 1, g.y, g.z, res, rows, dense))
            c010 = load(table, offset + row_of(g.x, g.y + 1, g.z, res, rows, dense))
            c110 = load(table, offset + row_of(g.x + 1, g.y + 1, g.z, res, rows, dense))
            c001 = load(table, offset + row_of(g.x, g.y, g.z + 1, res, rows, dense))
            c101 = load(table, offset + row_of(g.x + 1, g.y, g.z + 1, res, rows, dense))
            c011 = load(table, offset + row_of(g.x, g.y + 1, g.z + 1, res, rows, dense))
            c111 = load(table, offset + row_of(g.x + 1, g.y + 1, g.z + 1, res, rows, dense))
            x00 = c100 - c000
            x10 = c110 - c010
            x01 = c101 - c001
            x11 = c111 - c011
            a0 = c000 + x00 * g.w[0]
            a1 = c010 + x10 * g.w[0]
            b0 = c001 + x01 * g.w[0]
            b1 = c011 + x11 * g.w[0]
            y0 = a1 - a0
            y1 = b1 - b0
            a = a0 + y0 * g.w[1]
            b = b0 + y1 * g.w[1]
            y[i, level] = a + (b - a) * g.w[2]
            if want_jac == 1:
                u = x00 + (x10 - x00) * g.w[1]
                v = x01 + (x11 - x01) * g.w[1]
                dx = (u + (v - u) * g.w[2]) * g.dw[0]
                dy = (y0 + (y1 - y0) * g.w[2]) * g.dw[1]
                dz = (b - a) * g.dw[2]
                for f in range(wp.static(n_features)):
                    jac[i, level, f, 0] = dx[f]
                    jac[i, level, f, 1] = dy[f]
                    jac[i, level, f, 2] = dz[f]

    @wp.func
    def add(out: wp.array(dtype=vec), i: int, v: vec):
        wp.atomic_add(out, i, v)

    @wp.kernel(module="unique", enable_backward=False)
    def scatter(
        x: wp.array(dtype=wp.vec3), scales: wp.array(dtype=float), shape: wp.array2d(dtype=int), smooth: int, n: int, run: int,
        first: int, stride: int, use_value: int, d_y: wp.array2d(dtype=vec), use_slope: int, d_x: wp.array(dtype=wp.vec3),
        g_y: wp.array2d(dtype=vec), out: wp.array(dtype=vec),
    ):  # fmt: skip
        slot, block = wp.tid()
        level = slot * stride + first
        scale, res, rows, offset, dense = scales[level], shape[level, 0], shape[level, 1], shape[level, 2], shape[level, 3]
        begin = block * run
        for i in range(begin, wp.min(begin + run, n)):
            g = place(x[i], scale, smooth)
            wx, wy, wz = g.w[0], g.w[1], g.w[2]
            vx, vy, vz = 1.0 - wx, 1.0 - wy, 1.0 - wz
            p00, p10, p01, p11 = vy * vz, wy * vz, vy * wz, wy * wz
            value = vec()
            if use_value == 1:
                value = d_y[i, level]
            r000 = offset + row_of(g.x, g.y, g.z, res, rows, dense)
            r100 = offset + row_of(g.x + 1, g.y, g.z, res, rows, dense)
            r010 = offset + row_of(g.x, g.y + 1, g.z, res, rows, dense)
            r110 = offset + row_of(g.x + 1, g.y + 1, g.z, res, rows, dense)
            r001 = offset + row_of(g.x, g.y, g.z + 1, res, rows, dense)
            r101 = offset + row_of(g.x + 1, g.y, g.z + 1, res, rows, dense)
            r011 = offset + row_of(g.x, g.y + 1, g.z + 1, res, rows, dense)
            r111 = offset + row_of(g.x + 1, g.y + 1, g.z + 1, res, rows, dense)
            if use_slope == 1:
                h = wp.cw_mul(d_x[i], g.dw)
                slope = g_y[i, level]
                sx, sy, sz = h[0], h[1], h[2]
                q00, q10 = -sy * vz - vy * sz, sy * vz - wy * sz
                q01, q11 = -sy * wz + vy * sz, sy * wz + wy * sz
                add(out, r000, value * (vx * p00) + slope * (vx * q00 - sx * p00))
                add(out, r100, value * (wx * p00) + slope * (wx * q00 + sx * p00))
                add(out, r010, value * (vx * p10) + slope * (vx * q10 - sx * p10))
                add(out, r110, value * (wx * p10) + slope * (wx * q10 + sx * p10))
                add(out, r001, value * (vx * p01) + slope * (vx * q01 - sx * p01))
                add(out, r101, value * (wx * p01) + slope * (wx * q01 + sx * p01))
                add(out, r011, value * (vx * p11) + slope * (vx * q11 - sx * p11))
                add(out, r111, value * (wx * p11) + slope * (wx * q11 + sx * p11))
            else:
                add(out, r000, value * (vx * p00))
                add(out, r100, value * (wx * p00))
                add(out, r010, value * (vx * p10))
                add(out, r110, value * (wx * p10))
                add(out, r001, value * (vx * p01))
                add(out, r101, value * (wx * p01))
                add(out, r011, value * (vx * p11))
                add(out, r111, value * (wx * p11))

    return forward, scatter


@wp.kernel(module="unique", enable_backward=False)
def _jac_left(jac: wp.array3d(dtype=float), g: wp.array2d(dtype=float), begin: int, stop: int, run: int, out: wp.array(dtype=wp.vec3)):
    first = begin + wp.tid() * run
    for i in range(first, wp.min(first + run, stop)):
        a = float(0.0)
        b = float(0.0)
        c = float(0.0)
        for k in range(jac.shape[1]):
            s = g[i, k]
            a += s * jac[i, k, 0]
            b += s * jac[i, k, 1]
            c += s * jac[i, k, 2]
        out[i] = wp.vec3(a, b, c)


@wp.kernel(module="unique", enable_backward=False)
def _jac_right(jac: wp.array3d(dtype=float), h: wp.array(dtype=wp.vec3), begin: int, stop: int, run: int, out: wp.array2d(dtype=float)):
    first = begin + wp.tid() * run
    for i in range(first, wp.min(first + run, stop)):
        v = h[i]
        for k in range(jac.shape[1]):
            out[i, k] = jac[i, k, 0] * v[0] + jac[i, k, 1] * v[1] + jac[i, k, 2] * v[2]


@functools.cache
def _shape(spec: HashGridSpec, device: torch.device) -> tuple[Tensor, Tensor]:
    shape = torch.tensor([spec.resolutions, spec.rows, spec.offsets[:-1], [int(d) for d in spec.dense]], dtype=torch.int32).T.contiguous()
    return torch.tensor(spec.scales, dtype=torch.float32, device=device), shape.to(device)


def _blocks(count: int, device: torch.device) -> tuple[int, int]:
    """(instances, points each): on CUDA a thread a point, on the CPU one loop over all."""
    return (count, 1) if device.type == "cuda" else (1, count)


def forward(x: Tensor, table: Tensor, spec: HashGridSpec, n_levels: int, with_jacobian: bool) -> tuple[Tensor, Tensor | None]:
    """Values [N, L * F] and, if asked, jacobian [N, L * F, 3] of points x [N, 3]; levels from n_levels on are 0. No graph."""
    n, full = len(x), n_levels == spec.n_levels
    make = torch.empty if full else torch.zeros
    y = make(n, spec.width, device=x.device)
    jac = make(n, spec.width, 3, device=x.device) if with_jacobian else None
    if n and n_levels:
        kernel, _ = kernels(spec.n_features, table.dtype == torch.float16)
        vec = wp.types.vector(length=spec.n_features, dtype=wp.float32)
        store = wp.types.vector(length=spec.n_features, dtype=wp.float16) if table.dtype == torch.float16 else vec
        scales, shape = _shape(spec, x.device)
        jac4 = jac.view(n, spec.n_levels, spec.n_features, 3) if with_jacobian else torch.empty(0, 0, 0, 0, device=x.device)
        fixed = [warp_launch.array(x, wp.vec3), warp_launch.array(table, store), warp_launch.array(scales, wp.float32), warp_launch.array(shape, wp.int32)]
        outs = [warp_launch.array(y.view(n, spec.n_levels, spec.n_features), vec), int(with_jacobian), warp_launch.array(jac4, wp.float32)]

        def part(start: int, stop: int) -> None:
            blocks, run = _blocks(stop - start, x.device)
            warp_launch.launch(kernel, (n_levels, blocks), [*fixed, int(spec.smoothstep), start, stop, run, 0, *outs], x.device)

        warp_launch.run([functools.partial(part, *edge) for edge in warp_launch.split(n, x.device)])
    return y, jac


def scatter(x: Tensor, spec: HashGridSpec, n_levels: int, d_y: Tensor | None, d_x: Tensor | None, g_y: Tensor | None, out: Tensor) -> Tensor:
    """Add to out [rows, F] the table gradient of <d_y, y> + <d_x, jac^T g_y>; a missing pair adds nothing.

    d_y, g_y [N, L * F]; d_x [N, 3]. On the CPU threads own levels, so the order of additions is fixed.
    """
    n = len(x)
    if n and n_levels and (d_y is not None or d_x is not None):
        _, kernel = kernels(spec.n_features)
        vec = wp.types.vector(length=spec.n_features, dtype=wp.float32)
        scales, shape = _shape(spec, x.device)
        levels = lambda t: warp_launch.array((torch.empty(0, 0, spec.n_features, device=x.device) if t is None else t.view(n, spec.n_levels, spec.n_features)), vec)  # noqa: E731
        fixed = [warp_launch.array(x, wp.vec3), warp_launch.array(scales, wp.float32), warp_launch.array(shape, wp.int32), int(spec.smoothstep), n]
        slope = torch.empty(0, 3, device=x.device) if d_x is None else d_x
        tail = [int(d_y is not None), levels(d_y), int(d_x is not None), warp_launch.array(slope, wp.vec3), levels(g_y), warp_launch.array(out, vec)]
        blocks, run = _blocks(n, x.device)
        parts = min(warp_launch.threads(x.device), n_levels)

        def part(first: int) -> None:
            count = len(range(first, n_levels, parts))
            warp_launch.launch(kernel, (count, blocks), [*fixed, run, first, parts, *tail], x.device)

        warp_launch.run([functools.partial(part, first) for first in range(parts)])
    return out


def jac_left(jac: Tensor, g: Tensor) -> Tensor:
    """Per point g^T J: jac [N, K, 3], g [N, K] -> [N, 3]."""
    out = torch.empty(len(jac), 3, device=jac.device)
    _jac(_jac_left, jac, warp_launch.array(g, wp.float32), warp_launch.array(out, wp.vec3))
    return out


def jac_right(jac: Tensor, h: Tensor) -> Tensor:
    """Per point J h: jac [N, K, 3], h [N, 3] -> [N, K]."""
    out = torch.empty(jac.shape[:2], device=jac.device)
    _jac(_jac_right, jac, warp_launch.array(h, wp.vec3), warp_launch.array(out, wp.float32))
    return out


def _jac(kernel: object, jac: Tensor, other: object, out: object) -> None:
    def part(start: int, stop: int) -> None:
        blocks, run = _blocks(stop - start, jac.device)
        warp_launch.launch(kernel, blocks, [warp_launch.array(jac, wp.float32), other, start, stop, run, out], jac.device)

    if len(jac):
        warp_launch.run([functools.partial(part, *edge) for edge in warp_launch.split(len(jac), jac.device)])


class _Encode(torch.autograd.Function):
    """y(x, table), once and twice differentiable as analytic normals need (the second derivative by x itself is not)."""

    @staticmethod
    def forward(ctx, x: Tensor, table: Tensor, spec: HashGridSpec, n_levels: int) -> Tensor:
        y, jac = forward(x, table, spec, n_levels, ctx.needs_input_grad[0])
        ctx.save_for_backward(x, table, jac)
        ctx.spec, ctx.n_levels = spec, n_levels
        return y

    @staticmethod
    def backward(ctx, d_y: Tensor):
        x, table, jac = ctx.saved_tensors
        d_x, d_table = _EncodeBackward.apply(d_y.contiguous(), x, table, jac, ctx.spec, ctx.n_levels, ctx.needs_input_grad[1])
        return d_x, d_table, None, None


class _EncodeBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, d_y: Tensor, x: Tensor, table: Tensor, jac: Tensor | None, spec: HashGridSpec, n_levels: int, need_table: bool):
        ctx.save_for_backward(d_y, x, table, jac)
        ctx.spec, ctx.n_levels = spec, n_levels
        d_x = None if jac is None else jac_left(jac, d_y)
        d_table = scatter(x, spec, n_levels, d_y, None, None, torch.zeros_like(table, dtype=torch.float32)) if need_table else None
        ctx.mark_non_differentiable(*[t for t in (d_table,) if t is not None])
        return d_x, d_table

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, h: Tensor, _unused):
        d_y, x, table, jac = ctx.saved_tensors
        if h is None or jac is None:
            return (None,) * 7
        h = h.contiguous()
        d_table = scatter(x, ctx.spec, ctx.n_levels, None, h, d_y, torch.zeros_like(table)) if ctx.needs_input_grad[2] else None
        return jac_right(jac, h), None, d_table, None, None, None, None


def encode_warp(x: Tensor, table: Tensor, spec: HashGridSpec, n_levels: int | None = None) -> Tensor:
    """`encode_torch` by Warp kernels (float32). Second derivatives: table and incoming gradient, not the position."""
    return _Encode.apply(x.contiguous(), table, spec, spec.n_levels if n_levels is None else n_levels)
