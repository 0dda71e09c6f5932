"""The colour network: what light leaves a surface point towards the camera."""

import torch
from torch import Tensor, nn

from encoder.spherical import SphericalHarmonics
from models.network import mlp


class RadianceNetwork(nn.Module):
    """(feature [S, F], normal [S, 3], direction [S, 3]) -> sRGB colour [S, 3] in (0, 1)."""

    def __init__(self, n_features: int, hidden: int, layers: int, sh_degree: int):
        super().__init__()
        self.encode_dirs = SphericalHarmonics(sh_degree)
        self.net = mlp(n_features + 3 + self.encode_dirs.width, hidden, layers, 3)

    def forward(self, feature: Tensor, normal: Tensor, encoded_dirs: Tensor) -> Tensor:
        """encoded_dirs [S, sh_degree^2]: `encode_dirs` of the ray directions (done once a ray, not once a sample)."""
        return torch.sigmoid(self.net(torch.cat([feature, normal, encoded_dirs], 1)).float())
