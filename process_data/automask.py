"""Object masks without a download: GrabCut in every view (Rother, Kolmogorov and Blake 2004), made consistent by their visual hull.

What lies outside the sphere of interest is background, and so are points on the plane that holds most of the points (table, floor, wall);
points above it are object. Two rounds: the hull of the first round's masks bounds and seeds the second. Masks are written in the
photographs' own (distorted) pixels, where a user can mend them.
"""

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from scipy import ndimage
from tqdm import tqdm

from confs.schema import DatasetConfig
from process_data.capture import WORKERS, View, assemble
from process_data.colmap import colmap_capture
from process_data.ground import dense, support_plane
from process_data.hull import Silhouettes, carve
from process_data.lens import pinhole_intrinsics, undistort
from process_data.load import recognise
from process_data.normalize import resize_intrinsics
from utils.errors import UserError
from utils.image import sheet, write_png
from utils.projection import project
from utils.rays import Scene

LOG = logging.getLogger("neus")
WORK = 320  # pixels of the longer side while segmenting
CELLS = 72  # of the hull, along a side of the sphere
ROUNDS = 2
LAYOUTS = ("colmap", "transforms")


@dataclass(frozen=True)
class _Seeds:
    """Points in the unit sphere's frame, and the plane the object stands on: normal x > offset is above it."""

    object: np.ndarray  # [P, 3] on the object
    other: np.ndarray  # [Q, 3] not on it
    plane: tuple[np.ndarray, float] | None

    def volume(self) -> np.ndarray:
        """Cells [M, 3] of the unit ball above the plane."""
        x = _cells()
        x = x[np.linalg.norm(x, axis=1) < 1]
        return x if self.plane is None else x[x @ self.plane[0] > self.plane[1] - 0.01]


def _cells() -> np.ndarray:
    axis = (np.arange(CELLS) + 0.5) / CELLS * 2 - 1
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)


def seed_points(scene: Scene, log: logging.Logger = LOG) -> _Seeds:
    """The points of structure from motion sorted into object and surroundings."""
    x = np.zeros((0, 3)) if scene.points is None else scene.points.double().numpy()
    far = np.linalg.norm(x, axis=1)
    near = x[far < 1.5]
    plane = support_plane(near, scene.cameras.c2w[:, :, 3].double().numpy())
    inside = x[far < 0.95]
    if plane is None:
        return _Seeds(dense(inside[np.linalg.norm(inside, axis=1) < 0.6]), x[far > 1.1], None)
    normal, offset = plane
    flat = np.abs(near @ normal - offset) < 0.02
    above = dense(inside[inside @ normal - offset > 0.04])
    log.info("masks: the object stands on a plane of %d points and shows %d of its own", int(flat.sum()), len(above))
    return _Seeds(above, np.concatenate([x[far > 1.1], near[flat]]), plane)


def _dots(shape: tuple[int, int], K: np.ndarray, c2w: np.ndarray, x: np.ndarray, size: int) -> np.ndarray:
    """bool [H, W]: discs of `size` pixels where the points project."""
    uv, depth = project(x, K, c2w)
    h, w = shape
    inside = (depth > 1e-3) & (uv[:, 0] > -0.5) & (uv[:, 0] < w - 0.5) & (uv[:, 1] > -0.5) & (uv[:, 1] < h - 0.5)
    picture = np.zeros(shape, np.uint8)
    u, v = np.rint(uv[inside]).astype(int).T
    picture[v, u] = 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * size + 1,) * 2)
    return cv2.dilate(picture, kernel) > 0


def grab(image: np.ndarray, sure_no: np.ndarray, maybe_yes: np.ndarray, sure_yes: np.ndarray, rounds: int = 4) -> np.ndarray:
    """bool [H, W] of the object by GrabCut from its seeds; `maybe_yes` itself when one of the two sides is empty."""
    labels = np.full(image.shape[:2], cv2.GC_PR_BGD, np.uint8)
    labels[maybe_yes] = cv2.GC_PR_FGD
    labels[sure_yes] = cv2.GC_FGD
    labels[sure_no] = cv2.GC_BGD
    yes = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD))
    if yes.sum() < 20 or (~yes).sum() < 20:
        return maybe_yes & ~sure_no
    cv2.setRNGSeed(0)
    cv2.grabCut(np.ascontiguousarray(image[..., ::-1]), labels, None, np.zeros((1, 65)), np.zeros((1, 65)), rounds, cv2.GC_INIT_WITH_MASK)
    return np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD))


def _tidy(mask: np.ndarray) -> np.ndarray:
    """Without specks and pinholes: parts of a fifth of the largest stay."""
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
    """Of the cells x [M, 3] those that nearly all masks hold; the largest connected part of them."""
    kept = x[carve(Silhouettes(masks, K, c2w), x, 1.0 / CELLS, forgiven=0.15, in_frame=0.3)]
    grid = np.zeros((CELLS,) * 3, bool)
    at = tuple(np.rint((kept + 1) / 2 * CELLS - 0.5).astype(int).T)
    grid[at] = True
    parts, n = ndimage.label(grid)
    return kept[parts[at] == 1 + np.bincount(parts.ravel())[1:].argmax()] if n else kept


def segment(scene: Scene, log: logging.Logger = LOG) -> np.ndarray:
    """bool [N, H, W] masks of a scene of small images. Raises UserError when the views agree on no object."""
    K, c2w = scene.cameras.K.double().numpy(), scene.cameras.c2w.double().numpy()
    shape, images = (scene.cameras.height, scene.cameras.width), scene.images.numpy()
    seeds, hull = seed_points(scene, log), None
    masks: list[np.ndarray] = []
    dot, none = max(1, round(max(shape) / 160)), np.zeros(shape, bool)
    volume, known = seeds.volume(), len(seeds.object) >= 50

    def one(i: int) -> np.ndarray:
        cell = max(1, int(np.ceil(K[i, 0, 0] / CELLS / max(float(np.linalg.norm(c2w[i, :, 3])), 1e-6))))
        outside = ~_dots(shape, K[i], c2w[i], volume, cell)
        # a point of the object lies in its outline whether it is hidden or not; one of the surroundings may be hidden by the object
        yes = _dots(shape, K[i], c2w[i], seeds.object, 1) if known and seeds.plane is not None else none
        if hull is None:
            near = _dots(shape, K[i], c2w[i], seeds.object, 5 * dot) if known else _dots(shape, K[i], c2w[i], 0.6 * volume, cell)
            no = _dots(shape, K[i], c2w[i], seeds.other, dot) & ~near
            return _tidy(grab(images[i], outside | no, near, yes))
        silhouette = _dots(shape, K[i], c2w[i], hull, cell)
        wide = cv2.dilate(silhouette.astype(np.uint8), np.ones((2 * (cell + 3) + 1,) * 2, np.uint8)) > 0
        core = cv2.erode(silhouette.astype(np.uint8), np.ones((2 * (cell + 5) + 1,) * 2, np.uint8)) > 0
        return _tidy(grab(images[i], outside | ~wide, silhouette, core | yes))

    for turn in range(ROUNDS):
        with ThreadPoolExecutor(WORKERS) as pool:
            masks = list(tqdm(pool.map(one, range(len(images))), total=len(images), desc=f"masks, round {turn + 1}", leave=False))
        hull = _hull(masks, K, c2w, volume)
        if len(hull) < 50:
            raise UserError(
                "--auto-mask: the views agree on no object; set dataset.center and dataset.radius to a sphere that just holds it, "
                "or make the masks by hand (masks/, white on the object)"
            )
    return np.stack(masks)


def _in_photograph(mask: np.ndarray, view: View) -> np.ndarray:
    """A mask [H, W] of the undistorted image in the photograph's own pixels, same size; what the undistorted image lacks is background."""
    if view.lens.is_pinhole:
        return mask
    h, w = mask.shape
    K = resize_intrinsics(view.K, w / view.size[0], h / view.size[1])
    K_new = pinhole_intrinsics(view.lens, K, w, h)
    v, u = np.mgrid[:h, :w].astype(np.float64)
    y = (v - K[1, 2]) / K[1, 1]
    plane = undistort(view.lens, np.stack([(u - K[0, 2] - K[0, 1] * y) / K[0, 0], y], -1).reshape(-1, 2))
    at = (plane @ K_new[:2, :2].T + K_new[:2, 2]).reshape(h, w, 2).astype(np.float32)
    return cv2.remap(mask, at, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)


def contact_sheet(scene: Scene, masks: np.ndarray, most: int = 24, across: int = 6) -> np.ndarray:
    """Some views with their background darkened, in rows."""
    chosen = np.unique(np.linspace(0, len(masks) - 1, min(most, len(masks))).round().astype(int))
    tiles = []
    for i in chosen:
        tile = scene.images[i].numpy() * np.where(masks[i], 1.0, 0.25)[..., None]
        edge = masks[i] ^ ndimage.binary_erosion(masks[i])
        tile[edge] = (40, 255, 80)
        tiles.append(tile.astype(np.uint8))
    names = [Path(scene.names[i]).name for i in chosen]
    rows = [sheet(tiles[k : k + across], names[k : k + across]) for k in range(0, len(tiles), across)]
    return np.concatenate([np.pad(row, ((0, 0), (0, rows[0].shape[1] - row.shape[1]), (0, 0))) for row in rows])


def write_masks(cfg: DatasetConfig, log: logging.Logger = LOG) -> Path:
    """Make masks/ in the scene's folder, unless it has one, and masks.png to check them. Raises UserError."""
    from process_data.transforms import transforms_capture

    layout, root = recognise(cfg, log), Path(cfg.root_dir)
    if layout not in LAYOUTS:
        raise UserError(f"--auto-mask makes masks for scenes of COLMAP and transforms.json; {root} is of the layout {layout}")
    root = root.parent if root.suffix == ".json" else root
    target = root / "masks"
    if target.exists():
        log.info("%s: kept as it is; delete it to have the masks made anew", target)
        return target
    capture = {"colmap": colmap_capture, "transforms": transforms_capture}[layout](replace(cfg, masks=False), log)
    factor = max(1.0, max(capture.views[0].size) / WORK)
    scene = assemble(capture, replace(cfg, masks=False, img_wh=None, img_downscale=factor), log)
    masks = segment(scene, log)
    for view, mask in zip(capture.views, masks):
        full = _in_photograph(mask.astype(np.uint8) * 255, view)
        name = Path(view.name)
        name = Path(*name.parts[1:]) if layout == "transforms" and len(name.parts) > 1 else name
        write_png(target / name.with_suffix(".png"), full)
    write_png(root / "masks.png", contact_sheet(scene, masks))
    log.info("%d masks, %.0f %% of the pixels -> %s; look at %s", len(masks), 100 * masks.mean(), target, root / "masks.png")
    return target
