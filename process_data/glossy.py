"""GlossySynthetic as NeRO publishes it (Liu et al., 2023): K.png, K-camera.pkl (pose, intrinsics) and K-depth.png for each view K.

The pose is world to camera [3, 4] with OpenCV axes; pixel centres are at +0.5. Depth has 16 bits over 15 units; values of 14.5 units and
more are background, which gives the mask of images without alpha. Pickles are restricted to arrays and numbers; no code in them is run.
A `synthetic_split_128.pkl` (held-out views, training views) in the folder or its parent is the split; otherwise every
dataset.hold_every-th view is held out (NeRO's split of one view: dataset.hold_every=1000). For GlossyReal see process_data/colmap.py.
"""

import io
import logging
import pickle
import re
from pathlib import Path

import cv2
import numpy as np

from confs.schema import DatasetConfig
from process_data.capture import Capture, View, assemble, checked_intrinsics, checked_pose
from process_data.files import find_image
from utils.errors import UserError, raise_all
from utils.files import read_file
from utils.image import image_size, read_raster
from utils.rays import Scene

LOG = logging.getLogger("neus")
SPLIT = "synthetic_split_128.pkl"
FARTHEST, BEYOND = 15.0, 14.5  # depth of the value 65535; depth from which on pixels are background
MOST = 1 << 20  # bytes of a pickle; a camera takes some hundred
TYPES = ("f4", "f8", "i2", "i4", "i8", "u1", "u2", "u4", "u8")


class _Type:
    """Replacement for numpy.dtype in pickles, restricted to plain numbers."""

    def __init__(self, name: str, *rest):
        if name not in TYPES:
            raise pickle.UnpicklingError(f"it contains numbers of type {str(name)[:20]}")
        self.name, self.order = name, "<"

    def __setstate__(self, state) -> None:
        if state[1] not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError("it contains a damaged type")
        self.order = state[1]

    def numbers(self, data: bytes) -> np.ndarray:
        return np.frombuffer(bytes(data), np.dtype(self.order + self.name)).astype(np.dtype(self.name))


class _Array:
    """Replacement for numpy.ndarray in pickles; `value` is set with its state."""

    value: np.ndarray

    @classmethod
    def of(cls, data, kind: _Type, shape, order: str) -> "_Array":
        array = cls()
        array.__setstate__((1, shape, kind, order == "F", data))
        return array

    def __setstate__(self, state) -> None:
        _, shape, kind, by_columns, data = state
        self.value = kind.numbers(data).reshape(shape, order="F" if by_columns else "C")


ALLOWED = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): lambda text, _: text.encode("latin1"),  # bytes in old protocols
    **{(f"numpy.{core}.multiarray", "_reconstruct"): lambda *_: _Array() for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): lambda *state: _Array.of(*state) for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): lambda kind, data: kind.numbers(data)[0] for core in ("core", "_core")},
}


class _Arrays(pickle.Unpickler):
    """Unpickler without numpy's own types: their behaviour on a damaged state is undefined."""

    def find_class(self, module: str, name: str):
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it contains {module[:40]}.{name[:40]}")
        return ALLOWED[module, name]


def _plain(value, top: bool = True):
    """Arrays and numbers, or a list of these and of lists of them; deeper nesting, whose traversal could be unbounded, is refused."""
    if isinstance(value, _Array):
        return value.value
    if not isinstance(value, (list, tuple)):
        return value
    if (top and len(value) > 16) or (not top and any(isinstance(v, (list, tuple)) for v in value)):
        raise pickle.UnpicklingError("lists within lists")
    return [_plain(v, top=False) for v in value]


def read_pickle(path: Path):
    """Arrays, numbers, lists and tuples of a pickle; other contents are refused, without being executed. Raises UserError."""
    try:
        data = read_file(path)
        if len(data) > MOST:
            raise UserError(f"{path}: {len(data)} bytes, expected a few hundred; replace it with a camera of GlossySynthetic")
        return _plain(_Arrays(io.BytesIO(data)).load())
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # noqa: BLE001 - damaged pickles raise many types
        raise UserError(f"{path}: not a pickle of arrays and numbers ({str(error)[:80]}); copy it again") from None


def view_ids(root: Path) -> list[int]:
    """The numbers K of all K-camera.pkl, ascending."""
    return sorted(int(m.group(1)) for p in root.glob("*-camera.pkl") if (m := re.fullmatch(r"(\d{1,9})-camera\.pkl", p.name)))


def read_camera(root: Path, k: int) -> tuple[np.ndarray, np.ndarray, Path]:
    """(K [3, 3], camera to world [3, 4], image) of view k. Raises UserError."""
    path, image = root / f"{k}-camera.pkl", find_image(root, str(k))
    if image is None:
        raise UserError(f"{path}: its image {k}.png is missing; copy the folder again")
    try:
        pose, K = (np.asarray(part, np.float64) for part in read_pickle(path))
        shapes = pose.shape == (3, 4) and K.shape == (3, 3)
    except (TypeError, ValueError):
        shapes = False
    if not shapes:
        raise UserError(f"{path}: expected a pose [3, 4] and intrinsics [3, 3]; copy it again")
    size = image_size(image)
    w2c = checked_pose(pose, f"{path}: pose")
    K = checked_intrinsics(K[0, 0], K[1, 1], K[0, 2], K[1, 2], size, str(path))
    return K, np.concatenate([w2c[:, :3].T, -w2c[:, :3].T @ w2c[:, 3:]], 1), image


def read_depth(path: Path) -> np.ndarray:
    """Depth along the optical axis [H, W], inf in the background. Raises UserError."""
    image_size(path)
    raster = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if raster is None or raster.dtype != np.uint16 or raster.ndim != 2:
        raise UserError(f"{path}: expected a grey PNG of 16 bits; copy it again")
    depth = raster.astype(np.float32) / 65535 * FARTHEST
    return np.where(depth < BEYOND, depth, np.inf)


def depth_mask(path: Path) -> np.ndarray:
    """[H, W, 1]: 255 where the depth is finite. Raises UserError."""
    return (np.isfinite(read_depth(path))[..., None] * 255).astype(np.uint8)


def _held_out(root: Path, ids: list[int], log: logging.Logger) -> tuple[int, ...] | None:
    """Indices of the held-out views of the split file; None without one. Raises UserError."""
    path = next((folder / SPLIT for folder in (root, root.parent) if (folder / SPLIT).is_file()), None)
    if path is None:
        return None
    try:
        test = {int(i) for i in read_pickle(path)[0]}
    except (TypeError, ValueError, IndexError, KeyError):
        raise UserError(f"{path}: expected lists of held-out and training views; copy it again") from None
    held = tuple(i for i, k in enumerate(ids) if k in test)
    log.info("%s: %d of %d views held out", path, len(held), len(ids))
    return held


def read_glossy(cfg: DatasetConfig, log: logging.Logger = LOG) -> Scene:
    """Read the folder `cfg.root_dir`. Raises UserError that lists all problems."""
    root = Path(cfg.root_dir)
    ids, views, problems = view_ids(root), [], []
    if not ids:
        raise UserError(f"{root}: no 0-camera.pkl; set dataset.root_dir to a scene of GlossySynthetic")
    for k in ids:
        try:
            K, c2w, image = read_camera(root, k)
            depth = root / f"{k}-depth.png"
            mask = depth if cfg.masks and depth.is_file() and read_raster(image).shape[2] < 4 else None
            views.append(View(image.name, image, K, image_size(image), c2w, mask=mask))
        except UserError as error:
            problems.append(str(error))
    raise_all(problems)
    return assemble(Capture(root, views, test=_held_out(root, ids, log), read_mask=depth_mask), cfg, log)
