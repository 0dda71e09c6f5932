"""Multiresolution hash grid (Mueller et al., Instant Neural Graphics Primitives, 2022) in tiny-cuda-nn's layout.

Level l has scale = base * growth^l - 1; a point x in [0,1]^3 sits at x * scale + 0.5 in a lattice of ceil(scale) + 1
rows a side: stored densely when the lattice fits the table, else hashed. The plain torch functions here are the
specification; `encoder/hashgrid_warp.py` computes the same on CPU threads and CUDA.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from encoder.encoding import Encoding

PRIMES = (1, 2654435761, 805459861)


@dataclass(frozen=True)
class HashGridSpec:
    """Shape of a grid. Rows of level l in the table: offsets[l] : offsets[l] + rows[l]."""

    n_levels: int = 16
    n_features: int = 2
    log2_size: int = 19
    base: int = 16
    top: int = 2048
    smoothstep: bool = False
    half: bool = False  # kernels look the table up in float16

    @cached_property
    def scales(self) -> tuple[float, ...]:
        growth = (self.top / self.base) ** (1 / max(self.n_levels - 1, 1))
        return tuple(self.base * growth**level - 1 for level in range(self.n_levels))

    @cached_property
    def resolutions(self) -> tuple[int, ...]:
        return tuple(math.ceil(round(scale, 6)) + 1 for scale in self.scales)

    @cached_property
    def dense(self) -> tuple[bool, ...]:
        return tuple(res**3 <= 2**self.log2_size for res in self.resolutions)

    @cached_property
    def rows(self) -> tuple[int, ...]:
        return tuple((res**3 + 7) // 8 * 8 if dense else 2**self.log2_size for res, dense in zip(self.resolutions, self.dense))

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        return tuple(sum(self.rows[:level]) for level in range(self.n_levels + 1))

    @property
    def width(self) -> int:
        """Length of an encoded point."""
        return self.n_levels * self.n_features


def level_rows(spec: HashGridSpec, level: int, corner: Tensor) -> Tensor:
    """Table rows (within the level) of lattice corners [..., 3] int64."""
    x, y, z = corner.unbind(-1)
    if spec.dense[level]:
        res = spec.resolutions[level]
        return (x + y * res + z * res * res) % spec.rows[level]
    return ((x * PRIMES[0]) ^ (y * PRIMES[1]) ^ (z * PRIMES[2])) % spec.rows[level]


def encode_torch(x: Tensor, table: Tensor, spec: HashGridSpec, n_levels: int | None = None) -> Tensor:
    """Encode points x [N, 3] (clamped to [0, 1]) with table [rows, F] -> [N, L * F]; levels from `n_levels` on are 0.

    Differentiable any number of times, in any float type.
    """
    n_levels = spec.n_levels if n_levels is None else n_levels
    x = x.clamp(0, 1)
    bits = torch.tensor([[(c >> d) & 1 for d in range(3)] for c in range(8)], device=x.device)  # [8, 3]
    encoded = []
    for level in range(n_levels):
        position = x * spec.scales[level] + 0.5
        cell = position.detach().floor()
        frac = position - cell
        if spec.smoothstep:
            frac = frac * frac * (3 - 2 * frac)
        rows = level_rows(spec, level, cell.long()[:, None] + bits) + spec.offsets[level]  # [N, 8]
        weights = torch.where(bits.bool(), frac[:, None], 1 - frac[:, None]).prod(-1)  # [N, 8]
        corners = table.index_select(0, rows.reshape(-1)).view(len(x), 8, spec.n_features)
        encoded.append((weights[..., None] * corners).sum(1))
    closed = x.new_zeros(len(x), (spec.n_levels - n_levels) * spec.n_features)
    return torch.cat([*encoded, closed], 1)


def encode_jacobian_torch(x: Tensor, table: Tensor, spec: HashGridSpec, n_levels: int | None = None) -> tuple[Tensor, Tensor]:
    """`encode_torch` and its derivative by x: ([N, L * F], [N, L * F, 3]), both differentiable by the table."""
    x = x.detach().requires_grad_(True)
    with torch.enable_grad():
        y = encode_torch(x, table, spec, n_levels)
        columns = [
            torch.autograd.grad(y[:, k].sum(), x, create_graph=True)[0] if y.requires_grad and len(x) else torch.zeros_like(x)
            for k in range(y.shape[1])
        ]
    return y, torch.stack(columns, 1)


class HashGrid(Encoding):
    """Hash grid encoding of points in [0,1]^3.

    Args: spec; backend "torch", "warp" or "tinycudann" (`utils/device.py` chooses); init: tables start uniform in [-init, init].
    """

    def __init__(self, spec: HashGridSpec, backend: str = "torch", init: float = 1e-4):
        super().__init__()
        self.spec, self.backend, self.width, self.n_levels = spec, backend, spec.width, spec.n_levels
        self.table = nn.Parameter(torch.empty(spec.offsets[-1], spec.n_features).uniform_(-init, init))

    def forward(self, x: Tensor, n_levels: float | None = None) -> Tensor:
        """x [N, 3] in [0, 1] -> [N, L * F]; only the first `n_levels` levels are open."""
        n_levels = None if n_levels is None else int(n_levels)
        if self.backend == "warp":
            from encoder.hashgrid_warp import encode_warp

            return encode_warp(x, self.table, self.spec, n_levels)
        if self.backend == "tinycudann" and x.device.type == "cuda":  # a model is made on the CPU, and moved
            from encoder.hashgrid_tcnn import encode_tcnn

            return encode_tcnn(x, self.table, self.spec, n_levels)
        return encode_torch(x, self.table, self.spec, n_levels)
