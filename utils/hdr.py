"""Environment maps in files: Radiance .hdr and OpenEXR .exr, linear float32 [H, W, 3] in RGB order."""

from pathlib import Path

import cv2
import numpy as np

from utils.errors import UserError
from utils.files import write_atomic

MAGIC = {".hdr": (b"#?RADIANCE", b"#?RGBE"), ".exr": (b"v/1\x01",)}
RGB = ("R", "G", "B")
LARGEST = 1 << 16  # pixels along a side
MOST = 1 << 27  # pixels: 16384 x 8192
BRIGHTEST = 6e4  # replaces infinite radiance; near the largest half float


def _decode_radiance(path: Path) -> np.ndarray | None:
    raster = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    return None if raster is None or raster.ndim != 3 else raster[..., 2::-1]


def _decode_exr(path: Path) -> np.ndarray | None:
    """The first part with channels R, G, B, or else with Y alone, over the display window; None where the pixels cannot be decoded.

    Pixels of the display window outside the data window are black. Raises UserError for other channels and for cube maps.
    """
    try:
        import OpenEXR
    except ImportError:
        raise UserError(f"--hdr {path}: reading an OpenEXR file needs the package OpenEXR; pip install OpenEXR, or give a .hdr") from None
    try:
        with OpenEXR.File(str(path), separate_channels=True) as file:
            parts = [(dict(part.header), dict(part.channels)) for part in file.parts]
    except (RuntimeError, ValueError, TypeError):  # the first two are what the package raises for a damaged file
        return None
    if not parts:
        return None
    for names in (RGB, ("Y",)):
        for header, channels in parts:
            if set(names) <= channels.keys() and not {"RY", "BY"} & channels.keys():
                return _display_window(path, header, [channels[name].pixels for name in names])
    found = ", ".join(sorted({name for _, channels in parts for name in channels}))
    raise UserError(f"--hdr {path}: has the channels {found}, expected R, G, B or Y alone; save the map again as plain RGB")


def _display_window(path: Path, header: dict, planes: list[np.ndarray]) -> np.ndarray | None:
    """One or three planes [h, w] over the data window -> [H, W, 3] over the display window; None where that has no usable size."""
    if "CUBE" in str(header.get("envmap", "")):
        raise UserError(f"--hdr {path}: is a cube map, expected an equirectangular (latitude-longitude) map; convert it")
    if any(plane.dtype.kind != "f" for plane in planes):
        kinds = ", ".join(sorted({str(plane.dtype) for plane in planes}))
        raise UserError(f"--hdr {path}: has pixels of type {kinds}, expected half or float; save the map again")
    data = np.broadcast_to(np.stack(planes, -1).astype(np.float32), (*planes[0].shape, 3))
    (left, top), _ = header["dataWindow"]
    low, high = (np.asarray(corner, np.int64) for corner in header["displayWindow"])
    width, height = high - low + 1
    if not (0 < width <= LARGEST and 0 < height <= LARGEST):
        return None
    if width * height > MOST:
        raise UserError(f"--hdr {path}: {width} x {height} pixels, expected at most {MOST >> 20} million; reduce the map")
    x, y = left - low[0], top - low[1]  # of the data's first pixel in the image
    image = np.zeros((height, width, 3), np.float32)
    rows, columns = slice(max(y, 0), max(y + data.shape[0], 0)), slice(max(x, 0), max(x + data.shape[1], 0))
    target = image[rows, columns]
    target[:] = data[max(-y, 0) :, max(-x, 0) :][: target.shape[0], : target.shape[1]]
    return image


DECODERS = {".hdr": _decode_radiance, ".exr": _decode_exr}


def read_light(path: str | Path) -> np.ndarray:
    """An equirectangular environment map, float32 [H, W, 3], finite and not negative. Raises UserError for other files."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"--hdr {path}: no such file; give an equirectangular .hdr or .exr")
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except OSError as error:
        raise UserError(f"--hdr {path}: cannot be read ({error.strerror or error}); check that the file may be read") from None
    kind = next((suffix for suffix, magic in MAGIC.items() if head.startswith(magic)), None)
    if kind is None:
        raise UserError(
            f"--hdr {path}: is neither a Radiance .hdr nor an OpenEXR .exr; give an equirectangular environment map in one of these formats"
        )
    try:
        image = DECODERS[kind](path)
    except (cv2.error, OSError):
        image = None
    if image is None or image.shape[0] < 2 or image.shape[1] < 2:
        raise UserError(f"--hdr {path}: truncated or unreadable environment map; copy the file again")
    image = np.nan_to_num(np.asarray(image, np.float32), nan=0.0, posinf=BRIGHTEST, neginf=0.0).clip(0)
    if image.max() <= 0:
        raise UserError(f"--hdr {path}: the environment map is black; give one that emits light")
    return np.ascontiguousarray(image)


def write_hdr(path: str | Path, image: np.ndarray) -> None:
    """Write linear [H, W, 3] as Radiance .hdr; makes the folder. Raises UserError."""
    _, data = cv2.imencode(".hdr", np.ascontiguousarray(image[..., ::-1], np.float32))
    write_atomic(path, data.tobytes())
