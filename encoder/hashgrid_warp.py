"""The hash grid on NVIDIA Warp: CPU threads and CUDA, nothing to compile beforehand.

Two passes over the table serve a training step: `forward` (values and, optionally, their derivative by position) and
`scatter` (gradients of both to the table in one go). The kernels: `encoder/hashgrid_kernels.py`.
"""

import functools

import torch
import warp as wp
from torch import Tensor

from encoder import hashgrid_cpu
from encoder.hashgrid import HashGridSpec
from encoder.hashgrid_kernels import jacobian_left, jacobian_right, kernels
from utils import warp_launch
from utils.autocast import backward_float32, forward_float32
from utils.in_place import kept_gradient

FEW = 1024  # points whose gradients take less time than it takes to wake a thread


@functools.cache
def _shape(spec: HashGridSpec, device: torch.device) -> tuple[Tensor, Tensor]:
    shape = torch.tensor([spec.resolutions, spec.rows, spec.offsets[:-1], [int(d) for d in spec.dense]], dtype=torch.int32).T.contiguous()
    return torch.tensor(spec.scales, dtype=torch.float32, device=device), shape.to(device)


def _blocks(count: int, device: torch.device) -> tuple[int, int]:
    """(instances, points each): on CUDA a thread a point, on the CPU one loop over all."""
    return (count, 1) if device.type == "cuda" else (1, count)


def forward(x: Tensor, table: Tensor, spec: HashGridSpec, n_levels: int, with_jacobian: bool) -> tuple[Tensor, Tensor | None]:
    """Values [L * F, N] and, optionally, Jacobian [L * F, 3, N] of points x [N, 3]; levels from n_levels on are 0. No graph."""
    n, half = len(x), spec.half
    table = table.half() if half else table
    make = torch.empty if n_levels == spec.n_levels else torch.zeros
    y = make(spec.width, n, device=x.device)
    jac = make(spec.width, 3, n, device=x.device) if with_jacobian else None
    if n and n_levels:
        native = x.device.type == "cpu" and not half
        kernel = hashgrid_cpu.kernels(spec.n_features)[0] if native else kernels(spec.n_features, half)[0]
        store = wp.types.vector(length=spec.n_features, dtype=wp.float16 if half else wp.float32)
        scales, shape = _shape(spec, x.device)
        fixed = [
            warp_launch.array(x, wp.vec3),
            warp_launch.array(table, store),
            warp_launch.array(scales, wp.float32),
            warp_launch.array(shape, wp.int32),
            int(spec.smoothstep),
        ]
        target = torch.empty(0, 0, 0, device=x.device) if jac is None else jac
        outs = [warp_launch.array(y, wp.float32), int(with_jacobian), warp_launch.array(target, wp.float32)]

        def part(start: int, stop: int) -> None:
            blocks, run = _blocks(stop - start, x.device)
            dim, parts = (n_levels, []) if native else ((n_levels, blocks), [run, 0])
            warp_launch.launch(kernel, dim, [*fixed, start, stop, *parts, *outs], x.device)

        warp_launch.run([functools.partial(part, *edge) for edge in warp_launch.split(n, x.device)])
    return y, jac


def scatter(
    x: Tensor, spec: HashGridSpec, n_levels: int, d_y: Tensor | None, d_x: Tensor | None, g_y: Tensor | None, out: Tensor
) -> Tensor:
    """Add to out [rows, F] the table gradient of <d_y, y> + <d_x, J^T g_y>; a missing pair adds nothing.

    d_y, g_y [L * F, N]; d_x [N, 3]. On the CPU threads own levels, so the order of additions is fixed.
    """
    n = len(x)
    if n and n_levels and (d_y is not None or d_x is not None):
        native = x.device.type == "cpu"
        kernel = (hashgrid_cpu.kernels if native else kernels)(spec.n_features)[1]
        scales, shape = _shape(spec, x.device)
        fixed = [
            warp_launch.array(x, wp.vec3),
            warp_launch.array(scales, wp.float32),
            warp_launch.array(shape, wp.int32),
            int(spec.smoothstep),
            n,
        ]
        nothing = torch.empty(0, 0, device=x.device)
        value, slope = (warp_launch.array(nothing if t is None else t, wp.float32) for t in (d_y, g_y))
        towards = warp_launch.array(torch.empty(0, 3, device=x.device) if d_x is None else d_x, wp.vec3)
        vec = wp.types.vector(length=spec.n_features, dtype=wp.float32)
        tail = [int(d_y is not None), value, int(d_x is not None), towards, slope, warp_launch.array(out, vec)]
        blocks, run = _blocks(n, x.device)
        parts = min(warp_launch.threads(x.device), n_levels) if n >= FEW else 1

        def part(first: int) -> None:
            count = len(range(first, n_levels, parts))
            dim, walk = (count, []) if native else ((count, blocks), [run])
            warp_launch.launch(kernel, dim, [*fixed, *walk, first, parts, *tail], x.device)

        warp_launch.run([functools.partial(part, first) for first in range(parts)])
    return out


def leaf(table: Tensor) -> Tensor:
    """The parameter that a table is, or is a view of as a whole; else the table."""
    base = table._base
    return base if base is not None and base.is_leaf and base.shape == table.shape else table


def table_gradient(
    of: Tensor, x: Tensor, spec: HashGridSpec, n_levels: int, d_y: Tensor | None, d_x: Tensor | None, g_y: Tensor | None
) -> Tensor | None:
    """The gradient of `scatter` for the table `of`, for autograd; None where it has been added to the table's .grad."""
    kept = kept_gradient(of)
    out = scatter(x, spec, n_levels, d_y, d_x, g_y, torch.zeros_like(of, dtype=torch.float32) if kept is None else kept)
    return out if kept is None else None


def bend(x: Tensor, table: Tensor, spec: HashGridSpec, n_levels: int, h: Tensor, g_y: Tensor) -> Tensor:
    """The gradient [N, 3] of <h, J^T g_y> by the points x [N, 3], at fixed h [N, 3] and g_y [L * F, N]: the grid's second derivative."""
    n = len(x)
    out = torch.zeros(n, 3, device=x.device)
    if n and n_levels:
        table = table.half() if spec.half else table
        native = x.device.type == "cpu" and not spec.half
        kernel = hashgrid_cpu.kernels(spec.n_features)[2] if native else kernels(spec.n_features, spec.half)[2]
        store = wp.types.vector(length=spec.n_features, dtype=wp.float16 if spec.half else wp.float32)
        scales, shape = _shape(spec, x.device)
        fixed = [warp_launch.array(x, wp.vec3), warp_launch.array(table, store), warp_launch.array(scales, wp.float32)]
        fixed += [warp_launch.array(shape, wp.int32), int(spec.smoothstep)]
        tail = [n_levels, warp_launch.array(h, wp.vec3), warp_launch.array(g_y, wp.float32), warp_launch.array(out, wp.vec3)]

        def part(start: int, stop: int) -> None:
            if native:
                warp_launch.launch(kernel, 1, [*fixed, start, stop, *tail], x.device)
                return
            run = 1 if x.device.type == "cuda" else 1024
            warp_launch.launch(kernel, -(-(stop - start) // run), [*fixed, start, stop, run, *tail], x.device)

        warp_launch.run([functools.partial(part, *edge) for edge in warp_launch.split(n, x.device)])
    return out


def jac_left(jac: Tensor, g: Tensor) -> Tensor:
    """Per point J^T g: jac [K, 3, N], g [K, N] -> [N, 3]."""
    out = torch.empty(jac.shape[2], 3, device=jac.device)
    _jac(jacobian_left, jac, warp_launch.array(g, wp.float32), warp_launch.array(out, wp.vec3))
    return out


def jac_right(jac: Tensor, h: Tensor) -> Tensor:
    """Per point J h: jac [K, 3, N], h [N, 3] -> [K, N]."""
    out = torch.empty(jac.shape[0], jac.shape[2], device=jac.device)
    _jac(jacobian_right, jac, warp_launch.array(h, wp.vec3), warp_launch.array(out, wp.float32))
    return out


def _jac(kernel: object, jac: Tensor, other: object, out: object) -> None:
    n = jac.shape[2]

    def part(start: int, stop: int) -> None:
        run = 1 if jac.device.type == "cuda" else 1024  # what a row of points and three rows of J hold in the first cache
        blocks = -(-(stop - start) // run)
        warp_launch.launch(kernel, blocks, [warp_launch.array(jac, wp.float32), other, start, stop, run, out], jac.device)

    if n:
        warp_launch.run([functools.partial(part, *edge) for edge in warp_launch.split(n, jac.device)])


class _Encode(torch.autograd.Function):
    """y(x, table) as [L * F, N], once and twice differentiable."""

    @staticmethod
    @forward_float32
    def forward(ctx, x: Tensor, table: Tensor, spec: HashGridSpec, n_levels: int) -> Tensor:
        y, jac = forward(x, table, spec, n_levels, ctx.needs_input_grad[0])
        ctx.save_for_backward(x, table, jac)
        ctx.spec, ctx.n_levels, ctx.leaf = spec, n_levels, leaf(table)
        return y

    @staticmethod
    @backward_float32
    def backward(ctx, d_y: Tensor):
        x, table, jac = ctx.saved_tensors
        need_table = ctx.needs_input_grad[1] and _needed(ctx.next_functions[1][0])
        d_x, d_table = _EncodeBackward.apply(d_y.contiguous(), x, table, jac, ctx.spec, ctx.n_levels, need_table, (ctx.leaf,))
        return d_x, d_table, None, None


def _needed(node: object) -> bool:
    """Whether the running backward pass continues to this node: a normal, `autograd.grad(sdf, x)`, needs no table gradient."""
    try:
        return torch._C._will_engine_execute_node(node)
    except (AttributeError, RuntimeError, TypeError):  # not every release has this query
        return True


class _EncodeBackward(torch.autograd.Function):
    @staticmethod
    @forward_float32
    def forward(
        ctx, d_y: Tensor, x: Tensor, table: Tensor, jac: Tensor | None, spec: HashGridSpec, n_levels: int, need_table: bool,
        of: tuple[Tensor],
    ):  # fmt: skip
        ctx.save_for_backward(d_y, x, table, jac)
        ctx.spec, ctx.n_levels, ctx.of = spec, n_levels, of
        d_x = None if jac is None else jac_left(jac, d_y)
        d_table = table_gradient(*of, x, spec, n_levels, d_y, None, None) if need_table else None
        ctx.mark_non_differentiable(*[t for t in (d_table,) if t is not None])
        return d_x, d_table

    @staticmethod
    @backward_float32
    @torch.autograd.function.once_differentiable
    def backward(ctx, h: Tensor, _unused):
        d_y, x, table, jac = ctx.saved_tensors
        if h is None or jac is None:
            return (None,) * 8
        h = h.contiguous()
        d_table = table_gradient(*ctx.of, x, ctx.spec, ctx.n_levels, None, h, d_y) if ctx.needs_input_grad[2] else None
        d_x = bend(x, table, ctx.spec, ctx.n_levels, h, d_y) if ctx.needs_input_grad[1] else None
        return jac_right(jac, h), d_x, d_table, None, None, None, None, None


def encode_warp(x: Tensor, table: Tensor, spec: HashGridSpec, n_levels: int | None = None) -> Tensor:
    """`encode_torch` by Warp kernels (float32), with its first and second derivatives."""
    # the view gives the table a node of its own that can be queried (`_needed`)
    return _Encode.apply(x.contiguous(), table.view_as(table), spec, spec.n_levels if n_levels is None else n_levels).T
