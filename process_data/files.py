"""Files of a scene: natural order, images and masks by name, names that are safe to write to."""

import itertools
import logging
import os
import re
from pathlib import Path, PurePosixPath, PureWindowsPath

from confs.schema import DatasetConfig
from utils.errors import UserError
from utils.image import SUFFIXES


def natural_key(path: Path) -> list[str | int]:
    """Sort key of natural order, in which 2.png precedes 10.png. Only the digits 0 to 9 form numbers."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"([0-9]+)", path.as_posix()))]


def image_files(folder: Path) -> list[Path]:
    """Image files directly in a folder, in natural order; hidden files are skipped. Empty when there is no such folder."""
    if not folder.is_dir():
        return []
    found = [p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")]
    return sorted(found, key=lambda p: natural_key(Path(p.name)))


def _with_suffix(path: Path) -> list[Path]:
    """The path, and with the known suffixes appended when it has none of them."""
    more = [] if path.suffix.lower() in SUFFIXES else [path.with_name(path.name + s) for t in SUFFIXES for s in (t, t.upper())]
    return [path, *more]


def find_image(base: Path, name: str) -> Path | None:
    """The file `name` in `base`; known suffixes are tried when the name has none.

    The name may be a Windows path. Of a path that is absolute on the machine of the export, the last two parts and the last are tried.
    """
    there = PureWindowsPath(name)
    names = [name, there.as_posix()]
    if there.drive or there.root:
        names += ["/".join(there.parts[-n:]) for n in (2, 1) if len(there.parts) > n]
    try:
        return next((p for n in names for p in _with_suffix(base / n) if p.is_file()), None)
    except (OSError, ValueError):  # NUL in the name, or a name that is too long
        return None


def report_missing(path: Path, missing: list[str], total: int, log: logging.Logger) -> None:
    """Warns that images named in the file `path` are missing. Raises UserError when all are, or when the file names none."""
    if len(missing) == total:
        first = f" (first: {missing[0][:200]})" if missing else ""
        raise UserError(f"{path}: none of its {total} images exists{first}; put them into its folder")
    if missing:
        log.warning("%s: %d of %d images are missing (first: %s); they are left out", path, len(missing), total, missing[0][:200])


def find_mask(folders: list[Path], name: str) -> Path | None:
    """The mask of image `name`: the same name, its suffix replaced by .png, or .png appended (COLMAP), or NAME_mask.png (Metashape).

    Subfolders may be dropped.
    """
    stem = Path(name)
    flat = Path(stem.name).with_suffix(".png")
    for folder in folders:
        for candidate in (stem, stem.with_suffix(".png"), stem.with_name(stem.name + ".png"), flat, flat.with_stem(f"{flat.stem}_mask")):
            if (folder / candidate).is_file():
                return folder / candidate
    return None


def inside(folder: Path, name: str | PurePosixPath) -> Path:
    """folder / name, for writing. Raises UserError for an absolute name, one with `..`, and one that leaves the folder by a link."""
    path = PurePosixPath(str(name).replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in str(name) or re.match(r"[A-Za-z]:", str(name)):
        raise UserError(f"{str(name)[:200]!r}: expected a relative name without '..' for a file in {folder}; rename the image in its files")
    target = folder / path
    if not Path(os.path.realpath(target)).is_relative_to(os.path.realpath(folder)):
        raise UserError(f"{target}: a symbolic link leads out of {folder}; remove the link")
    return target


def free_name(path: Path) -> Path:
    """The path, or the first of path-2, path-3, ... that does not exist."""
    names = (path if k == 1 else path.with_stem(f"{path.stem}-{k}") for k in itertools.count(1))
    return next(p for p in names if not (p.exists() or p.is_symlink()))


def reduced_by(root: Path, cfg: DatasetConfig, full: bool) -> int:
    """N of the folder images_N (2, 4 or 8) to read: the one of dataset.img_downscale; 1: the photographs themselves.

    full: whether these exist. If not, N is the largest one up to img_downscale, or else the smallest.
    """
    there = [n for n in (2, 4, 8) if (root / f"images_{n}").is_dir()]
    wanted = 1.0 if cfg.img_wh else cfg.img_downscale or 1.0
    if full or not there:
        return int(wanted) if wanted in there else 1
    return max((n for n in there if n <= wanted), default=there[0])
