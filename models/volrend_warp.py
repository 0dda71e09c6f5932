"""Compositing as NVIDIA Warp kernels: one walk along each ray, rays shared out over CPU threads or CUDA's.

With G_i = dL/dT_i, the backward of T_{i+1} = T_i (1 - alpha_i), w_i = T_i alpha_i runs from a ray's end:
dL/dalpha_i = T_i (dL/dw_i - G_{i+1}) and G_i = dL/dT_i directly + alpha_i dL/dw_i + (1 - alpha_i) G_{i+1}; nothing is divided
by 1 - alpha. By optical depth: dL/ddepth_i = T_{i+1} dL/dw_i - B_{i+1}, B_i = w_i dL/dw_i + T_i dL/dT_i + B_{i+1}.
"""

import functools
from collections.abc import Callable

import torch
import warp as wp
from torch import Tensor
from torch.autograd.function import once_differentiable

from utils import warp_launch
from utils.autocast import backward_float32, forward_float32

wp.set_module_options({"enable_backward": False})
WORTH_A_THREAD = 2**16  # samples; fewer are done before another thread has begun
floats, ints = wp.array(dtype=wp.float32), wp.array(dtype=wp.int64)


@wp.func
def opacity(depth: float) -> float:
    """1 - exp(-depth) to the last digits of a small depth."""
    if depth > 1.0:
        return 1.0 - wp.exp(-depth)
    return 2.0 * wp.exp(-0.5 * depth) * wp.sinh(0.5 * depth)


@wp.kernel(module="unique", enable_backward=False)
def _weights(x: floats, offsets: ints, early_stop: float, optical: int, begin: int, stop: int, run: int, weights: floats, trans: floats):
    first = begin + wp.tid() * run
    for r in range(first, wp.min(first + run, stop)):
        t = float(1.0)
        depth = float(0.0)
        for i in range(int(offsets[r]), int(offsets[r + 1])):
            alpha = x[i]
            if optical == 1:
                t = wp.exp(-depth)
                depth += x[i]
                alpha = opacity(x[i])
            trans[i] = t
            weights[i] = wp.where(t < early_stop, 0.0, t * alpha)
            t = t * (1.0 - alpha)


@wp.kernel(module="unique", enable_backward=False)
def _weights_backward(
    x: floats, trans: floats, offsets: ints, early_stop: float, optical: int, d_weights: floats, d_trans: floats,
    begin: int, stop: int, run: int, d_x: floats,
):  # fmt: skip
    first = begin + wp.tid() * run
    for r in range(first, wp.min(first + run, stop)):
        start = int(offsets[r])
        n = int(offsets[r + 1]) - start
        behind = float(0.0)
        for back in range(n):
            i = start + n - 1 - back
            t = trans[i]
            g = float(0.0)
            if t >= early_stop and d_weights.shape[0] > 0:
                g = d_weights[i]
            h = float(0.0)
            if d_trans.shape[0] > 0:
                h = d_trans[i]
            if optical == 1:
                d_x[i] = t * wp.exp(-x[i]) * g - behind
                behind += t * (g * opacity(x[i]) + h)
            else:
                alpha = x[i]
                d_x[i] = t * (g - behind)
                behind = h + alpha * g + (1.0 - alpha) * behind


@functools.cache
def accumulators(channels: int) -> tuple:
    """(forward, backward) for values of so many channels; `ones`: the values are 1 and not read."""
    vec = wp.types.vector(length=channels, dtype=wp.float32)

    @wp.kernel(module="unique", enable_backward=False)
    def accumulate(
        weights: floats, values: wp.array(dtype=vec), ones: int, offsets: ints, begin: int, stop: int, run: int, out: wp.array(dtype=vec)
    ):
        first = begin + wp.tid() * run
        for r in range(first, wp.min(first + run, stop)):
            total = vec()
            if ones == 1:
                for i in range(int(offsets[r]), int(offsets[r + 1])):
                    total[0] += weights[i]
            else:
                for i in range(int(offsets[r]), int(offsets[r + 1])):
                    total += weights[i] * values[i]
            out[r] = total

    @wp.kernel(module="unique", enable_backward=False)
    def accumulate_backward(
        weights: floats, values: wp.array(dtype=vec), ones: int, offsets: ints, d_out: wp.array(dtype=vec), begin: int, stop: int, run: int,
        d_weights: floats, d_values: wp.array(dtype=vec),
    ):  # fmt: skip
        first = begin + wp.tid() * run
        want_values = d_values.shape[0] > 0
        for r in range(first, wp.min(first + run, stop)):
            g = d_out[r]
            for i in range(int(offsets[r]), int(offsets[r + 1])):
                if ones == 1:
                    d_weights[i] = g[0]
                else:
                    d_weights[i] = wp.dot(g, values[i])
                    if want_values:
                        d_values[i] = weights[i] * g

    return accumulate, accumulate_backward


@functools.cache
def compositors(channels: int) -> tuple:
    """(forward, backward) of weights and sums in one walk, for values of so many channels."""
    vec = wp.types.vector(length=channels, dtype=wp.float32)

    @wp.kernel(module="unique", enable_backward=False)
    def composite(
        alphas: floats, values: wp.array(dtype=vec), offsets: ints, early_stop: float, begin: int, stop: int, run: int,
        out: wp.array(dtype=vec), weights: floats, trans: floats,
    ):  # fmt: skip
        first = begin + wp.tid() * run
        for r in range(first, wp.min(first + run, stop)):
            t = float(1.0)
            total = vec()
            for i in range(int(offsets[r]), int(offsets[r + 1])):
                alpha = alphas[i]
                w = wp.where(t < early_stop, 0.0, t * alpha)
                trans[i] = t
                weights[i] = w
                total += w * values[i]
                t = t * (1.0 - alpha)
            out[r] = total

    @wp.kernel(module="unique", enable_backward=False)
    def composite_backward(
        alphas: floats, values: wp.array(dtype=vec), trans: floats, offsets: ints, early_stop: float, d_out: wp.array(dtype=vec),
        d_weights: floats, begin: int, stop: int, run: int, d_alphas: floats, d_values: wp.array(dtype=vec),
    ):  # fmt: skip
        first = begin + wp.tid() * run
        want_values = d_values.shape[0] > 0
        for r in range(first, wp.min(first + run, stop)):
            start = int(offsets[r])
            n = int(offsets[r + 1]) - start
            d = d_out[r]
            behind = float(0.0)
            for back in range(n):
                i = start + n - 1 - back
                alpha, t = alphas[i], trans[i]
                g = float(0.0)
                w = float(0.0)
                if t >= early_stop:
                    w = t * alpha
                    g = wp.dot(d, values[i])
                    if d_weights.shape[0] > 0:
                        g += d_weights[i]
                d_alphas[i] = t * (g - behind)
                behind = alpha * g + (1.0 - alpha) * behind
                if want_values:
                    d_values[i] = w * d

    return composite, composite_backward


@wp.kernel(module="unique", enable_backward=False)
def _distortion(weights: floats, mids: floats, lengths: floats, offsets: ints, begin: int, stop: int, run: int, out: floats):
    first = begin + wp.tid() * run
    for r in range(first, wp.min(first + run, stop)):
        total = float(0.0)
        mass = float(0.0)
        before = float(0.0)
        last = float(0.0)
        for i in range(int(offsets[r]), int(offsets[r + 1])):
            w = weights[i]
            before += mass * (mids[i] - last)
            total += w * (2.0 * before + w * lengths[i] / 3.0)
            mass += w
            last = mids[i]
        out[r] = total


@wp.kernel(module="unique", enable_backward=False)
def _distortion_backward(
    weights: floats, mids: floats, lengths: floats, offsets: ints, d_out: floats, begin: int, stop: int, run: int,
    d_weights: floats, d_mids: floats, d_lengths: floats,
):  # fmt: skip
    first = begin + wp.tid() * run
    want_t = d_mids.shape[0] > 0
    for r in range(first, wp.min(first + run, stop)):
        start = int(offsets[r])
        n = int(offsets[r + 1]) - start
        g = d_out[r]
        mass = float(0.0)
        reach = float(0.0)
        last = float(0.0)
        for i in range(start, start + n):  # what lies before
            w = weights[i]
            reach += mass * (mids[i] - last)
            d_weights[i] = g * (2.0 * reach + 2.0 * w * lengths[i] / 3.0)
            if want_t:
                d_mids[i] = 2.0 * g * w * mass
                d_lengths[i] = g * w * w / 3.0
            mass += w
            last = mids[i]
        mass = float(0.0)
        reach = float(0.0)
        for back in range(n):  # and behind
            i = start + n - 1 - back
            reach += mass * (last - mids[i])
            d_weights[i] += 2.0 * g * reach
            if want_t:
                d_mids[i] -= 2.0 * g * weights[i] * mass
            mass += weights[i]
            last = mids[i]


def _over_rays(kernel: object, inputs: list, outputs: list, offsets: Tensor, n_samples: int) -> None:
    device, n_rays = offsets.device, len(offsets) - 1
    least = max(1, n_rays * WORTH_A_THREAD // n_samples)

    def part(start: int, stop: int) -> None:
        instances, run = (stop - start, 1) if device.type == "cuda" else (1, stop - start)
        warp_launch.launch(kernel, instances, [*inputs, start, stop, run, *outputs], device)

    warp_launch.run([functools.partial(part, *edge) for edge in warp_launch.split(n_rays, device, least)])


def _f(tensor: Tensor) -> object:
    return warp_launch.array(tensor, wp.float32)


def _i(offsets: Tensor) -> object:
    return warp_launch.array(offsets.contiguous(), wp.int64)


def _vec(channels: int) -> Callable[[Tensor], object]:
    return functools.partial(warp_launch.array, dtype=wp.types.vector(length=channels, dtype=wp.float32))


class TransmittanceWeights(torch.autograd.Function):
    """x [S] (opacity, or optical depth when `optical`) -> (weights [S], transmittance [S])."""

    @staticmethod
    @forward_float32
    def forward(ctx, x: Tensor, offsets: Tensor, early_stop: float, optical: bool) -> tuple[Tensor, Tensor]:
        weights, trans = torch.zeros_like(x), torch.zeros_like(x)
        _over_rays(_weights, [_f(x), _i(offsets), early_stop, int(optical)], [_f(weights), _f(trans)], offsets, len(x))
        ctx.save_for_backward(x, trans, offsets)
        ctx.set_materialize_grads(False)
        ctx.options = early_stop, int(optical)
        return weights, trans

    @staticmethod
    @backward_float32
    @once_differentiable
    def backward(ctx, d_weights: Tensor | None, d_trans: Tensor | None):
        x, trans, offsets = ctx.saved_tensors
        d_x, none = torch.zeros_like(x), x.new_empty(0)
        gradients = [_f(none if d is None else d.contiguous()) for d in (d_weights, d_trans)]
        _over_rays(_weights_backward, [_f(x), _f(trans), _i(offsets), *ctx.options, *gradients], [_f(d_x)], offsets, len(x))
        return d_x, None, None, None


class Accumulate(torch.autograd.Function):
    """weights [S], values [S, C] or None -> [R, C]."""

    @staticmethod
    @forward_float32
    def forward(ctx, weights: Tensor, values: Tensor | None, offsets: Tensor) -> Tensor:
        ctx.ones = int(values is None)
        values = weights.new_empty(0, 1) if values is None else values
        out = weights.new_empty(len(offsets) - 1, values.shape[1])
        kernel, vec = accumulators(values.shape[1])[0], _vec(values.shape[1])
        _over_rays(kernel, [_f(weights), vec(values), ctx.ones, _i(offsets)], [vec(out)], offsets, len(weights))
        ctx.save_for_backward(weights, values, offsets)
        return out

    @staticmethod
    @backward_float32
    @once_differentiable
    def backward(ctx, d_out: Tensor):
        weights, values, offsets = ctx.saved_tensors
        needed = ctx.needs_input_grad[1] and not ctx.ones
        d_weights, d_values = torch.zeros_like(weights), values.new_zeros(values.shape if needed else (0, values.shape[1]))
        kernel, vec = accumulators(values.shape[1])[1], _vec(values.shape[1])
        inputs = [_f(weights), vec(values), ctx.ones, _i(offsets), vec(d_out.contiguous())]
        _over_rays(kernel, inputs, [_f(d_weights), vec(d_values)], offsets, len(weights))
        return d_weights, d_values if needed else None, None


class Composite(torch.autograd.Function):
    """alphas [S], values [S, C] -> (sums [R, C], weights [S]): `TransmittanceWeights` and `Accumulate` in one walk each way."""

    @staticmethod
    @forward_float32
    def forward(ctx, alphas: Tensor, values: Tensor, offsets: Tensor, early_stop: float) -> tuple[Tensor, Tensor]:
        out = values.new_empty(len(offsets) - 1, values.shape[1])
        weights, trans = torch.zeros_like(alphas), torch.zeros_like(alphas)
        kernel, vec = compositors(values.shape[1])[0], _vec(values.shape[1])
        _over_rays(kernel, [_f(alphas), vec(values), _i(offsets), early_stop], [vec(out), _f(weights), _f(trans)], offsets, len(alphas))
        ctx.save_for_backward(alphas, values, trans, offsets)
        ctx.set_materialize_grads(False)
        ctx.early_stop = early_stop
        return out, weights

    @staticmethod
    @backward_float32
    @once_differentiable
    def backward(ctx, d_out: Tensor | None, d_weights: Tensor | None):
        alphas, values, trans, offsets = ctx.saved_tensors
        channels = values.shape[1]
        d_out = values.new_zeros(len(offsets) - 1, channels) if d_out is None else d_out.contiguous()
        d_weights = alphas.new_empty(0) if d_weights is None else d_weights.contiguous()
        d_alphas, d_values = torch.zeros_like(alphas), values.new_zeros(values.shape if ctx.needs_input_grad[1] else (0, channels))
        kernel, vec = compositors(channels)[1], _vec(channels)
        inputs = [_f(alphas), vec(values), _f(trans), _i(offsets), ctx.early_stop, vec(d_out), _f(d_weights)]
        _over_rays(kernel, inputs, [_f(d_alphas), vec(d_values)], offsets, len(alphas))
        return d_alphas, d_values if ctx.needs_input_grad[1] else None, None, None


class Distortion(torch.autograd.Function):
    """weights, midpoints, lengths [S] -> [R]."""

    @staticmethod
    @forward_float32
    def forward(ctx, weights: Tensor, mids: Tensor, lengths: Tensor, offsets: Tensor) -> Tensor:
        out = weights.new_empty(len(offsets) - 1)
        _over_rays(_distortion, [_f(weights), _f(mids), _f(lengths), _i(offsets)], [_f(out)], offsets, len(weights))
        ctx.save_for_backward(weights, mids, lengths, offsets)
        return out

    @staticmethod
    @backward_float32
    @once_differentiable
    def backward(ctx, d_out: Tensor):
        weights, mids, lengths, offsets = ctx.saved_tensors
        size = len(weights) if ctx.needs_input_grad[1] or ctx.needs_input_grad[2] else 0
        d_weights, d_mids, d_lengths = torch.zeros_like(weights), weights.new_zeros(size), weights.new_zeros(size)
        inputs = [_f(weights), _f(mids), _f(lengths), _i(offsets), _f(d_out.contiguous())]
        _over_rays(_distortion_backward, inputs, [_f(d_weights), _f(d_mids), _f(d_lengths)], offsets, len(weights))
        return d_weights, *((d_mids, d_lengths) if size else (None, None)), None
