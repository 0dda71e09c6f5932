"""A method from outside, in 60 lines: fog around the object, by a small MLP at uniform samples. README and docs show this file."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from confs.model import METHOD_CONFIGS, MethodConfig
from encoder.frequency import Frequency
from models.method import Method, RenderContext, RenderOutput
from models.network import mlp
from models.proposal import dense_weights
from systems.build import METHODS, Context, Entry
from utils.rays import Rays, Render


@dataclass(frozen=True)
class FogConfig(MethodConfig):
    name: str = "fog"
    hidden: int = 64  # width of the network
    n_samples: int = 48  # samples a ray

    @property
    def capabilities(self) -> frozenset[str]:
        return frozenset({"colour", "opacity"})  # the loss terms rgb*, mask and opaque


class Fog(Method):
    """Rays -> colour and opacity through density and colour of an MLP."""

    cfg: FogConfig

    def __init__(self, cfg: FogConfig):
        super().__init__(cfg)
        self.encoding = Frequency(3, 5)
        self.net = mlp(self.encoding.width, cfg.hidden, 2, 4)

    def field(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(density [P], colour [P, 3]) at points [P, 3]."""
        out = self.net(self.encoding(x / self.radius))
        return torch.nn.functional.softplus(out[:, 0] - 1) * 20, torch.sigmoid(out[:, 1:])

    def render(self, rays: Rays, context: RenderContext) -> RenderOutput:
        n, shift = self.cfg.n_samples, 0.5 if context.jitter is None else context.jitter[:, None]
        edges = torch.linspace(0, 1, n + 1, device=rays.near.device) * (rays.far - rays.near).clamp(min=0)[:, None] + rays.near[:, None]
        t = edges[:, :-1] + shift * edges.diff(dim=1)  # [R, n]
        density, colour = self.field((rays.origins[:, None] + rays.dirs[:, None] * t[..., None]).view(-1, 3))
        weights = dense_weights(density.view(t.shape), edges[:, :-1], edges[:, 1:])
        opacity = weights.sum(1)
        rgb, _ = self.composited((weights[..., None] * colour.view(*t.shape, 3)).sum(1), opacity, rays, context)
        return RenderOutput(Render(rgb, opacity, (weights * t).sum(1), torch.zeros_like(rays.dirs)))

    def surface(self, context: RenderContext) -> Callable[[Tensor], Tensor]:
        return torch.no_grad()(lambda x: (4 - self.field(x)[0]).clamp(-4, 4) * 0.02)

    def colour_at(self, points: Tensor, context: RenderContext) -> Tensor:
        return self.field(points)[1]


def build_fog(cfg: FogConfig, where: Context) -> Fog:
    return Fog(cfg)


METHOD_CONFIGS["fog"], METHODS["fog"] = FogConfig, Entry(build_fog)
