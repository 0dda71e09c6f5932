"""What the geometry says of the object before any colour is compared: the supporting plane, and labelled points and pixels.

The object is what stands at the look-at point of the cameras. Points outside the sphere of interest, on the supporting plane (table,
floor, wall) and on other things on that plane are background.
"""

import logging
from dataclasses import dataclass

import cv2
import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from process_data.axes import convergence_point
from process_data.ground import PLANE_WIDTH, dense, support_plane
from process_data.sift_points import neighbours, sift_points
from utils.rays import Scene

LINK = 0.12  # largest gap between points of one object, in radii of the region
LOG = logging.getLogger("neus")
FEW = 50  # points, below which they say nothing of the object
WINDOW = 7  # pixels along a side of the windows that are correlated
ALIKE = 0.85  # correlation above which a pixel shows the supporting plane
TEXTURE = 4.0  # standard deviation in a window, of 255, below which correlation is noise
SQUEEZE = (
    0.3  # of heights when points are joined to things: these stand side by side, and plain areas part their upper from their lower points
)
Plane = tuple[np.ndarray, float]  # normal [3] and offset: normal x > offset is above it


@dataclass(frozen=True)
class Seeds:
    """Labelled points in the unit sphere's frame."""

    middle: np.ndarray  # [3] look-at point, moved into the sphere
    object: np.ndarray  # [P, 3]
    background: np.ndarray  # [Q, 3]
    plane: Plane | None
    severed: float = 0.0  # share of the surface at the look-at point that goes on beyond the sphere

    def standing(self) -> np.ndarray:
        """Object points, and their feet on the plane [2 P, 3]; without a plane the points alone."""
        if self.plane is None:
            return self.object
        normal, offset = self.plane
        return np.concatenate([self.object, self.object - np.outer(self.object @ normal - offset, normal)])


def parts_of(x: np.ndarray, gap: float) -> np.ndarray:
    """Labels [P] from 0 of the connected parts of points x [P, 3]; neighbours are nearer than `gap`."""
    pairs = cKDTree(x).query_pairs(gap, output_type="ndarray")
    graph = csr_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(x),) * 2)
    return connected_components(graph, directed=False)[1]


def part_at(x: np.ndarray, gap: float, middle: np.ndarray, least: float = 0.03) -> np.ndarray:
    """[P] bool: the connected part of points x [P, 3] nearest to `middle`, of parts with at least the share `least` of the points.

    Parts are compared by the 5 % quantile of the distances of their points, which stray points do not decide.
    """
    if not len(x):
        return np.zeros(0, bool)
    label, off = parts_of(x, gap), np.linalg.norm(x - middle, axis=1)
    sizes = np.bincount(label)
    large = np.nonzero(sizes >= min(max(FEW, least * len(x)), sizes.max()))[0]
    return label == min(large, key=lambda k: float(np.quantile(off[label == k], 0.05)))


def _look_at(c2w: np.ndarray) -> np.ndarray:
    point, share = convergence_point(c2w)
    length = float(np.linalg.norm(point))
    return np.zeros(3) if share < 0.6 else point * min(1.0, 0.6 / max(length, 1e-9))


def _surface_points(scene: Scene, middle: np.ndarray, log: logging.Logger) -> np.ndarray:
    """The scene's points [P, 3], or triangulated ones where it has none."""
    if scene.points is not None and len(scene.points) >= FEW:
        return scene.points.double().numpy()
    K, c2w = scene.cameras.K.double().numpy(), scene.cameras.c2w.double().numpy()
    found = sift_points([scene.image(i).numpy() for i in range(len(c2w))], K, c2w, middle)
    log.info("masks: the scene has no points; %d were triangulated from features", len(found))
    return found


def find_seeds(scene: Scene, log: logging.Logger = LOG) -> Seeds:
    """Object and background points of a scene in the unit sphere."""
    c2w = scene.cameras.c2w.double().numpy()
    middle = _look_at(c2w)
    x = _surface_points(scene, middle, log)
    far = np.linalg.norm(x, axis=1)
    near = x[far < 1.5]
    plane = support_plane(near, c2w[:, :, 3])
    if plane is None:
        inner = dense(near)
        whole = inner[part_at(inner, LINK, middle)]
        severed = float((np.linalg.norm(whole, axis=1) > 0.95).mean()) if len(whole) else 0.0
        ball = dense(x[far < 0.95])
        return Seeds(middle, ball[np.linalg.norm(ball - middle, axis=1) < 0.6], x[far > 1.1], None, severed)
    height = near @ plane[0] - plane[1]
    above = dense(near[height > 2 * PLANE_WIDTH])
    upright = np.eye(3) - (1 - SQUEEZE) * np.outer(plane[0], plane[0])
    chosen = part_at(above @ upright, LINK, upright @ middle)
    mine, others = above[chosen], above[~chosen]
    log.info(
        "masks: a supporting plane with %d points, %d points on the object at the look-at point",
        (abs(height) < PLANE_WIDTH).sum(),
        len(mine),
    )
    severed = float((np.linalg.norm(mine, axis=1) > 1.0).mean()) if len(mine) else 0.0
    flat = near[np.abs(height) < PLANE_WIDTH]
    return Seeds(middle, mine[np.linalg.norm(mine, axis=1) < 1.0], np.concatenate([x[far > 1.1], flat, others]), plane, severed)


# ---- pixels of the supporting plane ----


def _moments(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean = cv2.boxFilter(a, -1, (WINDOW, WINDOW))
    return mean, cv2.boxFilter(a * a, -1, (WINDOW, WINDOW)) - mean * mean


def correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Normalised cross-correlation [H, W] in [-1, 1] of windows of float32 images [H, W]; 0 without texture in the first."""
    (mean_a, var_a), (mean_b, var_b) = _moments(a), _moments(b)
    joint = cv2.boxFilter(a * b, -1, (WINDOW, WINDOW)) - mean_a * mean_b
    return np.where(var_a > TEXTURE**2, joint / np.sqrt(np.maximum(var_a * var_b, 1.0)), 0)


def _homography(K: np.ndarray, c2w: np.ndarray, i: int, j: int, plane: Plane) -> np.ndarray:
    """[3, 3] pixels of view i -> pixels of view j, of points on the plane."""
    normal, offset = plane
    R = c2w[j, :, :3].T @ c2w[i, :, :3]
    t = c2w[j, :, :3].T @ (c2w[i, :, 3] - c2w[j, :, 3])
    n, d = c2w[i, :, :3].T @ normal, offset - normal @ c2w[i, :, 3]  # n x = d in the frame of camera i
    return K[j] @ (R + np.outer(t, n) / d) @ np.linalg.inv(K[i])


class PlanePixels:
    """Pixels that show the supporting plane: neighbouring views, mapped through the plane, have the same pattern there."""

    def __init__(self, images: list[np.ndarray], K: np.ndarray, c2w: np.ndarray, seeds: Seeds):
        self.grey = [cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), 0.8) for image in images]
        self.K, self.c2w, self.plane = K, c2w, seeds.plane
        self.partners = neighbours(c2w, seeds.middle, 5, (8.0, 45.0))

    def __call__(self, i: int) -> np.ndarray:
        """bool [h, w] of view i: at least two neighbours agree."""
        shape = self.grey[i].shape
        votes = np.zeros(shape, np.uint8)
        if self.plane is None:
            return votes > 0
        for j in self.partners[i]:
            back = _homography(self.K, self.c2w, i, j, self.plane)
            flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
            other = cv2.warpPerspective(self.grey[j], back, shape[::-1], flags=flags)
            votes += correlation(self.grey[i], other) > ALIKE
        plain = cv2.morphologyEx((votes >= 2).astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
        # windows that overlap the object fail: a strip of half a window stays free around it, which closing by a window does not bridge
        return cv2.morphologyEx(plain, cv2.MORPH_CLOSE, np.ones((WINDOW, WINDOW), np.uint8)) > 0
