"""Middlebury multi-view stereo: `*_par.txt` (temple_par.txt, templeR_par.txt, ...) beside its photographs (Seitz et al. 2006).

The first line is the number of photographs; the others are a name, the rows of K and R (9 numbers each) and t (3). K [R | t] maps the
world to pixels, whose centres are at integers. https://vision.middlebury.edu/mview/data/
"""

import logging
from pathlib import Path

import numpy as np

from confs.schema import DatasetConfig
from process_data.capture import Capture, View, assemble, checked_intrinsics, checked_pose, masks_complete
from process_data.files import find_image, find_mask, report_missing
from utils.errors import UserError, raise_all
from utils.files import read_file
from utils.image import image_size
from utils.rays import Scene

LOG = logging.getLogger("neus")
PATTERN = "*_par.txt"
MOST_BYTES = 1 << 26


def read_rows(path: Path) -> list[tuple[str, np.ndarray]]:
    """[(name of the image, its 21 numbers)]. Raises UserError."""
    try:
        text = read_file(path)[:MOST_BYTES].decode("utf-8", "replace")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    rows = [line.split() for line in text.splitlines() if line.strip()]
    if not rows or not rows[0][0].isdecimal() or len(rows[0]) != 1 or int(rows[0][0][:9]) != len(rows) - 1:
        first = " ".join(rows[0])[:40] if rows else ""
        raise UserError(f"{path}: {len(rows) - 1} lines after the first, {first!r}; expected as many as it says; copy the file again")
    found = []
    for i, words in enumerate(rows[1:]):
        try:
            values = np.array(words[1:], np.float64)
        except ValueError:
            values = np.zeros(0)
        if len(values) != 21 or not (np.abs(values) < 1e12).all():
            raise UserError(f"{path}: line {i + 2}: expected a name and 21 numbers (K, R, t); copy the file again")
        found.append((words[0], values))
    return found


def _view(name: str, values: np.ndarray, image: Path, mask: Path | None, where: str) -> View:
    """Raises UserError."""
    K, R, t = values[:9].reshape(3, 3), values[9:18].reshape(3, 3), values[18:]
    if np.abs(K[[1, 2, 2], [0, 0, 1]]).max() > 1e-6 * np.abs(K).max() or abs(K[2, 2]) < 1e-9:
        raise UserError(f"{where}: K is not upper triangular; check the order of its numbers")
    K, size = K / K[2, 2], image_size(image)
    checked = checked_intrinsics(K[0, 0], K[1, 1], K[0, 2] + 0.5, K[1, 2] + 0.5, size, where)
    checked[0, 1] = np.clip(K[0, 1], -K[0, 0], K[0, 0])
    turned = checked_pose(np.concatenate([R.T, np.zeros((3, 1))], 1), f"{where}: R")[:, :3]
    return View(name, image, checked, size, np.concatenate([turned, -turned @ t[:, None]], 1), mask=mask)


def read_middlebury(cfg: DatasetConfig, log: logging.Logger = LOG) -> Scene:
    """Read the folder `cfg.root_dir`. Raises UserError that lists all problems."""
    root = Path(cfg.root_dir)
    files = sorted(root.glob(PATTERN)) if root.is_dir() else []
    if not files:
        raise UserError(f"{root}: no {PATTERN}; set dataset.root_dir to the folder that holds the photographs and the camera file")
    if len(files) > 1:
        log.info("%s: %s is read; %d other camera files are not", root, files[0].name, len(files) - 1)
    masks = [root / f for f in ("masks", "mask") if (root / f).is_dir()] if cfg.masks else []
    rows, views, missing, problems = read_rows(files[0]), [], [], []
    for i, (name, values) in enumerate(rows):
        image = find_image(root, name) or find_image(root / "images", name)
        if image is None:
            missing.append(name)
            continue
        try:
            views.append(_view(name, values, image, find_mask(masks, name), f"{files[0]}: line {i + 2}"))
        except UserError as error:
            problems.append(str(error))
    raise_all(problems)
    report_missing(files[0], missing, len(rows), log)
    masks_complete(views, root, "masks")
    return assemble(Capture(root, views, auto_up="estimated"), cfg, log)
