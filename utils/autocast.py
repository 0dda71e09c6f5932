"""Custom autograd functions under CUDA autocast: they compute in float32, forward and backward, whatever surrounds them.

Autocast casts some operations and not their in-place forms, and kernels take float32 alone. On the CPU nothing changes.
"""

from collections.abc import Callable
from typing import Any

import torch

_Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
forward_float32: _Decorator = torch.amp.custom_fwd(device_type="cuda", cast_inputs=torch.float32)
backward_float32: _Decorator = torch.amp.custom_bwd(device_type="cuda")
