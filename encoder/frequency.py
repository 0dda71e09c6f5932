"""Frequency encoding (Mildenhall et al., NeRF, 2020)."""

import torch
from torch import Tensor, nn


class Frequency(nn.Module):
    """x [N, D] -> [N, D * 2 * n_frequencies]: sin and cos of 2^k x (`include_input` puts x in front)."""

    def __init__(self, n_inputs: int = 3, n_frequencies: int = 6, include_input: bool = True):
        super().__init__()
        self.include_input = include_input
        self.register_buffer("bands", 2.0 ** torch.arange(n_frequencies), persistent=False)
        self.width = n_inputs * (2 * n_frequencies + include_input)

    def forward(self, x: Tensor) -> Tensor:
        phase = (x[..., None, :] * self.bands[:, None]).flatten(-2)  # [N, n_frequencies * D]
        waves = [torch.sin(phase), torch.cos(phase)]
        return torch.cat([x, *waves] if self.include_input else waves, -1)
