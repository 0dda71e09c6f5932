"""Loss terms: functions of tensors that return a scalar, and the table of their inputs.

A term is one entry of TERMS here, one weight with its purpose in `confs/schema.py: LossConfig` and, where the term needs more than
a colour, one entry in `confs/effects.py: NEEDS`. Shapes must match; nothing is broadcast.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from confs.effects import NEEDS
from confs.schema import LossConfig
from models.method import Method, RenderContext, RenderOutput
from models.proposal import PropNetEstimator
from models.volrend import distortion as packed_distortion
from systems.patches import Patches
from utils.rays import RayBatch

CLEARANCE = 0.01  # radii between free space and the surface


@dataclass(frozen=True)
class LossInputs:
    """The inputs of the loss terms of one training step."""

    batch: RayBatch
    truth: Tensor  # [R, 3] the photographs' colours, composited as the render is
    output: RenderOutput
    model: Method
    cfg: LossConfig
    context: RenderContext
    patches: Patches | None = None  # of the scene, where loss.patches is on


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
    """`term` at the mean of two independent noisy estimates a and b [R, 3]; the slope at one multiplies the gradient of the other.

    A term of one noisy estimate penalises its variance too, which favours a light without lamps. Here the expected gradient is
    that at the mean of the estimates, exactly so for `rgb_mse` (as in Mitsuba 2, Nimier-David et al., 2019).
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
    """Entropy of opacity [R]: 0 at opacity 0 and 1, at most log 2 in between."""
    p = opacity.clamp(eps, 1 - eps)
    low = torch.special.entr(p.new_full((), eps)) + torch.special.entr(p.new_full((), 1 - eps))  # no copy from the host
    return (torch.special.entr(p) + torch.special.entr(1 - p) - low).clamp(min=0).mean()


# ------------------------------------------------------------------ geometry


def mean_of(values: Tensor, real: Tensor | None = None) -> Tensor:
    """Mean of values [P]; real [P] bool: of these alone. 0 of none."""
    if real is None:
        return values.mean() if len(values) else values.sum()
    return torch.where(real, values, 0).sum() / real.sum().clamp(min=1)


def eikonal(grad: Tensor, real: Tensor | None = None) -> Tensor:
    """(|grad sdf| - 1)^2 over points [S, 3]: keeps the field a distance (Gropp et al., IGR, 2020)."""
    return mean_of((grad.norm(dim=-1) - 1) ** 2, real)


def curvature(normal: Tensor, normal_near: Tensor, real: Tensor | None = None) -> Tensor:
    """Change of unit normals [P, 3] over a small step along the surface, as 1 - cosine (after PermutoSDF, 2023)."""
    _same(normal, normal_near)
    return mean_of(1 - (normal * normal_near).sum(-1), real)


def bending(laplacian: Tensor, eps: float, real: Tensor | None = None) -> Tensor:
    """Mean |Laplacian| [S] times eps, the step of the differences: falls as levels open (after Neuralangelo, 2023)."""
    return mean_of(laplacian.abs(), real) * eps


def sparsity(sdf: Tensor, scale: float, real: Tensor | None = None) -> Tensor:
    """Mean exp(-scale |sdf|) over points [P]: removes surfaces outside every view (SparseNeuS, 2022)."""
    return mean_of(torch.exp(-scale * sdf.abs()), real)


def free(sdf: Tensor, clearance: float) -> Tensor:
    """Mean of what the signed distance [P] in free space lacks to the clearance."""
    return (clearance - sdf).clamp(min=0).mean()


def occlusion(predicted: Tensor, marched: Tensor) -> Tensor:
    """Mean absolute error of probabilities [P] (NeRO)."""
    _same(predicted, marched)
    return (predicted - marched).abs().mean() if len(marched) else predicted.sum()


def dense_distortion(weights: Tensor, edges: Tensor) -> Tensor:
    """Distortion of each ray [R] from weights [R, n] between edges [R, n + 1] (mip-NeRF 360 eq. 15)."""
    mid, length = (edges[:, 1:] + edges[:, :-1]) / 2, edges.diff(dim=1)
    ahead = (weights.cumsum(1)[:, :-1] * mid.diff(dim=1)).cumsum(1)  # sum_{j<i} w_j (m_i - m_j)
    return (2 * weights[:, 1:] * ahead).sum(1) + (weights**2 * length).sum(1) / 3


# ------------------------------------------------------------------ the inputs of each term


def _mask(e: LossInputs) -> Tensor | None:
    return None if e.batch.mask is None else mask_bce(e.output.render.opacity, e.batch.mask)


def _eikonal(e: LossInputs) -> Tensor | None:
    field, extra = e.output.field, e.output.extra
    if field is None:
        return None
    real = _real(e)
    if real is not None and extra is not None:
        real = torch.cat([real, torch.ones_like(extra.sdf, dtype=torch.bool)])
    return eikonal(torch.cat([field.grad] + ([extra.grad] if extra is not None else [])), real)


def _real(e: LossInputs) -> Tensor | None:
    """[S] bool, the entries of the samples that are samples; None: all."""
    return None if e.output.samples is None else e.output.samples.real


def _curvature(e: LossInputs) -> Tensor | None:
    """From the Laplacian of finite differences; else from normals at an eighth of the samples and at points a small step away."""
    field, samples = e.output.field, e.output.samples
    if field is None or samples is None:
        return None
    if field.laplacian is not None:
        return bending(field.laplacian, field.eps, _real(e))
    n, device = len(samples), field.sdf.device
    pick = torch.randperm(n, device=device)[: max(1, n // 8)] if n else torch.empty(0, dtype=torch.long, device=device)
    index = samples.ray_indices[pick]
    points = e.batch.rays.origins[index] + e.batch.rays.dirs[index] * samples.t[pick, None]
    normal = F.normalize(field.grad[pick], dim=-1, eps=1e-6)
    tangent = torch.cross(normal, F.normalize(torch.randn_like(normal), dim=-1), dim=-1).detach()
    near = e.model.field_at(points + tangent * e.context.step, e.context)
    real = _real(e)
    return curvature(normal, F.normalize(near.grad, dim=-1, eps=1e-6), None if real is None else real[pick])


def _sparsity(e: LossInputs) -> Tensor | None:
    if e.output.extra is not None:
        return sparsity(e.output.extra.sdf, e.cfg.sparsity_scale)
    return None if e.output.field is None else sparsity(e.output.field.sdf, e.cfg.sparsity_scale, _real(e))


def _points(e: LossInputs) -> Tensor | None:
    if e.batch.points is None:
        return None
    within = e.batch.points.norm(dim=-1) < e.model.radius
    if _real(e) is not None:  # fixed shapes
        return mean_of(e.model.sdf_at(e.batch.points, e.context).abs(), within)
    inside = e.batch.points[within]
    return e.model.sdf_at(inside, e.context).abs().mean() if len(inside) else None


def _distortion(e: LossInputs) -> Tensor | None:
    s, weights, rays = e.output.samples, e.output.weights, e.batch.rays
    if s is None or weights is None:
        return None
    each = packed_distortion(weights, s.t_starts, s.t_ends, s.offsets, backend=e.model.composite_backend, partial=s.found is not None)
    return (each / (rays.far - rays.near).clamp(min=1e-3)).mean()


def _distortion_bg(e: LossInputs) -> Tensor | None:
    b = e.output.background
    return dense_distortion(b.weights, b.proposals.s).sum() / len(e.batch.rays) if b is not None else None


def _interlevel(e: LossInputs) -> Tensor | None:
    b, proposals, weights = e.output.background, e.output.proposals, e.output.weights
    parts = [PropNetEstimator.compute_loss(b.proposals, b.weights)] if b is not None else []
    if proposals is not None and weights is not None:
        parts.append(PropNetEstimator.compute_loss(proposals, weights.view(len(proposals.s), -1)))
    return torch.stack(parts).sum() if parts else None


def _occlusion(e: LossInputs) -> Tensor | None:
    """Mean |predicted - marched| probability that reflected rays hit the object (NeRO)."""
    return occlusion(*e.model.occlusion_pair(e.batch.rays, e.output, e.context))


# name of the weight -> the term, or None where a step has no data for it
TERMS: dict[str, Callable[[LossInputs], Tensor | None]] = {
    "rgb": lambda e: rgb_l1(e.output.render.rgb, e.truth),
    "rgb_mse": lambda e: rgb_mse(e.output.render.rgb, e.truth),
    "rgb_smooth_l1": lambda e: rgb_smooth_l1(e.output.render.rgb, e.truth),
    "rgb_charbonnier": lambda e: rgb_charbonnier(e.output.render.rgb, e.truth),
    "mask": _mask,
    "eikonal": _eikonal,
    "curvature": _curvature,
    "opaque": lambda e: opaque(e.output.render.opacity),
    "sparsity": _sparsity,
    "points": _points,
    "free": lambda e: None if e.batch.free is None else free(e.model.sdf_at(e.batch.free, e.context), CLEARANCE * e.model.radius),
    "patches": lambda e: None if e.patches is None else e.patches(e.batch, e.output, e.model, e.context),
    "distortion": _distortion,
    "distortion_bg": _distortion_bg,
    "interlevel": _interlevel,
    "occlusion": _occlusion,
}


def weighted_terms(inputs: LossInputs, weights: dict[str, float]) -> dict[str, Tensor]:
    """Every term whose weight is not 0 and which the method can compute, times its weight."""
    able = inputs.model.capabilities
    found = {name: TERMS[name](inputs) for name, weight in weights.items() if weight and NEEDS.get(name, "colour") in able}
    return {name: weights[name] * value for name, value in found.items() if value is not None}
