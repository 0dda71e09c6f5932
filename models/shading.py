"""Colour by materials and light: the split-sum shader of NeRO's first stage (Liu et al., NeRO, SIGGRAPH 2023, section 3.2).

colour = diffuse + specular, in linear light, sRGB at the end:
diffuse = (1 - metallic) albedo * L(n, roughness 1), by the outer light alone;
specular = (F0 * x + y) * L(r, roughness), r the mirrored view, F0 = 0.04 (1 - metallic) + metallic albedo, (x, y) of `models/fg.py`;
L(r) = occlusion * inner + (1 - occlusion) * [a * photographer + (1 - a) * outer].

Under uniform light a white diffuse surface returns 1 and a white metal x + y. A dielectric returns its 0.04 x + y on top of its
diffuse light, which is not lowered by what the surface mirrors: 1.04 seen straight on, 1.35 at n.v = 0.2, 1.8 at 0.02 (roughness 0.1).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from encoder.directional import IntegratedDirectional
from encoder.frequency import Frequency, IntegratedFrequency
from models.fg import SplitSum
from models.network import mlp
from utils.colour import clip, linear_to_srgb

F0_DIELECTRIC = 0.04
SMOOTHEST = 0.03  # least roughness
UNOCCLUDED = -0.95  # the occlusion network's output at the start: 2.5 %


def lobe(roughness: Tensor) -> Tensor:
    """1 / kappa of the lobe mirrored at perceptual roughness [...]: 2 roughness^4, the width of GGX (Wang et al., 2009), when small.

    At roughness 1 it is 0.5, a lobe as wide as a cosine (its bands 1 and 2 fade to 0.6 and 0.2; the cosine's to 0.67 and 0.25).
    """
    r4 = roughness**4
    return 2 * r4 / (1 + 3 * r4)


def limited_exp(x: Tensor, most: float) -> Tensor:
    """exp(x) that levels off at `most`: light is positive and bounded."""
    return most * torch.sigmoid(x - math.log(most))


def photographer_plane(points: Tensor, dirs: Tensor, origins: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where rays from points [S, 3] along dirs [S, 3] meet the upright plane through the camera (origins [S, 3]) that faces the object.

    Returns (place on the plane [S, 2]: right and up of the camera; distance [S]; whether it is met [S] bool). Up is z.
    """
    away = F.normalize(torch.cat([origins[:, :2], torch.zeros_like(origins[:, :1])], 1), dim=-1, eps=1e-6)
    speed = (dirs * away).sum(-1)
    met = speed > 1e-3
    distance = torch.where(met, ((origins - points) * away).sum(-1), 0.0) / torch.where(met, speed, 1.0)
    met = met & (distance > 0)
    offset = points + distance[:, None] * dirs - origins
    right = torch.stack([-away[:, 1], away[:, 0]], -1)
    place = torch.stack([(offset[:, :2] * right).sum(-1), offset[:, 2]], -1)
    return torch.where(met[:, None], place, 0.0), torch.where(met, distance, 0.0), met


@dataclass(frozen=True)
class Shading:
    """S shaded points: the colour towards the camera and what it was made of. Light is linear."""

    colour: Tensor  # [S, 3] sRGB in [0, 1]
    albedo: Tensor  # [S, 3]
    roughness: Tensor  # [S] perceptual
    metallic: Tensor  # [S]
    diffuse: Tensor  # [S, 3] light that falls in from all sides
    specular: Tensor  # [S, 3] light that falls in along the mirrored view
    occlusion: Tensor  # [S] probability that the mirrored view meets the object
    photographer: Tensor | None  # [S, 3] the photographer's light times how much of the view it fills


class Materials(nn.Module):
    """(feature [S, F], points [S, 3]) -> albedo [S, 3], roughness [S], metallic [S]; one network, or one for each."""

    def __init__(self, n_features: int, hidden: int, layers: int, separate: bool):
        super().__init__()
        self.heads = nn.ModuleList(mlp(n_features + 3, hidden, layers, n) for n in ((3, 1, 1) if separate else (5,)))

    def forward(self, feature: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        seen = torch.cat([feature, points], 1)
        out = torch.sigmoid(torch.cat([head(seen) for head in self.heads], 1).float())
        return out[:, :3], SMOOTHEST + (1 - SMOOTHEST) * out[:, 3], out[:, 4]


class SplitSumShader(nn.Module):
    """Stands where `RadianceNetwork` stands in NeuS, but looks at points, normals and directions themselves.

    hidden, layers: of the networks, outer: width of that of the light from outside; separate: networks of their own for albedo, roughness and metallic; light_max: bound of every light; photographer: one more
    light, which moves with the camera; normalised: weight norm on every layer, as in the paper.
    """

    def __init__(
        self, n_features: int, hidden: int, layers: int, outer: int, separate: bool = False, ide_degree: int = 5, n_octaves: int = 8,
        light_max: float = 20.0, photographer: bool = False, normalised: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.light_max = light_max
        self.split_sum = SplitSum()
        self.blurred = IntegratedDirectional(ide_degree)
        self.position, self.direction = Frequency(3, n_octaves), Frequency(3, 6)
        self.materials = Materials(n_features, hidden, layers, separate)
        self.outer = mlp(self.blurred.width, outer, layers, 3)
        self.inner = mlp(self.position.width + self.blurred.width, hidden, layers, 3)
        self.shadow = mlp(self.position.width + self.direction.width, hidden, layers, 1)
        self.plane, self.person = None, None
        if photographer:
            self.plane = IntegratedFrequency(2, 6)
            self.person = mlp(self.plane.width, hidden, layers, 4)
            nn.init.constant_(self.person[-1].bias[3:], -3.0)  # nobody there
        nn.init.constant_(self.shadow[-1].bias, UNOCCLUDED)
        if normalised:
            for module in list(self.modules()):
                if isinstance(module, nn.Linear):
                    weight_norm(module)

    def occlusion(self, points: Tensor, mirrored: Tensor) -> Tensor:
        """Estimated probability [S] that the rays from points [S, 3] along mirrored [S, 3] meet the object; not held in [0, 1].

        The geometry learns nothing from it: its inputs are detached.
        """
        seen = torch.cat([self.position(points.detach()), self.direction(mirrored.detach())], 1)
        return 0.5 * self.shadow(seen).float()[:, 0] + 0.5

    def _light(self, net: nn.Module, encoded: Tensor) -> Tensor:
        return limited_exp(net(encoded).float(), self.light_max)

    def _photographer(self, points: Tensor, mirrored: Tensor, width: Tensor, origins: Tensor) -> tuple[Tensor, Tensor]:
        """(light [S, 3], share of the view it fills [S])."""
        place, distance, met = photographer_plane(points, mirrored, origins)
        spread = (width * distance * distance)[:, None].expand(-1, 2)
        out = self.person(self.plane(place, variance=spread)).float()
        return limited_exp(out[:, :3], self.light_max), torch.sigmoid(out[:, 3]) * met

    def forward(self, points: Tensor, feature: Tensor, normal: Tensor, dirs: Tensor, origins: Tensor) -> Shading:
        """points, unit normals, unit ray directions and the rays' origins [S, 3], feature [S, F]."""
        albedo, roughness, metallic = self.materials(feature, points)
        facing = (dirs * normal).sum(-1)
        mirrored = F.normalize(dirs - 2 * facing[:, None] * normal, dim=-1, eps=1e-6)
        width = lobe(roughness)
        widest = torch.full_like(width, float(lobe(torch.ones(()))))
        encoded = self.blurred(torch.cat([mirrored, normal]), torch.cat([width, widest]))
        specular, diffuse = self._light(self.outer, encoded).chunk(2)
        person = None
        if self.person is not None:
            light, share = self._photographer(points, mirrored, width, origins)
            person = share[:, None] * light
            specular = person + (1 - share[:, None]) * specular
        hidden = self.occlusion(points, mirrored).clamp(0, 1)
        inner = self._light(self.inner, torch.cat([self.position(points), encoded[: len(points)]], 1))
        specular = hidden[:, None] * inner + (1 - hidden[:, None]) * specular

        metal = metallic[:, None]
        f0 = F0_DIELECTRIC * (1 - metal) + metal * albedo
        scale, bias = self.split_sum(-facing, roughness).split(1, dim=1)
        linear = (1 - metal) * albedo * diffuse + (f0 * scale + bias) * specular
        return Shading(linear_to_srgb(clip(linear)), albedo, roughness, metallic, diffuse, specular, hidden, person)
