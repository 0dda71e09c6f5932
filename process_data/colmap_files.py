"""Parsers of COLMAP's cameras, images and points3D files, binary and text (https://colmap.github.io/format.html).

Every count in a binary file is compared with the remaining bytes before anything is allocated: a damaged file is a UserError.
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.files import read_file

# id -> (name, number of parameters)
MODELS = {
    0: ("SIMPLE_PINHOLE", 3), 1: ("PINHOLE", 4), 2: ("SIMPLE_RADIAL", 4), 3: ("RADIAL", 5), 4: ("OPENCV", 8), 5: ("OPENCV_FISHEYE", 8),
    6: ("FULL_OPENCV", 12), 7: ("FOV", 5), 8: ("SIMPLE_RADIAL_FISHEYE", 4), 9: ("RADIAL_FISHEYE", 5), 10: ("THIN_PRISM_FISHEYE", 12),
    11: ("RAD_TAN_THIN_PRISM_FISHEYE", 16), 12: ("SIMPLE_DIVISION", 4), 13: ("DIVISION", 5), 14: ("SIMPLE_FISHEYE", 3), 15: ("FISHEYE", 4),
    16: ("EUCM", 6), 17: ("EQUIRECTANGULAR", 2),
}  # fmt: skip
BY_NAME = {name: n for name, n in MODELS.values()}


@dataclass(frozen=True)
class Camera:
    model: str
    width: int
    height: int
    params: tuple[float, ...]


@dataclass(frozen=True)
class Image:
    name: str
    camera: int
    quaternion: tuple[float, float, float, float]  # w, x, y, z: world to camera
    shift: tuple[float, float, float]
    number: int = -1  # its id, to which the tracks of points refer


@dataclass(frozen=True)
class Point:
    xyz: tuple[float, float, float]
    error: float  # pixels; negative: unknown
    track: int  # number of images with an observation
    images: tuple[int, ...] = ()  # their ids


class _Bytes:
    """Sequential reader of a binary file; reading beyond the end is a UserError."""

    def __init__(self, path: Path):
        self.path, self.at = path, 0
        try:
            self.data = read_file(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None

    def need(self, n: int) -> None:
        """Raises UserError unless n bytes remain."""
        if n > len(self.data) - self.at:
            raise UserError(f"{self.path}: truncated or damaged at byte {self.at} of {len(self.data)}; export the reconstruction again")

    def take(self, layout: str) -> tuple:
        size = struct.calcsize("<" + layout)
        self.need(size)
        values = struct.unpack_from("<" + layout, self.data, self.at)
        self.at += size
        return values

    def skip(self, n: int) -> None:
        self.need(n)
        self.at += n

    def count(self, least: int) -> int:
        """A count of records that have at least `least` bytes each."""
        (n,) = self.take("Q")
        self.need(n * least)
        return n

    def name(self) -> str:
        end = self.data.find(b"\0", self.at, self.at + 4096)
        if end < 0:
            self.need(len(self.data))
            raise UserError(f"{self.path}: no image name at byte {self.at}; export the reconstruction again")
        raw, self.at = self.data[self.at : end], end + 1
        return raw.decode("utf-8", "replace")


def _lines(path: Path) -> list[str]:
    try:
        return read_file(path).decode("utf-8", "replace").splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def _records(path: Path, least: int) -> list[tuple[int, list[str]]]:
    """(line number, words) of the lines other than comments, each with at least `least` words."""
    found = [(i + 1, line.split()) for i, line in enumerate(_lines(path)) if line.strip() and not line.startswith("#")]
    short = next((i for i, words in found if len(words) < least), None)
    if short is not None:
        raise UserError(f"{path}: line {short} is too short, perhaps truncated; export the reconstruction again")
    return found


def _bad(path: Path, line: int) -> UserError:
    return UserError(f"{path}: line {line}: expected numbers; export the reconstruction again")


# ---- the three files ----


def read_cameras(path: Path) -> dict[int, Camera]:
    """{camera id: Camera}. Raises UserError."""
    cameras = {}
    if path.suffix == ".txt":
        for line, words in _records(path, 5):
            try:
                cameras[int(words[0])] = Camera(words[1][:64], int(words[2]), int(words[3]), tuple(map(float, words[4:])))
            except ValueError:
                raise _bad(path, line) from None
    else:
        data = _Bytes(path)
        for _ in range(data.count(24)):
            number, model, width, height = data.take("iiQQ")
            name, n = MODELS.get(model, (f"number {model}", 0))
            if not n:
                raise UserError(
                    f"{path}: camera {number} has the unknown model {name}; damaged, or from a newer COLMAP: export it as OPENCV"
                )
            cameras[number] = Camera(name, width, height, data.take(f"{n}d"))
    for number, camera in cameras.items():
        if camera.model in BY_NAME and len(camera.params) != BY_NAME[camera.model]:
            raise UserError(
                f"{path}: camera {number} has {len(camera.params)} parameters, expected {BY_NAME[camera.model]} for {camera.model}"
            )
        if not all(math.isfinite(p) for p in camera.params):
            raise UserError(f"{path}: camera {number} contains NaN or infinity; export the reconstruction again")
    return cameras


def read_images(path: Path) -> list[Image]:
    """Registered images, sorted by name. Raises UserError."""
    images = []
    if path.suffix == ".txt":
        lines = [(i + 1, line) for i, line in enumerate(_lines(path)) if not line.startswith("#")]
        while lines and not lines[0][1].strip():
            lines.pop(0)
        for line, text in lines[::2]:  # every second line holds the features
            words = text.split(maxsplit=9)
            if not words:
                continue
            try:
                w, x, y, z, *shift = map(float, words[1:8])
                images.append(Image(words[9].strip(), int(words[8]), (w, x, y, z), (shift[0], shift[1], shift[2]), int(words[0])))
            except (ValueError, IndexError):
                raise _bad(path, line) from None
    else:
        data = _Bytes(path)
        for _ in range(data.count(73)):
            number, w, x, y, z, *shift, camera = data.take("i7di")
            images.append(Image(data.name(), camera, (w, x, y, z), (shift[0], shift[1], shift[2]), number))
            data.skip(24 * data.take("Q")[0])
    return sorted(images, key=lambda image: image.name)


def read_points(path: Path) -> list[Point]:
    """Points of the reconstruction. Raises UserError."""
    points = []
    if path.suffix == ".txt":
        for line, words in _records(path, 8):
            try:
                x, y, z = map(float, words[1:4])
                points.append(Point((x, y, z), float(words[7]), (len(words) - 8) // 2, tuple(map(int, words[8:-1:2]))))
            except ValueError:
                raise _bad(path, line) from None
    else:
        data = _Bytes(path)
        for _ in range(data.count(51)):
            _, x, y, z, _, _, _, error, track = data.take("Q3d3BdQ")
            points.append(Point((x, y, z), error, track, data.take(f"{2 * track}i")[::2]))
    return points


def good_points(points: list[Point], least_track: int = 3, most_error: float = 2.0) -> list[Point]:
    """Points with enough observations and a small reprojection error (all when fewer than 10); none when fewer than 10."""
    kept = [p for p in points if p.track >= least_track and p.error <= most_error]
    kept = [p for p in (kept if len(kept) >= 10 else points) if all(math.isfinite(v) and abs(v) < 1e12 for v in p.xyz)]
    return kept if len(kept) >= 10 else []


def point_tracks(points: list[Point], images: dict[int, int]) -> np.ndarray:
    """[M, 2] int64, pairs (point, view): the views that see each point. images: {image id: view}."""
    pairs = [(k, images[i]) for k, p in enumerate(points) for i in sorted(set(p.images)) if i in images]
    return np.array(pairs, np.int64).reshape(-1, 2)
