"""A folder of photographs made ready for structure from motion: upright, readable, none twice, sorted into cameras by their EXIF."""

import contextlib
import hashlib
import itertools
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from process_data.files import find_mask
from utils.errors import UserError
from utils.image import SUFFIXES

HEIC = (".heic", ".heif")
ORIENTATION, MAKE, MODEL, EXIF_BLOCK, FOCAL, LENS = 274, 271, 272, 34665, 37386, 42036  # EXIF 2.32, tags
LEAST = 3
ADVICE = (
    "take 20 to 60 photographs that overlap by two thirds, all round the object, sharp, in steady light; a matt object, or one on a "
    "patterned cloth, works best"
)


@dataclass(frozen=True)
class Photo:
    source: Path
    name: str  # of the upright copy in images/
    camera: tuple  # what is equal for photographs through one camera
    turned: int  # EXIF orientation, 1: as stored


def natural(path: Path) -> list:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.as_posix())]


def _open(path: Path) -> Image.Image:
    if path.suffix.lower() in HEIC:
        try:
            from pillow_heif import register_heif_opener
        except ImportError:
            raise UserError(f"{path}: HEIC needs the package pillow-heif: pip install pillow-heif, or convert it to JPEG") from None
        register_heif_opener()
    return Image.open(path)


def _tag(exif, key: int) -> str:
    value = exif.get(key)
    with contextlib.suppress(TypeError, ValueError, ZeroDivisionError):
        return f"{float(value):.1f}"
    return "" if value is None else str(value)[:80]


def find_photos(folder: Path) -> list[Path]:
    """Photographs of a folder and of its subfolders, in natural order. Raises UserError when there are none."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder of your photographs")
    kinds = (*SUFFIXES, *HEIC)
    found = sorted((p for p in folder.rglob("*") if p.suffix.lower() in kinds and not p.name.startswith(".")), key=natural)
    if len(found) < LEAST:
        raise UserError(f"{folder}: {len(found)} photographs ({', '.join(kinds)}), expected at least {LEAST}; {ADVICE}")
    return found


def _upright(path: Path, name: str, folder: Path) -> Photo:
    """Copy a photograph as it is, or turned upright where its EXIF says so."""
    with _open(path) as image:
        exif = image.getexif()
        turned = int(exif.get(ORIENTATION, 1) or 1)
        block = exif.get_ifd(EXIF_BLOCK)
        image.load()  # a truncated file ends here
        size = image.size if turned < 5 else image.size[::-1]
        camera = (*(_tag(exif, tag) for tag in (MAKE, MODEL)), *(_tag(block, tag) for tag in (FOCAL, LENS)), size)
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if turned == 1 and path.suffix.lower() in SUFFIXES:
            target.write_bytes(path.read_bytes())
        else:
            copy = ImageOps.exif_transpose(image).convert("RGB")  # its EXIF stays, without the orientation
            copy.save(target, quality=97, subsampling=0, exif=copy.getexif())
    return Photo(path, name, camera, turned)


def _plain_name(path: Path, taken: set[str]) -> str:
    """A name for the copy: no spaces (COLMAP's lists have none), .jpg or .png, not taken."""
    name = Path("_".join(path.as_posix().split())).with_suffix(".png" if path.suffix.lower() == ".png" else ".jpg")
    names = (name if k == 1 else name.with_stem(f"{name.stem}-{k}") for k in itertools.count(1))
    return next(n.as_posix() for n in names if n.as_posix() not in taken)


def collect(folder: Path, target: Path) -> tuple[list[Photo], dict[str, str]]:
    """Upright copies of the photographs of `folder` in `target`, and {name: why} of those left out. Raises UserError."""
    photos, left_out, seen = [], {}, {}
    for path in find_photos(folder):
        shown = path.relative_to(folder).as_posix()
        name = _plain_name(path.relative_to(folder), {p.name for p in photos})
        try:
            digest = hashlib.sha256(path.read_bytes()).digest()
            if digest in seen:
                left_out[shown] = f"the same file as {seen[digest]}"
                continue
            seen[digest] = shown
            photos.append(_upright(path, name, target))
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            left_out[shown] = f"cannot be read ({str(error)[:80]})"
    if len(photos) < LEAST:
        why = "; ".join(f"{k}: {v}" for k, v in list(left_out.items())[:3])
        raise UserError(f"{folder}: {len(photos)} usable photographs, expected at least {LEAST} ({why}); {ADVICE}")
    return photos, left_out


def copy_masks(photos: list[Photo], masks: Path, folder: Path, target: Path) -> None:
    """The photographs' masks, turned as these were, under COLMAP's names. Raises UserError when one is missing."""
    found = {p.name: find_mask([masks], p.source.relative_to(folder).as_posix()) for p in photos}
    missing = [name for name, mask in found.items() if mask is None]
    if missing:
        raise UserError(
            f"{masks}: no mask for {missing[0]} ({len(missing)} of {len(photos)} are missing); expected {Path(missing[0]).stem}.png"
        )
    for photo in photos:
        try:
            with Image.open(found[photo.name]) as image:
                mask = np.array(image.convert("RGBA"))
            with _open(photo.source) as image:
                stored = image.size
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"{found[photo.name]}: cannot be read ({str(error)[:80]})") from None
        mask = mask[..., 3] if mask[..., 3].min() < 255 else mask[..., :3].max(-1)
        picture = Image.fromarray(mask)
        if photo.turned != 1 and picture.size == stored:
            picture = _turned(picture, photo.turned)
        path = (target / photo.name).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    """As EXIF's orientation 2 to 8 asks for."""
    T = Image.Transpose
    how = {2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM, 5: T.TRANSPOSE, 6: T.ROTATE_270, 7: T.TRANSVERSE, 8: T.ROTATE_90}
    return image.transpose(how[orientation]) if orientation in how else image
