"""The atomic writer: a failed or interrupted write leaves the older file and no temporary one."""

import os
import resource
import time

import pytest
import torch
import trimesh

from utils.checkpoint import save_checkpoint
from utils.errors import UserError
from utils.files import append, read_file, remove_leftovers, write_atomic
from utils.image import image_size, read_raster, write_png
from utils.mesh import save_mesh


def test_bytes_and_parts_are_written_into_new_folders(tmp_path):
    for name, data in (("a", b"one two"), ("b", bytearray(b"one two")), ("c", memoryview(b"one two")), ("d", iter([b"one", b" two"]))):
        path = tmp_path / "new/folder" / name
        write_atomic(path, data)
        assert path.read_bytes() == b"one two"
    write_atomic(str(path), b"")
    assert path.read_bytes() == b"" and len(list(path.parent.iterdir())) == 4


WRITERS = {
    "checkpoint.pt": lambda path: save_checkpoint(path, {"model": {"w": torch.ones(2)}}),
    "image.png": lambda path: write_png(path, torch.zeros(2, 2)),
    "mesh.obj": lambda path: save_mesh(trimesh.creation.box(), path),
    "plain": lambda path: write_atomic(path, b"new"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_failed_write_leaves_the_older_file(name, tmp_path, monkeypatch):
    path = tmp_path / name
    path.write_bytes(b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=rf"{name}: cannot be written \(No space left on device\); free some space"):
        WRITERS[name](path)
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == [name]


def test_a_failure_that_is_not_the_disk_s_removes_the_temporary_file(tmp_path):
    def parts():
        yield b"new"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "a", parts())
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/a: cannot be written"):
        write_atomic(tmp_path / "file/a", b"")


@pytest.mark.skipif(os.name != "posix", reason="needs fork")
def test_a_process_killed_while_writing_leaves_the_older_file(tmp_path):
    path = tmp_path / "a"
    write_atomic(path, b"old")
    pid = os.fork()
    if pid == 0:
        os.fsync = lambda _: os.kill(os.getpid(), 9)  # the moment before the rename
        write_atomic(path, b"new" * 1000)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 9
    assert path.read_bytes() == b"old"


def test_only_regular_files_are_read(tmp_path):
    """A pipe would be waited for without end; /dev/zero has no end."""
    (tmp_path / "a").write_bytes(b"one")
    os.symlink("a", tmp_path / "link")
    assert read_file(tmp_path / "link") == b"one"
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", tmp_path):
        with pytest.raises(OSError, match="not a regular file"):
            read_file(path)
    for read in (image_size, read_raster):
        with pytest.raises(UserError, match=r"pipe: cannot be read \(not a regular file\)"):
            read(tmp_path / "pipe")


@pytest.mark.skipif(os.name != "posix", reason="needs fork")
def test_what_a_killed_process_left_is_removed_later(tmp_path):
    """Not what a living process writes, nor what may be written on another host right now."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    for name, age in (
        (f"ckpt/last.pt.{pid}.part", 100),
        (f"new.{pid}.part", 1),
        (f"mesh.{os.getppid()}.part", 100),
        ("scene.json.part", 100),
    ):
        path = tmp_path / name
        write_atomic(path, b"half")
        os.utime(path, (time.time() - age, time.time() - age))
    remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.rglob("*.part")) == [f"mesh.{os.getppid()}.part", f"new.{pid}.part", "scene.json.part"]


@pytest.mark.skipif(os.name != "posix", reason="needs limits of a process")
def test_a_line_that_does_not_fit_is_not_appended_at_all(tmp_path):
    path, limits = tmp_path / "new/a", resource.getrlimit(resource.RLIMIT_FSIZE)
    append(path, b"one\n")
    resource.setrlimit(resource.RLIMIT_FSIZE, (6, limits[1]))
    try:
        with pytest.raises(OSError):
            append(path, b"two\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"one\n"
    append(path, b"two\n")
    assert path.read_bytes() == b"one\ntwo\n"
