"""Loss terms: functions of tensors that return a scalar. Shapes must match; nothing broadcasts in silence."""

import torch
from torch import Tensor


def _same(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise ValueError(f"a loss compares tensors of one shape, got {tuple(a.shape)} and {tuple(b.shape)}")


def rgb_l1(rgb: Tensor, truth: Tensor) -> Tensor:
    """Mean absolute colour error [R, 3] (NeuS)."""
    _same(rgb, truth)
    return (rgb - truth).abs().mean()


def mask_bce(opacity: Tensor, mask: Tensor) -> Tensor:
    """Binary cross entropy of opacity and mask [R], on all rays (NeuS). Squeezed, not clamped: 0 and 1 keep a gradient."""
    _same(opacity, mask)
    p = 1e-3 + opacity * (1 - 2e-3)
    return -(mask * torch.log(p) + (1 - mask) * torch.log(1 - p)).mean()


def eikonal(grad: Tensor) -> Tensor:
    """(|grad sdf| - 1)^2 over points [S, 3]: keeps the field a distance (Gropp et al., IGR, 2020)."""
    return ((grad.norm(dim=-1) - 1) ** 2).mean() if len(grad) else grad.sum()


def curvature(normal: Tensor, normal_near: Tensor) -> Tensor:
    """Change of unit normals [P, 3] over a small step along the surface, as 1 - cosine (after PermutoSDF, 2023)."""
    _same(normal, normal_near)
    return (1 - (normal * normal_near).sum(-1)).mean() if len(normal) else normal.sum()
