"""Object masks by GrabCut in every view (Rother, Kolmogorov and Blake 2004), made consistent by their visual hull.

Points outside the sphere of interest and points on the supporting plane (table, floor, wall) are background; points above the plane are
object. Two rounds: the hull of the first round's masks bounds and initialises the second. Masks are written in the pixels of the
photographs, with their lens distortion, for the user to correct.
"""

import logging
import shutil
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from scipy import ndimage
from tqdm import tqdm

from confs.schema import DatasetConfig
from process_data.capture import WORKERS, Capture, View, assemble
from process_data.colmap import colmap_capture
from process_data.files import free_name, inside
from process_data.ground import PLANE_WIDTH, dense, support_plane
from process_data.hull import Silhouettes, carve
from process_data.lens import inverse_map, pinhole_intrinsics, remap
from process_data.load import recognise
from process_data.metashape import metashape_capture
from process_data.normalize import resize_intrinsics
from process_data.transforms import transforms_capture
from utils.errors import UserError
from utils.image import sheet, write_png
from utils.projection import project
from utils.rays import Scene

LOG = logging.getLogger("neus")
WORK_SIZE = 320  # pixels of the longer side during segmentation
CELLS = 72  # of the hull, along a side of the sphere's bounding cube
ROUNDS = 2
CAPTURES = {"colmap": colmap_capture, "transforms": transforms_capture, "metashape": metashape_capture}  # layouts that read masks/


@dataclass(frozen=True)
class _Seeds:
    """Labelled points in the unit sphere's frame, and the supporting plane: normal x > offset is above it."""

    object: np.ndarray  # [P, 3]
    background: np.ndarray  # [Q, 3]
    plane: tuple[np.ndarray, float] | None

    def volume(self) -> np.ndarray:
        """Cells [M, 3] of the unit ball above the plane."""
        x = _cells()
        x = x[np.linalg.norm(x, axis=1) < 1]
        return x if self.plane is None else x[x @ self.plane[0] > self.plane[1] - PLANE_WIDTH / 2]


def _cells() -> np.ndarray:
    axis = (np.arange(CELLS) + 0.5) / CELLS * 2 - 1
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)


def seed_points(scene: Scene, log: logging.Logger = LOG) -> _Seeds:
    """The points of structure from motion, classified as object or background."""
    x = np.zeros((0, 3)) if scene.points is None else scene.points.double().numpy()
    far = np.linalg.norm(x, axis=1)
    near = x[far < 1.5]
    plane = support_plane(near, scene.cameras.c2w[:, :, 3].double().numpy())
    ball = x[far < 0.95]
    if plane is None:
        return _Seeds(dense(ball[np.linalg.norm(ball, axis=1) < 0.6]), x[far > 1.1], None)
    normal, offset = plane
    flat = np.abs(near @ normal - offset) < PLANE_WIDTH
    above = dense(ball[ball @ normal - offset > 2 * PLANE_WIDTH])
    log.info("masks: %d points on the supporting plane, %d points on the object", int(flat.sum()), len(above))
    return _Seeds(above, np.concatenate([x[far > 1.1], near[flat]]), plane)


def _discs(shape: tuple[int, int], K: np.ndarray, c2w: np.ndarray, x: np.ndarray, radius: int) -> np.ndarray:
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
    labels[certain] = cv2.GC_FGD
    labels[background] = cv2.GC_BGD
    initial = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD))
    if initial.sum() < 20 or (~initial).sum() < 20:
        return probable & ~background
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(np.ascontiguousarray(image[..., ::-1]), labels, (0, 0, 1, 1), *models, rounds, cv2.GC_INIT_WITH_MASK)
    return np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD))


def _tidy(mask: np.ndarray) -> np.ndarray:
    """The mask without components below a fifth of the largest and without holes below 0.5 % of the image."""
    mask = ndimage.binary_opening(mask, iterations=1) if mask.sum() > 200 else mask
    parts, n = ndimage.label(mask)
    if n > 1:
        sizes = np.bincount(parts.ravel())[1:]
        mask = np.isin(parts, 1 + np.nonzero(sizes >= 0.2 * sizes.max())[0])
    holes, n = ndimage.label(~mask)
    sizes = np.bincount(holes.ravel(), minlength=n + 1)
    small = np.nonzero(sizes < 0.005 * mask.size)[0]
    return mask | np.isin(holes, small[small > 0])


def _hull(masks: list[np.ndarray], K: np.ndarray, c2w: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The largest connected part of the cells x [M, 3] that project into nearly all masks."""
    kept = x[carve(Silhouettes(masks, K, c2w), x, 1.0 / CELLS, forgiven=0.15, in_frame=0.3)]
    grid = np.zeros((CELLS,) * 3, bool)
    at = tuple(np.rint((kept + 1) / 2 * CELLS - 0.5).astype(int).T)
    grid[at] = True
    parts, n = ndimage.label(grid)
    return kept[parts[at] == 1 + np.bincount(parts.ravel())[1:].argmax()] if n else kept


def _grown(mask: np.ndarray, pixels: int) -> np.ndarray:
    """The mask dilated by this many pixels, or eroded when negative."""
    change = cv2.dilate if pixels > 0 else cv2.erode
    return change(mask.astype(np.uint8), np.ones((2 * abs(pixels) + 1,) * 2, np.uint8)) > 0


def segment(scene: Scene, log: logging.Logger = LOG) -> np.ndarray:
    """bool [N, H, W] masks of a scene of small images, padded as these. Raises UserError when the masks have no common visual hull."""
    K, c2w = scene.cameras.K.double().numpy(), scene.cameras.c2w.double().numpy()
    images = [scene.image(i).numpy() for i in range(len(scene.names))]
    seeds, hull = seed_points(scene, log), None
    masks: list[np.ndarray] = []
    dot = max(1, round(max(scene.cameras.height, scene.cameras.width) / 160))
    volume, has_seeds = seeds.volume(), len(seeds.object) >= 50

    def one(i: int) -> np.ndarray:
        shape = images[i].shape[:2]

        def discs(x: np.ndarray, radius: int) -> np.ndarray:
            return _discs(shape, K[i], c2w[i], x, radius)

        cell = max(1, int(np.ceil(K[i, 0, 0] / CELLS / max(float(np.linalg.norm(c2w[i, :, 3])), 1e-6))))
        outside = ~discs(volume, cell)
        # object points project into the object even when they are hidden; background points may be hidden by the object
        certain = discs(seeds.object, 1) if has_seeds and seeds.plane is not None else np.zeros(shape, bool)
        if hull is None:
            probable = discs(seeds.object, 5 * dot) if has_seeds else discs(0.6 * volume, cell)
            background = discs(seeds.background, dot) & ~probable
            return _tidy(grab(images[i], outside | background, probable, certain))
        silhouette = discs(hull, cell)
        core = _grown(silhouette, -(cell + 5))
        return _tidy(grab(images[i], outside | ~_grown(silhouette, cell + 3), silhouette, core | certain))

    for turn in range(ROUNDS):
        with ThreadPoolExecutor(WORKERS) as pool:
            masks = list(tqdm(pool.map(one, range(len(images))), total=len(images), desc=f"masks, round {turn + 1}", leave=False))
        hull = _hull(masks, K, c2w, volume)
        if len(hull) < 50:
            raise UserError(
                "--auto-mask: no object is consistent with all views; set dataset.center and dataset.radius to a sphere that encloses it "
                "tightly, or make the masks by hand (masks/, white on the object)"
            )
    h, w = scene.images.shape[1:3]
    return np.stack([np.pad(mask, ((0, h - len(mask)), (0, w - mask.shape[1]))) for mask in masks])


def _in_photograph(mask: np.ndarray, view: View) -> np.ndarray:
    """A mask [H, W] of the undistorted image, mapped to the photograph's pixels, same size; 0 outside the undistorted image."""
    if view.lens.is_pinhole:
        return mask
    h, w = mask.shape
    K = resize_intrinsics(view.K, w / view.size[0], h / view.size[1])
    mapping = inverse_map(view.lens, K, pinhole_intrinsics(view.lens, K, w, h), w, h)
    return remap(mask, mapping, cv2.INTER_LINEAR, cv2.BORDER_CONSTANT)[..., 0]


def contact_sheet(scene: Scene, masks: np.ndarray, most: int = 24, across: int = 6) -> np.ndarray:
    """At most `most` views in rows, background darkened, outline green."""
    chosen = np.unique(np.linspace(0, len(masks) - 1, min(most, len(masks))).round().astype(int))
    tiles = []
    for i in chosen:
        width, height = scene.cameras.size(i)
        mask = masks[i, :height, :width]
        tile = scene.image(i).numpy() * np.where(mask, 1.0, 0.25)[..., None]
        edge = mask ^ ndimage.binary_erosion(mask)
        tile[edge] = (40, 255, 80)
        tiles.append(tile.astype(np.uint8))
    names = [Path(scene.names[i]).name for i in chosen]
    rows = [sheet(tiles[k : k + across], names[k : k + across]) for k in range(0, len(tiles), across)]
    return np.concatenate([np.pad(row, ((0, 0), (0, rows[0].shape[1] - row.shape[1]), (0, 0))) for row in rows])


def mask_names(capture: Capture, layout: str, folder: Path) -> list[str]:
    """Names of the masks in `folder`, one for each view. Raises UserError for names outside of it and for equal names."""
    names = []
    for view in capture.views:
        inside(folder, view.name)
        name = Path(view.name)
        name = Path(*name.parts[1:]) if layout == "transforms" and len(name.parts) > 1 else name
        names.append(name.with_suffix(".png").as_posix())
    twice = next((name for name, n in Counter(names).items() if n > 1), None)
    if twice is not None:
        raise UserError(f"{folder}: {twice} would be the mask of several images; rename these, or make the masks by hand")
    return names


def write_masks(cfg: DatasetConfig, log: logging.Logger = LOG) -> Path:
    """Create masks/ in the scene folder, unless it exists, and a contact sheet masks.png beside it. Raises UserError."""
    layout, root = recognise(cfg, log), Path(cfg.root_dir)
    if layout not in CAPTURES:
        raise UserError(f"--auto-mask: {root} has the layout {layout}, expected {' or '.join(CAPTURES)}; put its masks there by hand")
    root = root.parent if root.suffix == ".json" else root
    target = root / "masks"
    if target.exists() or target.is_symlink():
        log.info("%s: exists and is kept; delete it to compute the masks again", target)
        return target
    capture = CAPTURES[layout](replace(cfg, masks=False), log)
    names = mask_names(capture, layout, target)
    factor = max(1.0, max(capture.views[0].size) / WORK_SIZE)
    scene = assemble(capture, replace(cfg, masks=False, img_wh=None, img_downscale=factor), log)
    masks = segment(scene, log)
    try:
        part = Path(tempfile.mkdtemp(prefix="masks.part-", dir=root))
    except OSError as error:
        raise UserError(f"{root}: cannot be written ({error.strerror or error}); copy the scene to a folder that can be written") from None
    try:
        for view, mask, name, (w, h) in zip(capture.views, masks, names, scene.sizes.tolist()):
            write_png(inside(part, name), _in_photograph(mask[:h, :w].astype(np.uint8) * 255, view))
        part.chmod(0o755)
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    picture = free_name(root / "masks.png")
    write_png(picture, contact_sheet(scene, masks))
    log.info("%d masks, %.0f %% of the pixels, in %s; check them in %s", len(masks), 100 * masks.mean(), target, picture)
    return target
