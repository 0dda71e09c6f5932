"""Photographs prepared for structure from motion: upright copies, without duplicates, unreadable and blurred ones, with EXIF cameras."""

import contextlib
import hashlib
import itertools
import logging
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import PIL.Image

from process_data.capture import as_mask
from process_data.files import find_mask, natural_key
from utils.errors import UserError
from utils.image import FORMATS, SUFFIXES, as_rgb, check_complete, check_size, image_size, read_raster

LOG = logging.getLogger("neus")
HEIC = (".heic", ".heif")
COPIED = {"PNG": ".png", "JPEG": ".jpg", "MPO": ".jpg"}  # formats copied as they are when upright -> suffix of the copy
COPY_PIXELS = 1 << 26  # of a copy; larger photographs are halved: they take memory and time, and features need far fewer pixels
SKIPPED_FOLDERS = ("mask", "masks", "thumb", "thumbs", "thumbnail", "thumbnails", "@eadir", "__macosx")
# EXIF 2.32, tags; those of SAME_LENS are equal for photographs that share intrinsics
ORIENTATION, MAKE, MODEL, EXIF_BLOCK = 274, 271, 272, 34665
FOCAL, DIGITAL_ZOOM, FOCAL_35MM, LENS = 37386, 41988, 41989, 42036
SAME_LENS = (FOCAL, DIGITAL_ZOOM, FOCAL_35MM, LENS)
LEAST = 3
SHARPNESS_SIZE = 1000  # pixels of the longer side at which sharpness is measured
BLURRED = 0.45  # share of the median sharpness below which a photograph is left out: 6 pixels of motion blur or more
MAX_BLURRED = 0.25  # of the photographs; when more are blurred, the threshold is not trusted
ADVICE = (
    "take 20 to 60 sharp photographs from all sides, in constant light, that overlap by two thirds; matt objects, "
    "or objects on a patterned cloth, work best"
)


@dataclass(frozen=True)
class Photo:
    """An upright copy of a photograph."""

    source: Path
    name: str  # of the copy, relative to images/
    camera: tuple  # equal for photographs with the same intrinsics
    orientation: int  # EXIF orientation of the source; 1: upright
    size: tuple[int, int] = (0, 0)  # width and height of the copy


# ---- files ----


def _skipped_by(path: Path) -> str | None:
    """The part of a relative path for which the file is skipped, if any."""
    for part in path.parts[:-1]:
        if part.startswith(".") or part.lower() in SKIPPED_FOLDERS:
            return f"{part}/"
    return "hidden files" if path.name.startswith(".") else None


def list_photos(folder: Path) -> tuple[list[Path], dict[str, int]]:
    """(photographs in natural order, {folder or kind: number of skipped image files}) of a folder and its subfolders.

    Folders of masks and thumbnails, hidden folders and hidden files are skipped. Raises UserError when there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected the folder of your photographs, or a video")
    files = [p for p in folder.rglob("*") if p.suffix.lower() in (*SUFFIXES, *HEIC) and p.is_file()]
    reasons = {p: _skipped_by(p.relative_to(folder)) for p in files}
    found = sorted((p for p in files if reasons[p] is None), key=natural_key)
    return found, dict(Counter(reason for reason in reasons.values() if reason))


def find_photos(folder: Path) -> list[Path]:
    """As `list_photos`. Raises UserError when there are fewer than LEAST."""
    found, skipped = list_photos(folder)
    if len(found) < LEAST:
        ignored = "".join(f"; {n} in {where} ignored" for where, n in skipped.items())
        kinds = ", ".join((*SUFFIXES, *HEIC))
        raise UserError(f"{folder}: {len(found)} photographs ({kinds}{ignored}), expected at least {LEAST}; {ADVICE}")
    return found


def printable(text: str) -> str:
    """The text without line breaks, control characters and bytes that are no characters."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _copy_name(path: Path, taken: set[str]) -> str:
    """A free name for the copy, .png or .jpg, also where case is not told apart; characters that COLMAP's lists give a meaning become _."""
    plain = re.sub(r"[\s#\\]+", "_", printable("_".join(path.as_posix().split())).replace("?", "_"))
    name = Path(plain).with_suffix(".png" if path.suffix.lower() == ".png" else ".jpg")
    names = (name if k == 1 else name.with_stem(f"{name.stem}-{k}") for k in itertools.count(1))
    used = {n.lower() for n in taken}
    return next(n.as_posix() for n in names if n.as_posix().lower() not in used)


# ---- pixels and EXIF ----


def _register_heif(path: Path) -> None:
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise UserError(f"{path}: HEIC needs the package pillow-heif: pip install pillow-heif, or convert it to JPEG") from None
    register_heif_opener()


def _tag(exif: Mapping, key: int) -> str:
    value = exif.get(key)
    with contextlib.suppress(TypeError, ValueError, ZeroDivisionError, OverflowError):
        return f"{float(value):.2f}"  # type: ignore[arg-type]
    return "" if value is None else str(value)[:80]


def read_exif(image: PIL.Image.Image) -> tuple[int, tuple[str, ...]]:
    """(orientation 1 to 8, values of the tags that identify camera and lens). Damaged EXIF counts as absent."""
    try:
        exif = image.getexif()
        orientation, block = int(exif.get(ORIENTATION, 1) or 1), exif.get_ifd(EXIF_BLOCK)
        tags = (*(_tag(exif, tag) for tag in (MAKE, MODEL)), *(_tag(block, tag) for tag in SAME_LENS))
    except Exception:  # noqa: BLE001 - Pillow's EXIF parser raises struct.error, AttributeError and others
        return 1, ()
    return (orientation if 1 <= orientation <= 8 else 1), tags


def _turned(image: PIL.Image.Image, orientation: int) -> PIL.Image.Image:
    """The image rotated and mirrored by its EXIF orientation, 1 to 8."""
    T = PIL.Image.Transpose
    how = {2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM, 5: T.TRANSPOSE, 6: T.ROTATE_270, 7: T.TRANSVERSE, 8: T.ROTATE_90}
    return image.transpose(how[orientation]) if orientation in how else image


def _save(image: PIL.Image.Image, target: Path, source: PIL.Image.Image) -> None:
    """Write RGB with the EXIF of the source but for its orientation; without EXIF when it cannot be written."""
    try:
        exif = source.getexif()
        exif.pop(ORIENTATION, None)
        image.save(target, quality=97, subsampling=0, exif=exif)
    except Exception:  # noqa: BLE001 - damaged EXIF raises many types
        image.save(target, quality=97, subsampling=0)


def _is_heic(path: Path) -> bool:
    """Whether the file is HEIC by its content (ISO 23008-12): phones and messengers also name it .jpg."""
    with path.open("rb") as file:
        head = file.read(12)
    return head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")


def _halved(image: PIL.Image.Image) -> PIL.Image.Image:
    """The image reduced by powers of two to COPY_PIXELS at most; JPEG is decoded at the reduced size."""
    factor = 1
    while image.width * image.height > COPY_PIXELS * factor**2:
        factor *= 2
    size = (image.width // factor, image.height // factor)
    if factor > 1:
        image.draft(None, size)
    return image if image.width <= size[0] else image.reduce(max(1, image.width // size[0]))


def _upright(path: Path, name: str, folder: Path) -> Photo:
    """Copy a photograph to folder / name, byte by byte when it is upright. Raises various exceptions when it cannot be decoded."""
    target = folder / name
    heic = _is_heic(path)
    if heic:
        _register_heif(path)
    with PIL.Image.open(path, formats=("HEIF",) if heic else FORMATS) as image:
        check_size(path, *image.size)
        orientation, tags = read_exif(image)
        if image.format == "TIFF":
            orientation = 1  # decoders apply the orientation of TIFF
        if not heic:
            check_complete(path)
        stored, small = image.size, image.width * image.height <= COPY_PIXELS
        plain = small and orientation == 1 and image.mode != "CMYK" and COPIED.get(image.format or "") == target.suffix
        decoded = heic or (image.format in COPIED and not image.mode.startswith("I"))  # Pillow clips 16 bits to 8
        pixels: PIL.Image.Image = _halved(image if decoded else PIL.Image.fromarray(as_rgb(read_raster(path))))
        pixels.load()
        target.parent.mkdir(parents=True, exist_ok=True)
        if plain:
            target.write_bytes(path.read_bytes())
        else:
            _save(_turned(pixels, orientation).convert("RGB"), target, image)
        if not small:
            LOG.info("%s: %dx%d pixels, reduced to %dx%d", path, *stored, *pixels.size)
    size = image_size(target)
    return Photo(path, name, (*tags, size), orientation, size)


def _grey(path: Path) -> np.ndarray:
    """The copy in grey, uint8 [H, W]; a JPEG is decoded at SHARPNESS_SIZE or a little more."""
    with PIL.Image.open(path, formats=FORMATS) as image:
        image.draft("L", (SHARPNESS_SIZE, SHARPNESS_SIZE))
        return np.asarray(image.convert("RGB").convert("L"))


def sharpness(grey: np.ndarray) -> float:
    """Energy of fine detail relative to coarser detail, the smaller one of both image axes; blur reduces it. grey [H, W] uint8.

    The ratio depends little on the content and the contrast of the image, so it can be compared between photographs.
    """
    scale = min(1.0, SHARPNESS_SIZE / max(grey.shape))
    size = (max(1, round(grey.shape[1] * scale)), max(1, round(grey.shape[0] * scale)))
    fine = cv2.resize(grey, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    coarse = cv2.GaussianBlur(fine, (0, 0), 2.5)
    ratios = []
    for dx, dy in ((1, 0), (0, 1)):
        energy = [float((cv2.Sobel(x, cv2.CV_32F, dx, dy, ksize=1) ** 2).mean()) for x in (fine, coarse)]
        ratios.append(energy[0] / max(energy[1], 1e-6))
    return min(ratios)


def blurred(photos: list[Photo], folder: Path) -> dict[str, float]:
    """{name: sharpness / median} of the copies in `folder` that are blurred relative to the others; empty when too many would be."""
    values = {p.name: sharpness(_grey(folder / p.name)) for p in photos}
    median = float(np.median(list(values.values())))
    found = {name: value / median for name, value in values.items() if value < BLURRED * median}
    return found if len(found) <= MAX_BLURRED * len(photos) and len(photos) - len(found) >= LEAST else {}


# ---- all of it ----


def collect(folder: Path, target: Path) -> tuple[list[Photo], dict[str, str]]:
    """(upright copies of the photographs of `folder` in `target`, {name: reason} of those left out). Raises UserError."""
    photos: list[Photo] = []
    left_out: dict[str, str] = {}
    digests: dict[bytes, str] = {}
    paths = find_photos(folder)
    heic = next((p for p in paths if p.suffix.lower() in HEIC), None)
    if heic is not None:
        _register_heif(heic)
    for path in paths:
        shown = printable(path.relative_to(folder).as_posix())
        name = _copy_name(path.relative_to(folder), {p.name for p in photos})
        try:
            digest = hashlib.sha256(path.read_bytes()).digest()
            if digest in digests:
                left_out[shown] = f"the same file as {digests[digest]}"
                continue
            digests[digest] = shown
            photos.append(_upright(path, name, target))
        except Exception as error:  # noqa: BLE001 - Pillow raises many types on damaged files
            left_out[shown] = f"cannot be read ({printable(str(error).removeprefix(f'{path}: ')[:120])})"
            with contextlib.suppress(OSError):
                (target / name).unlink(missing_ok=True)
    if len(photos) < LEAST:
        why = "; ".join(f"{k}: {v}" for k, v in list(left_out.items())[:3])
        raise UserError(f"{folder}: {len(photos)} usable photographs, expected at least {LEAST} ({why}); {ADVICE}")
    for name, share in blurred(photos, target).items():
        (target / name).unlink()
        left_out[name] = f"blurred: its sharpness is {share:.2f} of the median"
    return [p for p in photos if p.name not in left_out], left_out


def copy_masks(photos: list[Photo], masks: Path, folder: Path, target: Path) -> None:
    """Write the masks of the photographs to `target`, oriented as the copies, under COLMAP's names (a.jpg.png). Raises UserError."""
    found = {p.name: find_mask([masks], p.source.relative_to(folder).as_posix()) for p in photos}
    missing = [name for name, mask in found.items() if mask is None]
    if missing:
        raise UserError(
            f"{masks}: no mask for {missing[0]} ({len(missing)} of {len(photos)} are missing); expected {Path(missing[0]).stem}.png"
        )
    for photo in photos:
        source = found[photo.name]
        if source is None:
            continue
        mask = PIL.Image.fromarray(as_mask(read_raster(source))[..., 0])
        try:
            with PIL.Image.open(photo.source) as image:
                stored = image.size
        except Exception as error:  # noqa: BLE001
            raise UserError(f"{photo.source}: cannot be read ({str(error)[:80]}); copy it again") from None
        if photo.orientation != 1 and mask.size == stored:
            mask = _turned(mask, photo.orientation)
        if photo.size != (0, 0) and mask.size != photo.size:
            mask = mask.resize(photo.size, PIL.Image.Resampling.NEAREST)
        path = target / f"{photo.name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        mask.save(path)
