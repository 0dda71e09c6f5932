"""NeRO's first stage (Liu et al., SIGGRAPH 2023): the geometry of NeuS with colours by material and light.

What differs from NeuS: colour is shaded (`models/shading.py`), once a ray at the weighted mean of its samples where the paper shades
every sample; and a network learns the probability that a reflected ray hits the object, from marching such rays through the SDF.
"""

from collections.abc import Callable
from dataclasses import fields

import torch
from torch import Tensor
from torch.nn import functional as F

from confs.model import NeROConfig
from models.lights import distance_to_sphere
from models.method import RenderContext, RenderOutput
from models.neus import EARLY_STOP, NeuS
from models.proposal import importance
from models.shading import ShadingOutput, SplitSumShader
from models.volrend import composite, weights_from_alpha
from utils.colour import linear_to_srgb
from utils.rays import FieldOutput, Rays, Render, Samples

HIT = 0.5  # opacity from which a ray has a surface
LINEAR = {"albedo", "diffuse", "specular", "photographer"}  # parts in linear light, sRGB in pictures
LABELS = {"diffuse": "diffuse light", "specular": "specular light"}


def falling_weights(t: Tensor, sdf: Tensor, inv_s: Tensor | float) -> Tensor:
    """NeuS weights [P, n] between edges t [P, n + 1] with distances sdf [P, n + 1], of the intervals in which the SDF falls.

    A ray that leaves a surface has a rising SDF and no weight there.
    """
    before, after = torch.sigmoid(sdf[:, :-1] * inv_s), torch.sigmoid(sdf[:, 1:] * inv_s)
    falls = (sdf[:, 1:] < sdf[:, :-1]) & (t[:, 1:] > t[:, :-1])
    alpha = torch.where(falls, (before - after) / before.clamp(min=1e-6), 0.0).clamp(0, 1)
    return alpha * torch.cat([torch.ones_like(alpha[:, :1]), (1 - alpha[:, :-1]).cumprod(1)], 1)


@torch.no_grad()
def occlusion_probability(
    sdf: Callable[[Tensor], Tensor], points: Tensor, dirs: Tensor, inv_s: Tensor | float, radius: float, n_uniform: int = 64, n_importance: int = 16
) -> Tensor:  # fmt: skip
    """Probability [P] that rays from surface points [P, 3] along dirs [P, 3] hit the surface before they leave the sphere.

    n_uniform intervals, then n_importance more where the weights of these lie; sdf: points [N, 3] -> [N].
    """
    if not len(points):
        return points[:, 0]

    def along(t: Tensor) -> Tensor:
        return sdf((points[:, None] + dirs[:, None] * t[..., None]).view(-1, 3)).view(t.shape)

    t = torch.linspace(0, 1, n_uniform + 1, device=points.device) * distance_to_sphere(points, dirs, radius)[:, None]
    values = along(t)
    if n_importance:
        new = importance(t, falling_weights(t, values, inv_s), n_importance, floor=0.0)[:, 1:-1]
        t, order = torch.cat([t, new], 1).sort(1)
        values = torch.cat([values, along(new)], 1).gather(1, order)
    return falling_weights(t, values, inv_s).sum(1).clamp(0, 1)


class NeROShape(NeuS):
    """NeuS whose `radiance` is a `SplitSumShader`; `cfg.shading` holds its options."""

    view_dependent = False  # albedo
    cfg: NeROConfig  # type: ignore[assignment]
    radiance: SplitSumShader

    def hold(self, room: int) -> bool:
        return False  # which samples are shaded is found out anew in each step

    def colour(
        self, rays: Rays, samples: Samples, points: Tensor, field: FieldOutput, normal: Tensor, alpha: Tensor, context: RenderContext
    ) -> Tensor:
        """sRGB [S, 3]. A sample that is not shaded takes the colour of its ray, which leaves its opacity without a colour gradient."""
        index = samples.ray_indices
        if self.cfg.shading.deferred:
            return self.colour_of_rays(rays, samples, points, field, normal, alpha).index_select(0, index)
        with torch.no_grad():
            weights, _ = weights_from_alpha(alpha.detach(), samples.offsets, EARLY_STOP, self.composite_backend)
            chosen = torch.nonzero(weights > self.cfg.shading.min_weight)[:, 0]
        ray = index.index_select(0, chosen)
        at = (t.index_select(0, chosen) for t in (points, field.feature, normal))
        shaded = self.radiance(*at, rays.dirs.index_select(0, ray), rays.origins.index_select(0, ray)).colour
        with torch.no_grad():
            w = weights.index_select(0, chosen)[:, None]
            total = torch.zeros(len(rays), 4, device=w.device, dtype=w.dtype).index_add_(0, ray, torch.cat([w * shaded, w], 1))
            mean = total[:, :3] / total[:, 3:].clamp(min=1e-6)
            rest = mean.index_select(0, index)
        return rest.index_copy(0, chosen, shaded)

    def colour_of_rays(self, rays: Rays, samples: Samples, points: Tensor, field: FieldOutput, normal: Tensor, alpha: Tensor) -> Tensor:
        """sRGB [R, 3], black for rays of opacity below min_weight.

        The gradient reaches the opacities through the mean: towards samples whose position, normal and material explain the colour.
        """
        values = torch.cat([points, normal, field.feature, torch.ones_like(alpha)[:, None]], 1)
        sums, _ = composite(alpha, values, samples.offsets, samples.ray_indices, EARLY_STOP, self.composite_backend)
        chosen = torch.nonzero(sums[:, -1].detach() > self.cfg.shading.min_weight)[:, 0]
        mean = sums.index_select(0, chosen)
        mean = mean[:, :-1] / mean[:, -1:]
        unit = F.normalize(mean[:, 3:6], dim=-1, eps=1e-6)
        shaded = self.radiance(
            mean[:, :3], mean[:, 6:], unit, rays.dirs.index_select(0, chosen), rays.origins.index_select(0, chosen)
        ).colour
        return torch.zeros_like(rays.dirs).index_copy(0, chosen, shaded.to(rays.dirs.dtype))

    def surface_points(self, rays: Rays, render: Render, hit: Tensor) -> tuple[Tensor, Tensor]:
        """(points, unit normals) [P, 3] of the rendered surface on the rays `hit` [P] (indices)."""
        t = render.depth[hit] / render.opacity[hit].clamp(min=1e-6)
        return rays.origins[hit] + rays.dirs[hit] * t[:, None], F.normalize(render.normal[hit], dim=-1, eps=1e-6)

    def occlusion_pair(self, rays: Rays, output: RenderOutput, context: RenderContext) -> tuple[Tensor, Tensor]:
        """(predicted, marched) occlusion [P] of reflected rays at up to occlusion_points of the rays' surface points."""
        shading = self.cfg.shading
        with torch.no_grad():
            hit = torch.nonzero(output.render.opacity > HIT)[:, 0]
            if len(hit) > shading.occlusion_points:
                hit = hit[torch.randperm(len(hit), device=hit.device)[: shading.occlusion_points]]
            points, normal = self.surface_points(rays, output.render, hit)
            dirs = rays.dirs[hit]
            reflected = F.normalize(dirs - 2 * (dirs * normal).sum(-1, keepdim=True) * normal, dim=-1, eps=1e-6)
            marched = occlusion_probability(
                lambda x: self.sdf_at(x, context), points, reflected, self.inv_s(context), self.radius, *shading.occlusion_samples
            )  # fmt: skip
        return self.radiance.occlusion(points, reflected), marched

    def shade(self, rays: Rays, render: Render, context: RenderContext) -> tuple[Tensor, ShadingOutput]:
        """(indices [P] of the rays with a surface, the shading of their surface points)."""
        hit = torch.nonzero(render.opacity > HIT)[:, 0]
        points, _ = self.surface_points(rays, render, hit)
        field = self.field_at(points, context)
        normal = F.normalize(field.grad, dim=-1, eps=1e-6)
        return hit, self.radiance(points, field.feature, normal, rays.dirs[hit], rays.origins[hit])

    def colour_at(self, points: Tensor, context: RenderContext) -> Tensor:
        """Albedo [P, 3] of surface points [P, 3], as sRGB: it does not depend on the light."""
        field = self.field_at(points, context)
        return linear_to_srgb(self.radiance.materials(field.feature, points)[0])

    @torch.no_grad()
    def maps(self, rays: Rays, render: Render, context: RenderContext, chunk: int) -> dict[str, Tensor]:
        """Materials, lights and occlusion [R, 3] at the surface points of a rendered view, on black."""
        found: dict[str, Tensor] = {}
        for start in range(0, len(rays), chunk):
            part = slice(start, start + chunk)
            piece = Render(*(getattr(render, name)[part] for name in ("rgb", "opacity", "depth", "normal")))
            hit, shading = self.shade(rays[part], piece, context)
            for name, value in _pictures(shading).items():
                found.setdefault(name, torch.zeros_like(render.rgb))[start + hit] = value * piece.opacity[hit, None]
        return found


def _pictures(shading: ShadingOutput) -> dict[str, Tensor]:
    """Label -> [P, 3] in [0, 1]."""
    parts = {f.name: getattr(shading, f.name) for f in fields(ShadingOutput) if f.name != "colour"}
    return {
        LABELS.get(name, name): linear_to_srgb(value.clamp(0, 1)) if name in LINEAR else value[:, None].expand(-1, 3)
        for name, value in parts.items()
        if value is not None
    }
