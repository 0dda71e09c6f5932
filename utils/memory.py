"""Free memory, and the check that a scene fits into it."""

import os
from pathlib import Path

from utils.errors import UserError

GIB = 2**30
SHARE = 0.8  # of the free memory; the rest is for training


def _number(path: str) -> int | None:
    try:
        return int(Path(path).read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None


def available() -> int | None:
    """Bytes that a process can still allocate: the free memory of the machine or of the container; None where it is unknown."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError, IndexError):
        if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
            found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    limit, used = _number("/sys/fs/cgroup/memory.max"), _number("/sys/fs/cgroup/memory.current")
    if limit is not None and used is not None:
        found.append(max(limit - used, 0))
    return min(found) if found else None


def check_fits(
    n: int, width: int, height: int, channels: int, largest: tuple[int, int], workers: int, what: str, downscale: float = 1.0,
    on_disk: bool = False,
) -> str:  # fmt: skip
    """A line with the peak memory of reading n images, kept as bytes of width x height, with `workers` files of the largest size open.

    downscale: the factor by which the images are reduced now, for the advice. on_disk: they are kept in files.
    Raises UserError with advice when the peak exceeds SHARE of the free memory.
    """
    kept = n * width * height * channels
    peak = (0 if on_disk else kept) + workers * largest[0] * largest[1] * 12  # the file, decoded, reordered and resized
    free = available()
    line = f"{n} images of {width}x{height}: {kept / GIB:.2f} GiB kept{' on disk' * on_disk}, {peak / GIB:.2f} GiB of memory at the peak"
    if free is not None and peak > SHARE * free:
        if on_disk:
            raise UserError(f"{what}: {line}, but {free / GIB:.2f} GiB are free; use smaller image files, or a machine with more memory")
        fits = max(1.0, (kept / max(SHARE * free - (peak - kept), 1)) ** 0.5)
        advice = f"set dataset.img_downscale={downscale * fits:.1f}" if fits < 64 else "use a machine with more memory"
        raise UserError(f"{what}: {line}, but {free / GIB:.2f} GiB are free; {advice}, or dataset.on_disk=true, or use fewer images")
    return line
