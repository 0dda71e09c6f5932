"""Camera paths for videos."""

import numpy as np
import torch

from utils.rays import Cameras

CLEARANCE = 1.1  # the path keeps this many radii from the centre
MIN_SWING = np.radians(10.0)  # half width of a path around cameras that hardly differ
MAX_ELEVATION = np.radians(75.0)
GAP = np.radians(120.0)  # an empty arc wider than this: the cameras do not go all the way round


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def look_point(c2w: np.ndarray) -> np.ndarray:
    """[3], nearest to all optical axes (least squares), and of those the nearest to the origin when the axes are parallel."""
    forward, centres = _unit(c2w[:, :, 2]), c2w[:, :, 3]
    across = np.eye(3) - forward[:, :, None] * forward[:, None, :]
    point = np.linalg.solve(across.mean(0) + 1e-4 * np.eye(3), (across @ centres[:, :, None]).mean(0)[:, 0])
    return point / max(1.0, np.linalg.norm(point))


def up_axis(c2w: np.ndarray) -> np.ndarray:
    """[3] unit: square to the image x axes of upright cameras; the mean up direction decides its sign and what they leave open."""
    right, up = c2w[:, :, 0], _unit(-c2w[:, :, 1].mean(0))
    spread = right.T @ right / len(right) - 0.005 * np.outer(up, up)
    axis = np.linalg.eigh(spread)[1][:, 0]
    return axis * (1.0 if axis @ up >= 0 else -1.0)


def _basis(axis: np.ndarray, toward: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two unit vectors square to the axis, the first as near `toward` as can be."""
    level = toward - axis * (toward @ axis)
    if np.linalg.norm(level) < 1e-6:
        level = np.cross(axis, np.eye(3)[np.abs(axis).argmin()])
    first = _unit(level)
    return first, np.cross(axis, first)


def _azimuths(angles: np.ndarray, phase: np.ndarray) -> tuple[np.ndarray, bool]:
    """Azimuths at phases [n] of a turn: once round, or to and fro over the arc that the angles occupy; and which of them."""
    order = np.sort(angles)
    gaps = np.diff(np.append(order, order[0] + 2 * np.pi))
    widest = int(gaps.argmax())
    if gaps[widest] < GAP:
        return phase, True
    half = max((2 * np.pi - gaps[widest]) / 2, MIN_SWING)
    middle = order[(widest + 1) % len(order)] + (2 * np.pi - gaps[widest]) / 2
    return middle + half * np.sin(phase), False


def look_at(centres: np.ndarray, target: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Upright cameras [n, 3, 4], OpenCV axes, at the centres [n, 3], looking at the target [3]."""
    forward = _unit(target - centres)
    right = _unit(np.cross(forward, up))
    return np.stack([right, np.cross(forward, right), forward, centres], axis=2)


def orbit(cameras: Cameras, n: int, radius: float = 1.0) -> Cameras:
    """A smooth closed path of n views over the captured part of the hemisphere, outside the sphere of this radius.

    It looks at the point where the optical axes meet, from the median distance and with the median intrinsics, and sways
    between the captured elevations: once round, or (DTU) to and fro along an ellipse when an arc of more than 120 degrees
    holds no camera.
    """
    c2w = cameras.c2w.detach().cpu().double().numpy()
    c2w = np.concatenate([c2w[:, :, :3], c2w[:, :, 3:] / radius], axis=2)
    target, up = look_point(c2w), up_axis(c2w)
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
    leave = -along + np.sqrt(along**2 + CLEARANCE**2 - target @ target)  # where the line from the target leaves the sphere
    distance = max(float(np.median(np.linalg.norm(offset, axis=1))), float(leave.max()))
    path = look_at(target + distance * away, target, up)
    path[:, :, 3] *= radius
    K = cameras.K.median(0).values.expand(n, 3, 3).clone()
    return Cameras(K, torch.as_tensor(path).to(cameras.c2w), cameras.height, cameras.width)
