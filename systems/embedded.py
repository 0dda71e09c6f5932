"""The embedded renderer: a recovered material under a given light, with shadows and one bounce.

Directions are sampled by the cosine, by the GGX lobe and by the light's power, weighted by the balance heuristic.
"""

import torch
from torch import Tensor

from models.ggx_sampling import pattern
from models.lights import EnvironmentMap
from models.material import Counts, MaterialModel, Surface, reflect, sample_directions
from process_data.rays import make_rays
from utils.colour import linear_to_srgb
from utils.rays import Cameras

BRIGHTEST_BOUNCE = 10.0  # radiance of a second bounce is held below this, as Cycles does: against fireflies
RAYS = 4  # camera rays a pixel, which smooth the edges
POINTS = 2048  # shaded at once
GOLDEN = 0.6180339887


def counts(samples: int) -> Counts:
    """Directions by the cosine, the lobe and the light."""
    light = max(1, round(samples * 0.4))
    cosine = max(1, round(samples * 0.2))
    return Counts(cosine, max(1, samples - light - cosine), light)


def outgoing(
    model: MaterialModel, light: EnvironmentMap, surface: Surface, samples: int, shift: Tensor, bounces: int, turn: int = 0
) -> Tensor:
    """Linear radiance [P, 3] that leaves the surface towards its viewers. shift [P, 6] and turn offset the directions."""
    if not len(surface.points):
        return torch.zeros(0, 3, device=surface.points.device)
    material = model.material_at(surface.points)
    drawn = sample_directions(surface, material.alpha, counts(samples), shift, light, turn)
    radiance = torch.zeros_like(drawn.dirs).view(-1, 3)
    starts = surface.points + model.options.offset * surface.face_normal
    toward = drawn.dirs.reshape(-1, 3)[drawn.above]
    at = torch.div(drawn.above, drawn.dirs.shape[1], rounding_mode="floor")
    hits = model.trace(starts[at], toward)
    free = ~hits.found
    radiance[drawn.above[free]] = light.radiance(toward[free])
    if bounces:
        again = model.surface_at(hits, toward)
        moved = (shift[at[again.ray]] + GOLDEN * again.ray[:, None]) % 1  # another offset of the pattern for each bounce
        bounced = torch.cat([
            outgoing(model, light, Surface(*(x[i : i + 32768] for x in vars(again).values())), 4, moved[i : i + 32768], bounces - 1)
            for i in range(0, len(again.ray), 32768)
        ] or [radiance[:0]])  # fmt: skip
        radiance[drawn.above[again.ray]] = bounced.clamp(max=BRIGHTEST_BOUNCE)
    return reflect(material, drawn.weights @ radiance.view_as(drawn.dirs))


@torch.no_grad()
def render_relit(model: MaterialModel, light: EnvironmentMap, cameras: Cameras, i: int, samples: int, transparent: bool) -> Tensor:
    """View i of cameras in the unit sphere's frame: sRGB and alpha (straight) [h, w, 4] in [0, 1], the same at every call."""
    w, h = cameras.size(i)
    device = model.local.device
    shift = torch.rand(h * w, 6, generator=torch.Generator().manual_seed(i)).to(device)
    v, u = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    centre = torch.stack([u, v], -1).reshape(-1, 2).float()
    colour, alpha = torch.zeros(h * w, 3, device=device), torch.zeros(h * w, 1, device=device)
    for k in range(RAYS):
        offset = pattern(RAYS, torch.zeros(1, 2))[0, k] - 0.5
        rays = make_rays(cameras, torch.full((h * w,), i), centre + offset, 1.0).to(device)
        hits, surface = model.first_hits(rays.origins, rays.dirs)
        for a in range(0, len(surface.ray), POINTS):
            part = Surface(*(x[a : a + POINTS] for x in vars(surface).values()))
            colour[part.ray] += outgoing(model, light, part, max(4, samples // RAYS), shift[part.ray], 1, k)
        alpha[surface.ray] += 1
        if not transparent:
            miss = torch.nonzero(~hits.found)[:, 0]
            colour[miss] += light.radiance(rays.dirs[miss])
            alpha[miss] += 1
    straight = linear_to_srgb(colour / alpha.clamp(min=1)).clamp(0, 1)
    return torch.cat([straight, alpha / RAYS], -1).view(h, w, 4).cpu()
