"""Multilayer perceptrons with ReLU (`models/network.py: mlp`) on the CPU: forward and backward of a block of points at a time.

Warp compiles it at first use.
"""

import functools
from collections.abc import Sequence

import torch
import warp as wp
from torch import Tensor

from utils import native, warp_launch

START = r"""
    const int layers = dims.shape[0] - 1, K = dims.data[0], O = dims.data[layers];
    const int* D = dims.data;
    const size_t n = x.shape[0];
    const float* W = weights.data;
    float* room = scratch.data + (size_t)part * scratch.shape[1];
    auto take = [&](int rows) { float* a = room; room += (size_t)rows * P; return a; };
    float* first = take(K);
    // rows [points, width] of a matrix to columns [width, P] and back
    auto load = [&](const float* __restrict from, int width, int i, int m, float* __restrict to) {
        for (int q = 0; q < P; q += 16)
            for (int k = 0; k < width; ++k) {
                float line[16];
                for (int t = 0; t < 16; ++t) line[t] = q + t < m ? from[(size_t)(i + q + t) * width + k] : 0.0f;
                __builtin_memcpy(to + (size_t)k * P + q, line, sizeof line);
            }
    };
    auto store = [&](const float* __restrict from, int width, int i, int m, float* __restrict to) {
        for (int q = 0; q < m; q += 16) {
            const int some = m - q < 16 ? m - q : 16;
            for (int k = 0; k < width; ++k)
                for (int t = 0; t < some; ++t) to[(size_t)(i + q + t) * width + k] = from[(size_t)k * P + q + t];
        }
    };
    auto relu = [&](float* a, int rows) {
        for (int k = 0; k < rows * Q; ++k) *(V*)(a + 16 * k) = __builtin_elementwise_max(*(V*)(a + 16 * k), V(0.0f));
    };
"""

FORWARD = r"""
    int widest = O;
    for (int l = 1; l < layers; ++l) widest = widest > D[l] ? widest : D[l];
    float *ping = take(widest), *pong = take(widest);
    for (int i = begin; i < stop; i += P) {
        const int m = stop - i < P ? stop - i : P;
        load(x.data, K, i, m, first);
        const float *in = first, *w = W;
        float* kept = values.data + i;
        for (int l = 0; l < layers; ++l) {
            float* to = l & 1 ? pong : ping;
            product(w, D[l], 1, w + (size_t)D[l] * D[l + 1], D[l + 1], D[l], in, to);
            if (l + 1 < layers) relu(to, D[l + 1]);
            if (keep && l + 1 < layers)
                for (int k = 0; k < D[l + 1]; ++k, kept += n) __builtin_memcpy(kept, to + (size_t)k * P, sizeof(float) * m);
            w += (size_t)(D[l] + 1) * D[l + 1];
            in = to;
        }
        store(in, O, i, m, out.data);
    }
"""

BACKWARD = r"""
    int total_width = 0, widest = K > O ? K : O, size = 0;
    for (int l = 0; l < layers; ++l) size += (D[l] + 1) * D[l + 1];
    for (int l = 1; l < layers; ++l) {
        total_width += D[l];
        widest = widest > D[l] ? widest : D[l];
    }
    float *hidden = take(total_width), *ping = take(widest), *pong = take(widest);
    float* sums = d_w.data + (size_t)part * size;
    for (int i = begin; i < stop; i += P) {
        const int m = stop - i < P ? stop - i : P;
        load(x.data, K, i, m, first);
        const float *in = first, *w = W;
        for (int k = 0; k < total_width; ++k) {
            float* to = hidden + (size_t)k * P;
            __builtin_memcpy(to, values.data + (size_t)k * n + i, sizeof(float) * m);
            for (int t = m; t < P; ++t) to[t] = 0.0f;
        }
        for (int l = 0; l + 1 < layers; ++l) {
            in = l ? in + (size_t)D[l] * P : hidden;
            w += (size_t)(D[l] + 1) * D[l + 1];
        }
        float *d = ping, *below = pong, *sum = sums + (w - W);
        load(d_out.data, O, i, m, d);
        for (int l = layers - 1; l >= 0; --l) {
            outer(d, in, D[l + 1], D[l], sum, D[l]);
            row_sums(d, D[l + 1], sum + (size_t)D[l] * D[l + 1]);
            if (l || want_x) product(w, 1, D[l], nullptr, D[l], D[l + 1], d, below);
            if (l) {
                for (int k = 0; k < D[l] * Q; ++k) {
                    V v = *(V*)(below + 16 * k);
                    *(V*)(below + 16 * k) = *(const V*)(in + 16 * k) > V(0.0f) ? v : V(0.0f);
                }
                w -= (size_t)(D[l - 1] + 1) * D[l];
                sum -= (size_t)(D[l - 1] + 1) * D[l];
                in = l > 1 ? in - (size_t)D[l - 1] * P : first;
                float* swap = d;
                d = below;
                below = swap;
            }
        }
        if (want_x) store(below, K, i, m, d_x.data);
    }
"""


@functools.cache
def kernels() -> tuple:
    """(forward, backward)."""
    f1, f2, ints = wp.array(dtype=float), wp.array2d(dtype=float), wp.array(dtype=int)

    @wp.func_native(native.PRODUCTS + START + FORWARD)
    def run_forward(x: f2, weights: f1, dims: ints, begin: int, stop: int, part: int, scratch: f2, keep: int, values: f2, out: f2): ...

    @wp.kernel(module="unique", enable_backward=False)
    def forward(x: f2, weights: f1, dims: ints, begin: int, stop: int, part: int, scratch: f2, keep: int, values: f2, out: f2):
        run_forward(x, weights, dims, begin, stop, part, scratch, keep, values, out)

    @wp.func_native(native.PRODUCTS + START + BACKWARD)
    def run_backward(
        x: f2, weights: f1, dims: ints, begin: int, stop: int, part: int, scratch: f2, values: f2, d_out: f2, d_w: f2, want_x: int, d_x: f2
    ): ...

    @wp.kernel(module="unique", enable_backward=False)
    def backward(
        x: f2, weights: f1, dims: ints, begin: int, stop: int, part: int, scratch: f2, values: f2, d_out: f2, d_w: f2, want_x: int, d_x: f2
    ):
        run_backward(x, weights, dims, begin, stop, part, scratch, values, d_out, d_w, want_x, d_x)

    return forward, backward


class FusedMLP(torch.autograd.Function):
    """(x [S, K], W_0, b_0, ..., W, b) -> [S, O]; second derivatives by torch's layers."""

    @staticmethod
    def forward(ctx, x: Tensor, *weights: Tensor) -> Tensor:
        x = x.contiguous()
        widths = [x.shape[1], *(len(b) for b in weights[1::2])]
        keep = any(ctx.needs_input_grad)
        values = torch.empty(sum(widths[1:-1]), len(x)) if keep else torch.empty(0, 0)  # of the hidden layers
        out = torch.empty(len(x), widths[-1])
        tail = [int(keep), warp_launch.array(values, wp.float32), warp_launch.array(out, wp.float32)]
        native.run(kernels()[0], _inputs(x, weights), tail, len(x), widths[0] + 2 * max(widths[1:]))
        ctx.save_for_backward(x, values, *weights)
        return out

    @staticmethod
    def backward(ctx, d_out: Tensor):
        x, values, *weights = ctx.saved_tensors
        if torch.is_grad_enabled():
            return torch.autograd.grad(_plain(x, weights), (x, *weights), d_out, create_graph=True, allow_unused=True)
        d_x, d_w = _gradients(x, values, weights, d_out, ctx.needs_input_grad[0])
        return d_x, *d_w


def _plain(x: Tensor, weights: list[Tensor]) -> Tensor:
    for i in range(0, len(weights), 2):
        x = torch.nn.functional.linear(torch.relu(x) if i else x, weights[i], weights[i + 1])
    return x


def _gradients(x: Tensor, values: Tensor, weights: list[Tensor], d_out: Tensor, want_x: bool) -> tuple[Tensor | None, list[Tensor]]:
    widths = [x.shape[1], *(len(b) for b in weights[1::2])]
    d_x = torch.empty_like(x) if want_x else x
    sums = torch.zeros(native.parts(len(x)), sum(w.numel() for w in weights))
    tail = [warp_launch.array(t, wp.float32) for t in (values, d_out.contiguous(), sums)]
    tail += [int(want_x), warp_launch.array(d_x, wp.float32)]
    native.run(kernels()[1], _inputs(x, weights), tail, len(x), widths[0] + sum(widths[1:-1]) + 2 * max(widths))
    pieces = sums.sum(0).split([w.numel() for w in weights])
    return d_x if want_x else None, [piece.view_as(w) for piece, w in zip(pieces, weights)]


def _inputs(x: Tensor, weights: Sequence[Tensor]) -> list:
    flat = torch.cat([w.reshape(-1) for w in weights])
    dims = torch.tensor([x.shape[1], *(len(b) for b in weights[1::2])], dtype=torch.int32)
    return [warp_launch.array(x, wp.float32), warp_launch.array(flat, wp.float32), warp_launch.array(dims, wp.int32)]
