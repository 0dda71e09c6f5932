"""`--auto-mask`: object masks at the resolution of the photographs, checked against each other, into the scene folder.

Segmentation is at reduced size (process_data/segment.py); the edges are refined on the photographs (process_data/refine.py), with their
lens distortion. Masks are written only where they agree with the visual hull of the others (process_data/agreement.py).
"""

import logging
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from scipy import ndimage
from tqdm import tqdm

from confs.schema import DatasetConfig
from process_data.agreement import overlap, reprojected
from process_data.capture import WORKERS, Capture, View, assemble
from process_data.colmap import colmap_capture
from process_data.dtu import dtu_capture
from process_data.files import free_name, inside
from process_data.lens import inverse_map, pinhole_intrinsics, remap
from process_data.load import recognise
from process_data.metashape import metashape_capture
from process_data.normalize import most_frequent, resize_intrinsics
from process_data.onnx_mask import MaskNetwork
from process_data.refine import refine
from process_data.segment import Segmented, segment
from process_data.transforms import transforms_capture
from utils.errors import UserError
from utils.image import as_rgb, read_raster, sheet, write_png
from utils.rays import Scene

LOG = logging.getLogger("neus")
WORK_SIZE = 400  # pixels of the longer side during segmentation
TRUSTED = 0.8  # median agreement below which no mask is written
AGREES = 0.75  # agreement below which a mask is replaced by the hull of the others
SEVERED = 0.1  # share of the surface beyond the sphere from which the sphere cuts the object, or nothing stands apart
CAPTURES = {"colmap": colmap_capture, "transforms": transforms_capture, "metashape": metashape_capture, "dtu": dtu_capture}
FOLDERS = {**dict.fromkeys(CAPTURES, ("masks", "mask")), "dtu": ("mask",)}  # that the readers read; the first is written
WITHOUT = "train without masks (dataset.masks=false), set dataset.center and dataset.radius to a sphere that encloses the object tightly"


# ---- agreement ----


@dataclass(frozen=True)
class Checked:
    """Masks of small images, bool [h, w] each, the agreement [N] of each with the hull of the others, and the views that were replaced."""

    masks: Sequence[np.ndarray]
    iou: np.ndarray
    replaced: list[int]


def check(found: Segmented, scene: Scene) -> Checked:
    """Compare each mask with the hull of the others, and replace those that disagree by this hull's silhouette."""
    others = reprojected(found.masks, scene.cameras.K.double().numpy(), scene.cameras.c2w.double().numpy(), found.hull)
    iou = np.array([overlap(a, b) for a, b in zip(found.masks, others)])
    bad = np.nonzero(iou < AGREES)[0].tolist()
    return Checked([others[i] if i in bad else mask for i, mask in enumerate(found.masks)], iou, bad)


def verdict(checked: Checked, severed: float, by_network: bool) -> str | None:
    """Why the masks cannot be trusted, None when they can."""
    median = float(np.median(checked.iou))
    if median < TRUSTED:
        return f"they do not agree with each other (median IoU with the hull of the others {median:.2f}, expected {TRUSTED} or more)"
    if len(checked.replaced) > len(checked.iou) / 4:
        return f"{len(checked.replaced)} of {len(checked.iou)} disagree with the others"
    if severed > SEVERED and not by_network:
        where = f"{severed:.0%} of the surface at the look-at point goes on beyond the region of interest"
        return f"{where}, which cuts the object (enlarge dataset.radius) or holds nothing that stands apart"
    return None


def report(checked: Checked, names: tuple[str, ...], log: logging.Logger) -> None:
    """The table of agreement in the log."""
    iou = checked.iou
    log.info("masks: IoU with the hull of the others: median %.3f, lowest %.3f", float(np.median(iou)), float(iou.min()))
    for i, name in enumerate(names):
        log.info("  %-40s %.3f%s", name, iou[i], "  replaced by the hull of the others" if i in checked.replaced else "")
    if checked.replaced:
        log.warning(
            "masks: %d of %d disagreed with the others and were replaced by their hull (first: %s); check these, and their cameras",
            *(len(checked.replaced), len(names), names[checked.replaced[0]]),
        )


def contact_sheet(scene: Scene, checked: Checked, most: int = 48, across: int = 8, width: int = 240) -> np.ndarray:
    """At most `most` views in rows, replaced ones among them, with their IoU; background darkened, outline green (red: replaced)."""
    even = np.unique(np.linspace(0, len(checked.masks) - 1, min(most, len(checked.masks))).round().astype(int)).tolist()
    chosen, tiles, names = sorted({*even, *checked.replaced[:most]}), [], []
    for i in chosen:
        tile = scene.image(i).numpy() * np.where(checked.masks[i], 1.0, 0.25)[..., None]
        edge = checked.masks[i] ^ ndimage.binary_erosion(checked.masks[i])
        tile[edge] = (255, 60, 40) if i in checked.replaced else (40, 255, 80)
        f = min(1.0, width / tile.shape[1])
        tiles.append(
            cv2.resize(tile.astype(np.uint8), (round(f * tile.shape[1]), max(1, round(f * tile.shape[0]))), interpolation=cv2.INTER_AREA)
        )
        names.append(f"{Path(scene.names[i]).name} {checked.iou[i]:.2f}")
    rows = [sheet(tiles[k : k + across], names[k : k + across]) for k in range(0, len(tiles), across)]
    return np.concatenate([np.pad(row, ((0, 0), (0, rows[0].shape[1] - row.shape[1]), (0, 0))) for row in rows])


# ---- files ----


def _in_photograph(mask: np.ndarray, view: View) -> np.ndarray:
    """A mask uint8 [H, W] of the undistorted image, mapped to the photograph's pixels, same size; 0 outside the undistorted image."""
    if view.lens.is_pinhole:
        return mask
    h, w = mask.shape
    K = resize_intrinsics(view.K, w / view.size[0], h / view.size[1])
    mapping = inverse_map(view.lens, K, pinhole_intrinsics(view.lens, K, w, h), w, h)
    return remap(mask, mapping, cv2.INTER_LINEAR, cv2.BORDER_CONSTANT)[..., 0]


def full_size(mask: np.ndarray, view: View) -> np.ndarray:
    """uint8 [H, W] of 0 and 255 in the photograph's pixels, of a mask bool [h, w] of the small, undistorted image."""
    small = _in_photograph(mask.astype(np.uint8) * 255, view) > 127
    return refine(small, as_rgb(read_raster(view.image))) * np.uint8(255)


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


def _write(root: Path, target: Path, views: list[View], names: list[str], masks: Sequence[np.ndarray]) -> None:
    """All masks under a temporary name, then the folder is renamed. Raises UserError."""
    part = None
    try:
        part = Path(tempfile.mkdtemp(prefix="masks.part-", dir=root))
        folder = part

        def one(item: tuple[View, str, np.ndarray]) -> None:
            view, name, mask = item
            write_png(inside(folder, name), full_size(mask, view))

        with ThreadPoolExecutor(WORKERS) as pool:
            list(tqdm(pool.map(one, zip(views, names, masks)), total=len(views), desc="masks, edges", leave=False))
        part.chmod(0o755)
        part.rename(target)
    except OSError as error:
        raise UserError(f"{root}: cannot be written ({error.strerror or error}); copy the scene to a folder that can be written") from None
    finally:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)


def existing(root: Path, layout: str, capture: Capture) -> Path | None:
    """Where masks of the scene are already, None where there are none."""
    folder = next((root / name for name in FOLDERS[layout] if (root / name).exists() or (root / name).is_symlink()), None)
    named = next((view.mask for view in capture.views if view.mask is not None), None)
    return folder or (None if named is None else named.parent)


def write_masks(cfg: DatasetConfig, log: logging.Logger = LOG, model: str | None = None, norm: str = "imagenet") -> Path:
    """Create masks/ in the scene folder (DTU: mask/), unless there are masks, and the overview masks.png beside it.

    model: ONNX file of a segmentation network, norm: a key of `onnx_mask.NORMS`. Raises UserError; when the masks cannot be trusted, the
    overview alone is written.
    """
    layout, root = recognise(cfg, log), Path(cfg.root_dir)
    if layout not in CAPTURES:
        raise UserError(f"--auto-mask: {root} has the layout {layout}, expected {', '.join(CAPTURES)}; put its masks there by hand")
    network = None if model is None else MaskNetwork(model, norm)
    root = root.parent if root.suffix == ".json" else root
    target = root / FOLDERS[layout][0]
    capture = CAPTURES[layout](cfg, log)
    old = existing(root, layout, capture)
    if old is not None:
        log.info("%s: exists and is kept; delete it to compute the masks again", old)
        return old
    names = mask_names(capture, layout, target)
    factor = max(1.0, max(most_frequent([view.size for view in capture.views])) / WORK_SIZE)
    scene = assemble(capture, replace(cfg, masks=False, triangulate=False, img_wh=None, img_downscale=factor), log)
    found = segment(scene, network, log)
    checked = check(found, scene)
    report(checked, scene.names, log)
    picture, why = free_name(root / "masks.png"), verdict(checked, found.seeds.severed, network is not None)
    if why is not None:
        write_png(picture, contact_sheet(scene, checked))
        more = "" if network else ", give a segmentation network (--mask-model)"
        raise UserError(
            f"--auto-mask: the masks cannot be trusted and were not written (see {picture}): {why}; {WITHOUT}{more}, or make them by hand"
        )
    _write(root, target, capture.views, names, checked.masks)
    write_png(picture, contact_sheet(scene, checked))
    share = sum(int(mask.sum()) for mask in checked.masks) / sum(mask.size for mask in checked.masks)
    log.info("%d masks, %.0f %% of the pixels, in %s; check them in %s", len(names), 100 * share, target, picture)
    return target
