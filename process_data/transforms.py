"""`transforms.json` of instant-ngp and nerfstudio: frames with camera-to-world matrices (OpenGL axes), intrinsics and distortion.

Intrinsics and distortion are given for all frames or for each frame, which has precedence; pixel centres are at +0.5. nerfstudio's
`applied_transform` and `applied_scale` are undone: the world, and with it every mesh, is that of the reconstruction that nerfstudio was
given (COLMAP's, for example), in which users have their other data. The frames that `test_filenames` and `val_filenames` name are held
out.
https://docs.nerf.studio/quickstart/data_conventions.html
"""

import json
import logging
import math
from pathlib import Path, PureWindowsPath

import numpy as np

from confs.schema import DatasetConfig
from process_data.capture import Capture, View, assemble, checked_intrinsics, checked_pose, masks_complete
from process_data.files import find_image, find_mask
from process_data.lens import Lens
from process_data.points import read_ply_points
from utils.errors import UserError, raise_all
from utils.files import read_file
from utils.image import image_size
from utils.rays import Scene

LOG = logging.getLogger("neus")
FLIP = np.diag([1.0, -1.0, -1.0])  # OpenGL camera axes (y up, view direction -z) to OpenCV's
PINHOLES, BROWNS = ("SIMPLE_PINHOLE", "PINHOLE"), ("SIMPLE_RADIAL", "RADIAL", "OPENCV", "PERSPECTIVE")


def read_json(path: Path) -> dict:
    """A JSON object with a list `frames` of objects. Raises UserError."""
    try:
        data = json.loads(read_file(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, a number of 5000 digits
        raise UserError(f"{path}: not readable JSON, perhaps truncated ({str(error)[:80]}); export it again") from None
    frames = data.get("frames") if isinstance(data, dict) else None
    if not isinstance(frames, list) or not frames or not all(isinstance(f, dict) for f in frames):
        raise UserError(f'{path}: expected an object with a non-empty list "frames" of objects; export it again')
    return data


def number(record: dict, key: str, where: str) -> float | None:
    """The finite number under the key, None when absent. Raises UserError."""
    value = record.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e12:
        raise UserError(f"{where}: {key} is {str(value)[:40]!r}, expected a finite number; check the export")
    return float(value)


def _lens(record: dict, where: str) -> Lens:
    model = record.get("camera_model", "OPENCV")
    k = {key: number(record, key, where) or 0.0 for key in ("k1", "k2", "k3", "k4", "p1", "p2")}
    if model == "OPENCV_FISHEYE" or record.get("is_fisheye") is True:
        return Lens("fisheye", (k["k1"], k["k2"], k["k3"], k["k4"]))
    if model in PINHOLES:
        return Lens()
    if model not in BROWNS:
        raise UserError(
            f"{where}: camera_model {str(model)[:40]!r} is not supported; expected {', '.join((*PINHOLES, *BROWNS, 'OPENCV_FISHEYE'))}"
        )
    if k["k4"]:
        raise UserError(f"{where}: k4 = {k['k4']:g} is ambiguous with camera_model {model}; expected OPENCV_FISHEYE, or k4 = 0")
    return Lens("brown", (k["k1"], k["k2"], k["p1"], k["p2"], k["k3"]))


def camera_of(record: dict, image: Path, where: str) -> tuple[np.ndarray, tuple[int, int], Lens]:
    """(K [3, 3], (width, height), lens) of a frame merged with the values for all frames. Raises UserError."""
    width, height = (number(record, key, where) for key in ("w", "h"))
    size = (round(width), round(height)) if width and height else image_size(image)
    fx, fy = number(record, "fl_x", where), number(record, "fl_y", where)
    for axis, angle in enumerate(number(record, key, where) for key in ("camera_angle_x", "camera_angle_y")):
        if angle is not None and not 0 < angle < math.pi:
            raise UserError(f"{where}: camera_angle_{'xy'[axis]} is {angle:g}, expected radians between 0 and pi; check the export")
        from_angle = None if angle is None else size[axis] / 2 / math.tan(angle / 2)
        fx, fy = (fx or from_angle, fy) if axis == 0 else (fx, fy or (from_angle if fx is None else None))
    fx, fy = fx or fy, fy or fx
    if fx is None or fy is None:
        raise UserError(f"{where}: no focal length; expected fl_x in pixels or camera_angle_x in radians")
    cx, cy = number(record, "cx", where), number(record, "cy", where)
    K = checked_intrinsics(fx, fy, size[0] / 2 if cx is None else cx, size[1] / 2 if cy is None else cy, size, where)
    return K, size, _lens(record, where)


def read_frames(path: Path, cfg: DatasetConfig, log: logging.Logger = LOG, mask_folders: tuple[str, ...] = ()) -> list[View]:
    """The views of one file, in its order; frames without an image file are omitted with a warning. Raises UserError."""
    data = read_json(path)
    top = {key: value for key, value in data.items() if key != "frames"}
    views, problems, missing, root = [], [], [], path.parent
    folders = [root / f for f in mask_folders if (root / f).is_dir()]
    for i, frame in enumerate(data["frames"]):
        where = f"{path}: frame {i}"
        name = frame.get("file_path")
        if not isinstance(name, str) or not name:
            problems.append(f"{where} has no file_path; check the export")
            continue
        image = find_image(root, name)
        if image is None:
            missing.append(name)
            continue
        try:
            K, size, lens = camera_of({**top, **frame}, image, where)
            c2w = checked_pose(frame.get("transform_matrix"), f"{where}: transform_matrix")
        except UserError as error:
            problems.append(str(error))
            continue
        views.append(
            View(
                _shown(image, root),
                image,
                K,
                size,
                np.concatenate([c2w[:, :3] @ FLIP, c2w[:, 3:]], 1),
                lens,
                _mask(frame, root, folders, image, cfg),
            )
        )
    raise_all(problems)
    if not views:
        raise UserError(f"{path}: none of its {len(missing)} images exists (first: {missing[0][:200]}); put them into its folder")
    if missing:
        log.warning(
            "%s: %d of %d images are missing (first: %s); they are left out", path, len(missing), len(data["frames"]), missing[0][:200]
        )
    return views


def _shown(image: Path, root: Path) -> str:
    """The name of an image relative to the scene folder; of images elsewhere, the file name."""
    try:
        return image.relative_to(root).as_posix()
    except ValueError:
        return image.name


def _mask(frame: dict, root: Path, folders: list[Path], image: Path, cfg: DatasetConfig) -> Path | None:
    if not cfg.masks:
        return None
    named = frame.get("mask_path")
    if isinstance(named, str) and named:
        return find_image(root, named)
    shown = Path(_shown(image, root))
    return find_mask(folders, str(Path(*shown.parts[1:]) if len(shown.parts) > 1 else shown))


def _is_file(base: Path, name: str) -> bool:
    try:
        return (base / name).is_file()
    except (OSError, ValueError):  # NUL in the name, or a name that is too long
        return False


def _undo_applied(data: dict, path: Path) -> np.ndarray | None:
    """Inverse [4, 4] of nerfstudio's applied_transform and applied_scale, None without them. Raises UserError."""
    if data.get("applied_transform") is None and data.get("applied_scale") is None:
        return None
    scale = number(data, "applied_scale", str(path)) or 1.0
    matrix = np.eye(4)
    if data.get("applied_transform") is not None:
        matrix[:3] = checked_pose(data["applied_transform"], f"{path}: applied_transform")
    matrix[:3] *= scale
    return np.linalg.inv(matrix)


def _named(data: dict, key: str, path: Path) -> set[Path] | None:
    """The image files of a list of names, None without such a list. Raises UserError."""
    names = data.get(key)
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: {key}: expected a list of file names; export it again")
    return {found for found in (find_image(path.parent, name) for name in names) if found}


def split_by_names(data: dict, views: list[View], path: Path, log: logging.Logger) -> tuple[list[View], tuple[int, ...] | None]:
    """(the views of the splits, indices of those held out) by nerfstudio's lists of names; (views, None) without lists.

    Held out are the test and val files that are not train files too. Without `train_filenames` all others are for training; with it alone,
    the others are held out. Views in none of the lists are left out, with a warning. Raises UserError.
    """
    train, val, test = (_named(data, f"{split}_filenames", path) for split in ("train", "val", "test"))
    if train is None and val is None and test is None:
        return views, None
    everything = {view.image for view in views}
    held = (val or set()) | (test or set()) if val is not None or test is not None else everything
    train = everything - held if train is None else train
    kept = [view for view in views if view.image in train or view.image in held]
    if len(kept) < len(views):
        log.warning("%s: %d of %d frames are in no split; they are left out", path, len(views) - len(kept), len(views))
    chosen = tuple(i for i, view in enumerate(kept) if view.image not in train)
    log.info("%s: %d views to train on, %d held out by its lists", path, len(kept) - len(chosen), len(chosen))
    return kept, chosen


def _points(data: dict, path: Path, log: logging.Logger) -> np.ndarray | None:
    """Points [P, 3] of `ply_file_path`, in the frame of the transforms; None without such a file, with a warning when it is unreadable."""
    name = data.get("ply_file_path")
    if not isinstance(name, str):
        return None
    name = name if _is_file(path.parent, name) else PureWindowsPath(name).as_posix()
    if not _is_file(path.parent, name):
        return None
    try:
        return read_ply_points(path.parent / name)
    except UserError as error:
        log.warning("%s; continuing without points", error)
        return None


def _file(root: Path) -> Path:
    return root if root.suffix == ".json" else root / "transforms.json"


def transforms_capture(cfg: DatasetConfig, log: logging.Logger = LOG) -> Capture:
    """The views of `cfg.root_dir`, a folder with transforms.json or the file itself. Raises UserError that lists all problems."""
    path = _file(Path(cfg.root_dir))
    if not path.is_file():
        raise UserError(f"{path}: no such file; set dataset.root_dir to the folder that holds transforms.json")
    data = read_json(path)
    views = read_frames(path, cfg, log, ("masks", "mask"))
    views, test = split_by_names(data, views, path, log)
    masks_complete(views, path.parent, "masks")
    points, undo = _points(data, path, log), _undo_applied(data, path)
    if undo is not None:
        scale = np.cbrt(np.linalg.det(undo[:3, :3]))
        views = [_moved(view, undo, scale) for view in views]
        points = None if points is None else points @ undo[:3, :3].T + undo[:3, 3]
    return Capture(path.parent, views, points, test, auto_up="given" if undo is None else "estimated")  # moved: from structure from motion


def read_transforms(cfg: DatasetConfig, log: logging.Logger = LOG) -> Scene:
    """Read `cfg.root_dir`, a folder with transforms.json or the file itself. Raises UserError that lists all problems."""
    return assemble(transforms_capture(cfg, log), cfg, log)


def _moved(view: View, change: np.ndarray, scale: float) -> View:
    pose = np.concatenate([change[:3, :3] @ view.c2w[:, :3] / scale, (change[:3, :3] @ view.c2w[:, 3] + change[:3, 3])[:, None]], 1)
    return View(view.name, view.image, view.K, view.size, pose, view.lens, view.mask)
