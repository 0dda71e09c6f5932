"""Light maps in and out: Radiance .hdr and OpenEXR .exr, linear float32 [H, W, 3] in RGB order."""

import subprocess
from pathlib import Path

import cv2
import numpy as np

from utils.errors import UserError
from utils.image import write_whole

MAGIC = {".hdr": (b"#?RADIANCE", b"#?RGBE"), ".exr": (b"v/1\x01",)}


def _decode_exr(path: Path) -> np.ndarray | None:
    """By the ffmpeg that comes with imageio; it knows every compression of the format."""
    import imageio_ffmpeg

    width, height = _exr_size(path)
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-v",
        "error",
        "-i",
        str(path),
        "-frames:v",
        "1",
        "-f",
        "rawvideo",
        "-pix_fmt",
        "gbrpf32le",
        "-",
    ]
    done = subprocess.run(command, capture_output=True)
    if done.returncode or len(done.stdout) != 12 * width * height:
        return None
    planes = np.frombuffer(done.stdout, "<f4").reshape(3, height, width)
    return np.stack([planes[2], planes[0], planes[1]], -1)


def _exr_size(path: Path) -> tuple[int, int]:
    """(width, height) of the display window (OpenEXR file layout: attributes of name, type, size, value up to an empty name)."""
    data, at = path.read_bytes()[: 1 << 20], 8
    while at < len(data) and data[at]:
        name_end = data.index(b"\0", at)
        type_end = data.index(b"\0", name_end + 1)
        size = int.from_bytes(data[type_end + 1 : type_end + 5], "little")
        value = data[type_end + 5 : type_end + 5 + size]
        if data[at:name_end] == b"displayWindow":
            x0, y0, x1, y1 = np.frombuffer(value, "<i4")
            return int(x1 - x0 + 1), int(y1 - y0 + 1)
        at = type_end + 5 + size
    raise ValueError("no displayWindow")


def read_light(path: str | Path) -> np.ndarray:
    """An equirectangular map, float32 [H, W, 3], not negative. Raises UserError for what is none."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"--hdr {path}: no such file; give an equirectangular .hdr or .exr")
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except OSError as error:
        raise UserError(f"--hdr {path}: cannot be read ({error.strerror or error})") from None
    kind = next((suffix for suffix, magic in MAGIC.items() if head.startswith(magic)), None)
    if kind is None:
        raise UserError(f"--hdr {path}: is neither a Radiance .hdr nor an OpenEXR .exr; give an equirectangular light map of one of these")
    image = None
    try:
        if kind == ".exr":
            image = _decode_exr(path)
        else:
            raster = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
            image = None if raster is None or raster.ndim != 3 else raster[..., 2::-1]
    except (cv2.error, OSError, ValueError, IndexError):
        image = None
    if image is None or image.shape[0] < 2 or image.shape[1] < 2:
        raise UserError(f"--hdr {path}: truncated or unreadable light map; copy the file again")
    image = np.ascontiguousarray(image, np.float32)
    if not np.isfinite(image).all():
        image = np.nan_to_num(image, nan=0.0, posinf=6e4, neginf=0.0)
    if image.max() <= 0:
        raise UserError(f"--hdr {path}: the light map is black; there is nothing to see by")
    return image.clip(0)


def write_hdr(path: str | Path, image: np.ndarray) -> None:
    """Radiance .hdr of linear [H, W, 3]; makes the folder. Raises UserError."""
    _, data = cv2.imencode(".hdr", np.ascontiguousarray(image[..., ::-1], np.float32))
    write_whole(path, data.tobytes())
