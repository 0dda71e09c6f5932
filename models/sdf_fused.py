"""The SDF network and its gradient as one autograd function, derivatives written out.

Forward: h_0 = [x, y] W_0' + b_0, a_k = f(h_k), s_k = f'(h_k), h_{k+1} = a_k W_{k+1}' + b_{k+1}, out = a_n W'.
The sdf's gradient runs back through p_k = v_k s_k, v_{k-1} = p_k W_k from v_n = the sdf's row of the last weights, and
ends in grad = p_0 W_0 [1; J], J the grid's Jacobian. Backward differentiates both chains: the table is read once forward
and written once backward (and read once more where the points need a gradient: cameras that are refined).
`SDFNetwork.forward_torch` is the twin.
"""

import torch
from torch import Tensor

from encoder import hashgrid_warp
from encoder.hashgrid import HashGridSpec
from models import sdf_cpu
from models.network import ACTIVATIONS
from utils.autocast import backward_float32, forward_float32


class FusedSDF(torch.autograd.Function):
    """(x [S, 3], table, ..., W_0, b_0, ..., W, b) -> (out [S, 1 + F], grad [S, 3], y [L * F, S])."""

    @staticmethod
    @forward_float32
    def forward(ctx, x: Tensor, table: Tensor, spec: HashGridSpec, n_levels: int, radius: float, activation: str, *weights: Tensor):
        activate, _ = ACTIVATIONS[activation]
        ctx.leaf = hashgrid_warp.leaf(table)
        unit = (x / (2 * radius) + 0.5).contiguous()
        y, jac = hashgrid_warp.forward(unit, table, spec, n_levels, True)
        assert jac is not None
        if x.device.type == "cpu" and len(weights) == 4:
            h, grad, g_y = sdf_cpu.forward(x, y, jac, weights, activation, radius)
            ctx.save_for_backward(x, unit, y, jac, g_y, table, *weights)
            ctx.depth = 0
            ctx.spec, ctx.n_levels, ctx.radius, ctx.activation = spec, n_levels, radius, activation
            ctx.set_materialize_grads(False)
            return h, grad, y
        (w0, b0), *inner = [(weights[i], weights[i + 1]) for i in range(0, len(weights) - 2, 2)]
        w_out, b_out = weights[-2:]
        h = torch.addmm(b0, x, w0[:, :3].T).addmm_(y.T, w0[:, 3:].T)
        values, slopes = [], []
        for w, b in [*inner, (w_out, b_out)]:
            a, s = activate(h)
            values.append(a)
            slopes.append(s)
            h = torch.addmm(b, a, w.T)
        v, passed = w_out[0].expand_as(values[-1]), []  # v_k and p_k, last layer first
        for k in range(len(slopes) - 1, -1, -1):
            p = v * slopes[k]
            passed.append((v, p))
            v = p @ inner[k - 1][0] if k else v
        p0 = passed[-1][1]
        g_y = w0[:, 3:].T @ p0.T  # [L * F, S]
        grad = hashgrid_warp.jac_left(jac, g_y).mul_(1 / (2 * radius)).addmm_(p0, w0[:, :3])
        ctx.save_for_backward(x, unit, y, jac, g_y, table, *values, *slopes, *[t for pair in reversed(passed) for t in pair], *weights)
        ctx.depth, ctx.spec, ctx.n_levels, ctx.radius, ctx.activation = len(slopes), spec, n_levels, radius, activation
        ctx.set_materialize_grads(False)
        return h, grad, y

    @staticmethod
    @backward_float32
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_out: Tensor | None, d_grad: Tensor | None, d_seen: Tensor | None):
        x, unit, y, jac, g_y, table, *rest = ctx.saved_tensors
        d_grad = torch.zeros_like(x) if d_grad is None else d_grad.contiguous()
        h = d_grad / (2 * ctx.radius)
        n = ctx.depth
        if not n:
            d_out = x.new_zeros(len(x), len(rest[-1])) if d_out is None else d_out
            need = ctx.needs_input_grad[0]
            d_w, d_y, d_x = sdf_cpu.backward(x, y, jac, tuple(rest), ctx.activation, ctx.radius, d_out, d_grad, d_seen, need)
            return FusedSDF._inputs(ctx, unit, g_y, table, h, d_y, d_x, d_w)
        values, slopes, chain, weights = rest[:n], rest[n : 2 * n], rest[2 * n : 4 * n], rest[4 * n :]
        v, p = chain[0::2], chain[1::2]
        w = weights[0::2]
        curve = ACTIVATIONS[ctx.activation][1]
        d_out = x.new_zeros(len(x), len(weights[-1])) if d_out is None else d_out
        d_w = [torch.zeros_like(t) for t in weights]

        # the gradient chain, from the input up
        q_y = hashgrid_warp.jac_right(jac, h)
        d_w[0][:, :3] = p[0].T @ d_grad
        d_w[0][:, 3:] = (q_y @ p[0]).T
        d_p = (q_y.T @ w[0][:, 3:].T).addmm_(d_grad, w[0][:, :3].T)
        bends = []  # what the slopes hand on to the pre-activations
        for k in range(n):
            bends.append(curve(slopes[k]).mul_(d_p).mul_(v[k]))
            d_v = d_p.mul_(slopes[k])
            if k + 1 < n:
                d_w[2 * k + 2] += p[k + 1].T @ d_v
                d_p = d_v @ w[k + 1].T
            else:
                d_w[-2][0] += d_v.sum(0)

        # the value chain, from the output down
        d_w[-2] += d_out.T @ values[-1]
        d_w[-1] += d_out.sum(0)
        d_a = d_out @ w[-1]
        for k in range(n - 1, -1, -1):
            d_h = d_a.mul_(slopes[k]).add_(bends[k])
            d_w[2 * k + 1] += d_h.sum(0)
            if k:
                d_w[2 * k] += d_h.T @ values[k - 1]
                d_a = d_h @ w[k]
        d_w[0][:, :3] += d_h.T @ x
        d_w[0][:, 3:] += (y @ d_h).T
        d_y = w[0][:, 3:].T @ d_h.T
        if d_seen is not None:
            d_y += d_seen
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = hashgrid_warp.jac_left(jac, d_y).mul_(1 / (2 * ctx.radius)).addmm_(d_h, w[0][:, :3])
        return FusedSDF._inputs(ctx, unit, g_y, table, h, d_y, d_x, d_w)

    @staticmethod
    def _inputs(ctx, unit: Tensor, g_y: Tensor, table: Tensor, h: Tensor, d_y: Tensor, d_x: Tensor | None, d_w: list[Tensor]) -> tuple:
        """Gradients of the inputs, from d_y [L * F, S] of the encoding, h [S, 3] of its slope, d_x [S, 3] but for its second derivative."""
        d_table = None
        if ctx.needs_input_grad[1]:
            d_table = hashgrid_warp.table_gradient(ctx.leaf, unit, ctx.spec, ctx.n_levels, d_y, h, g_y)
        if d_x is not None:
            d_x.add_(hashgrid_warp.bend(unit, table, ctx.spec, ctx.n_levels, h, g_y), alpha=1 / (2 * ctx.radius))
        return d_x, d_table, None, None, None, None, *d_w
