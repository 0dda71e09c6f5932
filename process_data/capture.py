"""`Capture`, the result of a reader (photographs with cameras, before any pixel is decoded), and its assembly into a `Scene`.

Photographs are resized as they are decoded; at most WORKERS of them are in memory at full size.
"""

import logging
import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from confs.schema import DatasetConfig
from process_data.box import Box, make_box
from process_data.lens import Lens, pinhole_intrinsics, resample, sampling_map
from process_data.markers import Board, Shot, measure
from process_data.normalize import (
    most_frequent,
    new_sizes,
    points_to_sphere,
    resize_intrinsics,
    similarity_parts,
    split_views,
    to_sphere,
)
from process_data.region import Views, choose_region
from process_data.triangulate import scene_points
from utils.errors import UserError, raise_all
from utils.image import as_rgb, image_size, read_raster, resize
from utils.memory import check_fits
from utils.rays import Cameras, Scene
from utils.stack import Stack

LOG = logging.getLogger("neus")
WORKERS = max(1, min(8, os.cpu_count() or 1))  # photographs decoded in parallel
LEAST_SIDE = 4  # pixels of a photograph
MAX_MASK_RATIO = 100  # pixels of a mask per pixel of its image


@dataclass(frozen=True)
class View:
    """One photograph: its files and its camera in the world (OpenCV axes, pixel centres at integers)."""

    name: str
    image: Path
    K: np.ndarray  # [3, 3]
    size: tuple[int, int]  # width, height of the image that K and lens are calibrated for
    c2w: np.ndarray  # [3, 4]
    lens: Lens = field(default_factory=Lens)
    mask: Path | None = None


@dataclass(frozen=True)
class Capture:
    """A scene before any pixel is decoded."""

    root: Path
    views: list[View]
    points: np.ndarray | None = None  # [P, 3] world
    test: tuple[int, ...] | None = None  # held-out views of the split in the files; None: every cfg.hold_every-th view
    given: np.ndarray | None = None  # [4, 4] unit sphere to world, a region of interest in the files
    auto_up: str = "given"  # the meaning of dataset.up=auto; "estimated" where the axes of the world mean nothing
    tracks: np.ndarray | None = None  # [M, 2] pairs (point, view): the views that see each point
    read_mask: Callable[[Path], np.ndarray] | None = None  # mask file -> uint8 [H, W, 1]; None: an image
    reduced: int = 1  # the files are copies that are this many times smaller; dataset.img_downscale counts from the originals

    def downscale(self, wanted: float) -> float:
        """The factor by which the files are still to be reduced."""
        return wanted if self.reduced == 1 else max(1.0, wanted / self.reduced)


# ---- cameras from files ----


def checked_pose(matrix, what: str) -> np.ndarray:
    """Camera-to-world [3, 4] with an orthonormal rotation. Raises UserError unless the matrix is nearly a rigid motion, up to scale."""
    try:
        pose = np.asarray(matrix, np.float64)
    except (TypeError, ValueError, OverflowError):
        pose = np.zeros(0)
    if pose.shape not in ((3, 4), (4, 4)) or not np.isfinite(pose).all() or np.abs(pose[:3]).max() > 1e12:
        raise UserError(f"{what}: expected a 4x4 matrix of finite numbers, camera to world; check the export")
    u, s, vt = np.linalg.svd(pose[:3, :3])
    if np.linalg.det(pose[:3, :3]) <= 0 or s.max() - s.min() > 1e-2 * s.max():
        raise UserError(f"{what}: the left 3x3 block is not a rotation (it stretches or mirrors); check the export")
    return np.concatenate([u @ vt, pose[:3, 3:]], 1)


def checked_intrinsics(fx: float, fy: float, cx: float, cy: float, size: tuple[int, int], what: str) -> np.ndarray:
    """K [3, 3] with pixel centres at integers, from values with centres at +0.5. Raises UserError for values out of range."""
    width, height = size
    if not (0 < width < 1 << 16 and 0 < height < 1 << 16):
        raise UserError(f"{what}: image size {width}x{height}, expected 1 to 65535 pixels; check the export")
    if not (np.isfinite([fx, fy, cx, cy]).all() and 1e-3 < fx / width < 1e4 and 1e-3 < fy / height < 1e4):
        raise UserError(f"{what}: focal length {fx:g}, {fy:g} pixels for {width}x{height}; check the export")
    if not (abs(cx / width - 0.5) < 2 and abs(cy / height - 0.5) < 2):
        raise UserError(f"{what}: principal point ({cx:g}, {cy:g}) far outside {width}x{height} pixels; check the export")
    return np.array([[fx, 0, cx - 0.5], [0, fy, cy - 0.5], [0, 0, 1.0]])


def masks_complete(views: list[View], root: Path, where: str) -> None:
    """Raises UserError when some views have a mask file and others do not."""
    lacking = [v for v in views if v.mask is None]
    if lacking and len(lacking) < len(views):
        name = Path(lacking[0].name).with_suffix(".png")
        raise UserError(
            f"{root}: {len(views)} images but {len(views) - len(lacking)} masks ({where}/{name} is missing); add it, or set dataset.masks=false"
        )


# ---- pixels ----


def _fitted(view: View, size: tuple[int, int]) -> np.ndarray:
    """K for the image file, which may be a resized copy. Raises UserError when its aspect ratio is not that of the camera."""
    if size == view.size:
        return view.K
    fx, fy = size[0] / view.size[0], size[1] / view.size[1]
    if abs(fx / fy - 1) > 0.01 + 1.0 / min(size):
        want = f"{view.size[0]}x{view.size[1]}"
        raise UserError(
            f"{view.image}: {size[0]}x{size[1]} pixels, but its camera has {want}: cropped or rotated? expected {want} or a resized copy"
        )
    return resize_intrinsics(view.K, fx, fy)


def as_mask(raster: np.ndarray) -> np.ndarray:
    """[H, W, C] -> [H, W, 1]: alpha where it is not 255 throughout, else the largest colour channel; values 0 and 1 become 0 and 255."""
    if raster.shape[2] == 4 and raster[..., 3].min() < 255:
        return np.ascontiguousarray(raster[..., 3:])
    mask = raster[..., :3].max(-1, keepdims=True)
    return mask * np.uint8(255) if mask.max() == 1 else mask


class _Developer:
    """Resizes and undistorts photographs, each to the size of its file size; the sampling map of each camera is computed once."""

    def __init__(self, sizes: dict[tuple[int, int], tuple[int, int]]):
        """sizes: size of the file -> size for training, (width, height)."""
        self.sizes = sizes
        self.maps: dict[tuple, np.ndarray] = {}

    def camera(self, view: View, file_size: tuple[int, int]) -> np.ndarray:
        """K [3, 3] of the resized, undistorted photograph."""
        w, h = self.sizes[file_size]
        K = resize_intrinsics(_fitted(view, file_size), w / file_size[0], h / file_size[1])
        if view.lens.is_pinhole:
            return K
        try:
            K_new = pinhole_intrinsics(view.lens, K, w, h)
        except UserError as error:
            raise UserError(f"{view.image}: {error}") from None
        key = self._key(view, file_size)
        if key not in self.maps:
            self.maps[key] = sampling_map(view.lens, K, K_new, w, h)
        return K_new

    @staticmethod
    def _key(view: View, file_size: tuple[int, int]) -> tuple:
        return (view.lens, view.K.tobytes(), view.size, file_size)

    def pixels(self, raster: np.ndarray, view: View, file_size: tuple[int, int]) -> np.ndarray:
        """Resize and undistort uint8 [H, W, C]."""
        small = resize(raster, *self.sizes[file_size])
        mapping = self.maps.get(self._key(view, file_size))
        return small if mapping is None else resample(small, mapping)


def developed(view: View, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 [H, W, 3], K [3, 3] without skew) of a photograph: undistorted, its longer side at most `longest`. Raises UserError."""
    file_size = image_size(view.image)
    factor = min(1.0, longest / max(file_size))
    size = (max(1, round(file_size[0] * factor)), max(1, round(file_size[1] * factor)))
    developer = _Developer({file_size: size})
    K = developer.camera(view, file_size)
    pixels = as_rgb(developer.pixels(read_raster(view.image), view, file_size))
    if not K[0, 1]:
        return pixels, K
    straight = K * np.array([[1, 0, 1], [1, 1, 1], [1, 1, 1]])
    return resample(pixels, sampling_map(Lens(), K, straight, *size)), straight


def _reduction(size: tuple[int, int], target: tuple[int, int]) -> int:
    """The factor, 1, 2, 4 or 8, by which a decoder may reduce an image: it divides both sides, and twice the target is left."""
    return next((r for r in (8, 4, 2) if all(n % r == 0 and n >= 2 * r * to for n, to in zip(size, target))), 1)


def _alpha_over_white(raster: np.ndarray) -> np.ndarray:
    alpha = raster[..., 3:].astype(np.float32) / 255
    return np.rint(raster[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


def _collected(function: Callable, items: list) -> list:
    """[function(item)] for all items; one UserError lists the failures."""
    problems, results = [], []
    for item in items:
        try:
            results.append(function(item))
        except UserError as error:
            problems.append(str(error))
    raise_all(problems)
    return results


def read_mask(view: View, size: tuple[int, int], decode: Callable[[Path], np.ndarray] | None) -> np.ndarray:
    """The mask of a photograph of size (width, height), uint8 [H, W, 1]. Raises UserError.

    The aspect ratio is compared in the header, before decoding; a resized copy of the mask is accepted.
    """
    if view.mask is None:
        raise UserError(f"{view.image}: no mask; add it, or set dataset.masks=false")
    width, height = image_size(view.mask)
    if abs(width * size[1] / (height * size[0]) - 1) > 0.02 or width * height > MAX_MASK_RATIO * size[0] * size[1]:
        raise UserError(f"{view.mask}: {width}x{height} pixels, expected {size[0]}x{size[1]}, the size of its image; export it again")
    return decode(view.mask) if decode else as_mask(read_raster(view.mask))


def _log_sizes(sizes: list[tuple[int, int]], trained: list[tuple[int, int]], auto: bool, capture: Capture, log: logging.Logger) -> None:
    """Name the sizes of a scene that has several, or whose photographs are reduced without having been asked to (auto)."""
    found = Counter(zip(sizes, trained)).most_common()
    (width, height), to = found[0][0]
    if auto and to != (width, height):
        log.info("photographs %dx%d are trained at %dx%d; dataset.img_downscale=1 keeps them", width, height, *to)
    if len(found) > 1:
        shown = [f"{n} of {w}x{h}" + (f" (trained at {to[0]}x{to[1]})" if to != (w, h) else "") for ((w, h), to), n in found[:4]]
        log.info("%s: photographs of %d sizes: %s%s", capture.root, len(found), ", ".join(shown), ", ..." if len(found) > 4 else "")


def _photograph_size(view: View) -> tuple[int, int]:
    """(width, height) of the file. Raises UserError where nothing can be seen on it: its size is then no clue to its camera either."""
    size = image_size(view.image)
    if min(size) < LEAST_SIDE:
        raise UserError(f"{view.image}: {size[0]}x{size[1]} pixels, expected at least {LEAST_SIDE} along a side; copy or remove it")
    return size


def _develop(capture: Capture, cfg: DatasetConfig, log: logging.Logger):
    """(images [N, H, W, 3], masks [N, H, W] or None, whether they are alpha channels, K [N, 3, 3], sizes [N, 2]).

    H, W: the largest height and width; smaller photographs lie in the top-left corner, over 0.
    """
    views = capture.views
    sizes = _collected(_photograph_size, views)
    factor = None if cfg.img_downscale is None else capture.downscale(cfg.img_downscale)
    trained = new_sizes(sizes, cfg.img_wh, factor)
    _log_sizes(sizes, trained, cfg.img_wh is None and cfg.img_downscale is None, capture, log)
    width, height = (max(side) for side in zip(*trained))
    has_files = cfg.masks and views[0].mask is not None
    common = most_frequent(sizes)
    factor = common[0] / dict(zip(sizes, trained))[common][0]
    largest = max(sizes, key=lambda s: s[0] * s[1])
    line = check_fits(len(views), width, height, 4, largest, WORKERS, str(capture.root), factor, cfg.on_disk)
    log.info("%s", line)

    developer = _Developer(dict(zip(sizes, trained)))
    K = np.stack(_collected(lambda pair: developer.camera(*pair), list(zip(views, sizes))))
    use_alpha = cfg.masks and not has_files
    images = Stack((len(views), height, width, 3), cfg.on_disk)
    masks = Stack((len(views), height, width), cfg.on_disk) if cfg.masks else None

    def one(i: int) -> tuple[int | None, str | None]:
        """Fill images[i] and masks[i]; returns (least value of the mask or None, error message or None)."""
        view, (w, h) = views[i], trained[i]
        try:
            raster = developer.pixels(read_raster(view.image, _reduction(sizes[i], trained[i])), view, sizes[i])
            alpha = raster[..., 3] if raster.shape[2] == 4 else None
            over_white = alpha is not None and not (use_alpha and cfg.apply_mask)
            images.array[i, :h, :w] = _alpha_over_white(raster) if over_white else as_rgb(raster)
            mask = alpha
            if has_files:
                mask = developer.pixels(read_mask(view, sizes[i], capture.read_mask), view, sizes[i])[..., 0]
            if mask is None or masks is None:
                return None, None
            masks.array[i, :h, :w] = mask
            return int(mask.min()), None
        except UserError as error:
            return None, str(error)

    with ThreadPoolExecutor(WORKERS) as pool:
        results = list(pool.map(one, range(len(views))))
    raise_all([problem for _, problem in results if problem])
    found = [least for least, _ in results if least is not None]
    if len(found) < len(views) or (not has_files and min(found) == 255):
        return images, None, False, K, np.array(trained)
    return images, masks, not has_files, K, np.array(trained)


def _board(capture: Capture, cfg: DatasetConfig, log: logging.Logger) -> Board | None:
    """The markers in the photographs, where dataset.marker_size says that there are some. Raises UserError."""
    if cfg.marker_size is None:
        return None
    shots = [Shot(view.image, _fitted(view, image_size(view.image)), view.lens, view.c2w) for view in capture.views]
    board = measure(shots, cfg.marker_size, str(capture.root), WORKERS)
    log.info("%s", board.line)
    return board


def _box(capture: Capture, cfg: DatasetConfig) -> Box | None:
    """The box of dataset.region. Raises UserError."""
    if cfg.region is None:
        return None
    sizes = [image_size(view.image) for view in capture.views]
    cameras = [(_fitted(view, size), size, view.lens) for view, size in zip(capture.views, sizes)]
    return make_box(cfg.region, [view.name for view in capture.views], cameras)


def assemble(capture: Capture, cfg: DatasetConfig, log: logging.Logger = LOG) -> Scene:
    """Decode the photographs and move the region of interest to the unit sphere. Raises UserError that lists all problems."""
    if not capture.views:
        raise UserError(f"{capture.root}: no photographs; check the image paths in the scene's files")
    pixels, mask_pixels, from_alpha, K, sizes = _develop(capture, cfg, log)
    images, masks = pixels.array, None if mask_pixels is None else mask_pixels.array
    n, height, width = images.shape[:3]
    c2w = np.stack([view.c2w for view in capture.views])
    if capture.test is not None:
        test = capture.test
        train = tuple(i for i in range(n) if i not in set(test))
    else:
        train, test = split_views(n, cfg.hold_every)
    found, tracks = capture.points, capture.tracks
    if cfg.triangulate and found is None and masks is None and capture.given is None:
        found, tracks = scene_points(capture.root, capture.views, developed, log) or (None, None)
    views = Views(K, c2w, sizes, found, masks, train, tracks, _box(capture, cfg))
    board = _board(capture, cfg, log)
    to_world, line = choose_region(views, cfg, capture.given, capture.auto_up, None if board is None else board.up)
    log.info("%s", line)
    as_given = cfg.up == "given" or (cfg.up == "auto" and capture.auto_up == "given")
    points = None if found is None else torch.from_numpy(points_to_sphere(found, to_world)).float()
    local = torch.from_numpy(to_sphere(c2w, to_world)).float()
    return Scene(
        name=capture.root.resolve().name,
        images=torch.from_numpy(images),
        masks=None if masks is None else torch.from_numpy(masks),
        cameras=Cameras(torch.from_numpy(K).float(), local, height, width, torch.from_numpy(sizes)),
        to_world=torch.from_numpy(to_world),
        train=train,
        test=test,
        names=tuple(view.name for view in capture.views),
        test_background="image" if masks is None or not cfg.apply_mask else "white" if from_alpha else "black",
        points=points,
        tracks=None if points is None or tracks is None else torch.from_numpy(tracks),
        arbitrary_world=capture.auto_up != "given",
        up=None if as_given else torch.from_numpy(similarity_parts(to_world)[1][:, 2].copy()),
        metres_per_unit=None if board is None else board.metres_per_unit,
        on_disk=tuple(stack for stack in (pixels, mask_pixels) if stack is not None and stack.file is not None),
    )
