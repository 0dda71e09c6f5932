"""Frequency encodings: of points (Mildenhall et al., NeRF, 2020), opened coarse to fine, and of the Gaussians of a cone's
samples (Barron et al., mip-NeRF, 2021)."""

import torch
from torch import Tensor

from encoder.encoding import Encoding


def band_weights(n_frequencies: int, n_levels: float | None, device: torch.device) -> Tensor:
    """Weight of each band [n_frequencies] when `n_levels` are open: 1, 0, and a half cosine for the one that opens (BARF, 2021)."""
    opened = n_frequencies if n_levels is None else n_levels
    return 0.5 - 0.5 * torch.cos(torch.pi * (opened - torch.arange(n_frequencies, device=device)).clamp(0, 1))


class Frequency(Encoding):
    """x [N, D] -> [N, D * 2 * n_frequencies]: sin and cos of 2^k x (`include_input` puts x in front).

    unit: x comes in [0, 1] (as every position encoding of a field gets it) and is brought to [-1, 1].
    """

    fractional = True
    bands: Tensor

    def __init__(self, n_inputs: int = 3, n_frequencies: int = 6, include_input: bool = True, unit: bool = False):
        super().__init__()
        self.include_input, self.unit, self.n_levels = include_input, unit, n_frequencies
        self.register_buffer("bands", 2.0 ** torch.arange(n_frequencies), persistent=False)
        self.width = n_inputs * (2 * n_frequencies + include_input)

    def forward(self, x: Tensor, n_levels: float | None = None) -> Tensor:
        """Bands from `n_levels` on are closed (0); the input itself never is."""
        x = 2 * x - 1 if self.unit else x
        phase = x[..., None, :] * self.bands[:, None]  # [N, n_frequencies, D]
        weight = band_weights(self.n_levels, n_levels, x.device)[:, None].to(x.dtype)
        waves = [(weight * torch.sin(phase)).flatten(-2), (weight * torch.cos(phase)).flatten(-2)]
        return torch.cat([x, *waves] if self.include_input else waves, -1)


class IntegratedFrequency(Encoding):
    """The mean of sin and cos of 2^k x over a Gaussian: mean x [N, D], variance [N, D] (or none: a point) -> [N, D * 2 * n_frequencies].

    What is finer than the Gaussian fades (mip-NeRF eq. 14); nothing is left to alias. `unit` as in `Frequency`, variance then
    in units of half the cube.
    """

    fractional = True
    bands: Tensor

    def __init__(self, n_inputs: int = 3, n_frequencies: int = 10, unit: bool = False):
        super().__init__()
        self.unit, self.n_levels = unit, n_frequencies
        self.register_buffer("bands", 2.0 ** torch.arange(n_frequencies), persistent=False)
        self.width = n_inputs * 2 * n_frequencies

    def forward(self, x: Tensor, n_levels: float | None = None, variance: Tensor | None = None) -> Tensor:
        x = 2 * x - 1 if self.unit else x
        phase = x[..., None, :] * self.bands[:, None]
        weight = band_weights(self.n_levels, n_levels, x.device)[:, None].to(x.dtype)
        if variance is not None:
            weight = weight * torch.exp(-0.5 * variance[..., None, :] * self.bands[:, None] ** 2)
        return torch.cat([(weight * torch.sin(phase)).flatten(-2), (weight * torch.cos(phase)).flatten(-2)], -1)


def cone_variance(dirs: Tensor, t_starts: Tensor, t_ends: Tensor, cone: float) -> Tensor:
    """Diagonal of the covariance [S, 3] of a piece of a cone (mip-NeRF eq. 8, 16).

    dirs [S, 3] unit; cone: radius of the pixel at distance 1.
    """
    mid, half = (t_starts + t_ends) / 2, (t_ends - t_starts) / 2
    spread = 3 * mid**2 + half**2
    along = half**2 / 3 - (4 / 15) * half**4 * (12 * mid**2 - half**2) / spread**2
    across = cone**2 * (mid**2 / 4 + (5 / 12) * half**2 - (4 / 15) * half**4 / spread)
    square = dirs**2
    return along[:, None] * square + across[:, None] * (1 - square)
