"""Images: decoding with truncation detection, resizing, PNG output, colour maps, contact sheets.

Arrays are [H, W, C] in RGB order; pixel centres at integers.
"""

import io
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
from torch import Tensor

from utils.errors import UserError
from utils.files import check_regular, read_file, write_atomic

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")  # Pillow's names of the formats that are opened
MAX_PIXELS = 1 << 28  # larger images are refused before they are decoded; phone cameras reach 200 megapixels
MAX_SIDE = (1 << 16) - 1
Image = np.ndarray | Tensor
REDUCED_JPEG = {
    factor: flag | cv2.IMREAD_IGNORE_ORIENTATION
    for factor, flag in ((2, cv2.IMREAD_REDUCED_COLOR_2), (4, cv2.IMREAD_REDUCED_COLOR_4), (8, cv2.IMREAD_REDUCED_COLOR_8))
}
PNG_MAGIC, JPEG_MAGIC = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"

PIL.Image.MAX_IMAGE_PIXELS = MAX_PIXELS  # Pillow's default of 89 megapixels rejects photographs of current phones
warnings.filterwarnings("ignore", module=r"PIL\.")  # of damaged metadata, which is not used; damaged pixels are errors


def _png_complete(data: bytes) -> bool:
    """Whether the chunks of a PNG (PNG specification, section 5) reach IEND and every IDAT checksum is right."""
    at = len(PNG_MAGIC)
    while at + 12 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        end = at + 8 + length
        if kind == b"IEND":
            return True
        if end + 4 > len(data) or (kind == b"IDAT" and zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big")):
            return False
        at = end + 4
    return False


def _jpeg_complete(data: bytes) -> bool:
    """Whether the end marker follows the start of scan (ITU T.81, annex B). The end marker of an EXIF thumbnail is skipped."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        if data[at + 1] == 0xDA:
            return data.find(b"\xff\xd9", at) >= 0
        at += 1 if data[at + 1] == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False


def _complete(data: bytes) -> bool:
    """Whether a PNG or JPEG is complete: OpenCV decodes truncated ones without an error. It detects truncated WebP, TIFF and BMP."""
    if data.startswith(PNG_MAGIC):
        return _png_complete(data)
    return _jpeg_complete(data) if data.startswith(JPEG_MAGIC) else True


def _read_bytes(path: str | Path) -> bytes:
    try:
        return read_file(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); check that the file exists and may be read") from None


def check_size(path: str | Path, width: int, height: int) -> None:
    """Raises UserError for an image of 0 pixels, a side above 65535 pixels or more than MAX_PIXELS."""
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE and width * height <= MAX_PIXELS):
        limit = f"at most {MAX_SIDE} along a side and {MAX_PIXELS / 1e6:.0f} megapixels"
        raise UserError(f"{path}: {width}x{height} pixels, expected {limit}; resize the image")


def _header_size(path: str | Path, source: str | Path | io.BytesIO, n_bytes: int) -> tuple[int, int]:
    try:
        with PIL.Image.open(source, formats=FORMATS) as image:
            size = image.size
    except PIL.Image.DecompressionBombError:
        raise UserError(f"{path}: more than {MAX_PIXELS / 1e6:.0f} megapixels, which is the limit; resize the image") from None
    except Exception:  # noqa: BLE001 - Pillow's parsers raise many types on damaged headers
        raise UserError(f"{path}: truncated or unreadable image ({n_bytes} bytes); copy the file again, as PNG or JPEG") from None
    check_size(path, *size)
    return size


def image_size(path: str | Path) -> tuple[int, int]:
    """(width, height) as stored, from the file header. Pixels are not decoded. Raises UserError."""
    try:
        n_bytes = check_regular(path)
        with open(path, "rb"):
            pass
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); check that the file exists and may be read") from None
    return _header_size(path, path, n_bytes)


def check_complete(path: str | Path) -> None:
    """Check an image file for truncation without decoding it. Raises UserError."""
    data = _read_bytes(path)
    _header_size(path, io.BytesIO(data), len(data))
    if not _complete(data):
        raise UserError(f"{path}: truncated or unreadable image ({len(data)} bytes); copy the file again")


def read_raster(path: str | Path, reduce: int = 1) -> np.ndarray:
    """Decode an image to uint8 [H, W, C], C = 1 (grey), 3 (RGB) or 4 (RGBA, straight alpha); 16 bits become 8.

    reduce: 1, 2, 4 or 8; a JPEG is decoded at 1 / reduce of its size, which saves most of the time. Other formats ignore it. The EXIF orientation of JPEG, PNG and WebP is not applied. Raises UserError.
    """
    data = _read_bytes(path)
    _header_size(path, io.BytesIO(data), len(data))
    how = REDUCED_JPEG.get(reduce, cv2.IMREAD_UNCHANGED) if data.startswith(JPEG_MAGIC) else cv2.IMREAD_UNCHANGED
    try:
        raster = cv2.imdecode(np.frombuffer(data, np.uint8), how) if _complete(data) else None
    except cv2.error:
        raster = None
    if raster is None:
        raise UserError(f"{path}: truncated or unreadable image ({len(data)} bytes); copy the file again")
    if raster.dtype == np.uint16:
        raster = cv2.convertScaleAbs(raster, alpha=1 / 257)
    if raster.dtype != np.uint8:
        raise UserError(f"{path}: pixels of type {raster.dtype}, expected 8 or 16 bits; convert the image to PNG")
    raster = raster.reshape(*raster.shape[:2], -1)
    order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}.get(raster.shape[2])
    if order is None:
        raise UserError(f"{path}: {raster.shape[2]} channels, expected 1, 3 or 4; convert the image to RGB")
    return np.ascontiguousarray(raster[..., order])


def read_rgb(path: str | Path) -> np.ndarray:
    """Decode an image to uint8 [H, W, 3]; grey is repeated, alpha is dropped. Raises UserError."""
    return as_rgb(read_raster(path))


def as_rgb(raster: np.ndarray) -> np.ndarray:
    """[H, W, 1, 3 or 4] -> [H, W, 3]."""
    return np.ascontiguousarray(np.broadcast_to(raster, (*raster.shape[:2], 3)) if raster.shape[2] == 1 else raster[..., :3])


def _resample(image: np.ndarray, width: int, height: int) -> np.ndarray:
    h, w, channels = image.shape
    small = cv2.resize(image, (min(w, width), min(h, height)), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR).reshape(height, width, channels)


def resize(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resize uint8 [H, W, C]: area average along axes that shrink, linear interpolation along axes that grow.

    Pixel u is mapped to f u + (f - 1) / 2. RGBA colours are weighted by alpha: colours of transparent pixels do not contribute.
    """
    if image.shape[1::-1] == (width, height):
        return image
    if image.shape[2] != 4:
        return _resample(image, width, height)
    alpha = image[..., 3:].astype(np.float32)
    mean = _resample(np.concatenate([image[..., :3] * (alpha / 255), alpha], -1), width, height)
    mean[..., :3] /= np.maximum(mean[..., 3:] / 255, 1e-4)
    return np.clip(np.rint(mean), 0, 255).astype(np.uint8)


def to_uint8(image: Image) -> np.ndarray:
    """Array or tensor, uint8 or float in [0, 1], [H, W] or [H, W, C] -> uint8 [H, W, C]; NaN becomes 0."""
    array = image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    if array.dtype != np.uint8:
        array = np.rint(np.clip(np.nan_to_num(array.astype(np.float32)), 0, 1) * 255).astype(np.uint8)
    return array if array.ndim == 3 else array[..., None]


def write_png(path: str | Path, image: Image) -> None:
    """Write [H, W], [H, W, 1], RGB or RGBA, uint8 or float in [0, 1]; creates the folder. Raises UserError."""
    array = to_uint8(image)
    order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[array.shape[2]]
    _, data = cv2.imencode(".png", np.ascontiguousarray(array[..., order]))
    write_atomic(path, data.tobytes())


def _plane(image: Image) -> np.ndarray:
    array = image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    return np.nan_to_num(array.astype(np.float32))


def depth_to_rgb(depth: Image, opacity: Image | None = None) -> np.ndarray:
    """Depth [H, W] -> uint8 [H, W, 3], red (near) to blue (far) over the 1st to 99th percentile where opacity > 0.5; black elsewhere."""
    depth = _plane(depth)
    weight = (depth > 0).astype(np.float32) if opacity is None else np.clip(_plane(opacity), 0, 1)
    hit = depth[weight > 0.5]
    low, high = np.percentile(hit, [1, 99]) if hit.size else (0.0, 1.0)
    shade = np.clip((high - depth) / max(high - low, 1e-6), 0, 1)
    turbo = cv2.applyColorMap(np.rint(shade * 255).astype(np.uint8), cv2.COLORMAP_TURBO)[..., ::-1]
    return np.rint(turbo * weight[..., None]).astype(np.uint8)


def normal_to_rgb(normal: Image, opacity: Image | None = None) -> np.ndarray:
    """Normals [H, W, 3] of any length -> uint8 [H, W, 3], (n + 1) / 2 over black by opacity [H, W]."""
    normal = _plane(normal)
    length = np.linalg.norm(normal, axis=-1, keepdims=True)
    weight = (length > 1e-6).astype(np.float32) if opacity is None else np.clip(_plane(opacity), 0, 1)[..., None]
    return to_uint8((normal / np.maximum(length, 1e-6) + 1) / 2 * weight)


def sheet(images: Sequence[Image], labels: Sequence[str] | None = None) -> np.ndarray:
    """Tile images side by side, top-aligned, with a label in the corner of each; uint8 [max H, sum W, 3]."""
    tiles = [as_rgb(to_uint8(image)).copy() for image in images]
    height = max(tile.shape[0] for tile in tiles)
    for tile, label in zip(tiles, labels or []):
        size = max(0.3, tile.shape[1] / 800)
        for colour, width in ((0, 3), (255, 1)):
            cv2.putText(tile, label, (4, int(6 + 24 * size)), cv2.FONT_HERSHEY_SIMPLEX, size, (colour,) * 3, width, cv2.LINE_AA)
    return np.concatenate([np.pad(tile, ((0, height - tile.shape[0]), (0, 0), (0, 0))) for tile in tiles], axis=1)
