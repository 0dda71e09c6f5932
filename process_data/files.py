"""Files of a scene: natural order, images and masks by name, names that are safe to write to."""

import itertools
import re
from pathlib import Path, PurePosixPath

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


def find_image(base: Path, name: str) -> Path | None:
    """The file `name` in `base`; known suffixes are tried when the name has none."""
    try:
        path = base / name
        candidates = [path] if path.suffix.lower() in SUFFIXES else [path, *(path.with_name(path.name + s) for s in SUFFIXES)]
        return next((p for p in candidates if p.is_file()), None)
    except (OSError, ValueError):  # NUL in the name, or a name that is too long
        return None


def find_mask(folders: list[Path], name: str) -> Path | None:
    """The mask of image `name`: the same name, its suffix replaced by .png, or .png appended (COLMAP); subfolders may be dropped."""
    stem = Path(name)
    for folder in folders:
        for candidate in (stem, stem.with_suffix(".png"), stem.with_name(stem.name + ".png"), Path(stem.name).with_suffix(".png")):
            if (folder / candidate).is_file():
                return folder / candidate
    return None


def inside(folder: Path, name: str | PurePosixPath) -> Path:
    """folder / name, for writing. Raises UserError for an absolute name, one with `..`, and one that leaves the folder by a link."""
    path = PurePosixPath(str(name).replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in str(name) or re.match(r"[A-Za-z]:", str(name)):
        raise UserError(f"{str(name)[:200]!r}: expected a relative name without '..' for a file in {folder}; rename the image in its files")
    target = folder / path
    if not target.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{target}: a symbolic link leads out of {folder}; remove the link")
    return target


def free_name(path: Path) -> Path:
    """The path, or the first of path-2, path-3, ... that does not exist."""
    names = (path if k == 1 else path.with_stem(f"{path.stem}-{k}") for k in itertools.count(1))
    return next(p for p in names if not (p.exists() or p.is_symlink()))
