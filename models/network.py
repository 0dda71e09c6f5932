"""Multilayer perceptrons, smooth activations for an SDF, the exponential for a density, schedules of levels and step lengths."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from confs.model import VolumeConfig
from encoder.encoding import Encoding
from utils.autocast import backward_float32, forward_float32
from utils.schedule import Ramp, ramp

BETA = 100.0  # sharpness of the softplus: it rounds the relu over a width of 1/100
EXP_MAX = 30.0  # upper bound of the exponent of a density
GRAD_MAX = math.exp(15.0)  # upper bound of the derivative of a density by its exponent


def softplus(h: Tensor) -> tuple[Tensor, Tensor]:
    """Softplus with beta 100 and its derivative; log(sigmoid) is several times faster on a CPU than torch's softplus."""
    return torch.relu(h) - torch.log(torch.sigmoid(h.abs() * BETA)) / BETA, torch.sigmoid(h * BETA)


def quadratic(h: Tensor) -> tuple[Tensor, Tensor]:
    """A relu rounded by a parabola over |h| < w, and its derivative: softplus without transcendental functions."""
    w = 2.0 / BETA
    slope = (h / (2 * w) + 0.5).clamp(0, 1)
    return w * slope * slope + torch.relu(h - w), slope


def relu(h: Tensor) -> tuple[Tensor, Tensor]:
    return torch.relu(h), (h > 0).to(h.dtype)


# name -> (h -> (value, slope), slope -> second derivative)
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], tuple[Tensor, Tensor]], Callable[[Tensor], Tensor]]] = {
    "softplus": (softplus, lambda s: BETA * s * (1 - s)),
    "quadratic": (quadratic, lambda s: ((s > 0) & (s < 1)).to(s.dtype) * (BETA / 4)),
    "relu": (relu, torch.zeros_like),
}


class MLP(nn.Sequential):
    """Linear layers with ReLU between them. backend "warp": on the CPU in one pass over memory (`models/mlp_cpu.py`)."""

    backend = "torch"

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., O]."""
        if self.backend == "warp" and x.dtype == torch.float32:
            from models.mlp_cpu import FusedMLP

            weights = [
                w for layer in self if isinstance(layer, nn.Linear) for w in (layer.weight, layer.bias)
            ]  # weight norm: computed here
            out = FusedMLP.apply(x.reshape(-1, x.shape[-1]), *weights)
            return out.view(*x.shape[:-1], out.shape[-1])
        return super().forward(x)


def mlp(n_in: int, hidden: int, layers: int, n_out: int) -> MLP:
    """`layers` hidden layers with ReLU, a linear output."""
    widths = [n_in, *[hidden] * layers]
    parts: list[nn.Module] = []
    for a, b in zip(widths, widths[1:]):
        parts += [nn.Linear(a, b), nn.ReLU(inplace=True)]
    return MLP(*parts, nn.Linear(widths[-1], n_out))


def output_layer(net: nn.Sequential) -> nn.Linear:
    """The last layer of an `mlp`."""
    layer = net[-1]
    assert isinstance(layer, nn.Linear)
    return layer


class _TruncExp(torch.autograd.Function):
    @staticmethod
    @forward_float32
    def forward(ctx, x: Tensor) -> Tensor:
        y = torch.exp(x.clamp(max=EXP_MAX))
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @backward_float32
    def backward(ctx, d_y: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return d_y * y.clamp(max=GRAD_MAX)


def trunc_exp(x: Tensor) -> Tensor:
    """exp(x), at most exp(30), with a gradient of at most exp(15), so that a density cannot overflow."""
    return _TruncExp.apply(x)


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    @forward_float32
    def forward(ctx, scale: Tensor, *values: Tensor):
        ctx.save_for_backward(scale)
        return tuple(v.view_as(v) for v in values)

    @staticmethod
    @backward_float32
    def backward(ctx, *grads: Tensor):
        (scale,) = ctx.saved_tensors
        return None, *(None if g is None else g * scale.view(-1, *[1] * (g.dim() - 1)) for g in grads)


def scale_gradient(t: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    """values [S, ...] unchanged; their gradients times min(1, t^2), t [S] the distance to the camera.

    Space near a camera is sampled densely by few views, which produces floaters (Philip & Deschaintre, Floaters No More, 2023).
    """
    return _ScaleGradient.apply((t * t).clamp(max=1), *values)


def step_lengths(cfg: VolumeConfig) -> Callable[[float, bool], float]:
    """(progress, training) -> least length of an interval: the sphere's box diagonal over `samples_per_ray` or `samples_per_ray_test`."""
    diagonal, n = 2 * 3**0.5 * cfg.radius, ramp(cfg.samples_per_ray)
    training_steps = Ramp(diagonal / n.start, diagonal / n.end, n.begin, n.until, log=True)
    finest = diagonal / max(n.start, n.end, cfg.samples_per_ray_test)
    return lambda progress, training: training_steps(progress) if training else finest


def open_levels(encoding: Encoding, levels: Ramp, progress: float) -> float:
    """Number of open levels of an encoding: a whole number unless they open gradually."""
    opened = max(1.0, min(encoding.n_levels, levels(progress) + 1e-6))
    return opened if encoding.fractional else int(opened)
