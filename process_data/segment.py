"""Object masks of small images by GrabCut in every view (Rother, Kolmogorov and Blake 2004), bound together by their visual hull.

The labels that the geometry fixes (process_data/seeds.py) start the first round; the hull of its masks bounds and starts the next.
"""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
from scipy import ndimage
from tqdm import tqdm

from process_data.agreement import Hull, outline_hull
from process_data.capture import WORKERS
from process_data.ground import PLANE_WIDTH
from process_data.seeds import FEW, PlanePixels, Seeds, find_seeds
from utils.errors import UserError
from utils.projection import project
from utils.rays import Scene

LOG = logging.getLogger("neus")
CELLS = 72  # of the volume, along a side of the sphere's bounding cube
ROUNDS = 2
Prior = Callable[[np.ndarray], np.ndarray]  # uint8 [H, W, 3] -> float32 [H, W], the probability of the object


def _volume(seeds: Seeds) -> np.ndarray:
    """Cells [M, 3] of the unit ball above the plane."""
    axis = (np.arange(CELLS) + 0.5) / CELLS * 2 - 1
    x = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    x = x[np.linalg.norm(x, axis=1) < 1]
    return x if seeds.plane is None else x[x @ seeds.plane[0] > seeds.plane[1] - PLANE_WIDTH / 2]


def discs(shape: tuple[int, int], K: np.ndarray, c2w: np.ndarray, x: np.ndarray, radius: int) -> np.ndarray:
    """bool [H, W]: discs of this radius in pixels around the projections of points x [P, 3]."""
    uv, depth = project(x, K, c2w)
    h, w = shape
    framed = (depth > 1e-3) & (uv[:, 0] > -0.5) & (uv[:, 0] < w - 0.5) & (uv[:, 1] > -0.5) & (uv[:, 1] < h - 0.5)
    image = np.zeros(shape, np.uint8)
    u, v = np.rint(uv[framed]).astype(int).T
    image[v, u] = 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2)
    return cv2.dilate(image, kernel) > 0


def grab(image: np.ndarray, background: np.ndarray, probable: np.ndarray, certain: np.ndarray, rounds: int = 4) -> np.ndarray:
    """bool [H, W] of the object by GrabCut. background, certain [H, W] bool: fixed labels; probable: initial object label.

    Returns `probable` without the background when one of the two classes is nearly empty.
    """
    labels = np.full(image.shape[:2], cv2.GC_PR_BGD, np.uint8)
    labels[probable] = cv2.GC_PR_FGD
    labels[background] = cv2.GC_BGD
    labels[certain] = cv2.GC_FGD
    initial = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD))
    if initial.sum() < 20 or (~initial).sum() < 20:
        return probable & ~background
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(np.ascontiguousarray(image[..., ::-1]), labels, (0, 0, 1, 1), *models, rounds, cv2.GC_INIT_WITH_MASK)
    return np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD))


def tidy(mask: np.ndarray, core: np.ndarray) -> np.ndarray:
    """The mask without the components that do not touch `core`, without specks, and without holes below 0.5 % of the image.

    core [H, W] bool: where the object is expected. Where no component touches it, the largest one stays.
    """
    mask = ndimage.binary_opening(mask, iterations=1) if mask.sum() > 200 else mask
    parts, n = ndimage.label(mask)
    if n > 1:
        sizes = np.bincount(parts.ravel(), minlength=n + 1)
        shared = np.bincount(parts[core], minlength=n + 1)
        sizes[0] = shared[0] = 0
        good = (shared > 0.1 * sizes) & (sizes >= 0.02 * sizes.max()) if shared.any() else sizes == sizes.max()
        mask = good[parts]
    holes, n = ndimage.label(~mask)
    sizes = np.bincount(holes.ravel(), minlength=n + 1)
    small = np.nonzero(sizes < 0.005 * mask.size)[0]
    return mask | np.isin(holes, small[small > 0])


def grown(mask: np.ndarray, pixels: int) -> np.ndarray:
    """The mask dilated by this many pixels, or eroded when negative."""
    change = cv2.dilate if pixels > 0 else cv2.erode
    return change(mask.astype(np.uint8), np.ones((2 * abs(pixels) + 1,) * 2, np.uint8)) > 0


@dataclass(frozen=True)
class Segmented:
    """Masks of small images, bool [h, w] each, and their hull."""

    masks: list[np.ndarray]
    hull: Hull
    seeds: Seeds


class _Segmenter:
    def __init__(self, scene: Scene, prior: Prior | None, log: logging.Logger):
        self.K, self.c2w = scene.cameras.K.double().numpy(), scene.cameras.c2w.double().numpy()
        self.images = [scene.image(i).numpy() for i in range(len(scene.names))]
        self.seeds, self.prior = find_seeds(scene, log), prior
        self.volume, self.plane = _volume(self.seeds), PlanePixels(self.images, self.K, self.c2w, self.seeds)
        self.dot, self.sure = max(1, round(max(scene.cameras.height, scene.cameras.width) / 160)), len(self.seeds.object) >= FEW
        with ThreadPoolExecutor(WORKERS) as pool:
            self.fixed = list(pool.map(self._fixed, range(len(self.images))))

    def shape(self, i: int) -> tuple[int, int]:
        height, width = self.images[i].shape[:2]
        return height, width

    def discs(self, i: int, x: np.ndarray, radius: int) -> np.ndarray:
        return discs(self.shape(i), self.K[i], self.c2w[i], x, radius)

    def cell(self, i: int) -> int:
        """Pixels of a cell of the volume in view i."""
        return max(1, int(np.ceil(self.K[i, 0, 0] / CELLS / max(float(np.linalg.norm(self.c2w[i, :, 3])), 1e-6))))

    def _fixed(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """(background, object) [h, w] bool of view i, fixed by the geometry.

        Object points project into the object even where they are hidden; background points may be hidden by the object.
        """
        certain = self.discs(i, self.seeds.object, 1) if self.sure and self.seeds.plane is not None else np.zeros(self.shape(i), bool)
        return (~self.discs(i, self.volume, self.cell(i)) | self.plane(i)) & ~certain, certain

    def start(self, i: int) -> np.ndarray:
        """bool [h, w] of view i where the object may be: the convex outline of its points and of their feet on the plane.

        Features leave out the plain parts of the object.
        """
        around = self.discs(i, self.seeds.middle + 0.6 * self.volume, self.cell(i))
        if not self.sure:
            return around
        uv, depth = project(self.seeds.standing(), self.K[i], self.c2w[i])
        corners = cv2.convexHull(np.clip(uv[depth > 1e-3], -1e4, 1e4).astype(np.float32))
        filled = np.zeros(self.shape(i), np.uint8)
        cv2.fillConvexPoly(filled, np.rint(corners).astype(np.int32), 1)
        wide = grown(filled > 0, self.dot)
        return wide if self.seeds.plane is not None else wide | around

    def first(self, i: int) -> np.ndarray:
        """Mask of view i from points and the network's prior."""
        background, certain = self.fixed[i]
        probable = self.start(i)
        if self.prior is None:
            points = self.discs(i, self.seeds.background, self.dot) & ~grown(probable, 3 * self.dot)
            return tidy(grab(self.images[i], background | points, probable, certain), probable)
        p = self.prior(self.images[i])
        return tidy(grab(self.images[i], background | (p < 0.05), p > 0.5, certain | (p > 0.95) & ~background), probable)

    def next(self, i: int, x: np.ndarray) -> np.ndarray:
        """Mask of view i within the hull x [P, 3]."""
        background, certain = self.fixed[i]
        silhouette = self.discs(i, x, self.cell(i))
        core = grown(silhouette, -(self.cell(i) + 5)) & ~background
        outside = background | ~grown(silhouette, self.cell(i) + 3)
        return tidy(grab(self.images[i], outside & ~certain, silhouette, core | certain), silhouette)


def segment(scene: Scene, prior: Prior | None = None, log: logging.Logger = LOG) -> Segmented:
    """Masks of a scene of small images. Raises UserError when they have no common visual hull."""
    work = _Segmenter(scene, prior, log)
    hull: Hull | None = None
    masks: list[np.ndarray] = []
    for turn in range(ROUNDS):
        one = work.first if hull is None else lambda i: work.next(i, hull.cells)  # noqa: B023
        with ThreadPoolExecutor(WORKERS) as pool:
            masks = list(tqdm(pool.map(one, range(len(work.images))), total=len(work.images), desc=f"masks, round {turn + 1}", leave=False))
        hull = outline_hull(masks, work.K, work.c2w, work.volume, work.seeds.middle)
        if len(hull.cells) < FEW:
            raise UserError(
                "--auto-mask: no object is consistent with all views; train without masks (dataset.masks=false), set dataset.center and "
                "dataset.radius to a sphere that encloses it tightly, or make the masks by hand (masks/, white on the object)"
            )
    assert hull is not None
    return Segmented(masks, hull, work.seeds)
