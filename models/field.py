"""Density fields: an encoding, a small MLP, and the exponential (Mueller et al., Instant NGP, 2022)."""

import torch
from torch import Tensor, nn

from encoder.encoding import Encoding
from models.network import mlp, trunc_exp


def contract(x: Tensor) -> Tensor:
    """Map space [..., 3] into the ball of radius 2: x for |x| <= 1, else (2 - 1/|x|) x/|x| (mip-NeRF 360, 2022)."""
    norm = x.norm(dim=-1, keepdim=True).clamp(min=1.0)
    return (2 - 1 / norm) * (x / norm)


class DensityNetwork(nn.Module):
    """Points [S, 3] -> density [S] per unit length, features [S, F] for the colour.

    bounded: points beyond `radius` are clamped to the cube around the sphere; else all of space is contracted.
    """

    def __init__(
        self, encoding: Encoding, radius: float, *, hidden: int, layers: int, n_features: int, bounded: bool = True, bias: float = -1.0
    ):
        super().__init__()
        self.encoding, self.radius, self.bounded, self.bias = encoding, radius, bounded, bias
        self.n_features = n_features
        self.net = mlp(encoding.width, hidden, layers, 1 + n_features)

    @property
    def n_levels(self) -> int:
        return self.encoding.n_levels

    def unit(self, x: Tensor) -> Tensor:
        """Points of space -> [0, 1]^3."""
        return x / (2 * self.radius) + 0.5 if self.bounded else contract(x / self.radius) / 4 + 0.5

    def raw(self, x: Tensor, n_levels: float | None = None, variance: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(log density [S], features [S, F]); variance [S, 3] of the points where the encoding averages over them."""
        with torch.autocast(x.device.type, enabled=False):
            blurred = {} if variance is None else {"variance": variance / self.radius**2}
            out = self.net(self.encoding(self.unit(x), n_levels, **blurred).float())
        return out[:, 0] + self.bias, out[:, 1:]

    def forward(self, x: Tensor, n_levels: float | None = None, variance: Tensor | None = None) -> tuple[Tensor, Tensor]:
        log_sigma, feature = self.raw(x, n_levels, variance)
        return trunc_exp(log_sigma), feature

    def density(self, x: Tensor, n_levels: float | None = None) -> Tensor:
        """Density [S] alone."""
        return trunc_exp(self.raw(x, n_levels)[0])
