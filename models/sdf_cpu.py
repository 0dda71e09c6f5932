"""The network part of `models/sdf_fused.py` with one hidden layer, on the CPU: forward and backward of a block of points at a time.

Warp compiles it at first use. Backward recomputes the hidden layer, so that only the encoding and its Jacobian are kept.
"""

import functools

import torch
import warp as wp
from torch import Tensor

from utils import native, warp_launch

START = r"""
    const int E = y.shape[0], K = 3 + E, H = w0.shape[0], O = w1.shape[0], n = y.shape[1];
    const float* __restrict X = (const float*)x.data;
    const float* __restrict Y = y.data;
    const float* __restrict J = jac.data;
    const float* __restrict W0 = w0.data;
    const float* __restrict W1 = w1.data;
    const float half = 0.5f / radius;
    float* room = scratch.data + (size_t)part * scratch.shape[1];
    auto take = [&](int rows) { float* a = room; room += (size_t)rows * P; return a; };
    float *in = take(K), *a = take(H), *s = take(H), *p = take(H);
    // the inputs, the hidden layer, its slope and p = v s of points i to i + m
    auto hidden = [&](int i, int m) {
        for (int c = 0; c < 3; ++c)
            for (int t = 0; t < P; ++t) in[c * P + t] = t < m ? X[(size_t)3 * (i + t) + c] : 0.0f;
        for (int k = 0; k < E; ++k)
            for (int t = 0; t < P; ++t) in[(3 + k) * P + t] = t < m ? Y[(size_t)k * n + i + t] : 0.0f;
        product(W0, K, 1, b0.data, H, K, in, a);
        activate(a, a, s, H);
        for (int j = 0; j < H; ++j) {
            float v = W1[j];
            for (int t = 0; t < P; ++t) p[j * P + t] = v * s[j * P + t];
        }
    };
"""

FORWARD = r"""
    float *r = take(O), *g = take(K);
    for (int i = begin; i < stop; i += P) {
        const int m = stop - i < P ? stop - i : P;
        hidden(i, m);
        product(W1, H, 1, b1.data, O, H, a, r);
        for (int o = 0; o < O; ++o)
            for (int t = 0; t < m; ++t) out.data[(size_t)(i + t) * O + o] = r[o * P + t];
        if (!want_grad) continue;
        product(W0, 1, K, nullptr, K, H, p, g);
        for (int k = 0; k < E; ++k) {
            const float* __restrict q = g + (size_t)(3 + k) * P;
            float* __restrict kept = g_y.data + (size_t)k * n + i;
            for (int t = 0; t < m; ++t) kept[t] = q[t];
            for (int c = 0; c < 3; ++c) {
                const float* __restrict slope = J + (size_t)(3 * k + c) * n + i;
                float* __restrict sum = g + (size_t)c * P;
                for (int t = 0; t < m; ++t) sum[t] += half * q[t] * slope[t];
            }
        }
        float* __restrict G = (float*)grad.data;
        for (int c = 0; c < 3; ++c)
            for (int t = 0; t < m; ++t) G[(size_t)3 * (i + t) + c] = g[c * P + t];
    }
"""

BACKWARD = r"""
    const float* __restrict D = (const float*)d_grad.data;
    float *u = take(K), *d_p = take(H), *r = take(O), *d_h = take(H);
    float* __restrict total_w0 = d_w0.data + (size_t)part * H * K;
    float* __restrict total_b0 = d_b0.data + (size_t)part * H;
    float* __restrict total_w1 = d_w1.data + (size_t)part * O * H;
    float* __restrict total_b1 = d_b1.data + (size_t)part * O;
    for (int i = begin; i < stop; i += P) {
        const int m = stop - i < P ? stop - i : P;
        hidden(i, m);
        // the gradient chain, from the input up
        for (int c = 0; c < 3; ++c)
            for (int t = 0; t < P; ++t) u[c * P + t] = t < m ? D[(size_t)3 * (i + t) + c] : 0.0f;
        for (int k = 0; k < E; ++k) {
            const float* __restrict slope = J + (size_t)3 * k * n + i;
            float* __restrict to = u + (size_t)(3 + k) * P;
            for (int t = 0; t < m; ++t) to[t] = half * (slope[t] * u[t] + slope[(size_t)n + t] * u[P + t] + slope[2 * (size_t)n + t] * u[2 * P + t]);
            for (int t = m; t < P; ++t) to[t] = 0.0f;
        }
        product(W0, K, 1, nullptr, H, K, u, d_p);
        // the value chain, from the output down
        for (int o = 0; o < O; ++o)
            for (int t = 0; t < P; ++t) r[o * P + t] = t < m ? d_out.data[(size_t)(i + t) * O + o] : 0.0f;
        product(W1, 1, H, nullptr, H, O, r, d_h);
        outer(r, a, O, H, total_w1, H);
        row_sums(r, O, total_b1);
        outer(p, u, H, K, total_w0, K);
        for (int j = 0; j < H; ++j) {
            const float v = W1[j];
            for (int t = 0; t < P; ++t) {
                float slope = s[j * P + t], d = d_p[j * P + t];
                float curve = kind == 0 ? 100.0f * slope * (1.0f - slope) : kind == 1 ? (slope > 0.0f && slope < 1.0f ? 25.0f : 0.0f) : 0.0f;
                d_h[j * P + t] = d_h[j * P + t] * slope + curve * d * v;
                d_p[j * P + t] = d * slope;
            }
        }
        row_sums(d_p, H, total_w1);  // v is the first row of the last weights
        row_sums(d_h, H, total_b0);
        outer(d_h, in, H, K, total_w0, K);
        product(W0, 1, K, nullptr, K, H, d_h, u);
        for (int k = 0; k < E; ++k) {
            const float* __restrict more = d_seen.data + (size_t)k * n + i;
            float* __restrict to = d_y.data + (size_t)k * n + i;
            float* __restrict d = u + (size_t)(3 + k) * P;
            if (seen)
                for (int t = 0; t < m; ++t) d[t] += more[t];
            for (int t = 0; t < m; ++t) to[t] = d[t];
            for (int c = 0; c < 3 && want_x; ++c) {
                const float* __restrict slope = J + (size_t)(3 * k + c) * n + i;
                for (int t = 0; t < m; ++t) u[c * P + t] += half * d[t] * slope[t];
            }
        }
        float* __restrict to = (float*)d_x.data;
        for (int c = 0; c < 3 && want_x; ++c)
            for (int t = 0; t < m; ++t) to[(size_t)3 * (i + t) + c] = u[c * P + t];
    }
"""


@functools.cache
def kernels() -> tuple:
    """(forward, backward)."""
    vec, f1, f2, f3 = (wp.array(dtype=wp.vec3), wp.array(dtype=float), wp.array2d(dtype=float), wp.array3d(dtype=float))

    @wp.func_native(native.PRODUCTS + native.ACTIVATE + START + FORWARD)
    def run_forward(
        x: vec, y: f2, jac: f3, w0: f2, b0: f1, w1: f2, b1: f1, activation: int, radius: float, begin: int, stop: int, part: int,
        scratch: f2, out: f2, want_grad: int, grad: vec, g_y: f2,
    ): ...  # fmt: skip

    @wp.kernel(module="unique", enable_backward=False)
    def forward(
        x: vec, y: f2, jac: f3, w0: f2, b0: f1, w1: f2, b1: f1, activation: int, radius: float, begin: int, stop: int, part: int,
        scratch: f2, out: f2, want_grad: int, grad: vec, g_y: f2,
    ):  # fmt: skip
        run_forward(x, y, jac, w0, b0, w1, b1, activation, radius, begin, stop, part, scratch, out, want_grad, grad, g_y)

    @wp.func_native(native.PRODUCTS + native.ACTIVATE + START + BACKWARD)
    def run_backward(
        x: vec, y: f2, jac: f3, w0: f2, b0: f1, w1: f2, activation: int, radius: float, begin: int, stop: int, part: int, scratch: f2,
        d_out: f2, d_grad: vec, seen: int, d_seen: f2, want_x: int, d_w0: f3, d_b0: f2, d_w1: f3, d_b1: f2, d_y: f2, d_x: vec,
    ): ...  # fmt: skip

    @wp.kernel(module="unique", enable_backward=False)
    def backward(
        x: vec, y: f2, jac: f3, w0: f2, b0: f1, w1: f2, activation: int, radius: float, begin: int, stop: int, part: int, scratch: f2,
        d_out: f2, d_grad: vec, seen: int, d_seen: f2, want_x: int, d_w0: f3, d_b0: f2, d_w1: f3, d_b1: f2, d_y: f2, d_x: vec,
    ):  # fmt: skip
        run_backward(
            x, y, jac, w0, b0, w1, activation, radius, begin, stop, part, scratch, d_out, d_grad,
            seen, d_seen, want_x, d_w0, d_b0, d_w1, d_b1, d_y, d_x,
        )  # fmt: skip

    return forward, backward


def forward(
    x: Tensor, y: Tensor, jac: Tensor, weights: tuple[Tensor, ...], activation: str, radius: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(out [S, 1 + F], gradient of its first column by the points [S, 3], that by the encoding g_y [E, S]).

    x [S, 3]; y [E, S] and jac [E, 3, S] the encoding of x / (2 radius) + 0.5 and its Jacobian; weights W_0, b_0, W, b.
    """
    n, (w0, _, w1, _) = len(x), weights
    out, grad, g_y = torch.empty(n, len(w1)), torch.empty(n, 3), torch.empty_like(y)
    head = [*_inputs(x, y, jac), *_weights(weights), native.ACTIVATIONS[activation], radius]
    tail = [warp_launch.array(out, wp.float32), 1, warp_launch.array(grad, wp.vec3), warp_launch.array(g_y, wp.float32)]
    native.run(kernels()[0], head, tail, n, 2 * w0.shape[1] + 3 * len(w0) + len(w1))
    return out, grad, g_y


def values(x: Tensor, y: Tensor, weights: tuple[Tensor, ...], activation: str) -> Tensor:
    """`forward` without the gradient: [S, O] of the O rows of W."""
    n, (w0, _, w1, _) = len(x), weights
    out, nothing = torch.empty(n, len(w1)), torch.empty(0, 3, 0)
    head = [*_inputs(x, y, nothing), *_weights(weights), native.ACTIVATIONS[activation], 1.0]
    tail = [
        warp_launch.array(out, wp.float32),
        0,
        warp_launch.array(nothing.view(0, 3), wp.vec3),
        warp_launch.array(nothing.view(0, 0), wp.float32),
    ]
    native.run(kernels()[0], head, tail, n, 2 * w0.shape[1] + 3 * len(w0) + len(w1))
    return out


def backward(
    x: Tensor, y: Tensor, jac: Tensor, weights: tuple[Tensor, ...], activation: str, radius: float,
    d_out: Tensor, d_grad: Tensor, d_seen: Tensor | None = None, want_x: bool = True,
) -> tuple[list[Tensor], Tensor, Tensor | None]:  # fmt: skip
    """(gradients of the weights; of the encoding [E, S]; of the points [S, 3], but for the encoding's second derivative).

    From those of out [S, 1 + F], grad [S, 3], and, where it is used elsewhere, of the encoding itself [E, S].
    """
    n, (w0, _, w1, _) = len(x), weights
    sums = [torch.zeros(native.parts(n), *w.shape) for w in weights]
    nothing = torch.empty(0, 0)
    d_y, d_x = torch.empty_like(y), torch.empty(n if want_x else 0, 3)
    head = [*_inputs(x, y, jac), *_weights(weights[:3]), native.ACTIVATIONS[activation], radius]
    tail = [warp_launch.array(d_out.contiguous(), wp.float32), warp_launch.array(d_grad.contiguous(), wp.vec3)]
    tail += [int(d_seen is not None), warp_launch.array(nothing if d_seen is None else d_seen.contiguous(), wp.float32), int(want_x)]
    tail += [warp_launch.array(t, wp.float32) for t in (*sums, d_y)] + [warp_launch.array(d_x, wp.vec3)]
    native.run(kernels()[1], head, tail, n, 2 * w0.shape[1] + 5 * len(w0) + len(w1))
    return [t.sum(0) for t in sums], d_y, d_x if want_x else None


def _inputs(x: Tensor, y: Tensor, jac: Tensor) -> list:
    return [warp_launch.array(x.contiguous(), wp.vec3), warp_launch.array(y, wp.float32), warp_launch.array(jac, wp.float32)]


def _weights(weights: tuple[Tensor, ...]) -> list:
    return [warp_launch.array(w.contiguous(), wp.float32) for w in weights]
