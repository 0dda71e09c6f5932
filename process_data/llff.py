"""LLFF: `poses_bounds.npy` [N, 17] for the N photographs of images/ in the order of their names (Mildenhall et al. 2019).

A row is a 3x5 matrix and the nearest and farthest depth, which are not used. The matrix is camera to world with the axes down, right,
backwards, and a column of height, width and focal length in pixels; the principal point is the image centre. Photographs that were
reduced beforehand (images_2, images_4, images_8) are read where dataset.img_downscale asks for their size, or where there are no others.
https://github.com/Fyusion/LLFF#using-your-own-poses-without-running-colmap
"""

import logging
from pathlib import Path

import numpy as np

from confs.schema import DatasetConfig
from process_data.capture import Capture, View, assemble, checked_intrinsics, checked_pose, masks_complete
from process_data.files import find_mask, image_files, reduced_by
from utils.errors import UserError, raise_all
from utils.files import check_regular
from utils.rays import Scene

LOG = logging.getLogger("neus")
FILE = "poses_bounds.npy"
MOST = 100_000  # photographs


def read_rows(path: Path) -> np.ndarray:
    """The rows [N, 17], float64. Raises UserError; a pickle is refused, and a size that the file does not have."""
    try:
        check_regular(path)
        rows = np.load(path, allow_pickle=False, mmap_mode="r")  # a false size in the header is an error before memory is taken
    except Exception as error:  # noqa: BLE001 - numpy's parser of headers raises many types
        raise UserError(f"{path}: not a readable array ({type(error).__name__}: {str(error)[:80]}); export it again") from None
    if (
        not isinstance(rows, np.ndarray)
        or rows.ndim != 2
        or rows.shape[1] != 17
        or not 0 < len(rows) <= MOST
        or rows.dtype.kind not in "fiu"
    ):
        got = f"shape {list(rows.shape)}" if isinstance(rows, np.ndarray) else "an archive"
        raise UserError(f"{path}: {got}, expected numbers of shape [N, 17], a row for each photograph; export it again")
    return np.array(rows, np.float64)


def _photographs(root: Path, n: int, cfg: DatasetConfig, log: logging.Logger) -> tuple[list[Path], int]:
    """(files in the order of the rows, Capture.reduced). Raises UserError unless there are n."""
    reduced = reduced_by(root, cfg, bool(image_files(root / "images")))
    folder = root / (f"images_{reduced}" if reduced > 1 else "images")
    files = sorted(image_files(folder))
    if len(files) != n:
        raise UserError(
            f"{folder}: {len(files)} photographs, expected {n}, a row of {FILE} for each; add those missing, or remove the others"
        )
    if reduced > 1:
        log.info("%s: the photographs of %s", root, folder.name)
    return files, reduced


def read_llff(cfg: DatasetConfig, log: logging.Logger = LOG) -> Scene:
    """Read the folder `cfg.root_dir`. Raises UserError that lists all problems."""
    root = Path(cfg.root_dir)
    rows = read_rows(root / FILE)
    files, reduced = _photographs(root, len(rows), cfg, log)
    folders = [root / f for f in ("masks", "mask") if (root / f).is_dir()] if cfg.masks else []
    views, problems = [], []
    for i, (row, image) in enumerate(zip(rows, files)):
        where, matrix = f"{root / FILE}: row {i}", row[:15].reshape(3, 5)
        try:
            if not (np.isfinite(matrix[:, 4]).all() and (np.abs(matrix[:, 4]) < 1e9).all()):
                raise UserError(
                    f"{where}: height, width and focal length {matrix[:, 4].tolist()}, expected finite numbers; check the export"
                )
            height, width, focal = matrix[:, 4]
            size = (round(width), round(height))
            K = checked_intrinsics(focal, focal, size[0] / 2, size[1] / 2, size, where)
            pose = checked_pose(np.stack([matrix[:, 1], matrix[:, 0], -matrix[:, 2], matrix[:, 3]], 1), where)
        except UserError as error:
            problems.append(str(error))
            continue
        views.append(View(image.name, image, K, size, pose, mask=find_mask(folders, image.name)))
    raise_all(problems)
    masks_complete(views, root, "masks")
    return assemble(Capture(root, views, auto_up="estimated", reduced=reduced), cfg, log)
