"""The colour network: the light that leaves a point towards the camera."""

import torch
from torch import Tensor, nn

from confs.model import RadianceConfig
from encoder.get_encoding import Encoding, get_encoding
from models.network import mlp


def direction_encoding(cfg: RadianceConfig) -> Encoding | None:
    """The encoding of view directions; None for a colour that is independent of them."""
    options: dict[str, dict] = {
        "spherical": {"degree": cfg.sh_degree},
        "ide": {"degree": cfg.ide_degree},
        "frequency": {"n_frequencies": cfg.n_frequencies},
    }
    return None if cfg.dirs == "none" else get_encoding(cfg.dirs, **options.get(cfg.dirs.rpartition("+")[2], {}))


class RadianceNetwork(nn.Module):
    """(feature [S, F], normal [S, 3] or None, encoded direction [S, width]) -> sRGB colour [S, 3] in (0, 1).

    encoding: of the view direction; None makes the colour independent of the view. n_embedding: length of a photograph's vector
    (NeRF in the Wild, 2021), which follows the encoded direction.
    """

    def __init__(
        self, n_features: int, encoding: Encoding | None, *, hidden: int, layers: int, use_normal: bool = True, n_embedding: int = 0
    ):
        super().__init__()
        self.encoding, self.n_embedding = encoding, n_embedding
        self.net = mlp(n_features + 3 * use_normal + (encoding.width if encoding else 0) + n_embedding, hidden, layers, 3)

    def encode_dirs(self, dirs: Tensor, embedding: Tensor | None = None, share: float = 1.0) -> Tensor:
        """Unit directions [N, 3] and vectors [N, n_embedding] (None: 0) -> [N, width + n_embedding]; width 0 without an encoding.

        share: of the encoding that is let through.
        """
        encoded = self.encoding(dirs) if self.encoding else dirs[:, :0]
        encoded = encoded * share if share < 1 else encoded
        if not self.n_embedding:
            return encoded
        return torch.cat([encoded, dirs.new_zeros(len(dirs), self.n_embedding) if embedding is None else embedding], 1)

    def forward(self, feature: Tensor, normal: Tensor | None, encoded_dirs: Tensor) -> Tensor:
        """encoded_dirs [S, width]: `encode_dirs` of the ray directions, computed once a ray, not once a sample."""
        parts = [feature, encoded_dirs] if normal is None else [feature, normal, encoded_dirs]
        return torch.sigmoid(self.net(torch.cat(parts, 1)).float())
