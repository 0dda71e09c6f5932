"""The DTU layout of IDR and NeuS: image/, mask/, cameras_sphere.npz.

`world_mat_i` (world to pixel, K [R | t], up to a factor) belongs to image i in natural order; `scale_mat_0` maps the unit sphere
to the world. Pixel centres are at integers; camera axes are OpenCV's.
"""

import itertools
import logging
import re
from pathlib import Path

import numpy as np

from confs.schema import DatasetConfig
from process_data.capture import Capture, View, assemble
from process_data.files import image_files
from process_data.normalize import similarity_parts
from utils.errors import UserError, raise_all
from utils.image import SUFFIXES, check_complete, image_size
from utils.rays import Scene

LOG = logging.getLogger("neus")


# ---- files ----


def _number(path: Path) -> int | None:
    """The last number in the file's stem."""
    found = re.findall(r"[0-9]+", path.stem)
    return int(found[-1]) if found else None


def _missing_mask(images: list[Path], masks: list[Path]) -> str:
    """Name of the first missing mask, in the format of the other masks; files are matched by number."""
    numbers = {_number(m) for m in masks}
    image = next((p for p in images if _number(p) not in numbers), images[len(masks)])
    number, stem = _number(image), masks[0].stem
    return f"{number:0{len(stem)}d}{masks[0].suffix}" if number is not None and stem.isdecimal() else f"{image.stem}.png"


def find_files(root: Path, cfg: DatasetConfig, problems: list[str], log: logging.Logger) -> tuple[list[Path], list[Path]]:
    """(images, masks) in natural order; masks are empty when there are none or their number differs. Errors go to `problems`."""
    images = image_files(root / "image")
    masks = image_files(root / "mask") if cfg.masks else []
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
        raise UserError(f"{path}: {key} contains NaN or infinity, expected finite numbers; check the calibration")
    return value.astype(np.float64)


def read_matrices(path: Path, prefix: str, wanted: list[int], problems: list[str]) -> tuple[dict[int, np.ndarray], set[int]]:
    """({i: matrix} of the wanted numbers, all numbers in the file) for keys `<prefix>_<i>`. Raises UserError.

    Arrays of the wrong shape or type are added to `problems`. Pickled arrays are refused.
    """
    try:
        archive = np.load(path, allow_pickle=False)
    except Exception as error:  # noqa: BLE001
        raise UserError(f"{path}: not a readable npz file, perhaps truncated ({error}); copy it again") from None
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise UserError(f"{path}: not an npz file but a single array, expected keys world_mat_0, scale_mat_0, ...; write it with np.savez")
    with archive:
        numbers = {int(m[1]) for m in (re.fullmatch(rf"{prefix}_(\d+)", key) for key in archive.files) if m}
        missing = [i for i in wanted if i not in numbers]
        if missing:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            span = f"{prefix}_{wanted[0]}" + (f" to {prefix}_{wanted[-1]}" if len(wanted) > 1 else "")
            problems.append(f"{path}: no {prefix}_{missing[0]}{more}, expected {span}; check the export")
        found, shapes = {}, [(4, 4)] if prefix == "scale_mat" else [(4, 4), (3, 4)]
        for i in sorted(numbers.intersection(wanted)):
            try:
                found[i] = _matrix(path, archive, f"{prefix}_{i}", shapes)
            except UserError as error:
                problems.append(str(error))
    return found, numbers


def decompose(world_mat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """World-to-pixel [3 or 4, 4], up to a nonzero factor, into K [3, 3] (K[2, 2] = 1, positive diagonal) and camera-to-world [3, 4].

    RQ decomposition of the left 3x3 block (Hartley and Zisserman, 6.2.4). The sign of the factor is the one with a right-handed rotation.
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
    """(K [3, 3], camera-to-world [3, 4]). Raises UserError when the sphere of to_world lies behind the camera."""
    try:
        K, c2w = decompose(world_mat)
    except UserError as error:
        raise UserError(f"{path}: world_mat_{i} {error}") from None
    scale, _, middle = similarity_parts(to_world)
    to_middle = middle - c2w[:, 3]
    if np.linalg.norm(to_middle) > scale and to_middle @ c2w[:, 2] <= 0:
        raise UserError(
            f"{path}: world_mat_{i} is mirrored or faces away from the object (the sphere of scale_mat_0 lies behind it); "
            "expected x right, y down, z forward: check the axes of the export"
        )
    return K, c2w


def read_to_world(path: Path, n: int, problems: list[str], log: logging.Logger) -> np.ndarray | None:
    """scale_mat_0 [4, 4], a similarity; None when it is missing or invalid, with the reason in `problems`. Raises UserError."""
    mats, numbers = read_matrices(path, "scale_mat", [0], problems)
    if 0 not in mats:
        return None
    try:
        similarity_parts(mats[0])
    except UserError as error:
        problems.append(f"{path}: scale_mat_0: {error}; expected the sphere around the object")
        return None
    others, _ = read_matrices(path, "scale_mat", sorted(i for i in numbers if 0 < i < n), [])
    odd = [i for i, mat in others.items() if not np.allclose(mat, mats[0], rtol=1e-4, atol=1e-4 * np.abs(mats[0]).max())]
    if odd:
        log.warning("%s: scale_mat_%d differs from scale_mat_0 (%d of them do); scale_mat_0 is used for all views", path, odd[0], len(odd))
    return mats[0]


def read_cameras(
    root: Path, cfg: DatasetConfig, n: int, problems: list[str], log: logging.Logger
) -> tuple[list[tuple[np.ndarray, np.ndarray]], np.ndarray] | None:
    """([(K [3, 3], camera-to-world [3, 4])] of n images, to_world [4, 4]) in float64; None with the reasons in `problems`."""
    before = len(problems)
    try:
        path = _camera_file(root, cfg.cameras, "cameras")
        object_path = _camera_file(root, cfg.object_cameras, "object_cameras") if cfg.object_cameras else path
        mats, numbers = read_matrices(path, "world_mat", list(range(n)), problems)
        to_world = read_to_world(object_path, n, problems, log)
    except UserError as error:
        problems.append(str(error))
        return None
    if n and len(numbers) > n:
        log.warning("%s: %d cameras for %d images; those beyond the last image are ignored", path, len(numbers), n)
    poses = []
    if to_world is None:
        return None
    for i, mat in mats.items():
        try:
            poses.append(_pose(path, i, mat, to_world))
        except UserError as error:
            problems.append(str(error))
    return (poses, to_world) if len(problems) == before else None


# ---- scene ----


def _sizes(images: list[Path], problems: list[str]) -> list[tuple[int, int]]:
    """(width, height) of all images, which must be equal: the layout does not store the size its cameras are calibrated for."""
    sizes = []
    for path in images:
        try:
            sizes.append(image_size(path))
        except UserError as error:
            problems.append(str(error))
            continue
        if sizes[-1] != sizes[0]:
            got, want = (f"{w}x{h}" for w, h in (sizes[-1], sizes[0]))
            problems.append(f"{path}: {got} pixels, expected {want} as the other images; resize or remove it")
    return sizes


def _truncated(files: list[Path]) -> list[str]:
    """Errors of truncated files."""
    problems = []
    for path in files:
        try:
            check_complete(path)
        except UserError as error:
            problems.append(str(error))
    return problems


def dtu_capture(cfg: DatasetConfig, log: logging.Logger = LOG) -> Capture:
    """The views and the region of interest of the folder `cfg.root_dir`. Raises UserError that lists all problems."""
    root = Path(cfg.root_dir)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; set dataset.root_dir to a folder that contains image/ and cameras_sphere.npz")
    problems: list[str] = []
    images, masks = find_files(root, cfg, problems, log)
    cameras = read_cameras(root, cfg, len(images), problems, log)
    sizes = _sizes(images, problems)
    if problems:  # otherwise truncation is detected when the files are decoded
        problems += [p for p in _truncated([*images, *masks]) if p not in problems]
    raise_all(problems)
    if cameras is None:
        raise UserError(f"{root}: no cameras; check the camera file")
    poses, to_world = cameras
    files = itertools.zip_longest(images, sizes, poses, masks)  # masks may be empty
    views = [View(image.name, image, K, size, c2w, mask=mask) for image, size, (K, c2w), mask in files]
    return Capture(root, views, given=to_world)


def read_dtu(cfg: DatasetConfig, log: logging.Logger = LOG) -> Scene:
    """Read the folder `cfg.root_dir`. Raises UserError that lists all problems."""
    return assemble(dtu_capture(cfg, log), cfg, log)
