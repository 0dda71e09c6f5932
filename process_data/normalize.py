"""Coordinate frames in float64: world and unit sphere, pixels of resized images, training and held-out views.

The world is the reader's frame. `to_world` [4, 4] is a similarity that maps the unit sphere's frame to the world: x_world = scale R x + t.
Cameras are camera-to-frame [3, 4] with OpenCV axes (x right, y down, z forward). Pixel centres are at integers: pixel (i, j) is the
point (u, v) = (i, j). The choice of the sphere is in process_data/region.py.
"""

from collections import Counter
from dataclasses import replace

import numpy as np
import torch

from utils.errors import UserError
from utils.rays import Scene

KEPT = 1_000_000  # pixels of an image that is not reduced by default
REDUCED = 500_000  # pixels of a training image of the larger ones


def similarity_parts(to_world: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """(scale, rotation R [3, 3], t [3]) of x -> scale R x + t, [4, 4]. Raises UserError when the matrix is not a similarity."""
    matrix = np.asarray(to_world, np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise UserError(f"expected a finite 4x4 matrix, got {'NaN or infinity' if matrix.shape == (4, 4) else list(matrix.shape)}")
    linear = matrix[:3, :3]
    scale = np.cbrt(np.linalg.det(linear))
    affine = np.abs(matrix[3] - [0, 0, 0, 1]).max() < 1e-6
    if not (affine and 1e-30 < scale < 1e30 and np.abs(linear @ linear.T / scale**2 - np.eye(3)).max() < 1e-3):
        raise UserError("expected one positive scale, a rotation and a translation, got a matrix that stretches, mirrors or is singular")
    u, _, vt = np.linalg.svd(linear)
    return float(scale), u @ vt, matrix[:3, 3]


def similarity(scale: float, rotation: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """The matrix [4, 4] of x -> scale R x + t."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = scale * rotation, shift
    return matrix


def to_sphere(c2w_world: np.ndarray, to_world: np.ndarray) -> np.ndarray:
    """Cameras [N, 3, 4] in the world -> the same in the unit sphere's frame, with orthonormal rotations."""
    scale, rotation, shift = similarity_parts(to_world)
    turned = rotation.T @ c2w_world[:, :, :3]
    centres = (c2w_world[:, :, 3] - shift) @ rotation / scale
    return np.concatenate([turned, centres[:, :, None]], axis=2)


def points_to_sphere(x: np.ndarray, to_world: np.ndarray) -> np.ndarray:
    """Points [P, 3] in the world -> the same in the unit sphere's frame."""
    scale, rotation, shift = similarity_parts(to_world)
    return (x - shift) @ rotation / scale


def in_frame(scene: Scene, to_world: np.ndarray) -> Scene:
    """The scene with the unit sphere of `to_world` [4, 4]; its world stays. The scene itself where it has that sphere. Raises UserError."""
    if np.array_equal(scene.to_world.numpy(), to_world):
        return scene
    scale, rotation, shift = similarity_parts(scene.to_world.numpy())
    c2w = scene.cameras.c2w.double().numpy()
    world = np.concatenate([rotation @ c2w[:, :, :3], (scale * c2w[:, :, 3] @ rotation.T + shift)[:, :, None]], 2)
    points = scene.points
    if points is not None:
        points = torch.from_numpy(points_to_sphere(scale * points.double().numpy() @ rotation.T + shift, to_world)).float()
    cameras = replace(scene.cameras, c2w=torch.from_numpy(to_sphere(world, to_world)).float())
    return replace(scene, cameras=cameras, points=points, to_world=torch.from_numpy(np.array(to_world, np.float64)))


def resize_intrinsics(K: np.ndarray, fx: float, fy: float) -> np.ndarray:
    """K [..., 3, 3] after resizing the image by (fx, fy) = new / old size: u -> fx u + (fx - 1) / 2, v likewise."""
    scaling = np.array([[fx, 0, (fx - 1) / 2], [0, fy, (fy - 1) / 2], [0, 0, 1]])
    return scaling @ np.asarray(K, np.float64)


def most_frequent(sizes: list[tuple[int, int]]) -> tuple[int, int]:
    """The size that most images have; of several such sizes the first."""
    return Counter(sizes).most_common(1)[0][0]


def new_size(width: int, height: int, img_wh: list[int] | None, downscale: float) -> tuple[int, int]:
    """(width, height) for training: img_wh, or the size of the image divided by `downscale`."""
    if img_wh is not None:
        return img_wh[0], img_wh[1]
    return max(1, round(width / downscale)), max(1, round(height / downscale))


def auto_downscale(width: int, height: int) -> float:
    """The factor of `dataset.img_downscale=null`: 1 for an image of up to KEPT pixels, else a multiple of 1/4 that leaves about REDUCED."""
    return 1.0 if width * height <= KEPT else round(4 * float(np.sqrt(width * height / REDUCED))) / 4


def new_sizes(sizes: list[tuple[int, int]], img_wh: list[int] | None, downscale: float | None) -> list[tuple[int, int]]:
    """(width, height) of each image for training: `new_size` for the most frequent size, about the same area for the others.

    Nothing is stretched, but by img_wh where the aspect ratio is that of the most frequent size. Images are reduced at least by
    `downscale` where their area is 20 % about that of the most frequent size, and none is enlarged to reach its area.
    """
    width, height = most_frequent(sizes)
    downscale = downscale or auto_downscale(width, height)
    target = new_size(width, height, img_wh, downscale)
    factor = np.sqrt(width * height / (target[0] * target[1])) if img_wh else downscale

    def one(w: int, h: int) -> tuple[int, int]:
        if img_wh and abs(w * height / (h * width) - 1) <= 0.02:
            return target
        ratio = np.sqrt(w * h / (width * height))
        return new_size(w, h, None, factor if 0.9 < ratio < 1.1 else max(factor * ratio, min(1.0, factor)))

    return [one(*size) for size in sizes]


def split_views(n: int, hold_every: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(train, test): view i is held out when i % hold_every == 0; 0 holds out none."""
    test = tuple(range(0, n, hold_every)) if hold_every else ()
    return tuple(i for i in range(n) if not hold_every or i % hold_every), test
