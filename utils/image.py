"""Images in and out: decoding with a check for truncation, resizing, PNG, colour maps, contact sheets.

Arrays are [H, W, C] in RGB order; pixel centres at integers.
"""

import zlib
from pathlib import Path

import cv2
import numpy as np
from torch import Tensor

from utils.errors import UserError
from utils.files import write_atomic

SUFFIXES = (".png", ".jpg", ".jpeg")
Image = np.ndarray | Tensor
PNG_MAGIC, JPEG_MAGIC = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"


def _png_complete(data: bytes) -> bool:
    """Walk the chunks (PNG specification, section 5): IEND is reached and the pixel data keep their checksums."""
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
    """Walk the segments to the scan (ITU T.81, annex B) and find the end marker behind it; a thumbnail's marker does not count."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        if data[at + 1] == 0xDA:
            return data.find(b"\xff\xd9", at) >= 0
        at += 1 if data[at + 1] == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False


def _complete(data: bytes) -> bool:
    """OpenCV fills the missing part of a truncated file with grey or black and says nothing, so we look ourselves."""
    if data.startswith(PNG_MAGIC):
        return _png_complete(data)
    return _jpeg_complete(data) if data.startswith(JPEG_MAGIC) else True


def image_size(path: str | Path) -> tuple[int, int]:
    """(width, height) from the header of a PNG or JPEG, without decoding it. Raises UserError."""
    try:
        with open(path, "rb") as file:
            head = file.read(1 << 20)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); check that the file exists and may be read") from None
    if head.startswith(PNG_MAGIC) and len(head) >= 24:
        size = int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
    else:
        size = _jpeg_size(head) if head.startswith(JPEG_MAGIC) else None
    if size is None or not (0 < size[0] < 1 << 16 and 0 < size[1] < 1 << 16):
        raise UserError(f"{path}: truncated or unreadable image; copy the file again, as PNG or JPEG")
    return size


def _jpeg_size(head: bytes) -> tuple[int, int] | None:
    """Of the frame header, one of the markers C0 to CF but C4, C8 and CC (ITU T.81, annex B)."""
    at = 2
    while at + 9 <= len(head) and head[at] == 0xFF:
        marker = head[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(head[at + 7 : at + 9], "big"), int.from_bytes(head[at + 5 : at + 7], "big")
        at += 1 if marker == 0xFF else 2 + int.from_bytes(head[at + 2 : at + 4], "big")
    return None


def read_raster(path: str | Path) -> np.ndarray:
    """Decode a PNG or JPEG to uint8 [H, W, C], C = 1 (grey), 3 (RGB) or 4 (RGBA, straight); 16 bits become 8. Raises UserError."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); check that the file exists and may be read") from None
    try:
        raster = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data and _complete(data) else None
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
    """uint8 [H, W, 3]; grey is repeated, alpha dropped. Raises UserError."""
    return as_rgb(read_raster(path))


def as_rgb(raster: np.ndarray) -> np.ndarray:
    """[H, W, 1, 3 or 4] -> [H, W, 3]."""
    return np.ascontiguousarray(np.broadcast_to(raster, (*raster.shape[:2], 3)) if raster.shape[2] == 1 else raster[..., :3])


def _resample(image: np.ndarray, width: int, height: int) -> np.ndarray:
    h, w, channels = image.shape
    small = cv2.resize(image, (min(w, width), min(h, height)), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR).reshape(height, width, channels)


def resize(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resize uint8 [H, W, C]: area average along axes that shrink, linear along axes that grow; pixel u goes to f u + (f - 1) / 2.

    Of RGBA, colours are averaged with their alpha, so that hidden colours do not bleed over the edge.
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
    """Write [H, W], [H, W, 1], RGB or RGBA, uint8 or float in [0, 1]; makes the folder. Raises UserError."""
    array = to_uint8(image)
    order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[array.shape[2]]
    _, data = cv2.imencode(".png", np.ascontiguousarray(array[..., order]))
    write_atomic(path, data.tobytes())


def _plane(image: Image) -> np.ndarray:
    array = image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    return np.nan_to_num(array.astype(np.float32))


def depth_to_rgb(depth: Image, opacity: Image | None = None) -> np.ndarray:
    """Depth [H, W] -> uint8 [H, W, 3]: near red, far blue over the 1st to 99th percentile where opacity > 0.5; black where nothing is."""
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


def sheet(images: list[Image], labels: list[str] | None = None) -> np.ndarray:
    """Tile images side by side, top-aligned, with a label in the corner of each; uint8 [max H, sum W, 3]."""
    tiles = [as_rgb(to_uint8(image)).copy() for image in images]
    height = max(tile.shape[0] for tile in tiles)
    for tile, label in zip(tiles, labels or []):
        size = max(0.3, tile.shape[1] / 800)
        for colour, width in ((0, 3), (255, 1)):
            cv2.putText(tile, label, (4, int(6 + 24 * size)), cv2.FONT_HERSHEY_SIMPLEX, size, (colour,) * 3, width, cv2.LINE_AA)
    return np.concatenate([np.pad(tile, ((0, height - tile.shape[0]), (0, 0), (0, 0))) for tile in tiles], axis=1)
