"""The video is whole or not there; without an encoder it is a gif."""

import resource
import sys

import imageio.v2 as imageio
import numpy as np
import pytest

from systems import evaluate
from systems.evaluate import write_video
from utils.errors import UserError

FRAMES = list(np.random.default_rng(0).integers(0, 255, (3, 61, 80, 3), dtype=np.uint8))


def test_a_video(tmp_path):
    path = write_video(tmp_path / "video.mp4", FRAMES)
    assert [p.name for p in tmp_path.iterdir()] == ["video.mp4"] == [path.name]
    frames = [np.asarray(f) for f in imageio.get_reader(path)]
    assert len(frames) == 3 and frames[0].shape == (60, 80, 3)


def test_a_full_disk_leaves_the_older_video(tmp_path):
    """Regression: the encoder says nothing of it, and its half-written file became video.mp4."""
    (tmp_path / "video.mp4").write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        with pytest.raises(UserError, match="video.gif: cannot be written .File too large.; free some space"):
            write_video(tmp_path / "video.mp4", FRAMES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in tmp_path.iterdir()] == ["video.mp4"] and (tmp_path / "video.mp4").read_bytes() == b"old"


def test_without_an_encoder_it_is_a_gif(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    path = write_video(tmp_path / "video.mp4", FRAMES)
    assert [p.name for p in tmp_path.iterdir()] == ["video.gif"] == [path.name] and "writing a gif" in caplog.text
    assert len(imageio.mimread(path)) == 3


def test_a_stop_leaves_nothing(tmp_path, monkeypatch):
    def stopped(path, *_):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "_encode", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_video(tmp_path / "video.mp4", FRAMES)
    assert not list(tmp_path.iterdir())
