"""Photographs in files: the same values, no name on the disk, and one sentence where there is no room."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from utils import stack
from utils.errors import UserError
from utils.stack import Stack, in_memory

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(stack, "disk_folder", lambda: tmp_path)
    return tmp_path


def test_a_file_holds_what_memory_holds_and_has_no_name(folder):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 255, (3, 50, 70, 3), np.uint8)
    found = []
    for on_disk in (False, True):
        one = Stack(pictures.shape, on_disk)
        assert one.array.shape == pictures.shape and one.array.dtype == np.uint8 and not one.array.any()
        one.array[:2] = pictures[:2]
        one.expect(np.array([[0, 3 * 50 * 70 - 1], [7, 7]]))  # the first and the last pixel
        found.append(one)
    assert (found[0].array == found[1].array).all() and found[0].file is None and found[1].file is not None
    assert not list(folder.iterdir())


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="no posix_fallocate here")
def test_the_room_is_reserved(folder):
    """Not a hole in the disk, whose pages would be missing when they are written."""
    one = Stack((4, 256, 256, 3), True)
    links = [f"/proc/self/fd/{k}" for k in os.listdir("/proc/self/fd")] if os.path.isdir("/proc/self/fd") else []
    sizes = [os.stat(k).st_blocks * 512 for k in links if os.path.exists(k) and os.stat(k).st_size == one.array.size]
    if not sizes:
        pytest.skip("open files are not listed here")
    assert max(sizes) >= one.array.size


def test_a_full_disk_is_one_sentence(folder, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(
        UserError, match=r"no file of 0\.00 GiB can be made in .* \(No space left on device\); free some space, or set TMPDIR"
    ):
        Stack((2, 8, 8), True)
    assert not list(folder.iterdir())


def test_where_nothing_can_be_reserved_the_free_space_is_asked_for(folder, monkeypatch):
    def unknown(*_):
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "posix_fallocate", unknown, raising=False)
    assert Stack((2, 8, 8), True).array.shape == (2, 8, 8)
    monkeypatch.setattr(stack.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 127}))
    with pytest.raises(UserError, match="No space left"):
        Stack((2, 8, 8), True)


def test_a_folder_in_memory_is_no_disk(tmp_path, monkeypatch):
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/a / ext4 rw 0 0\ntmpfs {tmp_path}/ram tmpfs rw 0 0\n/dev/b {tmp_path}/ram/disk ext4 rw 0 0\n")
    found = {name: in_memory(tmp_path / name, str(mounts)) for name in ("", "ram", "ram/x/y", "ram/disk/x", "ramp")}
    assert found == {"": False, "ram": True, "ram/x/y": True, "ram/disk/x": False, "ramp": False}
    assert not in_memory(tmp_path, str(tmp_path / "none"))
    monkeypatch.setattr(stack, "in_memory", lambda folder: str(folder) != "/var/tmp")
    assert str(stack.disk_folder()) == "/var/tmp"
    monkeypatch.setattr(stack, "in_memory", lambda folder: True)
    with pytest.raises(UserError, match="lies in memory; set TMPDIR to a folder on a disk"):
        stack.disk_folder()


def test_nothing_is_left_of_a_killed_program(tmp_path):
    program = "import os, signal; from utils.stack import Stack; s = Stack((2, 64, 64), True); s.array[:] = 1; os.kill(os.getpid(), signal.SIGKILL)"
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env={**os.environ, "TMPDIR": str(tmp_path)}, check=False)
    assert ended.returncode == -9 and not list(tmp_path.iterdir())
