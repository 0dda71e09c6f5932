"""Frames of a video: sharp ones at regular camera motion; damaged videos."""

import subprocess

import cv2
import numpy as np
import pytest

from process_data import sfm
from process_data.frames import MOTION, choose_frames, extract_frames, read_frames
from process_data.sfm import reconstruct
from utils.errors import UserError
from utils.image import image_size, read_rgb

imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="imageio-ffmpeg is not installed")


def canvas() -> np.ndarray:
    """A large grey image with detail of all sizes, [400, 1600]."""
    rng = np.random.default_rng(0)
    layers = [cv2.resize(rng.normal(0, 1, (400 // s, 1600 // s)), (1600, 400), interpolation=cv2.INTER_LINEAR) for s in (2, 4, 8, 16, 32)]
    return np.clip(128 + 30 * np.sum(layers, 0), 0, 255).astype(np.uint8)


def panning(n: int = 60, speed: float = 6.0, blurred: tuple[int, ...] = ()) -> list[np.ndarray]:
    """Frames [240, 320] of a camera that pans over the canvas by `speed` pixels a frame."""
    picture, frames = canvas(), []
    for i in range(n):
        frame = picture[80:320, round(speed * i) : round(speed * i) + 320]
        frames.append(cv2.blur(frame, (15, 1)) if i in blurred else np.ascontiguousarray(frame))
    return frames


def write_video(path, frames) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "rawvideo", "-pix_fmt", "gray", "-s", "320x240", "-r", "30", "-i", "-"]
    command += ["-c:v", "libx264", "-crf", "12", "-pix_fmt", "yuv420p", str(path)]
    subprocess.run(command, input=b"".join(f.tobytes() for f in frames), check=True)


def test_frames_are_apart_by_motion_and_sharp():
    blurred = tuple(i for i in range(60) if i % 3)
    chosen, count = choose_frames(iter(panning(blurred=blurred)))
    assert count == 60 and not set(chosen) & set(blurred)
    spacing = MOTION * 320 / 6  # frames
    assert 60 / (2.5 * spacing) <= len(chosen) <= 60 / spacing + 1 and chosen == sorted(set(chosen))


def test_a_camera_at_rest_yields_one_frame():
    assert len(choose_frames(iter(panning(30, speed=0.0)))[0]) == 1
    assert choose_frames(iter([np.zeros((24, 32), np.uint8)] * 5))[0] == [0]
    assert choose_frames(iter([]))[0] == []


def test_frames_of_a_video_are_written_at_full_size(tmp_path):
    frames = panning()
    write_video(tmp_path / "a.mp4", frames)
    grey = list(read_frames(tmp_path / "a.mp4"))
    assert len(grey) == 60 and grey[0].shape == (480, 640)
    written = extract_frames(tmp_path / "a.mp4", tmp_path / "out")
    chosen = choose_frames(iter(grey))[0]
    assert len(written) == len(chosen) >= 10 and image_size(written[0]) == (320, 240)
    for path, i in zip(written, chosen):
        assert np.abs(read_rgb(path)[..., 0].astype(int) - frames[i]).mean() < 8


def test_reading_may_stop_early(tmp_path):
    write_video(tmp_path / "a.mp4", panning())
    frames = read_frames(tmp_path / "a.mp4")
    assert next(frames).shape == (480, 640)
    frames.close()


@pytest.mark.parametrize("data", [b"", b"no video", b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n"])
def test_files_that_are_no_video(tmp_path, data):
    (tmp_path / "a.mp4").write_bytes(data)
    with pytest.raises(UserError, match="cannot be decoded as a video"):
        extract_frames(tmp_path / "a.mp4", tmp_path / "out")


def test_a_truncated_video_is_used_or_refused(tmp_path):
    write_video(tmp_path / "a.mp4", panning())
    data = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="cannot be decoded as a video"):
        extract_frames(tmp_path / "a.mp4", tmp_path / "out")


def test_a_video_without_motion(tmp_path):
    write_video(tmp_path / "a.mp4", panning(20, speed=0.0))
    with pytest.raises(UserError, match=r"1 frames with camera motion between them, expected at least 3"):
        extract_frames(tmp_path / "a.mp4", tmp_path / "out")


def test_photos_takes_a_video(tmp_path, monkeypatch):
    """The scene folder receives the frames; the video stays as it is."""
    write_video(tmp_path / "a.mp4", panning())
    before = (tmp_path / "a.mp4").read_bytes()

    def solved(pycolmap, photos, work, *_):
        raise UserError(f"{len(photos)} frames in {work.parent.name}")

    monkeypatch.setattr(sfm, "_solve", solved)
    pytest.importorskip("pycolmap", reason="pycolmap is not installed")
    with pytest.raises(UserError, match=r"\d\d frames in scene"):
        reconstruct(tmp_path / "a.mp4", tmp_path / "scene")
    assert (tmp_path / "a.mp4").read_bytes() == before and not list((tmp_path / "scene").iterdir())
    with pytest.raises(UserError, match="expected a folder of photographs or a video"):
        (tmp_path / "a.txt").write_text("x")
        reconstruct(tmp_path / "a.txt", tmp_path / "scene")
    with pytest.raises(UserError, match="--masks needs a folder of photographs"):
        reconstruct(tmp_path / "a.mp4", tmp_path / "scene", masks=tmp_path)
