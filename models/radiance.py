"""The colour network: what light leaves a point towards the camera."""

import torch
from torch import Tensor, nn

from models.network import mlp


class RadianceNetwork(nn.Module):
    """(feature [S, F], normal [S, 3] or None, direction [S, 3]) -> sRGB colour [S, 3] in (0, 1).

    encoding: of the view direction; None makes the colour the same from everywhere.
    """

    def __init__(self, n_features: int, hidden: int, layers: int, encoding: nn.Module | None, see_normal: bool = True):
        super().__init__()
        self.encoding = encoding
        self.net = mlp(n_features + 3 * see_normal + (encoding.width if encoding else 0), hidden, layers, 3)

    def encode_dirs(self, dirs: Tensor) -> Tensor:
        """Unit directions [N, 3] -> [N, width] (width 0 for a colour that does not look)."""
        return self.encoding(dirs) if self.encoding else dirs[:, :0]

    def forward(self, feature: Tensor, normal: Tensor | None, encoded_dirs: Tensor) -> Tensor:
        """encoded_dirs [S, width]: `encode_dirs` of the ray directions (done once a ray, not once a sample)."""
        parts = [feature, encoded_dirs] if normal is None else [feature, normal, encoded_dirs]
        return torch.sigmoid(self.net(torch.cat(parts, 1)).float())
