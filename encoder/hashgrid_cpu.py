"""The hash grid on the CPU: the sums of `encoder/hashgrid_warp.py` in C++ that the compiler can vectorise.

Warp compiles it at first use. A block of points of one level goes through in three passes: rows of the corners and weights
(vectorised), the table's random reads or writes (independent, so that many are in flight), interpolation (vectorised).
"""

import functools

import warp as wp

LATTICE = r"""
    constexpr int F = %(features)d, B = 128;
    alignas(64) int row[8][B];
    alignas(64) float w[3][B], s[3][B], curve[3][B];
    auto locate = [&](int i, int m) {  // rows of the 8 corners; interpolation weights, their slopes and curvatures
        alignas(64) int cell[3][B];
        for (int c = 0; c < 3; ++c) {
            #pragma clang loop vectorize(enable)
            for (int p = 0; p < m; ++p) {
                float q = X[(size_t)3 * (i + p) + c];
                q = q > 0.0f ? q : 0.0f;
                q = (q < 1.0f ? q : 1.0f) * scale + 0.5f;
                int whole = (int)q;
                float f = q - (float)whole;
                cell[c][p] = whole;
                w[c][p] = smooth ? f * f * (3.0f - 2.0f * f) : f;
                s[c][p] = scale * (smooth ? 6.0f * f * (1.0f - f) : 1.0f);
                curve[c][p] = scale * scale * (6.0f - 12.0f * f);  // of a smooth grid
            }
        }
        if (dense) {
            #pragma clang loop vectorize(enable)
            for (int p = 0; p < m; ++p) {
                int r = cell[0][p] + cell[1][p] * res + cell[2][p] * res * res;
                for (int k = 0; k < 8; ++k) {
                    int at = r + (k & 1) + (k >> 1 & 1) * res + (k >> 2) * res * res;
                    row[k][p] = offset + (at >= rows ? at - rows : at);  // the last lattice plane wraps around
                }
            }
        } else {
            #pragma clang loop vectorize(enable)
            for (int p = 0; p < m; ++p) {
                unsigned x0 = cell[0][p], y0 = cell[1][p] * 2654435761u, z0 = cell[2][p] * 805459861u;
                for (int k = 0; k < 8; ++k)
                    row[k][p] = offset + (int)(((x0 + (k & 1)) ^ (y0 + (k >> 1 & 1) * 2654435761u) ^ (z0 + (k >> 2) * 805459861u)) & (unsigned)(rows - 1));
            }
        }
    };
"""

FORWARD = r"""
    const float* __restrict X = (const float*)x.data;
    const float* __restrict T = (const float*)table.data;
    float* __restrict Y = y.data;
    float* __restrict J = jac.data;
%(lattice)s
    alignas(64) float corner[8][B][F];
    for (int i = begin; i < stop; i += B) {
        const int m = stop - i < B ? stop - i : B;
        locate(i, m);
        for (int k = 0; k < 8; ++k) {
            #pragma clang loop vectorize(disable)
            for (int p = 0; p < m; ++p) __builtin_memcpy(corner[k][p], T + (size_t)row[k][p] * F, sizeof(float) * F);
        }
        for (int f = 0; f < F; ++f) {
            float* __restrict value = Y + (size_t)(level * F + f) * n + i;
            if (want_jac) {
                float* __restrict slope = J + (size_t)(level * F + f) * 3 * n + i;
                #pragma clang loop vectorize(enable)
                for (int p = 0; p < m; ++p) {
                    float wx = w[0][p], wy = w[1][p], wz = w[2][p];
                    float x00 = corner[1][p][f] - corner[0][p][f], x10 = corner[3][p][f] - corner[2][p][f];
                    float x01 = corner[5][p][f] - corner[4][p][f], x11 = corner[7][p][f] - corner[6][p][f];
                    float a0 = corner[0][p][f] + x00 * wx, a1 = corner[2][p][f] + x10 * wx;
                    float b0 = corner[4][p][f] + x01 * wx, b1 = corner[6][p][f] + x11 * wx;
                    float y0 = a1 - a0, y1 = b1 - b0, a = a0 + y0 * wy, b = b0 + y1 * wy;
                    value[p] = a + (b - a) * wz;
                    float u = x00 + (x10 - x00) * wy, v = x01 + (x11 - x01) * wy;
                    slope[p] = (u + (v - u) * wz) * s[0][p];
                    slope[(size_t)n + p] = (y0 + (y1 - y0) * wz) * s[1][p];
                    slope[2 * (size_t)n + p] = (b - a) * s[2][p];
                }
            } else {
                #pragma clang loop vectorize(enable)
                for (int p = 0; p < m; ++p) {
                    float wx = w[0][p], wy = w[1][p];
                    float a0 = corner[0][p][f] + (corner[1][p][f] - corner[0][p][f]) * wx, a1 = corner[2][p][f] + (corner[3][p][f] - corner[2][p][f]) * wx;
                    float b0 = corner[4][p][f] + (corner[5][p][f] - corner[4][p][f]) * wx, b1 = corner[6][p][f] + (corner[7][p][f] - corner[6][p][f]) * wx;
                    float a = a0 + (a1 - a0) * wy, b = b0 + (b1 - b0) * wy;
                    value[p] = a + (b - a) * w[2][p];
                }
            }
        }
    }
"""

SCATTER = r"""
    const float* __restrict X = (const float*)x.data;
    const float* __restrict D = d_y.data;
    const float* __restrict G = g_y.data;
    const float* __restrict H = (const float*)d_x.data;
    float* __restrict O = (float*)out.data;
%(lattice)s
    alignas(64) float share[8][B][F];
    for (int i = 0; i < n; i += B) {
        const int m = n - i < B ? n - i : B;
        locate(i, m);
        for (int k = 0; k < 8; ++k)
            for (int p = 0; p < m; ++p) __builtin_prefetch(O + (size_t)row[k][p] * F, 1);
        for (int f = 0; f < F; ++f) {
            const float* __restrict value = D + (size_t)(level * F + f) * n + i;
            const float* __restrict slope = G + (size_t)(level * F + f) * n + i;
            #pragma clang loop vectorize(enable)
            for (int p = 0; p < m; ++p) {
                float v = use_value ? value[p] : 0.0f, g = use_slope ? slope[p] : 0.0f;
                float hx = use_slope ? H[(size_t)3 * (i + p)] * s[0][p] * g : 0.0f;
                float hy = use_slope ? H[(size_t)3 * (i + p) + 1] * s[1][p] * g : 0.0f;
                float hz = use_slope ? H[(size_t)3 * (i + p) + 2] * s[2][p] * g : 0.0f;
                float ax = 1.0f - w[0][p], ay = 1.0f - w[1][p], az = 1.0f - w[2][p], bx = w[0][p], by = w[1][p], bz = w[2][p];
                for (int k = 0; k < 8; ++k) {
                    float wx = k & 1 ? bx : ax, wy = k & 2 ? by : ay, wz = k & 4 ? bz : az;
                    share[k][p][f] = (v * wx + (k & 1 ? hx : -hx)) * (wy * wz) + wx * ((k & 2 ? hy : -hy) * wz + (k & 4 ? hz : -hz) * wy);
                }
            }
        }
        for (int p = 0; p < m; ++p)
            for (int k = 0; k < 8; ++k) {
                float* o = O + (size_t)row[k][p] * F;
                float sum[F];
                __builtin_memcpy(sum, o, sizeof sum);
                for (int f = 0; f < F; ++f) sum[f] += share[k][p][f];
                __builtin_memcpy(o, sum, sizeof sum);
            }
    }
"""

BEND = r"""
    const float* __restrict X = (const float*)x.data;
    const float* __restrict T = (const float*)table.data;
    const float* __restrict G = g_y.data;
    const float* __restrict H = (const float*)h.data;
    float* __restrict O = (float*)out.data;
%(lattice)s
    alignas(64) float corner[8][B][F], c[8][B];
    for (int i = begin; i < stop; i += B) {
        const int m = stop - i < B ? stop - i : B;
        locate(i, m);
        for (int k = 0; k < 8; ++k) {
            #pragma clang loop vectorize(disable)
            for (int p = 0; p < m; ++p) __builtin_memcpy(corner[k][p], T + (size_t)row[k][p] * F, sizeof(float) * F);
        }
        for (int k = 0; k < 8; ++k)
            for (int f = 0; f < F; ++f) {
                const float* __restrict g = G + (size_t)(level * F + f) * n + i;
                #pragma clang loop vectorize(enable)
                for (int p = 0; p < m; ++p) c[k][p] = (f ? c[k][p] : 0.0f) + corner[k][p][f] * g[p];
            }
        #pragma clang loop vectorize(enable)
        for (int p = 0; p < m; ++p) {
            float wx = w[0][p], wy = w[1][p], wz = w[2][p], sx = s[0][p], sy = s[1][p], sz = s[2][p];
            float x00 = c[1][p] - c[0][p], x10 = c[3][p] - c[2][p], x01 = c[5][p] - c[4][p], x11 = c[7][p] - c[6][p];
            float u = x00 + (x10 - x00) * wy, v = x01 + (x11 - x01) * wy;
            float y0 = (c[2][p] - c[0][p]) + (x10 - x00) * wx, y1 = (c[6][p] - c[4][p]) + (x11 - x01) * wx;
            float xy = ((x10 - x00) + ((x11 - x01) - (x10 - x00)) * wz) * (sx * sy), xz = (v - u) * (sx * sz), yz = (y1 - y0) * (sy * sz);
            float xx = 0.0f, yy = 0.0f, zz = 0.0f;
            if (smooth) {
                float z = (c[4][p] + x01 * wx + y1 * wy) - (c[0][p] + x00 * wx + y0 * wy);
                xx = (u + (v - u) * wz) * curve[0][p];
                yy = (y0 + (y1 - y0) * wz) * curve[1][p];
                zz = z * curve[2][p];
            }
            size_t at = (size_t)3 * (i + p);
            float a = H[at], b = H[at + 1], d = H[at + 2];
            O[at] += xx * a + xy * b + xz * d;
            O[at + 1] += xy * a + yy * b + yz * d;
            O[at + 2] += xz * a + yz * b + zz * d;
        }
    }
"""


@functools.cache
def kernels(n_features: int) -> tuple:
    """(forward, scatter, bend) for F features a level in float32."""
    vec = wp.types.vector(length=n_features, dtype=wp.float32)
    lattice = LATTICE % {"features": n_features}

    @wp.func_native(FORWARD % {"lattice": lattice})
    def interpolate(
        x: wp.array(dtype=wp.vec3), table: wp.array(dtype=vec), level: int, scale: float, res: int, rows: int, offset: int, dense: int,
        smooth: int, begin: int, stop: int, n: int, y: wp.array2d(dtype=float), want_jac: int, jac: wp.array3d(dtype=float),
    ): ...  # fmt: skip

    @wp.kernel(module="unique", enable_backward=False)
    def forward(
        x: wp.array(dtype=wp.vec3), table: wp.array(dtype=vec), scales: wp.array(dtype=float), shape: wp.array2d(dtype=int),
        smooth: int, begin: int, stop: int, y: wp.array2d(dtype=float), want_jac: int, jac: wp.array3d(dtype=float),
    ):  # fmt: skip
        level = wp.tid()
        interpolate(
            x, table, level, scales[level], shape[level, 0], shape[level, 1], shape[level, 2], shape[level, 3],
            smooth, begin, stop, y.shape[1], y, want_jac, jac,
        )  # fmt: skip

    @wp.func_native(SCATTER % {"lattice": lattice})
    def spread(
        x: wp.array(dtype=wp.vec3), level: int, scale: float, res: int, rows: int, offset: int, dense: int, smooth: int, n: int,
        use_value: int, d_y: wp.array2d(dtype=float), use_slope: int, d_x: wp.array(dtype=wp.vec3), g_y: wp.array2d(dtype=float), out: wp.array(dtype=vec),
    ): ...  # fmt: skip

    @wp.kernel(module="unique", enable_backward=False)
    def scatter(
        x: wp.array(dtype=wp.vec3), scales: wp.array(dtype=float), shape: wp.array2d(dtype=int), smooth: int, n: int, first: int, stride: int,
        use_value: int, d_y: wp.array2d(dtype=float), use_slope: int, d_x: wp.array(dtype=wp.vec3), g_y: wp.array2d(dtype=float), out: wp.array(dtype=vec),
    ):  # fmt: skip
        level = wp.tid() * stride + first
        spread(
            x, level, scales[level], shape[level, 0], shape[level, 1], shape[level, 2], shape[level, 3], smooth, n,
            use_value, d_y, use_slope, d_x, g_y, out,
        )  # fmt: skip

    @wp.func_native(BEND % {"lattice": lattice})
    def second(
        x: wp.array(dtype=wp.vec3), table: wp.array(dtype=vec), level: int, scale: float, res: int, rows: int, offset: int, dense: int,
        smooth: int, begin: int, stop: int, n: int, h: wp.array(dtype=wp.vec3), g_y: wp.array2d(dtype=float), out: wp.array(dtype=wp.vec3),
    ): ...  # fmt: skip

    @wp.kernel(module="unique", enable_backward=False)
    def bend(
        x: wp.array(dtype=wp.vec3), table: wp.array(dtype=vec), scales: wp.array(dtype=float), shape: wp.array2d(dtype=int),
        smooth: int, begin: int, stop: int, n_levels: int, h: wp.array(dtype=wp.vec3), g_y: wp.array2d(dtype=float), out: wp.array(dtype=wp.vec3),
    ):  # fmt: skip
        for level in range(n_levels):
            second(
                x, table, level, scales[level], shape[level, 0], shape[level, 1], shape[level, 2], shape[level, 3],
                smooth, begin, stop, g_y.shape[1], h, g_y, out,
            )  # fmt: skip

    return forward, scatter, bend
