"""The input itself, alone or in front of another encoding."""

import torch
from torch import Tensor

from encoder.encoding import Encoding


class Identity(Encoding):
    """x [N, D] as it is."""

    def __init__(self, n_inputs: int = 3):
        super().__init__()
        self.width = n_inputs

    def forward(self, x: Tensor, n_levels: float | None = None) -> Tensor:
        return x


class WithIdentity(Encoding):
    """x in front of another encoding of it; only the levels of the latter close."""

    def __init__(self, inner: Encoding, n_inputs: int = 3):
        super().__init__()
        self.inner, self.width = inner, n_inputs + inner.width
        self.fractional, self.n_levels = inner.fractional, inner.n_levels

    def forward(self, x: Tensor, n_levels: float | None = None, **options) -> Tensor:
        return torch.cat([x, self.inner(x, n_levels, **options)], -1)
