"""Launching Warp kernels on torch tensors: on CUDA one launch on torch's stream, on the CPU one launch per thread.

A Warp launch on the CPU runs serially and releases the GIL, so the work is split into parts with separate outputs, and a
small pool of Python threads runs them.
"""

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import warp as wp
from torch import Tensor


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="warp")


def array(tensor: Tensor, dtype: type) -> object:
    """A contiguous tensor as a Warp kernel argument, without a copy; Warp records no gradients."""
    if not tensor.is_contiguous():
        raise ValueError(f"a kernel argument must be contiguous, got strides {tensor.stride()} for shape {tuple(tensor.shape)}")
    if tensor.numel() == 0:  # torch counts any strides of an empty tensor as contiguous, Warp does not
        tensor = tensor.new_empty(tensor.shape)
    return wp.from_torch(tensor.detach(), dtype=dtype, return_ctype=True)


def threads(device: torch.device) -> int:
    """Number of launches that can run at once."""
    return torch.get_num_threads() if device.type == "cpu" else 1


def run(tasks: Sequence[Callable[[], None]]) -> None:
    """Run the parts concurrently, the first on the calling thread; returns when all are done, raises the exception of a part."""
    if len(tasks) > 1:
        waiting = [_pool(torch.get_num_threads()).submit(task) for task in tasks[1:]]
        tasks[0]()
        for future in waiting:
            future.result()
    elif tasks:
        tasks[0]()


@functools.cache
def _stream(handle: int, device: torch.device) -> Any:
    """Warp's view of a stream of torch, made once: making one creates a CUDA event. torch never destroys its streams."""
    return wp.stream_from_torch(torch.cuda.current_stream(device))


def launch(kernel: object, dim: int | tuple, inputs: list, device: torch.device) -> None:
    """Launch a kernel; on CUDA on torch's current stream of that device."""
    if device.type == "cuda":
        current = torch.cuda.current_stream(device)
        stream = _stream(current.cuda_stream, current.device)
        wp.launch(kernel, dim=dim, inputs=inputs, device=stream.device, stream=stream)
    else:
        wp.launch(kernel, dim=dim, inputs=inputs, device="cpu")


def split(n: int, device: torch.device, least: int = 1024) -> list[tuple[int, int]]:
    """[0, n) as (start, stop) parts, at most one per thread, each of at least `least` items unless it is the only one."""
    parts = max(1, min(threads(device), n // least))
    edges = [n * i // parts for i in range(parts + 1)]
    return [(a, b) for a, b in zip(edges, edges[1:]) if b > a]


def triangle_mesh(vertices: Tensor, faces: Tensor) -> wp.Mesh:
    """A bounding volume hierarchy over vertices [V, 3] and faces [F, 3], on their device, for Warp's mesh queries."""
    points, indices = vertices.detach().float().contiguous(), faces.int().reshape(-1).contiguous()
    if points.is_cuda:
        torch.cuda.synchronize(points.device)  # Warp builds on a stream of its own
    with wp.ScopedDevice(wp.device_from_torch(points.device)):
        arrays: list[Any] = [wp.from_torch(points, dtype=wp.vec3), wp.from_torch(indices, dtype=wp.int32)]
        mesh = wp.Mesh(points=arrays[0], indices=arrays[1])
        wp.synchronize()
    return mesh
