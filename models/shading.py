"""The split-sum shader of NeRO's first stage (Liu et al., NeRO, SIGGRAPH 2023, section 3.2).

colour = diffuse + specular, in linear light, sRGB at the end:
diffuse = (1 - metallic) albedo * L(n, roughness 1), by the outer light alone;
specular = (F0 * x + y) * L(r, roughness), r the reflected view, F0 = 0.04 (1 - metallic) + metallic albedo, (x, y) of `models/brdf.py`;
L(r) = occlusion * inner + (1 - occlusion) * [a * photographer + (1 - a) * outer].

Under uniform light a white diffuse surface returns 1 and a white metal x + y. A dielectric returns its 0.04 x + y on top of its
diffuse light, which is not reduced by the specular part: 1.04 at normal incidence, 1.35 at n.v = 0.2, 1.8 at 0.02 (roughness 0.1).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from confs.model import ShadingConfig
from encoder.directional import IntegratedDirectional
from encoder.frequency import Frequency, IntegratedFrequency
from models.brdf import SplitSum, specular_f0
from models.lights import limited_exp, photographer_plane
from models.network import mlp, output_layer
from utils.colour import clip, linear_to_srgb

SMOOTHEST = 0.03  # least roughness
UNOCCLUDED = -0.95  # the occlusion network's output at the start: 2.5 %


def lobe(roughness: Tensor) -> Tensor:
    """1 / kappa of the reflected lobe at perceptual roughness [...]: 2 roughness^4, the width of GGX (Wang et al., 2009), when small.

    At roughness 1 it is 0.5, a lobe as wide as a cosine (its bands 1 and 2 fade to 0.6 and 0.2; the cosine's to 0.67 and 0.25).
    """
    r4 = roughness**4
    return 2 * r4 / (1 + 3 * r4)


@dataclass(frozen=True)
class ShadingOutput:
    """S shaded points: the colour towards the camera and its parts. Light is linear."""

    colour: Tensor  # [S, 3] sRGB in [0, 1]
    albedo: Tensor  # [S, 3]
    roughness: Tensor  # [S] perceptual
    metallic: Tensor  # [S]
    diffuse: Tensor  # [S, 3] irradiance over pi
    specular: Tensor  # [S, 3] radiance of the specular lobe
    occlusion: Tensor  # [S] probability that the reflected ray hits the object
    photographer: Tensor | None  # [S, 3] the photographer's radiance times its coverage of the lobe


class MaterialHeads(nn.Module):
    """(feature [S, F], points [S, 3]) -> albedo [S, 3], roughness [S], metallic [S]; one network, or one for each."""

    def __init__(self, n_features: int, hidden: int, layers: int, separate: bool):
        super().__init__()
        self.heads = nn.ModuleList(mlp(n_features + 3, hidden, layers, n) for n in ((3, 1, 1) if separate else (5,)))

    def forward(self, feature: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inputs = torch.cat([feature, points], 1)
        out = torch.sigmoid(torch.cat([head(inputs) for head in self.heads], 1).float())
        return out[:, :3], SMOOTHEST + (1 - SMOOTHEST) * out[:, 3], out[:, 4]


class SplitSumShader(nn.Module):
    """(points, features, normals, directions, ray origins) -> `ShadingOutput`; takes the place of NeuS's `RadianceNetwork`."""

    def __init__(self, cfg: ShadingConfig, n_features: int):
        super().__init__()
        self.light_max = cfg.light_max
        self.split_sum = SplitSum()
        self.blurred = IntegratedDirectional(cfg.ide_degree)
        self.position, self.direction = Frequency(3, cfg.n_frequencies), Frequency(3, 6)
        self.materials = MaterialHeads(n_features, cfg.hidden, cfg.layers, cfg.separate)
        self.outer = mlp(self.blurred.width, cfg.outer, cfg.layers, 3)
        self.inner = mlp(self.position.width + self.blurred.width, cfg.hidden, cfg.layers, 3)
        self.occluder = mlp(self.position.width + self.direction.width, cfg.hidden, cfg.layers, 1)
        self.plane, self.photographer = None, None
        if cfg.photographer:
            self.plane = IntegratedFrequency(2, 6)
            self.photographer = mlp(self.plane.width, cfg.hidden, cfg.layers, 4)
            nn.init.constant_(output_layer(self.photographer).bias[3:], -3.0)  # almost transparent
        nn.init.constant_(output_layer(self.occluder).bias, UNOCCLUDED)
        if cfg.weight_norm:
            for module in list(self.modules()):
                if isinstance(module, nn.Linear):
                    weight_norm(module)

    def occlusion(self, points: Tensor, reflected: Tensor) -> Tensor:
        """Predicted probability [S] that rays from points [S, 3] along reflected [S, 3] hit the object; not clamped to [0, 1].

        The inputs are detached: the geometry gets no gradient from it.
        """
        inputs = torch.cat([self.position(points.detach()), self.direction(reflected.detach())], 1)
        return 0.5 * self.occluder(inputs).float()[:, 0] + 0.5

    def _light(self, net: nn.Module, encoded: Tensor) -> Tensor:
        return limited_exp(net(encoded).float(), self.light_max)

    def _photographer(self, points: Tensor, reflected: Tensor, width: Tensor, origins: Tensor) -> tuple[Tensor, Tensor]:
        """(radiance [S, 3], coverage of the lobe [S])."""
        assert self.plane is not None and self.photographer is not None
        position, distance, hit = photographer_plane(points, reflected, origins)
        spread = (width * distance * distance)[:, None].expand(-1, 2)
        out = self.photographer(self.plane(position, variance=spread)).float()
        return limited_exp(out[:, :3], self.light_max), torch.sigmoid(out[:, 3]) * hit

    def forward(self, points: Tensor, feature: Tensor, normal: Tensor, dirs: Tensor, origins: Tensor) -> ShadingOutput:
        """points, unit normals, unit ray directions and ray origins [S, 3], feature [S, F]."""
        albedo, roughness, metallic = self.materials(feature, points)
        facing = (dirs * normal).sum(-1)
        reflected = F.normalize(dirs - 2 * facing[:, None] * normal, dim=-1, eps=1e-6)
        width = lobe(roughness)
        widest = torch.full_like(width, float(lobe(torch.ones(()))))
        encoded = self.blurred(torch.cat([reflected, normal]), torch.cat([width, widest]))
        specular, diffuse = self._light(self.outer, encoded).chunk(2)
        photographer = None
        if self.photographer is not None:
            light, share = self._photographer(points, reflected, width, origins)
            photographer = share[:, None] * light
            specular = photographer + (1 - share[:, None]) * specular
        occlusion = self.occlusion(points, reflected).clamp(0, 1)
        inner = self._light(self.inner, torch.cat([self.position(points), encoded[: len(points)]], 1))
        specular = occlusion[:, None] * inner + (1 - occlusion[:, None]) * specular

        metal = metallic[:, None]
        scale, bias = self.split_sum(-facing, roughness).split(1, dim=1)
        linear = (1 - metal) * albedo * diffuse + (specular_f0(albedo, metal) * scale + bias) * specular
        return ShadingOutput(linear_to_srgb(clip(linear)), albedo, roughness, metallic, diffuse, specular, occlusion, photographer)
