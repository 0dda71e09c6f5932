"""The kernels of `encoder/hashgrid_warp.py` in NVIDIA Warp's Python: one source for CPU threads and CUDA.

Encodings are stored feature-major, [L * F, N]: a kernel instance walks a run of points of one level, so that on the CPU a
thread keeps a level's rows in cache and writes in sequence, and on CUDA neighbouring threads touch neighbouring words.
"""

import functools

import warp as wp

wp.set_module_options({"enable_backward": False})

P1 = wp.constant(wp.uint32(2654435761))
P2 = wp.constant(wp.uint32(805459861))
Rows = wp.types.vector(length=8, dtype=wp.int32)


@wp.func
def in_lattice(p: float, scale: float) -> float:
    return wp.min(wp.max(p, 0.0), 1.0) * scale + 0.5


@wp.func
def corner_rows(x: int, y: int, z: int, res: int, rows: int, offset: int, dense: int) -> Rows:
    """Table rows of the 8 corners of a cell; bit 0 of a corner is x, bit 1 y, bit 2 z."""
    out = Rows()
    if dense == 1:
        r = x + y * res + z * res * res
        out = Rows(r, r + 1, r + res, r + res + 1, r + res * res, r + res * res + 1, r + res * res + res, r + res * res + res + 1)
        if out[7] >= rows:  # the last lattice plane wraps around
            for k in range(8):
                if out[k] >= rows:
                    out[k] = out[k] - rows
    else:
        mask = wp.uint32(rows - 1)
        x0 = wp.uint32(x)
        y0 = wp.uint32(y) * P1
        z0 = wp.uint32(z) * P2
        x1 = x0 + wp.uint32(1)
        y1 = y0 + P1
        z1 = z0 + P2
        a, b, c, d = y0 ^ z0, y1 ^ z0, y0 ^ z1, y1 ^ z1
        out = Rows(
            int((x0 ^ a) & mask), int((x1 ^ a) & mask), int((x0 ^ b) & mask), int((x1 ^ b) & mask),
            int((x0 ^ c) & mask), int((x1 ^ c) & mask), int((x0 ^ d) & mask), int((x1 ^ d) & mask),
        )  # fmt: skip
    return out


@wp.func
def fade(f: float, smooth: int) -> float:
    return wp.where(smooth == 1, f * f * (3.0 - 2.0 * f), f)


@wp.func
def fade_slope(f: float, smooth: int) -> float:
    return wp.where(smooth == 1, 6.0 * f * (1.0 - f), 1.0)


@wp.func
def fade_bend(f: float, smooth: int) -> float:
    return wp.where(smooth == 1, 6.0 - 12.0 * f, 0.0)


@functools.cache
def kernels(n_features: int, half: bool = False) -> tuple:
    """(forward, scatter, bend) for F features a level; `half`: the table holds float16 (CUDA)."""
    vec = wp.types.vector(length=n_features, dtype=wp.float32)
    store = wp.types.vector(length=n_features, dtype=wp.float16) if half else vec

    @wp.func
    def load(table: wp.array(dtype=store), i: int):
        v = table[i]
        return vec(v) if wp.static(half) else v

    @wp.kernel(module="unique", enable_backward=False)
    def forward(
        x: wp.array(dtype=wp.vec3), table: wp.array(dtype=store), scales: wp.array(dtype=float), shape: wp.array2d(dtype=int),
        smooth: int, start: int, stop: int, run: int, first: int, y: wp.array2d(dtype=float), want_jac: int, jac: wp.array3d(dtype=float),
    ):  # fmt: skip
        slot, block = wp.tid()
        level = slot + first
        scale, res, rows, offset, dense = scales[level], shape[level, 0], shape[level, 1], shape[level, 2], shape[level, 3]
        begin = start + block * run
        for i in range(begin, wp.min(begin + run, stop)):
            p = x[i]
            qx, qy, qz = in_lattice(p[0], scale), in_lattice(p[1], scale), in_lattice(p[2], scale)
            cx, cy, cz = int(qx), int(qy), int(qz)
            fx, fy, fz = qx - float(cx), qy - float(cy), qz - float(cz)
            wx, wy, wz = fade(fx, smooth), fade(fy, smooth), fade(fz, smooth)
            r = corner_rows(cx, cy, cz, res, rows, offset, dense)
            c000, c100, c010, c110 = (
                load(table, offset + r[0]),
                load(table, offset + r[1]),
                load(table, offset + r[2]),
                load(table, offset + r[3]),
            )
            c001, c101, c011, c111 = (
                load(table, offset + r[4]),
                load(table, offset + r[5]),
                load(table, offset + r[6]),
                load(table, offset + r[7]),
            )
            x00 = c100 - c000
            x10 = c110 - c010
            x01 = c101 - c001
            x11 = c111 - c011
            a0 = c000 + x00 * wx
            a1 = c010 + x10 * wx
            b0 = c001 + x01 * wx
            b1 = c011 + x11 * wx
            y0 = a1 - a0
            y1 = b1 - b0
            a = a0 + y0 * wy
            b = b0 + y1 * wy
            value = a + (b - a) * wz
            for f in range(wp.static(n_features)):
                y[level * wp.static(n_features) + f, i] = value[f]
            if want_jac == 1:
                u = x00 + (x10 - x00) * wy
                v = x01 + (x11 - x01) * wy
                dx = (u + (v - u) * wz) * (scale * fade_slope(fx, smooth))
                dy = (y0 + (y1 - y0) * wz) * (scale * fade_slope(fy, smooth))
                dz = (b - a) * (scale * fade_slope(fz, smooth))
                for f in range(wp.static(n_features)):
                    jac[level * wp.static(n_features) + f, 0, i] = dx[f]
                    jac[level * wp.static(n_features) + f, 1, i] = dy[f]
                    jac[level * wp.static(n_features) + f, 2, i] = dz[f]

    @wp.func
    def add(out: wp.array(dtype=vec), i: int, v: vec):
        wp.atomic_add(out, i, v)

    @wp.kernel(module="unique", enable_backward=False)
    def scatter(
        x: wp.array(dtype=wp.vec3), scales: wp.array(dtype=float), shape: wp.array2d(dtype=int), smooth: int, n: int, run: int,
        first: int, stride: int, use_value: int, d_y: wp.array2d(dtype=float), use_slope: int, d_x: wp.array(dtype=wp.vec3),
        g_y: wp.array2d(dtype=float), out: wp.array(dtype=vec),
    ):  # fmt: skip
        slot, block = wp.tid()
        level = slot * stride + first
        scale, res, rows, offset, dense = scales[level], shape[level, 0], shape[level, 1], shape[level, 2], shape[level, 3]
        begin = block * run
        for i in range(begin, wp.min(begin + run, n)):
            p = x[i]
            qx, qy, qz = in_lattice(p[0], scale), in_lattice(p[1], scale), in_lattice(p[2], scale)
            cx, cy, cz = int(qx), int(qy), int(qz)
            fx, fy, fz = qx - float(cx), qy - float(cy), qz - float(cz)
            wx, wy, wz = fade(fx, smooth), fade(fy, smooth), fade(fz, smooth)
            r = corner_rows(cx, cy, cz, res, rows, offset, dense)
            vx, vy, vz = 1.0 - wx, 1.0 - wy, 1.0 - wz
            p00, p10, p01, p11 = vy * vz, wy * vz, vy * wz, wy * wz
            value = vec()
            if use_value == 1:
                for f in range(wp.static(n_features)):
                    value[f] = d_y[level * wp.static(n_features) + f, i]
            if use_slope == 1:
                h = d_x[i]
                slope = vec()
                for f in range(wp.static(n_features)):
                    slope[f] = g_y[level * wp.static(n_features) + f, i]
                sx = h[0] * scale * fade_slope(fx, smooth)
                sy = h[1] * scale * fade_slope(fy, smooth)
                sz = h[2] * scale * fade_slope(fz, smooth)
                q00, q10 = -sy * vz - vy * sz, sy * vz - wy * sz
                q01, q11 = -sy * wz + vy * sz, sy * wz + wy * sz
                add(out, offset + r[0], value * (vx * p00) + slope * (vx * q00 - sx * p00))
                add(out, offset + r[1], value * (wx * p00) + slope * (wx * q00 + sx * p00))
                add(out, offset + r[2], value * (vx * p10) + slope * (vx * q10 - sx * p10))
                add(out, offset + r[3], value * (wx * p10) + slope * (wx * q10 + sx * p10))
                add(out, offset + r[4], value * (vx * p01) + slope * (vx * q01 - sx * p01))
                add(out, offset + r[5], value * (wx * p01) + slope * (wx * q01 + sx * p01))
                add(out, offset + r[6], value * (vx * p11) + slope * (vx * q11 - sx * p11))
                add(out, offset + r[7], value * (wx * p11) + slope * (wx * q11 + sx * p11))
            else:
                add(out, offset + r[0], value * (vx * p00))
                add(out, offset + r[1], value * (wx * p00))
                add(out, offset + r[2], value * (vx * p10))
                add(out, offset + r[3], value * (wx * p10))
                add(out, offset + r[4], value * (vx * p01))
                add(out, offset + r[5], value * (wx * p01))
                add(out, offset + r[6], value * (vx * p11))
                add(out, offset + r[7], value * (wx * p11))

    @wp.func
    def along(table: wp.array(dtype=store), i: int, g: vec):
        return wp.dot(load(table, i), g)

    @wp.kernel(module="unique", enable_backward=False)
    def bend(
        x: wp.array(dtype=wp.vec3), table: wp.array(dtype=store), scales: wp.array(dtype=float), shape: wp.array2d(dtype=int),
        smooth: int, start: int, stop: int, run: int, n_levels: int, h: wp.array(dtype=wp.vec3), g_y: wp.array2d(dtype=float),
        out: wp.array(dtype=wp.vec3),
    ):  # fmt: skip
        begin = start + wp.tid() * run
        end = wp.min(begin + run, stop)
        for i in range(begin, end):
            out[i] = wp.vec3(0.0, 0.0, 0.0)
        for level in range(n_levels):
            scale, res, rows, offset, dense = scales[level], shape[level, 0], shape[level, 1], shape[level, 2], shape[level, 3]
            for i in range(begin, end):
                p = x[i]
                qx, qy, qz = in_lattice(p[0], scale), in_lattice(p[1], scale), in_lattice(p[2], scale)
                cx, cy, cz = int(qx), int(qy), int(qz)
                fx, fy, fz = qx - float(cx), qy - float(cy), qz - float(cz)
                wx, wy, wz = fade(fx, smooth), fade(fy, smooth), fade(fz, smooth)
                r = corner_rows(cx, cy, cz, res, rows, offset, dense)
                g = vec()
                for f in range(wp.static(n_features)):
                    g[f] = g_y[level * wp.static(n_features) + f, i]
                s000, s100 = along(table, offset + r[0], g), along(table, offset + r[1], g)
                s010, s110 = along(table, offset + r[2], g), along(table, offset + r[3], g)
                s001, s101 = along(table, offset + r[4], g), along(table, offset + r[5], g)
                s011, s111 = along(table, offset + r[6], g), along(table, offset + r[7], g)
                x00, x10, x01, x11 = s100 - s000, s110 - s010, s101 - s001, s111 - s011
                u, v = x00 + (x10 - x00) * wy, x01 + (x11 - x01) * wy
                y0 = (s010 - s000) + (x10 - x00) * wx
                y1 = (s011 - s001) + (x11 - x01) * wx
                z = (s001 + x01 * wx + y1 * wy) - (s000 + x00 * wx + y0 * wy)
                sx, sy, sz = fade_slope(fx, smooth), fade_slope(fy, smooth), fade_slope(fz, smooth)
                xx = (u + (v - u) * wz) * fade_bend(fx, smooth)
                yy = (y0 + (y1 - y0) * wz) * fade_bend(fy, smooth)
                zz = z * fade_bend(fz, smooth)
                xy = ((x10 - x00) + ((x11 - x01) - (x10 - x00)) * wz) * (sx * sy)
                xz = (v - u) * (sx * sz)
                yz = (y1 - y0) * (sy * sz)
                d = h[i] * (scale * scale)
                out[i] = out[i] + wp.vec3(
                    xx * d[0] + xy * d[1] + xz * d[2], xy * d[0] + yy * d[1] + yz * d[2], xz * d[0] + yz * d[1] + zz * d[2]
                )

    return forward, scatter, bend


@wp.kernel(module="unique", enable_backward=False)
def jacobian_left(jac: wp.array3d(dtype=float), g: wp.array2d(dtype=float), begin: int, stop: int, run: int, out: wp.array(dtype=wp.vec3)):
    first = begin + wp.tid() * run
    last = wp.min(first + run, stop)
    for i in range(first, last):
        out[i] = wp.vec3(0.0, 0.0, 0.0)
    for k in range(jac.shape[0]):
        for i in range(first, last):
            s = g[k, i]
            out[i] = out[i] + wp.vec3(s * jac[k, 0, i], s * jac[k, 1, i], s * jac[k, 2, i])


@wp.kernel(module="unique", enable_backward=False)
def jacobian_right(jac: wp.array3d(dtype=float), h: wp.array(dtype=wp.vec3), begin: int, stop: int, run: int, out: wp.array2d(dtype=float)):
    first = begin + wp.tid() * run
    last = wp.min(first + run, stop)
    for k in range(jac.shape[0]):
        for i in range(first, last):
            v = h[i]
            out[k, i] = jac[k, 0, i] * v[0] + jac[k, 1, i] * v[1] + jac[k, 2, i] * v[2]
