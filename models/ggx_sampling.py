"""Directions of light at a surface, their sampling densities and their weights in the reflected radiance.

Everything lives in the local frame whose z axis is the normal. alpha is the GGX width, the square of the perceptual
roughness. Shapes: P points, D directions a point; view and light directions point away from the surface.

Walter et al., Microfacet models for refraction (2007); Heitz, Understanding the masking-shadowing function (2014); Dupuy
and Benyoub, Sampling visible GGX normals with spherical caps (2023); Veach, Robust Monte Carlo methods (1997).
"""

from dataclasses import dataclass
from math import pi

import torch
from torch import Tensor
from torch.nn import functional as F

from models.brdf import distribution, fresnel_schlick, smith_visibility

LEAST_COSINE = 1e-3  # a view below the horizon of an interpolated normal counts as grazing


def frames(normal: Tensor) -> Tensor:
    """Orthonormal frames [P, 3, 3] whose last row is the unit normal [P, 3]; local = frame @ world (Duff et al., 2017)."""
    x, y, z = normal.unbind(-1)
    sign = torch.where(z >= 0, 1.0, -1.0)
    a = -1 / (sign + z)
    b = x * y * a
    first = torch.stack([1 + sign * x * x * a, sign * b, -sign * x], -1)
    second = torch.stack([b, sign + y * y * a, -y], -1)
    return torch.stack([first, second, normal], -2)


def pattern(n: int, shift: Tensor, turn: int = 0) -> Tensor:
    """n points of the unit square, spread evenly, [P, n, 2]; each of the P sets is moved round by shift [P, 2] (the R2 sequence).

    turn: the sets of turns 0, 1, 2, ... with one shift fill each other's gaps.
    """
    steps = torch.arange(turn * n + 1, (turn + 1) * n + 1, device=shift.device, dtype=torch.float64)[:, None]
    base = (steps * torch.tensor([0.7548776662466927, 0.5698402909980532], dtype=torch.float64, device=shift.device)) % 1
    return (base.to(shift.dtype) + shift[:, None]) % 1


def sample_cosine(u: Tensor) -> Tensor:
    """Directions [..., 3] with density cos / pi from u [..., 2]."""
    radius, turn = u[..., 0].sqrt(), 2 * pi * u[..., 1]
    return torch.stack([radius * turn.cos(), radius * turn.sin(), (1 - u[..., 0]).clamp(min=0).sqrt()], -1)


def sample_ggx(u: Tensor, view: Tensor, alpha: Tensor) -> Tensor:
    """Mirror directions [P, D, 3] at visible normals of view [P, 3], from u [P, D, 2]; some point below the horizon (z < 0)."""
    a = alpha[:, None]
    stretched = F.normalize(torch.cat([view[:, :2] * a, view[:, 2:]], -1), dim=-1)[:, None]  # [P, 1, 3]
    turn = 2 * pi * u[..., 0]
    z = (1 - u[..., 1]) * (1 + stretched[..., 2]) - stretched[..., 2]
    radius = (1 - z * z).clamp(min=0).sqrt()
    half = torch.stack([radius * turn.cos(), radius * turn.sin(), z], -1) + stretched
    half = F.normalize(torch.cat([half[..., :2] * a[..., None], half[..., 2:].clamp(min=1e-7)], -1), dim=-1)
    view = view[:, None]
    return 2 * (view * half).sum(-1, keepdim=True) * half - view


def pdf_cosine(light: Tensor) -> Tensor:
    """Density [...] of `sample_cosine` at light [..., 3]."""
    return light[..., 2].clamp(min=0) / pi


def pdf_ggx(light: Tensor, view: Tensor, alpha: Tensor) -> Tensor:
    """Density [P, D] over the whole sphere of `sample_ggx` at light [P, D, 3]; alpha [P]."""
    half = F.normalize(light + view[:, None], dim=-1)
    a = alpha[:, None]
    cos = view[:, None, 2]
    density = distribution(half, a) * 0.5 / (cos + (cos**2 * (1 - a * a) + a * a).sqrt())
    return torch.where(half[..., 2] > 0, density, 0.0)


@dataclass(frozen=True)
class BRDFWeights:
    """Factors on the radiance of each direction: BRDF times cosine, divided by the sampling density and the number of directions.

    Reflected radiance = albedo (1 - metallic) sum(diffuse L) + F0 sum(base L) + sum(edge L).
    """

    diffuse: Tensor  # [P, D]
    base: Tensor  # [P, D] specular, of the colour at normal incidence
    edge: Tensor  # [P, D] specular, of the white rim (Schlick, 1994)

    def stack(self) -> Tensor:
        """[P, 3, D]."""
        return torch.stack([self.diffuse, self.base, self.edge], 1)


def shading_weights(
    light: Tensor, view: Tensor, alpha: Tensor, n_cosine: int, n_ggx: int, others: Tensor | None = None, drawn: Tensor | None = None
) -> BRDFWeights:
    """Weights of directions drawn as a mixture, by the balance heuristic (Veach).

    light [P, D, 3], view [P, 3], alpha [P] (differentiable); n_cosine, n_ggx: how many of D each strategy drew; others [P, D]:
    density times count of further strategies; drawn [P]: the alpha the GGX directions were drawn with, by default alpha.
    The densities carry no gradient: directions are chosen, not moved.
    """
    cos_light, cos_view = light[..., 2], view[:, None, 2]
    half = F.normalize(light + view[:, None], dim=-1)
    a = alpha[:, None]
    with torch.no_grad():
        density = n_cosine * pdf_cosine(light)
        if n_ggx:
            density = density + n_ggx * pdf_ggx(light, view, alpha if drawn is None else drawn)
        if others is not None:
            density = density + others
        scale = torch.where(cos_light > 0, cos_light / density.clamp(min=1e-12), 0.0)
        rim = fresnel_schlick((half * light).sum(-1))
    specular = distribution(half, a) * smith_visibility(cos_light.clamp(min=0), cos_view, a) * scale
    return BRDFWeights(scale / pi, specular * (1 - rim), specular * rim)


def to_local(frame: Tensor, view: Tensor) -> Tensor:
    """The view [P, 3] in the frames [P, 3, 3], held a little above the horizon."""
    local = (frame @ view[..., None])[..., 0]
    return F.normalize(torch.cat([local[:, :2], local[:, 2:].clamp(min=LEAST_COSINE)], -1), dim=-1)
