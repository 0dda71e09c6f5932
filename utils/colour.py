"""Linear light and sRGB (IEC 61966-2-1)."""

import torch
from torch import Tensor


class _Clip(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clamp(0, 1)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad


def clip(x: Tensor) -> Tensor:
    """Clamp x to [0, 1] with the gradient of the identity: an overexposed value still has a gradient."""
    return _Clip.apply(x)


def linear_to_srgb(x: Tensor) -> Tensor:
    """Linear light [...] -> sRGB; negative values become 0. The gradient is finite everywhere."""
    x = x.clamp(min=0)
    return torch.where(x <= 0.0031308, 12.92 * x, 1.055 * x.clamp(min=0.0031308) ** (1 / 2.4) - 0.055)


def srgb_to_linear(x: Tensor) -> Tensor:
    """sRGB [...] in [0, 1] -> linear light."""
    return torch.where(x <= 0.04045, x / 12.92, ((x.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4)
