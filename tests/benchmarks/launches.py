"""What a training step asks of the device: launches and waits counted by the profiler, on the CPU operations of torch and Warp.

A launch is anything the host enqueues: a kernel, a copy, a fill, a captured graph. A wait is where the host stops until the
device is done, as `.item()` and `.nonzero()` make it.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, supported_activities
from torch.utils._python_dispatch import TorchDispatchMode

from utils.device import warp_available

LAUNCHES = (
    "cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch", "cuGraphLaunch",
    "cudaMemcpyAsync", "cudaMemsetAsync", "cuMemcpyDtoDAsync_v2", "cuMemsetD8Async", "cuMemsetD32Async",
)  # fmt: skip
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cuStreamSynchronize", "cuEventSynchronize", "cudaMemcpy")


class _Operations(TorchDispatchMode):
    """Counts the operations that torch dispatches; views, which do nothing, are left out."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        self.count += not view
        return func(*args, **(kwargs or {}))


def count(step: Callable[[], None], device: torch.device, steps: int) -> dict[str, float]:
    """Means over `steps` calls of step: on CUDA "launches", "waits" and "kernels"; elsewhere, and where the profiler sees no launch
    (it needs CUPTI and the driver's leave), "operations" and "Warp launches"."""
    if device.type == "cuda" and ProfilerActivity.CUDA in supported_activities():
        found = _on_cuda(step, steps)
        if found["launches"]:
            return found
    launched = Counter()
    operations = _Operations()
    with operations, _counting_warp(launched):
        _repeat(step, steps)
    return {"operations": operations.count / steps, "Warp launches": launched["warp"] / steps}


@contextlib.contextmanager
def _counting_warp(launched: Counter) -> Iterator[None]:
    """Count the launches that go through `utils/warp_launch.py`, where Warp runs."""
    if warp_available():
        yield
        return
    from utils import warp_launch

    real = warp_launch.launch

    def counted(*args, **kwargs):
        launched["warp"] += 1
        return real(*args, **kwargs)

    warp_launch.launch = counted
    try:
        yield
    finally:
        warp_launch.launch = real


def _repeat(step: Callable[[], None], steps: int) -> None:
    for _ in range(steps):
        step()


def _on_cuda(step: Callable[[], None], steps: int) -> dict[str, float]:
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        _repeat(step, steps)
    torch.cuda.synchronize()
    calls, kernels = Counter(), 0
    for event in profiler.events():
        on_card = event.device_type == DeviceType.CUDA
        if on_card and not getattr(event, "is_user_annotation", False):
            kernels += not event.name.startswith(("Memcpy", "Memset"))
        if not on_card:
            calls[event.name] += 1
    total = lambda names: sum(calls[name] for name in names) / steps  # noqa: E731
    return {"launches": total(LAUNCHES), "waits": total(WAITS), "kernels": kernels / steps}
