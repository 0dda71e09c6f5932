"""The DTU layout of IDR and NeuS: image/, mask/, cameras_sphere.npz.

`world_mat_i` (world -> pixel, K [R | t], up to any factor) belongs to the i-th image in natural order; `scale_mat_0` maps
the unit sphere to the world. Pixel centres are at integers, camera axes are OpenCV's.
"""

import logging
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from confs.schema import DatasetConfig
from process_data.normalize import new_size, resize_intrinsics, similarity_parts, split_views, to_sphere
from process_data.region import Views, choose_region
from utils.errors import UserError, raise_all
from utils.image import SUFFIXES, as_rgb, image_size, read_raster, resize
from utils.memory import check_fits
from utils.rays import Cameras, Scene

LOG = logging.getLogger("neus")
WORKERS = max(1, min(8, os.cpu_count() or 1))  # photographs decoded at once


# ---- files ----


def _natural(path: Path) -> list:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def _images_in(folder: Path) -> list[Path]:
    """Images of a folder in natural order: 2.png before 10.png."""
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")), key=_natural)


def _number(path: Path) -> int | None:
    found = re.findall(r"\d+", path.stem)
    return int(found[-1]) if found else None


def _missing_mask(images: list[Path], masks: list[Path]) -> str:
    """Name of the first mask that an image lacks, spelt like the other masks; files are compared by their numbers."""
    have = {_number(m) for m in masks}
    lacking = next((p for p in images if _number(p) not in have), images[len(masks)])
    number = _number(lacking)
    return f"{number:0{len(masks[0].stem)}d}{masks[0].suffix}" if number is not None and masks[0].stem.isdigit() else f"{lacking.stem}.png"


def find_files(root: Path, cfg: DatasetConfig, problems: list[str], log: logging.Logger) -> tuple[list[Path], list[Path]]:
    """(images, masks) in order, masks empty when there are none or they do not match; what is wrong goes to `problems`."""
    images = _images_in(root / "image")
    masks = _images_in(root / "mask") if cfg.masks else []
    if not (root / "image").is_dir():
        problems.append(f"{root}: no folder image/; put the photographs into {root / 'image'}")
    elif not images:
        problems.append(f"{root / 'image'}: no images ({', '.join(SUFFIXES)}); put the photographs there")
    elif masks and len(masks) != len(images):
        few = len(masks) < len(images)
        what = f"mask/{_missing_mask(images, masks)} is missing); add it" if few else "more masks than images); remove the others"
        problems.append(f"{root}: {len(images)} images but {len(masks)} masks ({what}, or set dataset.masks=false")
        masks = []
    elif masks and [_number(p) for p in images] != [_number(p) for p in masks]:
        first = images[0].name, masks[0].name
        log.warning("%s: images and masks are numbered differently; they are paired in sorted order (%s with %s)", root, *first)
    return images, masks


# ---- cameras ----


def _camera_file(root: Path, name: str | None, key: str) -> Path:
    names = [name] if name else ["cameras_sphere.npz", "cameras.npz"]
    for candidate in names:
        if (root / candidate).is_file():
            return root / candidate
    raise UserError(f"{root}: no {' or '.join(names)}; add the camera file, or name it with dataset.{key}")


def _matrix(path: Path, archive, key: str, shapes: list[tuple[int, int]]) -> np.ndarray:
    """One float64 matrix of the archive. Raises UserError."""
    try:
        value = np.asarray(archive[key])
    except Exception as error:  # noqa: BLE001 (zip, zlib and npy each have their own; an object array is refused here too)
        raise UserError(f"{path}: {key} cannot be read ({error}); write the file again with np.savez and plain float arrays") from None
    if value.shape not in shapes or value.dtype.kind not in "fiu":
        got = f"shape {list(value.shape)} and type {value.dtype}"
        raise UserError(f"{path}: {key} has {got}, expected numbers of shape {list(shapes[0])}; check the export")
    if not np.isfinite(value).all():
        raise UserError(f"{path}: {key} holds NaN or infinity, expected finite numbers; check the calibration")
    return value.astype(np.float64)


def read_matrices(path: Path, prefix: str, wanted: list[int], problems: list[str]) -> tuple[dict[int, np.ndarray], set[int]]:
    """({i: matrix} of the wanted numbers, all numbers the file has) for keys `<prefix>_<i>`; pickles are never opened. Raises UserError."""
    try:
        archive = np.load(path, allow_pickle=False)
    except Exception as error:  # noqa: BLE001
        raise UserError(f"{path}: not a readable npz file, truncated perhaps ({error}); copy it again") from None
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise UserError(f"{path}: not an npz file but a single array, expected keys world_mat_0, scale_mat_0, ...; write it with np.savez")
    with archive:
        there = {int(m[1]) for m in (re.fullmatch(rf"{prefix}_(\d+)", key) for key in archive.files) if m}
        missing = [i for i in wanted if i not in there]
        if missing:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            span = f"{prefix}_{wanted[0]}" + (f" to {prefix}_{wanted[-1]}" if len(wanted) > 1 else "")
            problems.append(f"{path}: no {prefix}_{missing[0]}{more}, expected {span}; check the export")
        found, shapes = {}, [(4, 4)] if prefix == "scale_mat" else [(4, 4), (3, 4)]
        for i in sorted(there.intersection(wanted)):
            try:
                found[i] = _matrix(path, archive, f"{prefix}_{i}", shapes)
            except UserError as error:
                problems.append(str(error))
    return found, there


def decompose(world_mat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """World -> pixel [3 or 4, 4], of any nonzero factor, into K [3, 3] (K[2, 2] = 1, positive diagonal) and camera-to-world [3, 4].

    RQ decomposition of the left 3x3 block (Hartley & Zisserman, 6.2.4). The factor's sign is chosen so that the rotation is right-handed.
    Raises UserError when the block is singular.
    """
    P = world_mat[:3] / max(np.abs(world_mat[:3, :3]).max(), 1e-300)
    rows = np.linalg.norm(P[:, :3], axis=1, keepdims=True)
    if rows.min() < 1e-30 or abs(np.linalg.det(P[:, :3] / rows)) < 1e-7:
        raise UserError("is singular, expected an invertible K R; check the calibration")
    P = P * np.sign(np.linalg.det(P[:, :3] / rows))
    q, r = np.linalg.qr(P[::-1, :3].T)
    K, rotation = r.T[::-1, ::-1], q.T[::-1]
    sign = np.sign(np.diag(K))
    K, rotation = K * sign, rotation * sign[:, None]
    centre = -np.linalg.solve(P[:, :3], P[:, 3])
    return K / K[2, 2], np.concatenate([rotation.T, centre[:, None]], axis=1)


def _pose(path: Path, i: int, world_mat: np.ndarray, to_world: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    try:
        K, c2w = decompose(world_mat)
    except UserError as error:
        raise UserError(f"{path}: world_mat_{i} {error}") from None
    scale, _, middle = similarity_parts(to_world)
    to_middle = middle - c2w[:, 3]
    if np.linalg.norm(to_middle) > scale and to_middle @ c2w[:, 2] <= 0:
        raise UserError(
            f"{path}: world_mat_{i} is mirrored or looks away from the object (the sphere of scale_mat_0 lies behind it); "
            "expected x right, y down, z forward: check the axes of the export"
        )
    return K, c2w


def read_to_world(path: Path, n: int, problems: list[str], log: logging.Logger) -> np.ndarray | None:
    """scale_mat_0 [4, 4], checked to be a similarity; None when that failed. Raises UserError."""
    mats, there = read_matrices(path, "scale_mat", [0], problems)
    if 0 not in mats:
        return None
    try:
        similarity_parts(mats[0])
    except UserError as error:
        problems.append(f"{path}: scale_mat_0: {error}; give the sphere that holds the object")
        return None
    others, _ = read_matrices(path, "scale_mat", sorted(i for i in there if 0 < i < n), [])
    odd = [i for i, mat in others.items() if not np.allclose(mat, mats[0], rtol=1e-4, atol=1e-4 * np.abs(mats[0]).max())]
    if odd:
        log.warning("%s: scale_mat_%d differs from scale_mat_0 (%d of them do); scale_mat_0 is used for all views", path, odd[0], len(odd))
    return mats[0]


def read_cameras(root: Path, cfg: DatasetConfig, n: int, problems: list[str], log: logging.Logger):
    """(K [n, 3, 3], camera-to-world [n, 3, 4], to_world [4, 4]) in float64, or None with the reasons in `problems`."""
    before = len(problems)
    try:
        path = _camera_file(root, cfg.cameras, "cameras")
        object_path = _camera_file(root, cfg.object_cameras, "object_cameras") if cfg.object_cameras else path
        mats, there = read_matrices(path, "world_mat", list(range(n)), problems)
        to_world = read_to_world(object_path, n, problems, log)
    except UserError as error:
        problems.append(str(error))
        return None
    if n and len(there) > n:
        log.warning("%s: %d cameras for %d images; those beyond the last image are ignored", path, len(there), n)
    poses = []
    for i, mat in mats.items() if to_world is not None else ():
        try:
            poses.append(_pose(path, i, mat, to_world))
        except UserError as error:
            problems.append(str(error))
    if len(problems) > before or not poses:
        return None
    return np.stack([K for K, _ in poses]), np.stack([c2w for _, c2w in poses]), to_world


# ---- pixels ----


def _as_mask(raster: np.ndarray) -> np.ndarray:
    """[H, W, C] -> [H, W, 1]: alpha where it says anything, else the brightest colour."""
    if raster.shape[2] == 4 and raster[..., 3].min() < 255:
        return np.ascontiguousarray(raster[..., 3:])
    return raster[..., :3].max(-1, keepdims=True)


def read_stack(files: list[Path], cfg: DatasetConfig, convert, problems: list[str], size: tuple[int, int] | None = None):
    """(resized images, [h, w, C] each; original (width, height)). All must have `size` or else the first one's; problems are collected."""

    def one(path: Path):
        try:
            raster = convert(read_raster(path))
        except UserError as error:
            return None, None, str(error)
        shape = raster.shape[1], raster.shape[0]
        return resize(raster, *new_size(*shape, cfg.img_wh, cfg.img_downscale)), shape, None

    with ThreadPoolExecutor(WORKERS) as pool:
        results = list(pool.map(one, files))
    problems.extend(p for _, _, p in results if p)
    size = size or next((shape for _, shape, _ in results if shape), None)
    for path, (_, shape, _) in zip(files, results):
        if shape and shape != size:
            problems.append(f"{path}: {shape[0]}x{shape[1]} pixels, expected {size[0]}x{size[1]} as the other images; resize or remove it")
    return [image for image, _, _ in results], size


def _masks(images: list[np.ndarray], masks: list[np.ndarray], cfg: DatasetConfig, log: logging.Logger) -> tuple[np.ndarray | None, bool]:
    """(masks [N, H, W] or None, whether they come from the alpha of the images)."""
    if masks:
        stack = np.stack(masks)[..., 0]
        if stack.max() == 1:
            log.warning("masks hold 0 and 1; 1 is taken as the object (expected 255)")
            stack = stack * 255
        return stack, False
    if cfg.masks and all(image.shape[2] == 4 for image in images):
        stack = np.stack([image[..., 3] for image in images])
        return (stack, True) if stack.min() < 255 else (None, False)
    return None, False


def _check_memory(root: Path, files: list[Path], cfg: DatasetConfig, log: logging.Logger) -> None:
    try:
        first = image_size(files[0]) if files else None
    except UserError:
        return  # whoever reads it says what is wrong
    if first:
        log.info("%s", check_fits(len(files), *new_size(*first, cfg.img_wh, cfg.img_downscale), 4, first, WORKERS, str(root)))


def read_dtu(cfg: DatasetConfig, log: logging.Logger = LOG) -> Scene:
    """Read the folder `cfg.root_dir`. Cameras are float32 in the unit sphere's frame. Raises UserError that lists all that is wrong."""
    root = Path(cfg.root_dir)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; set dataset.root_dir to a folder that holds image/ and cameras_sphere.npz")
    problems: list[str] = []
    files, mask_files = find_files(root, cfg, problems, log)
    cameras = read_cameras(root, cfg, len(files), problems, log)
    _check_memory(root, files, cfg, log)
    images, size = read_stack(files, cfg, lambda raster: raster, problems)
    masks, _ = read_stack(mask_files, cfg, _as_mask, problems, size)
    raise_all(problems)

    K, c2w, to_world = cameras
    stack, from_alpha = _masks(images, masks, cfg, log)
    height, width = images[0].shape[:2]
    rgb = np.empty((len(images), height, width, 3), np.uint8)
    for i in range(len(images)):
        rgb[i], images[i] = as_rgb(images[i]), None  # freed one by one: the photographs lie in memory once
    K = resize_intrinsics(K, width / size[0], height / size[1])
    train, test = split_views(len(files), cfg.hold_every)
    to_world, line = choose_region(Views(K, c2w, (width, height), None, stack, train), cfg, to_world)
    log.info("%s", line)
    return Scene(
        name=root.resolve().name,
        images=torch.from_numpy(rgb),
        masks=None if stack is None else torch.from_numpy(np.ascontiguousarray(stack)),
        cameras=Cameras(torch.from_numpy(K).float(), torch.from_numpy(to_sphere(c2w, to_world)).float(), height, width),
        to_world=torch.from_numpy(to_world),
        train=train,
        test=test,
        names=tuple(f.name for f in files),
        test_background="image" if stack is None or not cfg.apply_mask else "white" if from_alpha else "black",
    )
