"""Where things run: the device, its threads, and who computes each operation. Decided here alone, logged with the reason."""

import ctypes
import functools
import importlib.util
import logging
import os

import torch

from utils.errors import UserError

log = logging.getLogger("neus")

# operation -> backends, fastest first; the torch twin runs everywhere and is the specification
BACKENDS = {
    "hashgrid": ("warp", "torch"),
    "march": ("warp", "torch"),
    "composite": ("warp", "torch"),
    "optimizer": ("warp", "torch"),
}


@functools.cache
def warp_available() -> str:
    """"" when NVIDIA Warp can be used, else the reason why not."""
    if importlib.util.find_spec("warp") is None:
        return "the package warp-lang is not installed"
    try:
        import warp as wp

        wp.config.quiet = True
        wp.config.log_level = getattr(wp, "LOG_WARNING", 30)
        wp.init()
        return ""
    except Exception as error:  # a broken driver or an unwritable cache must not stop a run that the twin can do
        return f"warp-lang does not start ({error})"


def pick_device(name: str) -> torch.device:
    """auto | cpu | cuda -> device. Raises UserError when cuda is asked for and absent."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("trainer.device=cuda, but PyTorch sees no CUDA device; install a CUDA build of torch and a driver, or set trainer.device=cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def choose(operation: str, wanted: str, device: torch.device) -> str:
    """The backend of an operation: the wanted one, or for `auto` the fastest that runs on the device.

    Raises UserError when a forced backend cannot be met, saying what to install.
    """
    missing = warp_available()
    if wanted == "warp" and missing:
        raise UserError(f"backend.{operation}=warp, but {missing}; `pip install warp-lang`, or set backend.{operation}=torch")
    if wanted == "auto":
        wanted = "torch" if missing else BACKENDS[operation][0]
        _say(operation, wanted, f"no Warp: {missing}" if missing else _where(device))
    else:
        _say(operation, wanted, "forced by the config")
    return wanted


def _where(device: torch.device) -> str:
    if device.type == "cuda":
        return f"Warp kernels on {torch.cuda.get_device_name(device)}"
    return f"no CUDA device: Warp kernels on {torch.get_num_threads()} CPU threads"


@functools.cache
def _say(operation: str, backend: str, reason: str) -> None:
    log.info("backend of %s: %s (%s)", operation, backend, reason)


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
