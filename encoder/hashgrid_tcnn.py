"""tiny-cuda-nn's grid on our table: CUDA alone, where tinycudann imports. Its layout is ours (`encoder/hashgrid.py`)."""

import functools

import torch
from torch import Tensor

from encoder.hashgrid import HashGridSpec


@functools.cache
def _encoding(spec: HashGridSpec):
    import tinycudann as tcnn

    return tcnn.Encoding(
        3,
        {
            "otype": "HashGrid",
            "n_levels": spec.n_levels,
            "n_features_per_level": spec.n_features,
            "log2_hashmap_size": spec.log2_size,
            "base_resolution": spec.base,
            "per_level_scale": (spec.top / spec.base) ** (1 / max(spec.n_levels - 1, 1)),
            "interpolation": "Smoothstep" if spec.smoothstep else "Linear",
        },
        dtype=torch.float32,
    )


def encode_tcnn(x: Tensor, table: Tensor, spec: HashGridSpec, n_levels: int | None = None) -> Tensor:
    """`encode_torch` by tiny-cuda-nn; twice differentiable. Closed levels are computed and set to 0."""
    import tinycudann.modules as modules

    module, n = _encoding(spec), len(x)
    padded = torch.nn.functional.pad(x.clamp(0, 1), (0, 0, 0, -n % 256))  # tinycudann needs multiples of 256
    y = modules._module_function.apply(module.native_tcnn_module, padded.contiguous(), table.reshape(-1), module.loss_scale)[:n].float()
    open_width = spec.width if n_levels is None else n_levels * spec.n_features
    return torch.where(torch.arange(spec.width, device=x.device) < open_width, y, 0.0)
