"""tiny-cuda-nn's grid on our table: CUDA alone, where tinycudann imports. Its layout is ours (`encoder/hashgrid.py`).

By its source (grid.h, modules.py): levels follow each other, padded to 8 rows; a level is dense where it fits, else hashed by
the same primes; x * scale + 0.5; float32 throughout, so that no gradient is scaled. Batches are padded to 256 by its module.
It computes scales in float32: a position differs by up to 1e-6 of the lattice, and a level whose scale is a whole number may
come out one row longer a side, which a growth smaller by a few units in the last place avoids.
"""

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from encoder.hashgrid import HashGridSpec, encode_torch
from utils.errors import UserError


class _Contiguous(torch.autograd.Function):
    """The identity, with contiguous gradients of any order: tiny-cuda-nn refuses others."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.contiguous()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return _Contiguous.apply(grad)


def growths(spec: HashGridSpec) -> list[float]:
    """Growth of the scale from level to level in float32, and the next smaller numbers."""
    tries = [np.float32((spec.top / spec.base) ** (1 / max(spec.n_levels - 1, 1)))]
    for _ in range(4):
        tries.append(np.nextafter(tries[-1], np.float32(0)))
    return [float(t) for t in tries]


@functools.cache
def _encoding(spec: HashGridSpec) -> nn.Module:
    """tiny-cuda-nn's module without parameters of its own. Raises UserError where no growth gives our number of rows."""
    import tinycudann as tcnn

    for growth in growths(spec):
        options = {
            "otype": "HashGrid",
            "n_levels": spec.n_levels,
            "n_features_per_level": spec.n_features,
            "log2_hashmap_size": spec.log2_size,
            "base_resolution": spec.base,
            "per_level_scale": growth,
            "interpolation": "Smoothstep" if spec.smoothstep else "Linear",
        }
        module = tcnn.Encoding(3, options, dtype=torch.float32)
        size = module.params.numel()
        if size == spec.offsets[-1] * spec.n_features:
            module.params = nn.Parameter(torch.empty(0), requires_grad=False)
            return module
    raise UserError(
        f"backend.hashgrid=tinycudann: tiny-cuda-nn lays this grid out in {size // spec.n_features} rows, ours has {spec.offsets[-1]}; "
        "set backend.hashgrid=warp or torch, or another model.grid.top"
    )


def encode_tcnn(x: Tensor, table: Tensor, spec: HashGridSpec, n_levels: int | None = None) -> Tensor:
    """`encode_torch` by tiny-cuda-nn; twice differentiable by x and once by the table. Closed levels are computed and set to 0."""
    if not len(x):
        return encode_torch(x, table, spec, n_levels)
    inside = _Contiguous.apply(x.clamp(0, 1))
    y = torch.func.functional_call(_encoding(spec), {"params": table.reshape(-1)}, (inside,))
    y = _Contiguous.apply(y)[:, : spec.width]
    open_width = spec.width if n_levels is None else n_levels * spec.n_features
    return y if open_width == spec.width else torch.where(torch.arange(spec.width, device=x.device) < open_width, y, 0.0)
