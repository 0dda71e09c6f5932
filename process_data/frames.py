"""Frames of a video for structure from motion: the sharpest frame of each interval of camera motion."""

import itertools
import logging
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np

from process_data.photos import ADVICE, LEAST, sharpness
from utils.errors import UserError

LOG = logging.getLogger("neus")
VIDEOS = (".mp4", ".mov", ".m4v")
ANALYSIS_SIZE = 640  # pixels of the longer side for sharpness and motion
MOTION = 0.04  # of the longer side: the median feature displacement after which an interval ends
MAX_FRAMES = 200  # chosen frames; with more intervals, neighbouring ones are merged
TRACKED = 0.4  # share of features that must survive tracking; otherwise the interval ends


def _ffmpeg() -> str:
    import imageio_ffmpeg

    return imageio_ffmpeg.get_ffmpeg_exe()


def _input(video: Path) -> list[str]:
    """Arguments that read the video; a container may refer to local files alone."""
    return [_ffmpeg(), "-v", "error", "-nostdin", "-protocol_whitelist", "file,pipe", "-i", str(video.resolve())]


def _failed(video: Path, error: str) -> UserError:
    last = error.strip().splitlines()[-1][:120] if error.strip() else "no frames"
    return UserError(f"{video}: cannot be decoded as a video ({last}); expected {', '.join(VIDEOS)}: convert it to H.264 in .mp4")


def read_frames(video: Path) -> Iterator[np.ndarray]:
    """All frames reduced to ANALYSIS_SIZE, grey, uint8 [H, W] each, one at a time. Raises UserError."""
    scale = f"scale='if(gt(iw,ih),{ANALYSIS_SIZE},-2)':'if(gt(iw,ih),-2,{ANALYSIS_SIZE})':flags=area,format=gray"
    command = [*_input(video), "-vf", scale, "-fps_mode", "passthrough", "-an", "-f", "image2pipe", "-c:v", "pgm", "-"]
    count = 0
    with tempfile.TemporaryFile() as errors, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors) as process:
        assert process.stdout is not None
        try:
            while process.stdout.readline().strip() == b"P5":  # PGM: P5, width height, 255, pixels
                w, h = (int(word) for word in process.stdout.readline().split())
                process.stdout.readline()
                pixels = process.stdout.read(w * h)
                if len(pixels) < w * h:
                    break
                count += 1
                yield np.frombuffer(pixels, np.uint8).reshape(h, w)
        finally:
            process.kill()
        if not count:
            errors.seek(0)
            raise _failed(video, errors.read(10_000).decode("utf-8", "replace"))


def choose_frames(frames: Iterable[np.ndarray]) -> tuple[list[int], int]:
    """(numbers of the sharpest frame of each interval, MAX_FRAMES at most; number of all frames).

    frames: grey, uint8 [H, W] each. Features are tracked from the start of an interval (Lucas and Kanade 1981); it ends when their median
    displacement exceeds MOTION or most are lost.
    """
    starts, values = [0], list[float]()
    last: np.ndarray | None = None
    first: np.ndarray | None = None  # [P, 1, 2] features where the interval starts
    points: np.ndarray | None = None  # [P, 1, 2] the same features in the last frame
    for frame in frames:
        if last is not None and last.shape == frame.shape:
            if first is None or points is None:
                first = points = cv2.goodFeaturesToTrack(last, 300, 0.01, 8)
            if first is not None and points is not None:
                points, status, _ = cv2.calcOpticalFlowPyrLK(last, frame, points, np.empty_like(points))
                motion = float(np.median(np.linalg.norm((points - first)[:, 0], axis=1)))
                if motion > MOTION * max(frame.shape) or status.mean() < TRACKED:
                    starts.append(len(values))
                    first = points = None
        values.append(sharpness(frame))
        last = frame
    step = -(-len(starts) // MAX_FRAMES)
    ends = [*starts[::step], len(values)]
    chosen = [a + int(np.argmax(values[a:b])) for a, b in itertools.pairwise(ends) if b > a]
    return chosen, len(values)


def extract_frames(video: Path, target: Path) -> list[Path]:
    """Write the chosen frames of a video to target/*.jpg at full resolution. Raises UserError when it has too little motion."""
    chosen, count = choose_frames(read_frames(video))
    if len(chosen) < LEAST:
        raise UserError(f"{video}: {len(chosen)} frames with camera motion between them, expected at least {LEAST}; {ADVICE}")
    target.mkdir(parents=True, exist_ok=True)
    select = "select='" + "+".join(f"eq(n,{i})" for i in chosen) + "'"
    command = [*_input(video), "-vf", select, "-fps_mode", "passthrough", "-an", "-q:v", "2", str(target.resolve() / "frame_%04d.jpg")]
    done = subprocess.run(command, capture_output=True, check=False)
    written = sorted(target.glob("frame_*.jpg"))
    if len(written) != len(chosen):
        raise _failed(video, done.stderr.decode("utf-8", "replace"))
    LOG.info("%s: %d of %d frames chosen by sharpness and motion", video, len(written), count)
    return written
