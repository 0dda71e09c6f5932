"""sdfstudio: `meta_data.json` with a camera-to-world matrix (OpenCV axes) and intrinsics for each frame, and one image size.

As in sdfstudio, pixel centres are at +0.5 and the skew is ignored. The world is that of the ground truth: `worldtogt` is applied, so that
meshes have its units (millimetres for DTU). `scene_box` gives the region of interest: a sphere in the middle of `aabb`, of `radius`, or of
half the longest side. Monocular priors are not read.
https://github.com/autonomousvision/sdfstudio/blob/master/docs/sdfstudio-data.md
"""

import logging
from pathlib import Path

import numpy as np

from confs.schema import DatasetConfig
from process_data.capture import Capture, View, assemble, checked_intrinsics, checked_pose, masks_complete
from process_data.files import find_image, report_missing
from process_data.normalize import similarity, similarity_parts
from process_data.transforms import number, read_json
from utils.errors import UserError, raise_all
from utils.image import image_size
from utils.rays import Scene

LOG = logging.getLogger("neus")
FILE = "meta_data.json"


def numbers(value, shapes: tuple[tuple[int, ...], ...], what: str) -> np.ndarray:
    """A float64 array of finite numbers of one of the shapes. Raises UserError."""
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError, OverflowError):
        array = np.zeros(0)
    if array.shape not in shapes or not np.isfinite(array).all() or np.abs(array).max() > 1e12:
        raise UserError(f"{what}: expected {'x'.join(map(str, shapes[0]))} finite numbers; check the export")
    return array


def _world(data: dict, path: Path) -> np.ndarray:
    """`worldtogt` [4, 4], the identity without it. Raises UserError unless it is a similarity."""
    matrix = np.eye(4) if data.get("worldtogt") is None else numbers(data["worldtogt"], ((4, 4),), f"{path}: worldtogt")
    try:
        similarity_parts(matrix)
    except UserError as error:
        raise UserError(f"{path}: worldtogt: {error}; correct it, or remove it") from None
    return matrix


def _region(data: dict, to_gt: np.ndarray, path: Path) -> np.ndarray | None:
    """Unit sphere to world [4, 4] of `scene_box`, None without one. Raises UserError."""
    box = data.get("scene_box")
    if not isinstance(box, dict) or box.get("aabb") is None:
        return None
    low, high = numbers(box["aabb"], ((2, 3),), f"{path}: scene_box.aabb")
    radius = number(box, "radius", f"{path}: scene_box") or float((high - low).max()) / 2
    if not 1e-9 < radius < 1e9:
        raise UserError(f"{path}: scene_box: radius {radius:g}, expected a positive one; correct it, or remove scene_box")
    return to_gt @ similarity(radius, np.eye(3), (low + high) / 2)


def _view(frame: dict, root: Path, image: Path, size: tuple[int, int], to_gt: np.ndarray, masks: bool, where: str) -> View:
    """Raises UserError."""
    K = numbers(frame.get("intrinsics"), ((3, 3), (4, 4)), f"{where}: intrinsics")
    c2w = checked_pose(frame.get("camtoworld"), f"{where}: camtoworld")
    scale, rotation, shift = similarity_parts(to_gt)
    pose = np.concatenate([rotation @ c2w[:, :3], (scale * rotation @ c2w[:, 3] + shift)[:, None]], 1)
    named = frame.get("foreground_mask")
    mask = find_image(root, named) if masks and isinstance(named, str) and named else None
    return View(image.name, image, checked_intrinsics(K[0, 0], K[1, 1], K[0, 2], K[1, 2], size, where), size, pose, mask=mask)


def read_sdfstudio(cfg: DatasetConfig, log: logging.Logger = LOG) -> Scene:
    """Read the folder `cfg.root_dir`. Raises UserError that lists all problems."""
    root = Path(cfg.root_dir)
    path = root / FILE
    if not path.is_file():
        raise UserError(f"{path}: no such file; set dataset.root_dir to the folder that holds {FILE}")
    data = read_json(path)
    if data.get("camera_model", "OPENCV") != "OPENCV":
        raise UserError(f"{path}: camera_model {str(data['camera_model'])[:40]!r} is not supported; expected OPENCV")
    to_gt, views, missing, problems = _world(data, path), [], [], []
    width, height = (number(data, key, str(path)) for key in ("width", "height"))
    for i, frame in enumerate(data["frames"]):
        name = frame.get("rgb_path")
        image = find_image(root, name) if isinstance(name, str) and name else None
        if image is None:
            missing.append(str(name))
            continue
        try:
            size = (round(width), round(height)) if width and height else image_size(image)
            views.append(_view(frame, root, image, size, to_gt, cfg.masks, f"{path}: frame {i}"))
        except UserError as error:
            problems.append(str(error))
    raise_all(problems)
    report_missing(path, missing, len(data["frames"]), log)
    masks_complete(views, root, "foreground_mask")
    return assemble(Capture(root, views, given=_region(data, to_gt, path)), cfg, log)
