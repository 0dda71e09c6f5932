"""Loss terms: functions of tensors that return a scalar, and the table of what each is fed.

A term is one entry of TERMS here and one weight in `confs/schema.py: LossConfig`, which says in a line what it is for.
Shapes must match; nothing broadcasts in silence.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from confs.schema import LossConfig
from models.proposal import PropNetEstimator
from models.sdf import eps_at
from models.traced import Traced
from models.volrend import distortion as packed_distortion
from utils.rays import RayBatch


@dataclass(frozen=True)
class Evidence:
    """What a training step knows when the terms are computed."""

    batch: RayBatch
    truth: Tensor  # [R, 3] as the render should be
    traced: Traced
    model: nn.Module
    cfg: LossConfig
    progress: float


def _same(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise ValueError(f"a loss compares tensors of one shape, got {tuple(a.shape)} and {tuple(b.shape)}")


# ------------------------------------------------------------------ colours and masks


def rgb_l1(rgb: Tensor, truth: Tensor) -> Tensor:
    """Mean absolute colour error [R, 3] (NeuS)."""
    _same(rgb, truth)
    return (rgb - truth).abs().mean()


def rgb_mse(rgb: Tensor, truth: Tensor) -> Tensor:
    """Mean squared colour error [R, 3] (NeRF)."""
    _same(rgb, truth)
    return ((rgb - truth) ** 2).mean()


def rgb_smooth_l1(rgb: Tensor, truth: Tensor, beta: float = 1.0) -> Tensor:
    """Squared below an error of beta, absolute beyond (Huber)."""
    _same(rgb, truth)
    return F.smooth_l1_loss(rgb, truth, beta=beta)


def rgb_charbonnier(rgb: Tensor, truth: Tensor, eps: float = 1e-3) -> Tensor:
    """sqrt(|error of a pixel|^2 + eps) less sqrt(eps): absolute, rounded at 0 (NeRO)."""
    _same(rgb, truth)
    return (((rgb - truth) ** 2).sum(-1) + eps).sqrt().mean() - eps**0.5


def crossed(term: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor, truth: Tensor) -> Tensor:
    """`term` at the mean of two independent noisy estimates a and b [R, 3]; the slope met at one is applied to the other.

    A term of one noisy estimate also punishes its noise, and a light that is not noisy is one without lamps. Here the
    gradient's mean is that of the estimates' mean, exactly so for `rgb_mse` (as Mitsuba 2 does, Nimier-David et al., 2019).
    """

    def slope(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(term(x, truth), x)[0]

    gradient = 0.5 * ((slope(b) * a).sum() + (slope(a) * b).sum())
    return term((a + b).detach() / 2, truth) + gradient - gradient.detach()


def mask_bce(opacity: Tensor, mask: Tensor) -> Tensor:
    """Binary cross entropy of opacity and mask [R], on all rays (NeuS). Squeezed, not clamped: 0 and 1 keep a gradient."""
    _same(opacity, mask)
    p = 1e-3 + opacity * (1 - 2e-3)
    return -(mask * torch.log(p) + (1 - mask) * torch.log(1 - p)).mean()


def opaque(opacity: Tensor, eps: float = 1e-3) -> Tensor:
    """Entropy of opacity [R]: 0 where a ray passes or is stopped, at most log 2 in between."""
    p = opacity.clamp(eps, 1 - eps)
    low = torch.special.entr(p.new_tensor(eps)) + torch.special.entr(p.new_tensor(1 - eps))
    return (torch.special.entr(p) + torch.special.entr(1 - p) - low).clamp(min=0).mean()


# ------------------------------------------------------------------ geometry


def eikonal(grad: Tensor) -> Tensor:
    """(|grad sdf| - 1)^2 over points [S, 3]: keeps the field a distance (Gropp et al., IGR, 2020)."""
    return ((grad.norm(dim=-1) - 1) ** 2).mean() if len(grad) else grad.sum()


def curvature(normal: Tensor, normal_near: Tensor) -> Tensor:
    """Change of unit normals [P, 3] over a small step along the surface, as 1 - cosine (after PermutoSDF, 2023)."""
    _same(normal, normal_near)
    return (1 - (normal * normal_near).sum(-1)).mean() if len(normal) else normal.sum()


def bending(laplacian: Tensor, eps: float) -> Tensor:
    """Mean |Laplacian| [S] times eps, the step of the differences: falls as levels open (after Neuralangelo, 2023)."""
    return laplacian.abs().mean() * eps if len(laplacian) else laplacian.sum()


def sparsity(sdf: Tensor, scale: float) -> Tensor:
    """Mean exp(-scale |sdf|) over points [P]: pushes surfaces out of space that nobody sees (SparseNeuS, 2022)."""
    return torch.exp(-scale * sdf.abs()).mean() if len(sdf) else sdf.sum()


def occlusion(estimated: Tensor, marched: Tensor) -> Tensor:
    """Mean absolute error of probabilities [P] (NeRO)."""
    _same(estimated, marched)
    return (estimated - marched).abs().mean() if len(marched) else estimated.sum()


def dense_distortion(weights: Tensor, edges: Tensor) -> Tensor:
    """Distortion of each ray [R] from weights [R, n] between edges [R, n + 1] (mip-NeRF 360 eq. 15)."""
    mid, length = (edges[:, 1:] + edges[:, :-1]) / 2, edges.diff(dim=1)
    ahead = (weights.cumsum(1)[:, :-1] * mid.diff(dim=1)).cumsum(1)  # sum_{j<i} w_j (m_i - m_j)
    return (2 * weights[:, 1:] * ahead).sum(1) + (weights**2 * length).sum(1) / 3


# ------------------------------------------------------------------ what each term is fed


def _mask(e: Evidence) -> Tensor | None:
    return None if e.batch.mask is None else mask_bce(e.traced.render.opacity, e.batch.mask)


def _eikonal(e: Evidence) -> Tensor | None:
    if e.traced.field is None:
        return None
    return eikonal(torch.cat([e.traced.field.grad] + ([e.traced.extra.grad] if e.traced.extra is not None else [])))


def _curvature(e: Evidence) -> Tensor | None:
    """From finite differences the Laplacian; else normals at a share of the samples against those a small random step away."""
    t = e.traced
    if t.field is None:
        return None
    if t.field.laplacian is not None:
        return bending(t.field.laplacian, eps_at(e.model.sdf, e.model.open_levels(e.progress)))
    n, device = len(t.samples), t.weights.device
    pick = torch.randperm(n, device=device)[: max(1, n // 8)] if n else torch.empty(0, dtype=torch.long, device=device)
    index = t.samples.ray_indices[pick]
    points = e.batch.rays.origins[index] + e.batch.rays.dirs[index] * t.samples.t[pick, None]
    normal = F.normalize(t.field.grad[pick], dim=-1, eps=1e-6)
    tangent = torch.cross(normal, F.normalize(torch.randn_like(normal), dim=-1), dim=-1).detach()
    near = e.model.sdf(points + tangent * e.model.min_step, e.model.open_levels(e.progress))
    return curvature(normal, F.normalize(near.grad, dim=-1, eps=1e-6))


def _sparsity(e: Evidence) -> Tensor | None:
    where = e.traced.extra or e.traced.field
    return None if where is None else sparsity(where.sdf, e.cfg.sparsity_scale)


def _points(e: Evidence) -> Tensor | None:
    if e.traced.field is None or e.batch.points is None:
        return None
    inside = e.batch.points[e.batch.points.norm(dim=-1) < e.model.radius]
    return e.model.sdf.sdf(inside, e.model.open_levels(e.progress)).abs().mean() if len(inside) else None


def _distortion(e: Evidence) -> Tensor:
    s, rays = e.traced.samples, e.batch.rays
    each = packed_distortion(e.traced.weights, s.t_starts, s.t_ends, s.offsets, backend=e.model.composite_backend)
    return (each / (rays.far - rays.near).clamp(min=1e-3)).mean()


def _distortion_bg(e: Evidence) -> Tensor | None:
    b = e.traced.behind
    return dense_distortion(b.weights, b.proposed.s).sum() / len(e.batch.rays) if b is not None else None


def _interlevel(e: Evidence) -> Tensor | None:
    t = e.traced
    parts = [PropNetEstimator.compute_loss(t.behind.proposed, t.behind.weights)] if t.behind is not None else []
    if t.proposed is not None:
        parts.append(PropNetEstimator.compute_loss(t.proposed, t.weights.view(len(t.proposed.s), -1)))
    return torch.stack(parts).sum() if parts else None


def _occlusion(e: Evidence) -> Tensor | None:
    """Of a method that estimates it: mean |estimated - marched| probability that a mirrored view meets the object (NeRO)."""
    if not hasattr(e.model, "occlusion_pair"):
        return None
    estimated, marched = e.model.occlusion_pair(e.batch.rays, e.traced, e.progress)
    return occlusion(estimated, marched)


# name of the weight -> the term, or None where a step has nothing to say about it
TERMS: dict[str, Callable[[Evidence], Tensor | None]] = {
    "rgb": lambda e: rgb_l1(e.traced.render.rgb, e.truth),
    "rgb_mse": lambda e: rgb_mse(e.traced.render.rgb, e.truth),
    "rgb_smooth_l1": lambda e: rgb_smooth_l1(e.traced.render.rgb, e.truth),
    "rgb_charbonnier": lambda e: rgb_charbonnier(e.traced.render.rgb, e.truth),
    "mask": _mask,
    "eikonal": _eikonal,
    "curvature": _curvature,
    "opaque": lambda e: opaque(e.traced.render.opacity),
    "sparsity": _sparsity,
    "points": _points,
    "distortion": _distortion,
    "distortion_bg": _distortion_bg,
    "interlevel": _interlevel,
    "occlusion": _occlusion,
}


def weighted_terms(evidence: Evidence, weights: dict[str, float]) -> dict[str, Tensor]:
    """Every term of TERMS whose weight is not 0, times its weight."""
    found = {name: TERMS[name](evidence) for name, weight in weights.items() if weight}
    return {name: weights[name] * value for name, value in found.items() if value is not None}
