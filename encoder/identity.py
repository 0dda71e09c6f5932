"""The input itself, alone or in front of another encoding."""

import torch
from torch import Tensor, nn


class Identity(nn.Module):
    """x [N, D] as it is."""

    fractional, n_levels = False, 1

    def __init__(self, n_inputs: int = 3):
        super().__init__()
        self.width = n_inputs

    def forward(self, x: Tensor, n_levels: float | None = None) -> Tensor:
        return x


class WithIdentity(nn.Module):
    """x in front of what another encoding makes of it; levels close there, never here."""

    def __init__(self, inner: nn.Module, n_inputs: int = 3):
        super().__init__()
        self.inner, self.width = inner, n_inputs + inner.width
        self.fractional, self.n_levels = inner.fractional, inner.n_levels

    def forward(self, x: Tensor, n_levels: float | None = None, **options) -> Tensor:
        return torch.cat([x, self.inner(x, n_levels, **options)], -1)
