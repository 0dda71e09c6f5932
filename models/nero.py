"""NeRO's first stage (Liu et al., SIGGRAPH 2023): the geometry of NeuS, its colours by materials and light.

What differs from NeuS: colour is shaded (`models/shading.py`), once a ray at the mean of its samples where the paper shades each
of them, and whether a mirrored view meets the object again is learned from marching it through the SDF.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from models.neus import EARLY_STOP, NeuS
from models.proposal import importance
from models.shading import Shading
from models.traced import Traced
from models.volrend import composite, weights_from_alpha
from utils.colour import linear_to_srgb
from utils.rays import FieldOutput, Rays, Render, Samples

HIT = 0.5  # opacity from which on a ray has a surface


def to_sphere(points: Tensor, dirs: Tensor, radius: float) -> Tensor:
    """Distance [P] along unit dirs [P, 3] at which rays from points [P, 3] leave the sphere; 0 for points outside it."""
    along = (points * dirs).sum(-1)
    return (-along + (along**2 - (points * points).sum(-1) + radius**2).clamp(min=0).sqrt()).clamp(min=0)


def falling_weights(t: Tensor, sdf: Tensor, inv_s: Tensor | float) -> Tensor:
    """NeuS weights [P, n] between edges t [P, n + 1] with distances sdf [P, n + 1], of the intervals in which the sdf falls.

    A ray that leaves a surface climbs and meets nothing there.
    """
    before, after = torch.sigmoid(sdf[:, :-1] * inv_s), torch.sigmoid(sdf[:, 1:] * inv_s)
    falls = (sdf[:, 1:] < sdf[:, :-1]) & (t[:, 1:] > t[:, :-1])
    alpha = torch.where(falls, (before - after) / before.clamp(min=1e-6), 0.0).clamp(0, 1)
    return alpha * torch.cat([torch.ones_like(alpha[:, :1]), (1 - alpha[:, :-1]).cumprod(1)], 1)


@torch.no_grad()
def met_again(
    sdf: Callable[[Tensor], Tensor], points: Tensor, dirs: Tensor, inv_s: Tensor | float, radius: float, n_even: int = 64, n_near: int = 16
) -> Tensor:
    """Probability [P] that rays from surface points [P, 3] along dirs [P, 3] meet the surface before they leave the sphere.

    n_even even intervals, then n_near where these say that something is met; sdf: points [N, 3] -> [N].
    """
    if not len(points):
        return points[:, 0]

    def along(t: Tensor) -> Tensor:
        return sdf((points[:, None] + dirs[:, None] * t[..., None]).view(-1, 3)).view(t.shape)

    t = torch.linspace(0, 1, n_even + 1, device=points.device) * to_sphere(points, dirs, radius)[:, None]
    values = along(t)
    if n_near:
        new = importance(t, falling_weights(t, values, inv_s), n_near, floor=0.0)[:, 1:-1]
        t, order = torch.cat([t, new], 1).sort(1)
        values = torch.cat([values, along(new)], 1).gather(1, order)
    return falling_weights(t, values, inv_s).sum(1).clamp(0, 1)


class NeROShape(NeuS):
    """NeuS whose `radiance` is a `SplitSumShader`.

    deferred: a ray is shaded once, at the mean of its samples (feature, normal, place); else every sample of at least min_weight is.
    """

    deferred, min_weight, n_occlusion, n_even, n_near = True, 1e-3, 128, 64, 16

    def colour(self, rays: Rays, samples: Samples, points: Tensor, field: FieldOutput, normal: Tensor, alpha: Tensor) -> Tensor:
        """sRGB [S, 3]. A sample that is not shaded takes the colour of its ray, so that nothing pulls at its opacity."""
        index = samples.ray_indices
        if self.deferred:
            return self.colour_of_rays(rays, samples, points, field, normal, alpha).index_select(0, index)
        with torch.no_grad():
            weights, _ = weights_from_alpha(alpha.detach(), samples.offsets, EARLY_STOP, self.composite_backend)
            seen = torch.nonzero(weights > self.min_weight)[:, 0]
        ray = index.index_select(0, seen)
        at = (t.index_select(0, seen) for t in (points, field.feature, normal))
        shaded = self.radiance(*at, rays.dirs.index_select(0, ray), rays.origins.index_select(0, ray)).colour
        with torch.no_grad():
            w = weights.index_select(0, seen)[:, None]
            total = torch.zeros(len(rays), 4, device=w.device, dtype=w.dtype).index_add_(0, ray, torch.cat([w * shaded, w], 1))
            mean = total[:, :3] / total[:, 3:].clamp(min=1e-6)
            rest = mean.index_select(0, index)
        return rest.index_copy(0, seen, shaded)

    def colour_of_rays(self, rays: Rays, samples: Samples, points: Tensor, field: FieldOutput, normal: Tensor, alpha: Tensor) -> Tensor:
        """sRGB [R, 3], black where a ray meets next to nothing. What light does happens at a surface, so there is one to ask for.

        The gradient reaches the opacities by the mean: towards samples whose place, normal and material explain the colour.
        """
        values = torch.cat([points, normal, field.feature, torch.ones_like(alpha)[:, None]], 1)
        sums, _ = composite(alpha, values, samples.offsets, samples.ray_indices, EARLY_STOP, self.composite_backend)
        seen = torch.nonzero(sums[:, -1].detach() > self.min_weight)[:, 0]
        mean = sums.index_select(0, seen)
        mean = mean[:, :-1] / mean[:, -1:]
        towards = F.normalize(mean[:, 3:6], dim=-1, eps=1e-6)
        shaded = self.radiance(
            mean[:, :3], mean[:, 6:], towards, rays.dirs.index_select(0, seen), rays.origins.index_select(0, seen)
        ).colour
        return torch.zeros_like(rays.dirs).index_copy(0, seen, shaded.to(rays.dirs.dtype))

    def surface_points(self, rays: Rays, render: Render, hit: Tensor) -> tuple[Tensor, Tensor]:
        """(points, unit normals) [P, 3] where the rays `hit` [P] (indices) meet the surface as rendered."""
        t = render.depth[hit] / render.opacity[hit].clamp(min=1e-6)
        return rays.origins[hit] + rays.dirs[hit] * t[:, None], F.normalize(render.normal[hit], dim=-1, eps=1e-6)

    def occlusion_pair(self, rays: Rays, traced: Traced, progress: float) -> tuple[Tensor, Tensor]:
        """(estimated, marched) [P] probability that mirrored views meet the object again, at up to n_occlusion of the rays' surface points."""
        with torch.no_grad():
            hit = torch.nonzero(traced.render.opacity > HIT)[:, 0]
            if len(hit) > self.n_occlusion:
                hit = hit[torch.randperm(len(hit), device=hit.device)[: self.n_occlusion]]
            points, normal = self.surface_points(rays, traced.render, hit)
            dirs = rays.dirs[hit]
            mirrored = F.normalize(dirs - 2 * (dirs * normal).sum(-1, keepdim=True) * normal, dim=-1, eps=1e-6)
            levels = self.open_levels(progress)
            target = met_again(lambda x: self.sdf.sdf(x, levels), points, mirrored, self.variance(), self.radius, self.n_even, self.n_near)
        return self.radiance.occlusion(points, mirrored), target

    def shade(self, rays: Rays, render: Render, progress: float) -> tuple[Tensor, Shading]:
        """(indices [P] of the rays with a surface, their surface points shaded)."""
        hit = torch.nonzero(render.opacity > HIT)[:, 0]
        points, _ = self.surface_points(rays, render, hit)
        field = self.sdf(points, self.open_levels(progress))
        normal = F.normalize(field.grad, dim=-1, eps=1e-6)
        return hit, self.radiance(points, field.feature, normal, rays.dirs[hit], rays.origins[hit])

    def colour_at(self, x: Tensor, progress: float) -> Tensor:
        """Albedo [P, 3] of surface points [P, 3], as sRGB: what does not change with the light."""
        field = self.sdf(x, self.open_levels(progress))
        return linear_to_srgb(self.radiance.materials(field.feature, x)[0])
