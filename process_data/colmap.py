"""COLMAP: images/ and sparse/0/{cameras,images,points3D}.{bin,txt}, any number of cameras; masks/ optional.

The model lies in one of MODEL_FOLDERS; of several models (sparse/0, sparse/1, ...) the one with the most images is read. Photographs that
were reduced beforehand (images_2, images_4, images_8 of mip-NeRF 360) are read where dataset.img_downscale asks for their size, or where
there are no others.

Poses are world-to-camera quaternions (w, x, y, z) with OpenCV axes; pixel centres are at +0.5. Points with three observations or more
are kept. GlossyReal (NeRO, 2023) has this layout, and `object_point_cloud.ply`, whose bounding box is the region of interest; set
dataset.up to its up direction.
"""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np

from confs.schema import DatasetConfig
from process_data.capture import Capture, View, assemble, checked_intrinsics, masks_complete
from process_data.colmap_files import Camera, Image, good_points, point_tracks, read_cameras, read_images, read_points
from process_data.files import find_image, find_mask, reduced_by
from process_data.lens import Lens
from process_data.points import read_ply_points
from utils.errors import UserError, raise_all
from utils.rays import Scene

LOG = logging.getLogger("neus")
MODEL_FOLDERS = (
    "sparse/0", "sparse/1", "sparse", "colmap/sparse/0", "colmap/sparse", "dense/sparse", "dense/0/sparse", "sparse/geo",
    "distorted/sparse/0", ".",
)  # fmt: skip
IMAGE_FOLDERS = ("images", "image", "dense/images", "images_raw_1024", "images_raw", "input", ".")
OBJECT = "object_point_cloud.ply"  # GlossyReal (NeRO): points of the object, segmented by hand
MASK_FOLDERS = ("masks", "mask")
# model -> (kind of lens, number of focal lengths, indices of the parameters of Lens after the principal point)
LENSES = {
    "SIMPLE_PINHOLE": ("brown", 1, ()), "PINHOLE": ("brown", 2, ()), "SIMPLE_RADIAL": ("brown", 1, (0,)), "RADIAL": ("brown", 1, (0, 1)),
    "OPENCV": ("brown", 2, (0, 1, 2, 3)), "FULL_OPENCV": ("brown", 2, (0, 1, 2, 3, 4, 5, 6, 7)), "FOV": ("fov", 2, (0,)),
    "OPENCV_FISHEYE": ("fisheye", 2, (0, 1, 2, 3)), "SIMPLE_RADIAL_FISHEYE": ("fisheye", 1, (0,)), "RADIAL_FISHEYE": ("fisheye", 1, (0, 1)),
    "SIMPLE_FISHEYE": ("fisheye", 1, ()), "FISHEYE": ("fisheye", 2, ()),
}  # fmt: skip


def _file(folder: Path, name: str) -> Path | None:
    return next((folder / f"{name}.{s}" for s in ("bin", "txt") if (folder / f"{name}.{s}").is_file()), None)


def _is_model(folder: Path) -> bool:
    return all(_file(folder, name) for name in ("cameras", "images"))


def _n_images(folder: Path) -> int:
    """Number of images of a model; 0 when its file is damaged."""
    path = _file(folder, "images")
    try:
        return len(read_images(path)) if path else 0
    except UserError:
        return 0


def model_folder(root: Path, log: logging.Logger = LOG) -> Path | None:
    """The first of MODEL_FOLDERS with cameras and images, .bin or .txt; of its numbered siblings, the one with the most images.

    None when there is none.
    """
    folder = next((root / f for f in MODEL_FOLDERS if _is_model(root / f)), None)
    if folder is None or not folder.name.isdecimal():
        return folder
    models = sorted((f for f in folder.parent.iterdir() if f.name.isdecimal() and _is_model(f)), key=lambda f: int(f.name))
    if len(models) < 2:
        return folder
    counts = {f: _n_images(f) for f in models}
    best = max(models, key=lambda f: counts[f])
    log.info("%s: %d models; %s with %d images has the most and is read", folder.parent, len(models), best.name, counts[best])
    return best


def image_folders(root: Path, folder: Path) -> list[Path]:
    """Folders to look for photographs of a model in: beside the model first, as undistorted copies have the names of the originals."""
    base = next((p.parent for p in (folder, *folder.parents) if p.name == "sparse" and p.is_relative_to(root)), root)
    first = [base / "images", base / "input"] if base != root else []
    names = ("input", *IMAGE_FOLDERS) if base == root / "distorted" else IMAGE_FOLDERS
    return [f for f in (*first, *(root / name for name in names)) if f.is_dir()]


def camera_of(camera: Camera, where: str) -> tuple[np.ndarray, Lens]:
    """(K [3, 3], lens). `where` names the camera in errors. Raises UserError."""
    if camera.model not in LENSES:
        raise UserError(
            f"{where}: the camera model {camera.model!r} is not supported; undistort the photographs first (colmap image_undistorter)"
        )
    kind, focals, indices = LENSES[camera.model]
    p, rest = camera.params, camera.params[focals + 2 :]
    K = checked_intrinsics(p[0], p[focals - 1], p[focals], p[focals + 1], (camera.width, camera.height), where)
    return K, Lens(kind, tuple(rest[i] for i in indices))


def pose_of(image: Image, where: str) -> np.ndarray:
    """Camera to world [3, 4]. Raises UserError."""
    q, t = np.array(image.quaternion), np.array(image.shift)
    length = float(np.linalg.norm(q)) if np.isfinite(q).all() and np.abs(q).max() < 1e6 else 0.0
    if not (0.5 < length < 2 and np.isfinite(t).all() and np.abs(t).max() < 1e12):
        raise UserError(f"{where}: {image.name[:80]} has no valid pose; export the reconstruction again")
    w, x, y, z = q / length
    R = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    return np.concatenate([R.T, -R.T @ t[:, None]], 1)


def _views(root: Path, folder: Path, cfg: DatasetConfig, log: logging.Logger) -> tuple[list[View], dict[int, int], int]:
    """(the views whose images exist, with a warning for the others; {image id: view}; Capture.reduced). Raises UserError."""
    cameras_path, images_path = _file(folder, "cameras"), _file(folder, "images")
    if cameras_path is None or images_path is None:
        raise UserError(f"{folder}: expected cameras and images, .bin or .txt; export the reconstruction again")
    cameras, images = read_cameras(cameras_path), read_images(images_path)
    if not images:
        raise UserError(f"{images_path}: no registered images; the reconstruction failed: take more photographs that overlap")
    bases = image_folders(root, folder)
    reduced = reduced_by(root, cfg, any(find_image(base, images[0].name) for base in bases))
    if reduced > 1 and all(find_image(root / f"images_{reduced}", image.name) for image in images):
        log.info("%s: the photographs of images_%d", root, reduced)
        bases = [root / f"images_{reduced}"]
    else:
        reduced = 1
    masks = [root / f for f in MASK_FOLDERS if (root / f).is_dir()] if cfg.masks else []
    views: list[View] = []
    numbers: dict[int, int] = {}
    problems, missing, models = [], [], {}
    for image in images:
        path = next((p for p in (find_image(base, image.name) for base in bases) if p), None)
        if path is None:
            missing.append(image.name)
            continue
        try:
            if image.camera not in cameras:
                raise UserError(
                    f"{images_path}: {image.name[:80]} refers to camera {image.camera}, which is missing in {cameras_path.name}"
                )
            camera = cameras[image.camera]
            if image.camera not in models:
                models[image.camera] = camera_of(camera, f"{cameras_path}: camera {image.camera}")
            K, lens = models[image.camera]
            pose = pose_of(image, str(images_path))
        except UserError as error:
            if str(error) not in problems:
                problems.append(str(error))
            continue
        numbers[image.number] = len(views)
        views.append(View(image.name, path, K, (camera.width, camera.height), pose, lens, find_mask(masks, image.name)))
    raise_all(problems)
    if not views:
        raise UserError(
            f"{images_path}: none of its {len(missing)} images exists (first: {missing[0][:200]}); put them into {root / 'images'}"
        )
    if missing:
        log.warning("%s: %d of %d images are missing (first: %s); they are left out", root, len(missing), len(images), missing[0][:200])
    return views, numbers, reduced


def object_points(path: Path) -> np.ndarray:
    """Points [P, 3] on the object. Raises UserError."""
    points = read_ply_points(path)
    if len(points) < 10:
        raise UserError(f"{path}: {len(points)} points, expected 10 or more on the object; export it again, or remove the file")
    return points


def colmap_capture(cfg: DatasetConfig, log: logging.Logger = LOG) -> Capture:
    """The views and points of the folder `cfg.root_dir`. Raises UserError."""
    root = Path(cfg.root_dir)
    folder = model_folder(root, log)
    if folder is None:
        raise UserError(
            f"{root}: no sparse/0 with cameras.bin and images.bin (or .txt); run structure from motion: python run.py --photos {root}"
        )
    views, numbers, reduced = _views(root, folder, cfg, log)
    masks_complete(views, root, "masks")
    path = _file(folder, "points3D")
    good = good_points(read_points(path)) if path else []
    points, tracks = (np.array([p.xyz for p in good]), point_tracks(good, numbers)) if good else (None, None)
    if (root / OBJECT).is_file():
        points, tracks = object_points(root / OBJECT), None
    log.info("%s: %d views, %d points", folder, len(views), 0 if points is None else len(points))
    return Capture(root, views, points, auto_up="estimated", tracks=tracks, reduced=reduced)


def read_colmap(cfg: DatasetConfig, log: logging.Logger = LOG) -> Scene:
    """Read the folder `cfg.root_dir`. Raises UserError that lists all problems."""
    if (Path(cfg.root_dir) / OBJECT).is_file() and cfg.center == "auto" and cfg.region is None:
        cfg = replace(cfg, center="bbox")  # the bounding box of the object
    return assemble(colmap_capture(cfg, log), cfg, log)
