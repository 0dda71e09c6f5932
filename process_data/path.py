"""Camera paths for videos."""

import numpy as np
import torch
from torch import Tensor

from process_data.axes import axes_system, unit, up_axis
from process_data.normalize import most_frequent
from utils.rays import Cameras

CLEARANCE = 1.1  # least distance of the path from the centre, in radii
MIN_SWING = np.radians(10.0)  # half width of the path around cameras that nearly coincide
MAX_ELEVATION = np.radians(75.0)
GAP = np.radians(120.0)  # with an arc free of cameras wider than this, the path swings instead of going round


def orbit_target(c2w: np.ndarray) -> np.ndarray:
    """[3], the point nearest to the optical axes, moved into the unit sphere; for parallel axes the one nearest to the origin."""
    A, b = axes_system(c2w)
    point = np.linalg.solve(A + 1e-4 * np.eye(3), b)
    return point / max(1.0, float(np.linalg.norm(point)))


def _basis(axis: np.ndarray, toward: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two unit vectors that form an orthonormal basis with the axis; the first is the one nearest to `toward`."""
    level = toward - axis * (toward @ axis)
    if np.linalg.norm(level) < 1e-6:
        level = np.cross(axis, np.eye(3)[np.abs(axis).argmin()])
    first = unit(level)
    return first, np.cross(axis, first)


def _azimuths(angles: np.ndarray, phase: np.ndarray) -> tuple[np.ndarray, bool]:
    """(azimuths at phases [n], whether the path is a full turn); otherwise it swings over the arc that the angles occupy."""
    order = np.sort(angles)
    gaps = np.diff(np.append(order, order[0] + 2 * np.pi))
    widest = int(gaps.argmax())
    if gaps[widest] < GAP:
        return phase, True
    half = max((2 * np.pi - gaps[widest]) / 2, MIN_SWING)
    middle = order[(widest + 1) % len(order)] + (2 * np.pi - gaps[widest]) / 2
    return middle + half * np.sin(phase), False


def look_at(centres: np.ndarray, target: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Upright cameras [n, 3, 4], OpenCV axes, at the centres [n, 3], whose optical axes pass through the target [3]."""
    forward = unit(target - centres)
    right = unit(np.cross(forward, up))
    return np.stack([right, np.cross(forward, right), forward, centres], axis=2)


def _common_view(cameras: Cameras) -> tuple[Tensor, tuple[int, int]]:
    """(K [3, 3], (width, height)) for a video: the most frequent size, and the median of the intrinsics brought to it.

    Focal lengths are scaled by the root of the areas' ratio, so that portrait and landscape photographs of one camera agree.
    """
    K, sizes = cameras.K.double(), cameras.sizes.double()
    width, height = most_frequent([cameras.size(i) for i in range(len(cameras))])
    shape = torch.tensor([width, height]).to(sizes) / sizes
    K[:, :2, :2] *= shape.prod(1).sqrt()[:, None, None]
    K[:, :2, 2] = shape * K[:, :2, 2] + (shape - 1) / 2
    return K.median(0).values.to(cameras.K), (width, height)


def orbit(cameras: Cameras, n: int, radius: float = 1.0) -> Cameras:
    """A smooth closed path of n views over the captured part of the hemisphere, outside the sphere of this radius.

    The target is the point nearest to the optical axes; distance and intrinsics are the medians of the cameras, the size is the most
    frequent one. The elevation oscillates
    between the captured ones. The azimuth makes a full turn, or swings along an ellipse when an arc of more than 120 degrees has no
    camera (DTU).
    """
    c2w = cameras.c2w.detach().cpu().double().numpy()
    c2w = np.concatenate([c2w[:, :, :3], c2w[:, :, 3:] / radius], axis=2)
    target, up = orbit_target(c2w), up_axis(c2w)
    offset = c2w[:, :, 3] - target
    first, second = _basis(up, offset.mean(0))
    x, y, z = offset @ first, offset @ second, offset @ up

    phase = 2 * np.pi * np.arange(n) / n
    azimuth, closed = _azimuths(np.arctan2(y, x), phase)
    low, high = np.quantile(np.arctan2(z, np.hypot(x, y)), [0.15, 0.85])
    swing = (high - low) / 2 if closed else max((high - low) / 2, MIN_SWING / 2)
    elevation = np.clip((low + high) / 2 + swing * np.cos(phase), -MAX_ELEVATION, MAX_ELEVATION)

    level = np.cos(azimuth)[:, None] * first + np.sin(azimuth)[:, None] * second
    away = np.cos(elevation)[:, None] * level + np.sin(elevation)[:, None] * up  # [n, 3]
    along = away @ target
    leave = -along + np.sqrt(along**2 + CLEARANCE**2 - target @ target)  # distance at which the ray from the target leaves the sphere
    distance = max(float(np.median(np.linalg.norm(offset, axis=1))), float(leave.max()))
    path = look_at(target + distance * away, target, up)
    path[:, :, 3] *= radius
    K, (width, height) = _common_view(cameras)
    return Cameras(K.expand(n, 3, 3).clone(), torch.as_tensor(path).to(cameras.c2w), height, width)
