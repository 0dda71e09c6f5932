"""Stacks of pictures, in memory or, for a scene larger than memory, in temporary files that are mapped into it.

The files have no name: nothing is left of them when the program ends, even when it is killed. They lie in the system's folder for temporary
files, which TMPDIR chooses; of several processes each has its own. What the machine has of memory to spare, it uses to keep their pages.
"""

import errno
import math
import mmap
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np

from utils.errors import UserError

GIB = 2**30
UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)  # of a file system that reserves nothing beforehand


def in_memory(folder: str | Path, mounts: str = "/proc/self/mounts") -> bool:
    """Whether the files of a folder lie in memory (tmpfs); false where that is unknown."""
    try:
        kinds = dict(line.split()[1:3] for line in Path(mounts).read_text().splitlines())
    except (OSError, ValueError):
        return False
    path = Path(os.path.realpath(folder))
    nearest = next((str(p) for p in (path, *path.parents) if str(p) in kinds), "")
    return kinds.get(nearest) in ("tmpfs", "ramfs")


def disk_folder() -> Path:
    """The folder for temporary files, on a disk. Raises UserError where there is none."""
    usual = tempfile.gettempdir()
    for folder in (usual, "/var/tmp"):
        if os.access(folder, os.W_OK | os.X_OK) and not in_memory(folder):
            return Path(folder)
    raise UserError(f"dataset.on_disk: the folder for temporary files, {usual}, lies in memory; set TMPDIR to a folder on a disk")


def _reserve(file: int, size: int, folder: Path) -> None:
    """Make the file `size` bytes long, with room on the disk: a full disk would end the program later, at any write. Raises OSError."""
    try:
        os.posix_fallocate(file, 0, size)
    except (AttributeError, OSError) as error:  # there is no such call on macOS and Windows
        if isinstance(error, OSError) and error.errno not in UNSUPPORTED:
            raise
        if shutil.disk_usage(folder).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
        os.truncate(file, size)


def _mapped(size: int) -> mmap.mmap:
    """A file of `size` zeros, mapped into memory. Raises UserError."""
    folder = disk_folder()
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            _reserve(file.fileno(), size, folder)
            return mmap.mmap(file.fileno(), size)
    except OSError as error:
        raise UserError(
            f"dataset.on_disk: no file of {size / GIB:.2f} GiB can be made in {folder} ({error.strerror or error}); "
            "free some space, or set TMPDIR to a folder on another disk"
        ) from None


class Stack:
    """uint8 zeros [N, H, W] or [N, H, W, C], to be filled picture by picture."""

    def __init__(self, shape: tuple[int, ...], on_disk: bool = False):
        """Raises UserError where there is no room on the disk."""
        self.pixel = math.prod(shape[3:])  # bytes
        self.file = _mapped(math.prod(shape)) if on_disk else None
        self.array = np.zeros(shape, np.uint8) if self.file is None else np.frombuffer(self.file, np.uint8).reshape(shape)

    def expect(self, flat: np.ndarray) -> None:
        """Say which of the N * H * W pixels are read next (their numbers, int64, of any shape), so that the disk is asked for all at once.

        Else they are waited for one after the other, and read with the 128 KB around each.
        """
        if self.file is None or not hasattr(mmap, "MADV_WILLNEED"):
            return
        for page in np.unique(flat * self.pixel // mmap.PAGESIZE).tolist():
            self.file.madvise(mmap.MADV_WILLNEED, page * mmap.PAGESIZE, mmap.PAGESIZE)
