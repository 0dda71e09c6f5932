"""C++ for Warp kernels that run on the CPU alone: products of small matrices, activations, over blocks of points.

A block is a matrix [features, P] with a point in each lane of a vector, so that every operation is vectorised and nothing of a
layer goes through main memory. Vectors have 16 floats: one AVX-512 register, two of AVX, four of NEON.
"""

import functools

import torch
import warp as wp

from utils import warp_launch

BLOCK = 256  # points of a block: a layer of 64 takes 64 KiB of the second cache

PRODUCTS = r"""
    typedef float V __attribute__((ext_vector_type(16), aligned(4)));
    typedef int VI __attribute__((ext_vector_type(16), aligned(4)));
    constexpr int P = BLOCK, Q = P / 16;
    // sums that fit the registers: of a product T rows of R vectors, of `outer` 4 by OUT vectors U
#if defined(__AVX512F__)
    constexpr int T = 8, R = 2, OUT = 4;
    typedef V U;
#elif defined(__AVX__)
    constexpr int T = 6, R = 1, OUT = 3;
    typedef float U __attribute__((ext_vector_type(8), aligned(4)));
#else
    constexpr int T = 4, R = 1, OUT = 4;
    typedef float U __attribute__((ext_vector_type(4), aligned(4)));
#endif
    constexpr int LANES = sizeof(U) / sizeof(float);
    auto at = [](const float* a, int row, int q) { return *(const V*)(a + (size_t)row * P + 16 * q); };
    // out[M, P] = weights[M, K] in[K, P] + bias; weight (m, k) lies at m * row + k * col
    auto product = [&](const float* __restrict weights, int row, int col, const float* bias, int M, int K, const float* __restrict in, float* __restrict out) {
        auto tile = [&](auto rows, int m, int q) {
            constexpr int C = sizeof(*rows);
            V a[C][R];
            #pragma unroll
            for (int t = 0; t < C * R; ++t) a[t / R][t % R] = bias ? V(bias[m + t / R]) : V(0.0f);
            const float* w = weights + (size_t)m * row;
            for (int k = 0; k < K; ++k) {
                V x[R];
                #pragma unroll
                for (int r = 0; r < R; ++r) x[r] = at(in, k, q + r);
                #pragma unroll
                for (int t = 0; t < C; ++t) {
                    V s = V(w[(size_t)t * row + (size_t)k * col]);
                    #pragma unroll
                    for (int r = 0; r < R; ++r) a[t][r] = __builtin_elementwise_fma(s, x[r], a[t][r]);
                }
            }
            #pragma unroll
            for (int t = 0; t < C * R; ++t) *(V*)(out + (size_t)(m + t / R) * P + 16 * (q + t % R)) = a[t / R][t % R];
        };
        for (int q = 0; q < Q; q += R) {
            int m = 0;
            for (; m + T <= M; m += T) tile((char (*)[T])nullptr, m, q);
            if (M - m >= 4) tile((char (*)[4])nullptr, m, q), m += 4;
            if (M - m >= 2) tile((char (*)[2])nullptr, m, q), m += 2;
            if (M - m >= 1) tile((char (*)[1])nullptr, m, q);
        }
    };
    auto sum_of = [](auto v) {
        float f[sizeof(v) / sizeof(float)];
        __builtin_memcpy(f, &v, sizeof v);
        for (int step = sizeof(v) / sizeof(float) / 2; step; step /= 2)
            for (int t = 0; t < step; ++t) f[t] += f[t + step];
        return f[0];
    };
    // to[m * row + k] += sum over points of left[M, P] right[K, P]
    auto outer = [&](const float* __restrict left, const float* __restrict right, int M, int K, float* __restrict to, int row) {
        for (int m = 0; m < M; m += 4)
            for (int k = 0; k < K; k += OUT) {
                U sum[4][OUT];
                const float *l[4], *r[OUT];  // rows beyond the last stand for the first: their sums are not used
                #pragma unroll
                for (int t = 0; t < 4; ++t) l[t] = left + (size_t)(m + (m + t < M ? t : 0)) * P;
                #pragma unroll
                for (int t = 0; t < OUT; ++t) r[t] = right + (size_t)(k + (k + t < K ? t : 0)) * P;
                #pragma unroll
                for (int t = 0; t < 4 * OUT; ++t) sum[t / OUT][t % OUT] = U(0.0f);
                for (int q = 0; q < P; q += LANES) {
                    U b[OUT];
                    #pragma unroll
                    for (int t = 0; t < OUT; ++t) b[t] = *(const U*)(r[t] + q);
                    #pragma unroll
                    for (int t = 0; t < 4; ++t) {
                        U a = *(const U*)(l[t] + q);
                        #pragma unroll
                        for (int u = 0; u < OUT; ++u) sum[t][u] = __builtin_elementwise_fma(a, b[u], sum[t][u]);
                    }
                }
                for (int t = 0; t < 4 && m + t < M; ++t)
                    for (int u = 0; u < OUT && k + u < K; ++u) to[(size_t)(m + t) * row + k + u] += sum_of(sum[t][u]);
            }
    };
    // to[m] += sum over points of rows[M, P]
    auto row_sums = [&](const float* __restrict rows, int M, float* __restrict to) {
        for (int m = 0; m < M; ++m) {
            V sum = V(0.0f);
            for (int q = 0; q < Q; ++q) sum += at(rows, m, q);
            to[m] += sum_of(sum);
        }
    };
""".replace("BLOCK", str(BLOCK))

# softplus with beta 100 (0), its piecewise polynomial twin (1), relu (2): see `models/network.py: ACTIVATIONS`
ACTIVATIONS = {"softplus": 0, "quadratic": 1, "relu": 2}

ACTIVATE = r"""
    const int kind = activation;
    auto expv = [](V x) {  // of x <= 0; Cephes' polynomial, relative error 1e-7
        x = __builtin_elementwise_max(x, V(-87.0f));
        V n = __builtin_elementwise_roundeven(x * V(1.44269504f));
        V r = __builtin_elementwise_fma(n, V(-0.693359375f), x);
        r = __builtin_elementwise_fma(n, V(2.12194440e-4f), r);
        V p = V(1.9875691500e-4f);
        p = __builtin_elementwise_fma(p, r, V(1.3981999507e-3f));
        p = __builtin_elementwise_fma(p, r, V(8.3334519073e-3f));
        p = __builtin_elementwise_fma(p, r, V(4.1665795894e-2f));
        p = __builtin_elementwise_fma(p, r, V(1.6666665459e-1f));
        p = __builtin_elementwise_fma(p, r, V(5.0000001201e-1f));
        p = __builtin_elementwise_fma(p * r, r, r + V(1.0f));
        return p * (V)((__builtin_convertvector(n, VI) + 127) << 23);
    };
    // a and s [M, P]: value and slope of the activation of h [M, P]; a may be h
    auto activate = [&](const float* h, float* a, float* s, int M) {
        for (int k = 0; k < M * Q; ++k) {
            V v = *(const V*)(h + 16 * k), value, slope;
            if (kind == 0) {
                V e = expv(__builtin_elementwise_abs(v) * V(-100.0f));
                V one = V(1.0f) / (V(1.0f) + e);
                slope = v >= V(0.0f) ? one : e * one;
                V t = e / (V(2.0f) + e), tt = t * t;  // log(1 + e) by the series of atanh
                V p = V(2.0f / 13);
                p = __builtin_elementwise_fma(p, tt, V(2.0f / 11));
                p = __builtin_elementwise_fma(p, tt, V(2.0f / 9));
                p = __builtin_elementwise_fma(p, tt, V(2.0f / 7));
                p = __builtin_elementwise_fma(p, tt, V(2.0f / 5));
                p = __builtin_elementwise_fma(p, tt, V(2.0f / 3));
                p = __builtin_elementwise_fma(p, tt, V(2.0f));
                value = __builtin_elementwise_fma(p * t, V(0.01f), __builtin_elementwise_max(v, V(0.0f)));
            } else if (kind == 1) {
                slope = __builtin_elementwise_min(__builtin_elementwise_max(v * V(25.0f) + V(0.5f), V(0.0f)), V(1.0f));
                value = V(0.02f) * slope * slope + __builtin_elementwise_max(v - V(0.02f), V(0.0f));
            } else {
                slope = v > V(0.0f) ? V(1.0f) : V(0.0f);
                value = __builtin_elementwise_max(v, V(0.0f));
            }
            *(V*)(a + 16 * k) = value;
            *(V*)(s + 16 * k) = slope;
        }
    };
"""


def parts(n: int) -> int:
    """Number of parts that `run` works on at once."""
    return len(warp_launch.split(n, torch.device("cpu"), BLOCK))


def run(kernel: object, head: list, tail: list, n: int, rows: int) -> None:
    """Launch a kernel on the parts of n points: head, begin, stop, part, scratch [parts, rows * BLOCK], tail are its arguments."""
    cpu = torch.device("cpu")
    edges = warp_launch.split(n, cpu, BLOCK)
    scratch = torch.empty(len(edges), rows * BLOCK)
    room = warp_launch.array(scratch, wp.float32)
    warp_launch.run([functools.partial(warp_launch.launch, kernel, 1, [*head, *edge, i, room, *tail], cpu) for i, edge in enumerate(edges)])
