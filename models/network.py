"""Multilayer perceptrons and the smooth activations an SDF needs."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

BETA = 100.0  # sharpness of the softplus: a rounding of a relu 1/100 wide


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


def mlp(n_in: int, hidden: int, layers: int, n_out: int) -> nn.Sequential:
    """`layers` hidden layers with ReLU, a linear output."""
    widths = [n_in, *[hidden] * layers]
    parts: list[nn.Module] = []
    for a, b in zip(widths, widths[1:]):
        parts += [nn.Linear(a, b), nn.ReLU(inplace=True)]
    return nn.Sequential(*parts, nn.Linear(widths[-1], n_out))
