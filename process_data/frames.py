"""Frames of a video for structure from motion: the sharpest frame of each interval of camera motion, upright and in SDR."""

import itertools
import logging
import re
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
HDR = re.compile(r"^\s*Stream #.*: Video: .*\b(arib-std-b67|smpte2084)\b", re.MULTILINE)  # ffmpeg's names of HLG and PQ
# linear light with the white of ITU-R BT.2408, 203 cd/m2, at 1; BT.709 primaries; highlights compressed; the matrix of JFIF
TO_SDR = (
    "zscale=tin={transfer}:min=bt2020nc:pin=bt2020:t=linear:npl=203,format=gbrpf32le,zscale=p=bt709,"
    "tonemap=mobius:desat=0,zscale=t=bt709:m=170m:r=full,format=yuvj420p"
)
TRACKED = 0.4  # share of features that must survive tracking; otherwise the interval ends


def _ffmpeg() -> str:
    import imageio_ffmpeg

    return imageio_ffmpeg.get_ffmpeg_exe()


def _input(video: Path) -> list[str]:
    """Arguments that read the video; a container may refer to local files alone."""
    return [_ffmpeg(), "-v", "error", "-nostdin", "-protocol_whitelist", "file,pipe", "-i", str(video.resolve())]


def _hdr_transfer(video: Path) -> str | None:
    """The transfer function of an HDR video, HLG or PQ, by ffmpeg's name; None for SDR."""
    command = [_ffmpeg(), "-hide_banner", "-nostdin", "-protocol_whitelist", "file,pipe", "-i", str(video.resolve())]
    found = HDR.search(subprocess.run(command, capture_output=True, check=False).stderr.decode("utf-8", "replace"))
    return found[1] if found else None


def _filters(video: Path) -> list[str]:
    """ffmpeg's filters from the frames of a video to SDR in the colour matrix of JPEG."""
    transfer = _hdr_transfer(video)
    if transfer is None:
        return ["scale=out_color_matrix=bt601:out_range=full"]
    name = "HLG" if transfer == "arib-std-b67" else "PQ"
    listed = subprocess.run([_ffmpeg(), "-hide_banner", "-filters"], capture_output=True, check=False, text=True).stdout.split()
    if not {"zscale", "tonemap"} <= set(listed):
        LOG.warning("%s: HDR video (%s), and this ffmpeg lacks the filters zscale and tonemap: the frames look pale", video, name)
        return ["scale=out_color_matrix=bt601:out_range=full"]
    LOG.info("%s: HDR video (%s), tone-mapped to SDR", video, name)
    return [TO_SDR.format(transfer=transfer)]


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
    filters = ["select='" + "+".join(f"eq(n,{i})" for i in chosen) + "'", *_filters(video)]
    command = [*_input(video), "-vf", ",".join(filters), "-fps_mode", "passthrough", "-an", "-q:v", "2", "frame_%04d.jpg"]
    done = subprocess.run(command, capture_output=True, check=False, cwd=target)  # a % in the folder's name is none of the pattern's
    written = sorted(target.glob("frame_*.jpg"))
    if len(written) != len(chosen):
        raise _failed(video, done.stderr.decode("utf-8", "replace"))
    LOG.info("%s: %d of %d frames chosen by sharpness and motion", video, len(written), count)
    return written
