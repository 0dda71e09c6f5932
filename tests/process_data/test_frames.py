"""Frames of a video: sharp ones at regular camera motion; damaged videos."""

import subprocess

import cv2
import numpy as np
import pytest

from process_data import frames, sfm
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
    picture, images = canvas(), []
    for i in range(n):
        frame = picture[80:320, round(speed * i) : round(speed * i) + 320]
        images.append(cv2.blur(frame, (15, 1)) if i in blurred else np.ascontiguousarray(frame))
    return images


def write_video(path, images) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "rawvideo", "-pix_fmt", "gray", "-s", "320x240", "-r", "30", "-i", "-"]
    command += ["-c:v", "libx264", "-crf", "12", "-pix_fmt", "yuv420p", str(path)]
    subprocess.run(command, input=b"".join(f.tobytes() for f in images), check=True)


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
    want = panning()
    write_video(tmp_path / "a.mp4", want)
    grey = list(read_frames(tmp_path / "a.mp4"))
    assert len(grey) == 60 and grey[0].shape == (480, 640)
    written = extract_frames(tmp_path / "a.mp4", tmp_path / "out")
    chosen = choose_frames(iter(grey))[0]
    assert len(written) == len(chosen) >= 10 and image_size(written[0]) == (320, 240)
    for path, i in zip(written, chosen):
        assert np.abs(read_rgb(path)[..., 0].astype(int) - want[i]).mean() < 8


def write_colour_video(path, pixels: np.ndarray, transfer: str, n: int = 4, encoder: str = "libx264") -> None:
    """n equal frames of pixels [H, W, 3], 0 to 1, signal values of the transfer function; 10 bits and BT.2020 for HDR."""
    hdr = transfer != "bt709"
    matrix, primaries, fmt = ("bt2020nc", "bt2020", "yuv420p10le") if hdr else ("bt709", "bt709", "yuv420p")
    filters = f"scale=out_color_matrix={'bt2020' if hdr else 'bt709'}:out_range=tv,format={fmt},"
    filters += f"setparams=color_primaries={primaries}:color_trc={transfer}:colorspace={matrix}:range=tv"
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-v",
        "error",
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb48le",
        "-s",
        "{1}x{0}".format(*pixels.shape),
    ]
    command += ["-r", "30", "-i", "-", "-vf", filters, "-c:v", encoder, "-crf", "4", str(path)]
    subprocess.run(command, input=np.rint(pixels * 65535).astype("<u2").tobytes() * n, check=True)


@pytest.mark.parametrize("transfer, name", [("arib-std-b67", "HLG"), ("smpte2084", "PQ")])
def test_hdr_videos_become_sdr(tmp_path, monkeypatch, caplog, transfer, name):
    """A grey of HLG 0.75 or PQ 0.58 is white of 203 cd/m2, which is bright in SDR; the same signal undone is a pale grey."""
    white = 0.75 if name == "HLG" else 0.58
    signal = np.full((96, 128, 3), white)
    signal[:, 64:] = [white, 0.3 * white, 0.3 * white]
    write_colour_video(tmp_path / "a.mp4", signal, transfer)
    monkeypatch.setattr(frames, "choose_frames", lambda _: ([0, 1, 2], 4))
    with caplog.at_level("INFO"):
        picture = read_rgb(extract_frames(tmp_path / "a.mp4", tmp_path / "out")[1]).astype(int)
    assert f"HDR video ({name}), tone-mapped to SDR" in caplog.text
    assert picture.shape == (96, 128, 3) and picture[48, 32].min() > 205 and np.ptp(picture[48, 32]) < 6
    assert picture[48, 96, 0] - picture[48, 96, 1] > 255 * 0.85 * white  # more saturated than the signal: the gamut is wider
    monkeypatch.setattr(frames, "_filters", lambda _: ["null"])
    pale = read_rgb(extract_frames(tmp_path / "a.mp4", tmp_path / "pale")[1]).astype(int)
    assert pale[48, 32].max() < 200


def test_hdr_without_the_filters_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(frames, "_hdr_transfer", lambda _: "smpte2084")
    monkeypatch.setattr(frames, "_ffmpeg", lambda: "echo")
    assert "tonemap" not in frames._filters(tmp_path / "a.mp4")[0]
    assert "HDR video (PQ), and this ffmpeg lacks the filters zscale and tonemap" in caplog.text


def test_colours_of_sdr_videos_are_kept(tmp_path, monkeypatch):
    """BT.709 in the video, BT.601 in a JPEG."""
    want = np.array([0.85, 0.35, 0.15])
    write_colour_video(tmp_path / "a.mp4", np.broadcast_to(want, (96, 128, 3)), "bt709")
    monkeypatch.setattr(frames, "choose_frames", lambda _: ([0, 1, 2], 4))
    got = read_rgb(extract_frames(tmp_path / "a.mp4", tmp_path / "out")[0])[48, 64]
    assert np.abs(got - want * 255).max() < 6


def test_rotation_of_the_container_is_applied(tmp_path, monkeypatch):
    pixels = np.zeros((96, 128, 3))
    pixels[:20] = 1
    write_colour_video(tmp_path / "flat.mp4", pixels, "bt709")
    turn = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-display_rotation", "90", "-i", "flat.mp4", "-c", "copy", "a.mp4"]
    subprocess.run(turn, check=True, cwd=tmp_path)
    monkeypatch.setattr(frames, "choose_frames", lambda images: ([0, 1, 2], len(list(images))))
    grey = next(read_frames(tmp_path / "a.mp4"))
    assert grey.shape == (640, 480) and grey[320, 20] > 200 > 50 > grey[320, 400]
    picture = read_rgb(extract_frames(tmp_path / "a.mp4", tmp_path / "out")[0])
    assert picture.shape == (128, 96, 3) and picture[64, 5].min() > 200 and picture[64, 60].max() < 50


def test_a_percent_sign_in_the_folder(tmp_path, monkeypatch):
    write_video(tmp_path / "-50%d.mp4", panning(4))
    monkeypatch.setattr(frames, "choose_frames", lambda _: ([0, 1, 2], 4))
    written = extract_frames(tmp_path / "-50%d.mp4", tmp_path / "50%d off")
    assert [p.relative_to(tmp_path).as_posix() for p in written] == [f"50%d off/frame_000{i}.jpg" for i in (1, 2, 3)]


def test_reading_may_stop_early(tmp_path):
    write_video(tmp_path / "a.mp4", panning())
    images = read_frames(tmp_path / "a.mp4")
    assert next(images).shape == (480, 640)
    images.close()


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

    def solved(solver, masks):
        raise UserError(f"{len(solver.photos)} frames in {solver.work.parent.name}")

    monkeypatch.setattr(sfm, "_cameras", solved)
    pytest.importorskip("pycolmap", reason="pycolmap is not installed")
    with pytest.raises(UserError, match=r"\d\d frames in scene"):
        reconstruct(tmp_path / "a.mp4", tmp_path / "scene")
    assert (tmp_path / "a.mp4").read_bytes() == before and not list((tmp_path / "scene").iterdir())
    with pytest.raises(UserError, match="expected a folder of photographs or a video"):
        (tmp_path / "a.txt").write_text("x")
        reconstruct(tmp_path / "a.txt", tmp_path / "scene")
    with pytest.raises(UserError, match="--masks needs a folder of photographs"):
        reconstruct(tmp_path / "a.mp4", tmp_path / "scene", masks=tmp_path)
