"""The BRDF of both NeRO stages: GGX with Smith's masking and Schlick's Fresnel, and its split-sum integral.

alpha = roughness^2 is the GGX width. D: Walter et al., Microfacet models for refraction, 2007. G: Heitz, Understanding the
masking-shadowing function, 2014. Fresnel: Schlick, 1994.

Split sum (Karis, Real Shading in Unreal Engine 4, 2013): under uniform light a surface with reflectance F0 at normal incidence
reflects F0 * x + y, with x, y = integral of D G / (4 n.v n.l) * (1 - F, F) n.l over the light's directions l, F = (1 - v.h)^5.
x + y is below 1 on rough surfaces, since light that bounces twice between facets is left out.
"""

import functools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

F0_DIELECTRIC = 0.04  # reflectance of non-metals at normal incidence
SIZE = 64  # entries a side of the table
FINEST = 0.03  # least roughness of the table


def fresnel_schlick(cosine: Tensor) -> Tensor:
    """(1 - cos)^5 [...]: the share of white in the reflectance F0 + (1 - F0) * this."""
    return (1 - cosine).clamp(0, 1) ** 5


def specular_f0(albedo: Tensor, metallic: Tensor) -> Tensor:
    """Reflectance [P, 3] at normal incidence of albedo [P, 3] and metallic [P, 1]."""
    return F0_DIELECTRIC * (1 - metallic) + metallic * albedo


def distribution(half: Tensor, alpha: Tensor) -> Tensor:
    """GGX density D [...] of microfacet normals at half vectors [..., 3], alpha [...]. Written with sines, which are exact near the peak."""
    a2 = alpha * alpha
    spread = half[..., 0] ** 2 + half[..., 1] ** 2 + a2 * half[..., 2] ** 2
    return a2 / (math.pi * spread * spread).clamp(min=1e-30)


def smith_lambda(cosine: Tensor, alpha: Tensor) -> Tensor:
    """Smith's Lambda [...] of GGX for a direction at that cosine to the normal, in (0, 1]."""
    tan2 = (1 - cosine * cosine).clamp(min=0) / (cosine * cosine)
    return ((1 + alpha * alpha * tan2).sqrt() - 1) / 2


def smith_visibility(cos_light: Tensor, cos_view: Tensor, alpha: Tensor) -> Tensor:
    """Height-correlated masking and shadowing G [...] over 4 cos_light cos_view."""
    a2 = alpha * alpha
    light = cos_view * (cos_light**2 * (1 - a2) + a2).sqrt()
    view = cos_light * (cos_view**2 * (1 - a2) + a2).sqrt()
    return 0.5 / (light + view).clamp(min=1e-12)


def integrate(cos_v: Tensor, roughness: Tensor, n: int = 20) -> Tensor:
    """(x, y) [..., 2] of the split sum at cosines n.v and roughness of equal shape, by n x n visible facets.

    The facets are spread evenly over the distribution of visible normals (Heitz, Sampling the GGX Distribution of Visible
    Normals, 2018); one side of the plane of incidence is enough. Each then weighs G2 / G1, a number in [0, 1].
    """
    cos_v, alpha = cos_v[..., None].double(), (roughness[..., None] ** 2).double()
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    rim = (1 - u) ** 3  # of the disk's area: steep facets lie at its rim, which is sampled more densely
    radius, turn, share = (
        t.reshape(-1) for t in torch.broadcast_tensors((1 - rim).sqrt()[:, None], math.pi * (u - 0.5), (3 * (1 - u) ** 2 / n**2)[:, None])
    )
    # the view stretched to a surface of alpha 1, in the x-z plane
    sin_v = (1 - cos_v * cos_v).clamp(min=0).sqrt()
    length = (alpha * alpha * sin_v * sin_v + cos_v * cos_v).sqrt()
    vx, vz = alpha * sin_v / length, cos_v / length
    across, along = radius * turn.cos(), radius * turn.sin()  # on the projected disk; `along` points up the surface
    along = (1 - (1 + vz) / 2) * (1 - across * across).sqrt() + (1 + vz) / 2 * along
    towards = (1 - across * across - along * along).clamp(min=0).sqrt()
    hx, hy, hz = alpha * (towards * vx - along * vz), alpha * across, (towards * vz + along * vx).clamp(min=0)
    norm = (hx * hx + hy * hy + hz * hz).sqrt()
    v_h = ((sin_v * hx + cos_v * hz) / norm).clamp(0, 1)
    cos_l = 2 * v_h * hz / norm - cos_v
    lambda_v = smith_lambda(cos_v, alpha)
    visible = torch.where(cos_l > 0, (1 + lambda_v) / (1 + lambda_v + smith_lambda(cos_l.clamp(min=1e-6), alpha)), 0.0)
    fresnel = fresnel_schlick(v_h)
    return torch.stack([visible * (1 - fresnel), visible * fresnel], -1).mul(share[:, None]).sum(-2).div(share.sum()).float()


@functools.cache
def fg_table(size: int = SIZE) -> Tensor:
    """[2, size, size] float32: `integrate` at n.v = (j / (size - 1))^2 (columns) and roughness from FINEST to 1 (rows)."""
    unit = torch.linspace(0, 1, size)
    roughness, root = torch.meshgrid(FINEST + (1 - FINEST) * unit, unit, indexing="ij")
    rows = [integrate(c.square().clamp(min=1e-4), r) for c, r in zip(root.split(16), roughness.split(16))]
    return torch.cat(rows).permute(2, 0, 1).contiguous()


class SplitSum(nn.Module):
    """(n.v [S], perceptual roughness [S]) -> (x, y) [S, 2], looked up between the entries of the table; differentiable."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", fg_table(), persistent=False)

    def forward(self, cos_v: Tensor, roughness: Tensor) -> Tensor:
        column = 2 * cos_v.clamp(1e-4, 1).sqrt() - 1
        row = 2 * (roughness.clamp(FINEST, 1) - FINEST) / (1 - FINEST) - 1
        where = torch.stack([column, row], -1)[None, :, None].float()  # [1, S, 1, 2]
        found = F.grid_sample(self.table[None], where, mode="bilinear", padding_mode="border", align_corners=True)
        return found[0, :, :, 0].T
