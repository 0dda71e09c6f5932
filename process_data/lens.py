"""Lens distortion models, and the resampling of photographs to pinhole images.

Points xy [P, 2] lie on the plane z = 1 of the camera (x right, y down). `distort` maps pinhole projections to distorted ones. Models:
"brown" with k1 k2 p1 p2 k3 k4 k5 k6 (OpenCV's rational model, OPENCV and FULL_OPENCV of COLMAP;
https://docs.opencv.org/4.x/d9/d0c/group__calib3d.html) and a coefficient of r^8 in its numerator (Metashape's k4), "fisheye" with k1..k4 (Kannala and Brandt 2006, OpenCV's fisheye), and
"fov" with one angle in radians (Devernay and Faugeras 2001).
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from utils.errors import UserError

WIDEST = np.tan(np.radians(70.0))  # pixels more than 70 degrees off the axis are cropped: pinhole images cannot extend to 90
ADVICE = "check the calibration, or undistort the photographs with colmap image_undistorter"


@dataclass(frozen=True)
class Lens:
    kind: str = "brown"  # brown, fisheye, fov
    params: tuple[float, ...] = ()  # missing parameters are 0

    def __post_init__(self) -> None:
        if not all(np.isfinite(self.params)):
            raise UserError(f"distortion {list(self.params)} is not finite; {ADVICE}")

    @property
    def is_pinhole(self) -> bool:
        return self.kind == "brown" and not any(self.params)


def _padded(lens: Lens, n: int) -> tuple[float, ...]:
    return (*lens.params, *(0.0,) * n)[:n]


def _brown(lens: Lens, xy: np.ndarray) -> np.ndarray:
    k1, k2, p1, p2, k3, k4, k5, k6, r8 = _padded(lens, 9)
    x, y = xy[:, 0], xy[:, 1]
    r2 = x * x + y * y
    radial = (1 + r2 * (k1 + r2 * (k2 + r2 * (k3 + r2 * r8)))) / (1 + r2 * (k4 + r2 * (k5 + r2 * k6)))
    dx = 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
    dy = p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
    return np.stack([x * radial + dx, y * radial + dy], 1)


def _fisheye_radius(lens: Lens, angle: np.ndarray) -> np.ndarray:
    """Radius on the image plane of the fisheye model, for angles off the axis."""
    k1, k2, k3, k4 = _padded(lens, 4)
    a2 = angle * angle
    return angle * (1 + a2 * (k1 + a2 * (k2 + a2 * (k3 + a2 * k4))))


def _radially(xy: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Points [P, 2] with their radius r replaced by change(r)."""
    radius = np.linalg.norm(xy, axis=1)
    factor = np.where(radius > 1e-9, change(radius) / np.maximum(radius, 1e-9), change(np.array([1e-9]))[0] / 1e-9)
    return xy * factor[:, None]


def distort(lens: Lens, xy: np.ndarray) -> np.ndarray:
    """Undistorted [P, 2] -> distorted [P, 2] on the plane z = 1."""
    xy = np.asarray(xy, np.float64)
    if lens.kind == "brown":
        return _brown(lens, xy)
    if lens.kind == "fisheye":
        return _radially(xy, lambda r: _fisheye_radius(lens, np.arctan(r)))
    omega = lens.params[0]
    if abs(omega) < 1e-6:
        return xy
    return _radially(xy, lambda r: np.arctan(2 * r * np.tan(omega / 2)) / omega)


def _undo_brown(lens: Lens, target: np.ndarray) -> np.ndarray:
    """Newton's method on the plane, from the distorted point."""
    xy, h = target.copy(), 1e-6
    for _ in range(30):
        error = _brown(lens, xy) - target
        du, dv = (_brown(lens, xy + step) - _brown(lens, xy - step) for step in (np.array([h, 0]), np.array([0, h])))
        det = du[:, 0] * dv[:, 1] - du[:, 1] * dv[:, 0]
        det = np.where(np.abs(det) < 1e-16, 1e-16, det) / (2 * h)
        move = (
            np.stack([dv[:, 1] * error[:, 0] - dv[:, 0] * error[:, 1], du[:, 0] * error[:, 1] - du[:, 1] * error[:, 0]], 1) / det[:, None]
        )
        xy = np.clip(xy - move, -1e3, 1e3)
    return xy


def _undo_fisheye(lens: Lens, target: np.ndarray) -> np.ndarray:
    """Interpolation in a table of radii over angles, then Newton's method; angles are limited to that of WIDEST."""
    angles = np.linspace(0, np.arctan(WIDEST), 4097)
    table = _fisheye_radius(lens, angles)
    if not (np.diff(table) > 0).all():
        raise UserError(f"fisheye distortion {list(lens.params)} folds the image; {ADVICE}")

    def undone(radius: np.ndarray) -> np.ndarray:
        wanted = np.minimum(radius, table[-1])
        angle = np.interp(wanted, table, angles)
        for _ in range(4):
            slope = (_fisheye_radius(lens, angle + 1e-6) - _fisheye_radius(lens, angle - 1e-6)) / 2e-6
            angle = np.clip(angle - (_fisheye_radius(lens, angle) - wanted) / np.maximum(slope, 1e-6), 0, angles[-1])
        return np.tan(angle)

    return _radially(target, undone)


def undistort(lens: Lens, xy: np.ndarray) -> np.ndarray:
    """Distorted [P, 2] -> undistorted [P, 2], the inverse of `distort`; angles off the axis above 70 degrees become 70.

    Raises UserError when the distortion folds the image, so that no inverse exists.
    """
    xy = np.asarray(xy, np.float64)
    with np.errstate(all="ignore"):
        if lens.kind == "fisheye":
            return _undo_fisheye(lens, xy)
        if lens.kind == "fov":
            omega = lens.params[0]
            if not abs(omega) < np.pi:
                raise UserError(f"fov distortion of {omega:g} rad folds the image; {ADVICE}")
            limit = np.arctan(2 * WIDEST * np.tan(omega / 2))
            return xy if abs(omega) < 1e-6 else _radially(xy, lambda r: np.tan(np.minimum(r * omega, limit)) / (2 * np.tan(omega / 2)))
        found = _undo_brown(lens, xy)
        # the distorted radius must increase along the ray from the axis to each point
        rays = found[:, None] * np.linspace(0, 1, 33)[None, 1:, None]
        radii = np.linalg.norm(_brown(lens, rays.reshape(-1, 2)).reshape(*rays.shape), axis=2)
        good = np.abs(_brown(lens, found) - xy).max(1) < 1e-8
        if not (good.all() and (np.diff(radii, axis=1)[np.linalg.norm(found, axis=1) > 1e-6] > 0).all()):
            raise UserError(f"distortion {list(lens.params)} folds the image; {ADVICE}")
        return found


def _border(width: int, height: int, n: int = 65) -> list[np.ndarray]:
    """Pixel centres along the left, right, top and bottom edge, [n, 2] each."""
    u, v = np.linspace(0, width - 1, n), np.linspace(0, height - 1, n)
    sides = [(np.zeros(n), v), (np.full(n, width - 1), v), (u, np.zeros(n)), (u, np.full(n, height - 1))]
    return [np.stack(side, 1) for side in sides]


def to_plane(K: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Pixels [..., 2] -> points [..., 2] on the plane z = 1."""
    y = (uv[..., 1] - K[1, 2]) / K[1, 1]
    return np.stack([(uv[..., 0] - K[0, 2] - K[0, 1] * y) / K[0, 0], y], -1)


def pinhole_intrinsics(lens: Lens, K: np.ndarray, width: int, height: int) -> np.ndarray:
    """K [3, 3] of the undistorted image of the same size, whose pixels all lie inside the photograph.

    Raises UserError when the distortion has no inverse or no such image exists.
    """
    if lens.is_pinhole:
        return K
    left, right, top, bottom = (undistort(lens, to_plane(K, side)) for side in _border(width, height))
    x0, x1 = max(left[:, 0].max(), -WIDEST), min(right[:, 0].min(), WIDEST)
    y0, y1 = max(top[:, 1].max(), -WIDEST), min(bottom[:, 1].min(), WIDEST)
    if not (x1 - x0 > 1e-6 and y1 - y0 > 1e-6):
        raise UserError(f"distortion {list(lens.params)} leaves no image; {ADVICE}")
    fx, fy = (width - 1) / (x1 - x0), (height - 1) / (y1 - y0)
    if not (1 / 8 < fx / K[0, 0] < 8 and 1 / 8 < fy / K[1, 1] < 8):
        raise UserError(f"distortion {list(lens.params)} leaves no image; {ADVICE}")
    return np.array([[fx, 0, -x0 * fx], [0, fy, -y0 * fy], [0, 0, 1]])


def source_pixels(lens: Lens, K: np.ndarray, K_new: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Pixels [..., 2] of the photograph (lens, K) that correspond to pixels uv [..., 2] of the undistorted image (K_new)."""
    plane = to_plane(K_new, np.asarray(uv, np.float64))
    distorted = distort(lens, plane.reshape(-1, 2)).reshape(plane.shape)
    return distorted @ K[:2, :2].T + K[:2, 2]


def sampling_map(lens: Lens, K: np.ndarray, K_new: np.ndarray, width: int, height: int) -> np.ndarray:
    """Float32 [H, W, 2] for `resample`: pixels of the photograph for each pixel of the undistorted image."""
    v, u = np.mgrid[:height, :width]
    return source_pixels(lens, K, K_new, np.stack([u, v], -1)).astype(np.float32)


def inverse_map(lens: Lens, K: np.ndarray, K_new: np.ndarray, width: int, height: int) -> np.ndarray:
    """Float32 [H, W, 2]: pixels of the undistorted image for each pixel of the photograph. Raises UserError."""
    v, u = np.mgrid[:height, :width].astype(np.float64)
    plane = undistort(lens, to_plane(K, np.stack([u, v], -1)).reshape(-1, 2))
    return (plane @ K_new[:2, :2].T + K_new[:2, 2]).reshape(height, width, 2).astype(np.float32)


def remap(image: np.ndarray, mapping: np.ndarray, interpolation: int, border: int) -> np.ndarray:
    """Values [H, W, C] of an image at the pixels of mapping [H, W, 2]; cv2's interpolation and border constants."""
    u, v = (np.ascontiguousarray(mapping[..., k]) for k in (0, 1))
    return cv2.remap(image, u, v, interpolation, borderMode=border).reshape(*mapping.shape[:2], -1)


def resample(image: np.ndarray, mapping: np.ndarray) -> np.ndarray:
    """uint8 [H, W, C] at the pixels of mapping [H, W, 2]; RGBA colours are weighted by alpha."""
    if image.shape[2] != 4:
        return remap(image, mapping, cv2.INTER_CUBIC if image.shape[2] == 3 else cv2.INTER_LINEAR, cv2.BORDER_REPLICATE)
    alpha = image[..., 3:].astype(np.float32) / 255
    premultiplied = np.concatenate([image[..., :3] * alpha, 255 * alpha], -1)
    mean = remap(premultiplied, mapping, cv2.INTER_LINEAR, cv2.BORDER_REPLICATE)
    mean[..., :3] /= np.maximum(mean[..., 3:] / 255, 1e-4)
    return np.clip(np.rint(mean), 0, 255).astype(np.uint8)
