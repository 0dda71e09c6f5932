"""`systems/optim_warp.py` on the CPU, in C++ that works on 16 entries at once; lines of the table without a gradient are passed over."""

import warp as wp

WIDTHS = (1, 2, 4, 8, 16)  # entries of a row that divide a vector

ADAM = r"""
    typedef float V __attribute__((ext_vector_type(16), aligned(4)));
    typedef int VI __attribute__((ext_vector_type(16), aligned(4)));
    float* __restrict P = p.data;
    const float* __restrict G = g.data;
    float* __restrict M = m.data;
    float* __restrict S = v.data;
    auto update = [&](float* __restrict pk, const float* __restrict gk, float* __restrict mk, float* __restrict sk) {
        V d = *(const V*)gk;
        VI on = d != V(0.0f);
        if (!__builtin_reduce_or(on)) return;
        if (width > 1) on |= __builtin_shufflevector(on, on, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
        if (width > 2) on |= __builtin_shufflevector(on, on, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
        if (width > 4) on |= __builtin_shufflevector(on, on, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
        if (width > 8) on |= __builtin_shufflevector(on, on, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
        V old_m = *(V*)mk, old_s = *(V*)sk, old_p = *(V*)pk;
        V a = V(b1) * old_m + V(1.0f - b1) * d;
        V b = V(b2) * old_s + V(1.0f - b2) * d * d;
        V q = old_p - V(rate) * a / (__builtin_elementwise_sqrt(b) * V(root) + V(eps));
        *(V*)mk = on ? a : old_m;
        *(V*)sk = on ? b : old_s;
        *(V*)pk = on ? q : old_p;
    };
    long long k = (long long)begin * width, end = (long long)stop * width;
    for (; k + 16 <= end; k += 16) update(P + k, G + k, M + k, S + k);
    if (k < end) {
        float last[4][16] = {};
        size_t size = sizeof(float) * (end - k);
        __builtin_memcpy(last[0], P + k, size);
        __builtin_memcpy(last[1], G + k, size);
        __builtin_memcpy(last[2], M + k, size);
        __builtin_memcpy(last[3], S + k, size);
        update(last[0], last[1], last[2], last[3]);
        __builtin_memcpy(P + k, last[0], size);
        __builtin_memcpy(M + k, last[2], size);
        __builtin_memcpy(S + k, last[3], size);
    }
"""


@wp.func_native(ADAM)
def _update(
    p: wp.array(dtype=float), g: wp.array(dtype=float), m: wp.array(dtype=float), v: wp.array(dtype=float), width: int, begin: int, stop: int,
    b1: float, b2: float, rate: float, root: float, eps: float,
): ...  # fmt: skip


@wp.kernel(module="unique", enable_backward=False)
def adam(
    p: wp.array(dtype=float), g: wp.array(dtype=float), m: wp.array(dtype=float), v: wp.array(dtype=float), width: int, begin: int, stop: int,
    b1: float, b2: float, rate: float, root: float, eps: float,
):  # fmt: skip
    _update(p, g, m, v, width, begin, stop, b1, b2, rate, root, eps)
