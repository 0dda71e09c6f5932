"""The SDF network of NeuS (Wang et al., 2021) and IDR (Yariv et al., 2020): a deep MLP on encoded points."""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from confs.model import SDFConfig
from encoder.encoding import Encoding
from models.network import softplus
from models.sdf import by_autograd, by_differences, eps_at
from utils.errors import UserError
from utils.rays import FieldOutput


class SDFMLP(nn.Module):
    """Points [S, 3] -> FieldOutput, as `SDFNetwork`; `layers` hidden layers, the input enters again in the middle one.

    Softplus, weight norm, and the start of Atzmon & Lipman (SAL, 2020): a sphere of `sphere_radius`.
    """

    def __init__(self, cfg: SDFConfig, encoding: Encoding, radius: float):
        super().__init__()
        self.cfg, self.encoding, self.radius, self.skip = cfg, encoding, radius, cfg.skip
        hidden, layers, skip, n_features = cfg.hidden, cfg.layers, cfg.skip, cfg.feature
        self.n_features = n_features + 3  # the colour network receives the position too
        n_in = 3 + encoding.width
        if skip and hidden <= n_in:
            raise UserError(f"model.sdf.hidden: must exceed the {n_in} inputs that enter again at model.sdf.skip={skip}, got {hidden}")
        widths = [n_in, *[hidden] * layers, 1 + n_features]
        self.layers = nn.ModuleList()
        for i, (a, b) in enumerate(zip(widths, widths[1:])):
            layer = nn.Linear(a, b - n_in if skip and i + 1 == skip else b)
            self._start(layer, i, last=i == layers, n_in=n_in, sphere_radius=cfg.sphere_radius)
            self.layers.append(weight_norm(layer))

    @torch.no_grad()
    def _start(self, layer: nn.Linear, i: int, last: bool, n_in: int, sphere_radius: float) -> None:
        width = layer.out_features
        layer.bias.zero_()
        if last:
            layer.weight.normal_(math.sqrt(math.pi / layer.in_features), 1e-4)
            layer.bias.fill_(-sphere_radius)
            return
        layer.weight.normal_(0, math.sqrt(2 / width))
        if i == 0:
            layer.weight[:, 3:] = 0  # the waves come in later
        elif i == self.skip:
            layer.weight[:, -(n_in - 3) :] = 0

    @property
    def n_levels(self) -> int:
        return self.encoding.n_levels

    def values(self, x: Tensor, n_levels: float) -> tuple[Tensor, Tensor]:
        """[S, 3] -> ([S, 1 + F], the point in radii [S, 3])."""
        z = x / self.radius
        with torch.autocast(x.device.type, enabled=False):  # a slope needs all digits
            first = torch.cat([z, self.encoding(z / 2 + 0.5, n_levels)], 1)
            a = first
            for i, layer in enumerate(self.layers):
                if i and i == self.skip:
                    a = torch.cat([a, first], 1) / math.sqrt(2)
                a = layer(a)
                if i + 1 < len(self.layers):
                    a, _ = softplus(a)
        return torch.cat([a[:, :1] * self.radius, a[:, 1:]], 1), z

    def sdf(self, x: Tensor, n_levels: float) -> Tensor:
        """Signed distance [S] alone."""
        return self.values(x, n_levels)[0][:, 0]

    def forward(self, x: Tensor, n_levels: float) -> FieldOutput:
        out, grad, z, laplacian = by_differences(self, x, n_levels) if self.cfg.normals == "finite" else by_autograd(self, x, n_levels)
        eps = 0.0 if laplacian is None else eps_at(self, n_levels)
        return FieldOutput(out[:, 0], grad, torch.cat([out[:, 1:], z], 1), laplacian, eps)
