"""The lazy Adam step as a Warp kernel; `systems/optim.py: lazy_adam_torch` is its specification."""

import functools
import math

import warp as wp
from torch import Tensor

from systems import optim_cpu
from utils import warp_launch


@wp.kernel(module="unique", enable_backward=False)
def _adam(
    p: wp.array(dtype=float), g: wp.array(dtype=float), m: wp.array(dtype=float), v: wp.array(dtype=float), width: int, begin: int, stop: int, run: int,
    b1: float, b2: float, rate: float, root: float, eps: float,
):  # fmt: skip
    first = begin + wp.tid() * run
    for row in range(first, wp.min(first + run, stop)):
        touched = int(0)
        for k in range(row * width, row * width + width):
            if g[k] != 0.0:
                touched = int(1)
        if touched == 1:
            for k in range(row * width, row * width + width):
                s = g[k]
                a = b1 * m[k] + (1.0 - b1) * s
                b = b2 * v[k] + (1.0 - b2) * s * s
                m[k] = a
                v[k] = b
                p[k] = p[k] - rate * a / (wp.sqrt(b) * root + eps)


def lazy_adam_warp(p: Tensor, g: Tensor, m: Tensor, v: Tensor, lr: float, b1: float, b2: float, eps: float, step: int) -> None:
    """`lazy_adam_torch` on CPU threads or CUDA; p, g, m, v [N, F] float32."""
    arrays = [warp_launch.array(t.view(-1), wp.float32) for t in (p.detach(), g, m, v)]
    numbers = [b1, b2, lr / (1 - b1**step), 1 / math.sqrt(1 - b2**step), eps]

    native = p.device.type == "cpu" and p.shape[1] in optim_cpu.WIDTHS

    def part(begin: int, stop: int) -> None:
        if native:
            warp_launch.launch(optim_cpu.adam, 1, [*arrays, p.shape[1], begin, stop, *numbers], p.device)
            return
        run = 1 if p.device.type == "cuda" else stop - begin
        warp_launch.launch(_adam, -(-(stop - begin) // run), [*arrays, p.shape[1], begin, stop, run, *numbers], p.device)

    warp_launch.run([functools.partial(part, *edge) for edge in warp_launch.split(len(p), p.device)])


@wp.kernel(module="unique", enable_backward=False)
def _adam_scaled(
    p: wp.array2d(dtype=float), g: wp.array2d(dtype=float), m: wp.array2d(dtype=float), v: wp.array2d(dtype=float),
    lr: float, b1: float, b2: float, eps: float, step: wp.array(dtype=float), scale: wp.array(dtype=float), skip: wp.array(dtype=float),
):  # fmt: skip
    row = wp.tid()
    if skip[0] != 0.0:
        return
    touched = int(0)
    for k in range(g.shape[1]):
        if g[row, k] != 0.0:
            touched = int(1)
    if touched == 1:
        rate = lr / (1.0 - wp.pow(b1, step[0]))
        root = 1.0 / wp.sqrt(1.0 - wp.pow(b2, step[0]))
        for k in range(g.shape[1]):
            s = g[row, k] / scale[0]
            a = b1 * m[row, k] + (1.0 - b1) * s
            b = b2 * v[row, k] + (1.0 - b2) * s * s
            m[row, k] = a
            v[row, k] = b
            p[row, k] = p[row, k] - rate * a / (wp.sqrt(b) * root + eps)


def lazy_adam_scaled_warp(
    p: Tensor, g: Tensor, m: Tensor, v: Tensor, lr: float, b1: float, b2: float, eps: float, step: Tensor, scale: Tensor, skip: Tensor
) -> None:
    """`lazy_adam_scaled_torch` in one launch, a thread a row; p, g, m, v [N, F] and step, scale, skip [] float32 on one device."""
    arrays = [warp_launch.array(t, wp.float32) for t in (p.detach(), g, m, v)]
    values = [warp_launch.array(t.reshape(1), wp.float32) for t in (step, scale, skip)]
    warp_launch.launch(_adam_scaled, len(p), [*arrays, lr, b1, b2, eps, *values], p.device)
