"""The split sum (Karis, Real Shading in Unreal Engine 4, 2013): what a GGX surface reflects of light that is the same all round.

For one direction of view the reflected share is F0 * x + y, F0 the reflectance at normal incidence (Schlick's Fresnel):
x, y = integral of D G / (4 n.v n.l) * (1 - F, F) n.l over the light's directions l, with F = (1 - v.h)^5. D is GGX
(Walter et al., 2007) of alpha = roughness^2, G Smith's height-correlated masking and shadowing (Heitz, 2014).

x + y is below 1 on rough surfaces: light that bounces twice between facets is left out.
"""

import functools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIZE = 64  # entries a side of the table
FINEST = 0.03  # least roughness of the table


def ggx(cos_h: Tensor, alpha: Tensor) -> Tensor:
    """Density D [...] of facet normals at the cosine n.h: its projection integrates to 1 over the hemisphere."""
    a2 = alpha * alpha
    return a2 / (math.pi * (cos_h * cos_h * (a2 - 1) + 1) ** 2)


def smith_lambda(cosine: Tensor, alpha: Tensor) -> Tensor:
    """Smith's Lambda [...] of GGX for a direction at that cosine to the normal, in (0, 1]."""
    tan2 = (1 - cosine * cosine).clamp(min=0) / (cosine * cosine)
    return ((1 + alpha * alpha * tan2).sqrt() - 1) / 2


def smith(cos_v: Tensor, cos_l: Tensor, alpha: Tensor) -> Tensor:
    """Share [...] of facets that both directions see: height-correlated Smith G."""
    return 1 / (1 + smith_lambda(cos_v, alpha) + smith_lambda(cos_l, alpha))


def integrate(cos_v: Tensor, roughness: Tensor, n: int = 20) -> Tensor:
    """(x, y) [..., 2] of the split sum at cosines n.v and roughness of equal shape, by n x n of the facets the viewer sees.

    The facets are spread evenly over the distribution of visible normals (Heitz, Sampling the GGX Distribution of Visible
    Normals, 2018); one side of the plane of incidence is enough. Each then weighs G2 / G1, a number in [0, 1].
    """
    cos_v, alpha = cos_v[..., None].double(), (roughness[..., None] ** 2).double()
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    rim = (1 - u) ** 3  # of the disk's area: what is steep lies at its rim, so we look there more often
    radius, turn, share = (
        t.reshape(-1) for t in torch.broadcast_tensors((1 - rim).sqrt()[:, None], math.pi * (u - 0.5), (3 * (1 - u) ** 2 / n**2)[:, None])
    )
    # the view stretched to a surface of alpha 1, in the x-z plane
    sin_v = (1 - cos_v * cos_v).clamp(min=0).sqrt()
    length = (alpha * alpha * sin_v * sin_v + cos_v * cos_v).sqrt()
    vx, vz = alpha * sin_v / length, cos_v / length
    across, along = radius * turn.cos(), radius * turn.sin()  # on the disk the view sees; `along` points up the surface
    along = (1 - (1 + vz) / 2) * (1 - across * across).sqrt() + (1 + vz) / 2 * along
    towards = (1 - across * across - along * along).clamp(min=0).sqrt()
    hx, hy, hz = alpha * (towards * vx - along * vz), alpha * across, (towards * vz + along * vx).clamp(min=0)
    norm = (hx * hx + hy * hy + hz * hz).sqrt()
    v_h = ((sin_v * hx + cos_v * hz) / norm).clamp(0, 1)
    cos_l = 2 * v_h * hz / norm - cos_v
    lambda_v = smith_lambda(cos_v, alpha)
    seen = torch.where(cos_l > 0, (1 + lambda_v) / (1 + lambda_v + smith_lambda(cos_l.clamp(min=1e-6), alpha)), 0.0)
    fresnel = (1 - v_h) ** 5
    return torch.stack([seen * (1 - fresnel), seen * fresnel], -1).mul(share[:, None]).sum(-2).div(share.sum()).float()


@functools.cache
def fg_table(size: int = SIZE) -> Tensor:
    """[2, size, size] float32: `integrate` at n.v = (j / (size - 1))^2 (columns) and roughness from FINEST to 1 (rows)."""
    unit = torch.linspace(0, 1, size)
    roughness, root = torch.meshgrid(FINEST + (1 - FINEST) * unit, unit, indexing="ij")
    rows = [integrate(c.square().clamp(min=1e-4), r) for c, r in zip(root.split(16), roughness.split(16))]
    return torch.cat(rows).permute(2, 0, 1).contiguous()


class SplitSum(nn.Module):
    """(n.v [S], perceptual roughness [S]) -> (x, y) [S, 2], looked up between the entries of the table; differentiable."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", fg_table(), persistent=False)

    def forward(self, cos_v: Tensor, roughness: Tensor) -> Tensor:
        column = 2 * cos_v.clamp(1e-4, 1).sqrt() - 1
        row = 2 * (roughness.clamp(FINEST, 1) - FINEST) / (1 - FINEST) - 1
        where = torch.stack([column, row], -1)[None, :, None].float()  # [1, S, 1, 2]
        found = F.grid_sample(self.table[None], where, mode="bilinear", padding_mode="border", align_corners=True)
        return found[0, :, :, 0].T
