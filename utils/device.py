"""The device, its threads and the backend of each operation: chosen here alone, logged with the reason."""

import ctypes
import functools
import importlib
import importlib.util
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from utils.errors import UserError

log = logging.getLogger("neus")

# operation -> backends in the order of preference; the torch twin runs everywhere and is the specification
BACKENDS = {
    "hashgrid": ("warp", "tinycudann", "torch"),
    "march": ("warp", "nerfacc", "torch"),
    "composite": ("warp", "nerfacc", "torch"),
    "network": ("warp", "torch"),
    "optimizer": ("warp", "torch"),
    "trace": ("warp", "torch"),
}
PACKAGES = {
    "warp": "warp-lang",
    "nerfacc": "nerfacc, and for its kernels a CUDA toolkit (nvcc), ninja and a C++ compiler on PATH",
    "tinycudann": "tinycudann (built for this GPU)",
}
NOTES = {  # what a backend leaves to others, for the line in the log
    ("composite", "nerfacc"): "weights and sums; distortion by torch",
    ("hashgrid", "tinycudann"): "in float32, backend.half_table has no effect",
}


@functools.cache
def warp_available() -> str:
    """ "" when NVIDIA Warp can be used, else the reason why not."""
    if importlib.util.find_spec("warp") is None:
        return "the package warp-lang is not installed"
    try:
        import warp

        wp: Any = warp
        wp.config.quiet = True
        wp.config.log_level = getattr(wp, "LOG_WARNING", 30)
        wp.init()
        return ""
    except Exception as error:  # a broken driver or an unwritable cache must not stop a run that the twin can do
        return f"warp-lang does not start ({error})"


def pick_device(name: str) -> torch.device:
    """auto | cpu | cuda | cuda:N -> device. Raises UserError when a card is requested and absent."""
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            f"trainer.device={name}, but PyTorch sees no CUDA device; install a CUDA build of torch and a driver, or set trainer.device=cpu"
        )
    if not name.startswith("cuda:"):
        return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.index >= torch.cuda.device_count():
        raise UserError(f"trainer.device={name}, but PyTorch sees {torch.cuda.device_count()} CUDA devices, numbered from 0")
    torch.cuda.set_device(device)  # streams and graphs are those of the current device
    return device


def missing(backend: str, device: torch.device, operation: str = "") -> str:
    """ "" when a backend can run the operation on the device, else the reason why not.

    nerfacc and tinycudann run on CUDA alone. They are not imported on the CPU, where nerfacc would try to build its kernels.
    """
    if backend == "torch":
        return ""
    if backend == "warp":
        return "its kernels of networks run on the CPU alone" if operation == "network" and device.type != "cpu" else warp_available()
    if device.type != "cuda":
        return f"{backend} runs on CUDA alone"
    return _cuda_library(backend)


@functools.cache
def _cuda_library(name: str) -> str:
    """ "" when a library with CUDA kernels loads, else the reason why not. nerfacc compiles its kernels here, the first time."""
    if importlib.util.find_spec(name) is None:
        return f"the package {name} is not installed"
    if name == "nerfacc" and (reason := _nerfacc_lacks()):
        return reason
    try:
        module = importlib.import_module(name + (".cuda._backend" if name == "nerfacc" else ""))
        return "its CUDA kernels did not build" if name == "nerfacc" and module._C is None else ""
    except Exception as error:  # a broken build raises anything
        return f"it does not load ({str(error).splitlines()[0] if str(error) else type(error).__name__})"


def _nerfacc_lacks() -> str:
    """ "" when nerfacc brings its kernels or can compile them, else what is missing.

    Asked before the import: without these tools that would try, print to the console and leave no kernels behind.
    """
    if importlib.util.find_spec("nerfacc.csrc") is not None:
        return ""
    tools = ("nvcc", "ninja", os.environ.get("CXX", "c++").split()[0])
    absent = [tool for tool in tools if shutil.which(tool) is None]
    if absent:
        return f"nerfacc compiles its CUDA kernels at first use, and there is no {' and no '.join(absent)} on PATH"
    if not nerfacc_compiled():
        log.info(
            "nerfacc: nvcc compiles its CUDA kernels, once, which takes minutes (if it never ends, an earlier build was interrupted: "
            "remove nerfacc_cuda from ~/.cache/torch_extensions)"
        )
    return ""


def nerfacc_compiled() -> bool:
    """Whether nerfacc's CUDA kernels lie ready, so that loading them takes seconds."""
    if importlib.util.find_spec("nerfacc.csrc") is not None:
        return True
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or cache / "torch_extensions")  # as torch.utils.cpp_extension has it
    return any(any(root.glob(pattern)) for pattern in ("nerfacc_cuda/*.so", "*/nerfacc_cuda/*.so"))


def choose(operation: str, wanted: str, device: torch.device) -> str:
    """The backend of an operation: the named one, or for `auto` the first of its list that runs on the device.

    Raises UserError when a forced backend is not available, with what to install.
    """
    if wanted != "auto":
        reason = missing(wanted, device, operation)
        if reason:
            raise UserError(f"backend.{operation}={wanted}, but {reason}; install {PACKAGES[wanted]}, or set backend.{operation}=torch")
        _say(operation, wanted, "forced by the config")
        return wanted
    reasons: list[str] = []
    for backend in BACKENDS[operation]:
        reason = missing(backend, device, operation)
        if not reason:
            _say(operation, backend, "; ".join(reasons) or _where(device))
            return backend
        reasons.append(f"no {backend}: {reason}")
    raise AssertionError("the torch twin is always there")


def _where(device: torch.device) -> str:
    if device.type == "cuda":
        return f"Warp kernels on {torch.cuda.get_device_name(device)}"
    return f"no CUDA device: Warp kernels on {torch.get_num_threads()} CPU threads"


@functools.cache
def _say(operation: str, backend: str, reason: str) -> None:
    note = NOTES.get((operation, backend))
    log.info("backend of %s: %s%s (%s)", operation, backend, f", {note}" if note else "", reason)


def setup_threads(threads: int = 0, keep_heap: bool = True) -> int:
    """Set the CPU threads of torch once (0: all cores) and keep freed memory in the process; returns the number of threads."""
    count = threads or len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else threads or os.cpu_count() or 1
    torch.set_num_threads(count)
    if keep_heap:
        _keep_heap()
    return count


@functools.cache
def _keep_heap() -> None:
    """Megabyte tensors come and go every step: without this glibc returns them to the system and pays page faults anew."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        m_trim_threshold, m_mmap_threshold = -1, -3
        libc.mallopt(m_mmap_threshold, 1 << 30)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
    except (OSError, AttributeError):  # not glibc: nothing to do
        pass
