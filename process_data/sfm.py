"""From photographs or a video to a scene with cameras: structure from motion by pycolmap (Schoenberger and Frahm 2016), on the CPU.

    python -m process_data.sfm PHOTOS [--scene inputs/NAME] [--masks DIR] [--matching exhaustive|sequential]

The scene folder has COLMAP's layout: images/ (upright copies), sparse/0, masks/. sfm.json holds the report and the checksums of the
files written; no other file of the scene folder is ever deleted. `dataset.name=colmap` reads the folder.
"""

import argparse
import hashlib
import itertools
import json
import logging
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from process_data.files import free_name
from process_data.frames import VIDEOS, extract_frames
from process_data.photos import ADVICE, LEAST, Photo, collect, copy_masks, find_photos, list_photos
from utils.errors import UserError
from utils.files import write_atomic

log = logging.getLogger("neus")
ALL_PAIRS = 250  # photographs up to which all pairs are matched
OVERLAP = 20  # above that, each is matched with this many successors
LARGEST = 2000  # pixels of the longer side for feature extraction; more are slow and rarely help
FULL_LENS = 10  # photographs of one camera from which the OPENCV model is estimated; SIMPLE_RADIAL for fewer
ENOUGH = 0.7  # share of registered photographs below which the result is doubtful
SEED = 0
RECORD = "sfm.json"
PARTS = ("images", "sparse", "masks")
GENERIC = (
    r"images?|imgs?|photos?|photographs|pictures?|inputs?|frames|raw|rgb|colou?r|jpe?gs?|pngs?|dcim|\d{3}[a-z0-9_]{5}"  # DCF: 100CANON
)


@dataclass(frozen=True)
class Report:
    """Result of structure from motion."""

    given: int  # photographs in the folder
    registered: int
    error: float  # mean reprojection error, pixels
    points: int
    cameras: int
    left_out: dict[str, str]  # name -> reason

    def __str__(self) -> str:
        lines = [
            f"structure from motion: {self.registered} of {self.given} photographs registered, {self.cameras} camera(s), {self.points} points, "
            f"mean reprojection error {self.error:.2f} px"
        ]
        return "\n".join(lines + [f"  left out: {name}: {reason}" for name, reason in self.left_out.items()])


def _pycolmap():
    try:
        import pycolmap
    except ImportError:
        raise UserError("structure from motion needs the package pycolmap: pip install pycolmap, or use a scene that has cameras") from None
    pycolmap.logging.minloglevel = pycolmap.logging.Level.FATAL.value
    return pycolmap


def _chunks(items: list, size: int) -> Iterator[list]:
    return (items[i : i + size] for i in range(0, len(items), size))


# ---- features, matches, reconstruction ----


def lens_model(n: int) -> str:
    """COLMAP's camera model for n photographs of one camera: few photographs do not determine tangential distortion."""
    return "OPENCV" if n >= FULL_LENS else "SIMPLE_RADIAL"


def _features(pycolmap, photos: list[Photo], work: Path, threads: int, masks: Path | None) -> None:
    """SIFT features of all photographs, inside the masks when given; photographs with equal EXIF share a camera."""
    reader, options = pycolmap.ImageReaderOptions(), pycolmap.FeatureExtractionOptions()
    options.max_image_size, options.num_threads, options.use_gpu = LARGEST, threads, False
    if masks is not None:
        reader.mask_path = masks
    groups = {camera: [p.name for p in photos if p.camera == camera] for camera in dict.fromkeys(p.camera for p in photos)}
    with tqdm(total=len(photos), desc="features", leave=False) as bar:
        for names in groups.values():
            reader.existing_camera_id, reader.camera_model = -1, lens_model(len(names))
            for chunk in _chunks(names, 8):
                pycolmap.extract_features(
                    work / "database.db", work / "images", chunk, pycolmap.CameraMode.SINGLE, reader, options, pycolmap.Device.cpu
                )
                with pycolmap.Database.open(work / "database.db") as database:
                    reader.existing_camera_id = database.read_image_with_name(chunk[0]).camera_id
                bar.update(len(chunk))


def _pairs(names: list[str], matching: str) -> list[tuple[str, str]]:
    """Pairs to match: all (exhaustive), or each name with OVERLAP successors and those 2^k steps ahead (sequential)."""
    if matching == "exhaustive":
        return list(itertools.combinations(names, 2))
    steps = sorted({*range(1, OVERLAP + 1), *(2**k for k in range(5, 16))})
    return [(names[i], names[i + step]) for i in range(len(names)) for step in steps if i + step < len(names)]


def _matches(pycolmap, names: list[str], work: Path, matching: str, threads: int) -> None:
    matcher, pairing, verify = pycolmap.FeatureMatchingOptions(), pycolmap.ImportedPairingOptions(), pycolmap.TwoViewGeometryOptions()
    matcher.num_threads, matcher.use_gpu = threads, False
    pairs = _pairs(names, matching)
    pairing.match_list_path = work / "pairs.txt"
    with tqdm(total=len(pairs), desc="matching", leave=False) as bar:
        for chunk in _chunks(pairs, 200):
            (work / "pairs.txt").write_text("".join(f"{a} {b}\n" for a, b in chunk))
            pycolmap.match_image_pairs(work / "database.db", matcher, pairing, verify, pycolmap.Device.cpu)
            bar.update(len(chunk))


def _mapping(pycolmap, names: list[str], work: Path, threads: int):
    """(the largest reconstruction or None, number of reconstructions)."""
    options = pycolmap.IncrementalPipelineOptions()
    options.num_threads, options.random_seed, options.extract_colors = threads, SEED, False
    options.min_model_size = min(10, len(names))
    (work / "models").mkdir()
    with tqdm(total=len(names), desc="cameras", leave=False) as bar:
        found = pycolmap.incremental_mapping(
            work / "database.db", work / "images", work / "models", options,
            initial_image_pair_callback=lambda: bar.update(2), next_image_callback=lambda: bar.update(1),
        )  # fmt: skip
    models = sorted(found.values(), key=lambda model: model.num_reg_images(), reverse=True)
    return (models[0] if models else None), len(models)


def _why_left_out(pycolmap, names: list[str], registered: set[str], work: Path) -> dict[str, str]:
    with pycolmap.Database.open(work / "database.db") as database:
        ids = {image.image_id: image.name for image in database.read_all_images()}
        partners = dict.fromkeys(names, 0)
        pairs, counts = database.read_two_view_geometry_num_inliers()
        for pair, count in zip(pairs, counts):
            if count >= 15:
                for i in pycolmap.pair_id_to_image_pair(pair):
                    partners[ids[i]] += 1
        features = {name: database.num_keypoints_for_image(i) for i, name in ids.items()}
    reasons = {}
    for name in names:
        if name in registered:
            continue
        if features.get(name, 0) < 200:
            reasons[name] = f"only {features.get(name, 0)} features: blurred, dark or without texture"
        elif not partners[name]:
            reasons[name] = "no matches with other photographs"
        else:
            reasons[name] = f"matches with {partners[name]} others, but inconsistent with the reconstruction"
    return reasons


# ---- the scene folder ----


def _signature(photos: Path) -> list:
    """Names and sizes of the photographs, or of the video."""
    if photos.is_file():
        return [[photos.name, photos.stat().st_size]]
    return [[p.relative_to(photos).as_posix(), p.stat().st_size] for p in find_photos(photos)]


def _read_record(scene: Path) -> dict:
    """The contents of sfm.json; empty when there is none. Raises UserError when the file is not one of ours."""
    path = scene / RECORD
    if not path.exists():
        return {}
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        data = None
    if not isinstance(data, dict) or not ({"signature", "written"} & data.keys()):
        raise UserError(f"{path}: not a record of --photos; move it away, or choose another scene folder with dataset.root_dir=")
    return data


def _write_record(scene: Path, data: dict) -> None:
    write_atomic(scene / RECORD, json.dumps(data, indent=1).encode())


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checksums(root: Path, parts: tuple[str, ...]) -> dict[str, str]:
    """{relative path: SHA-256} of the files in the folders."""
    return {p.relative_to(root).as_posix(): _checksum(p) for part in parts for p in sorted((root / part).rglob("*")) if p.is_file()}


def foreign_files(scene: Path, parts: tuple[str, ...], written: dict[str, str]) -> list[str]:
    """Files in these folders of the scene that are not in `written` or were changed since; links are never ours."""
    found = []
    for part in parts:
        top = scene / part
        if top.is_symlink() or top.is_file():
            found.append(part)
            continue
        for path in sorted(top.rglob("*")):
            name = path.relative_to(scene).as_posix()
            if path.is_symlink() or (path.is_file() and (name not in written or _checksum(path) != written[name])):
                found.append(name)
    return found


def check_replaceable(scene: Path, record: dict) -> None:
    """Raises UserError when images/ or sparse/ hold files that an earlier run did not write."""
    written = record.get("written")
    foreign = foreign_files(scene, ("images", "sparse"), written if isinstance(written, dict) else {})
    if foreign:
        raise UserError(
            f"{scene}: {len(foreign)} file(s) not written by --photos, or changed since (first: {foreign[0]}), would be deleted by "
            "a new reconstruction; move them away, or choose another scene folder with dataset.root_dir="
        )


def _nested(a: Path, b: Path) -> bool:
    a, b = a.resolve(), b.resolve()
    return a == b or a in b.parents or b in a.parents


def _source(scene: Path) -> str | None:
    """The photographs that a scene folder was made from; None when unknown, "" when the folder is not ours."""
    try:
        record = _read_record(scene)
    except UserError:
        return ""
    if record:
        return record.get("photos")
    return "" if any((scene / part).exists() for part in PARTS) else None


def scene_folder(photos: Path) -> Path:
    """inputs/NAME for photographs in NAME/, NAME/images/ or NAME/DCIM/100CANON/, or for a video NAME.mp4.

    -scene is appended where the photographs lie there, -2, -3, ... where the scene of other photographs lies there.
    """
    here = photos.resolve()
    names = [here.stem if here.is_file() else here.name, *(parent.name for parent in here.parents)]
    name = next((n for n in names if n and not re.fullmatch(GENERIC, n, re.IGNORECASE)), names[0] or "scene")
    base = Path("inputs") / name
    base = base.with_name(f"{name}-scene") if _nested(base, photos) else base
    for k in itertools.count(1):
        scene = base if k == 1 else base.with_name(f"{base.name}-{k}")
        if _source(scene) in (None, str(here)):
            return scene
    raise AssertionError


def _finish(scene: Path, work: Path, record: dict) -> dict[str, str]:
    """Replace the results of an earlier run; returns {relative path: SHA-256} of the new files. Raises UserError.

    Masks are kept under another name, unless an earlier run copied them from --masks: they may not fit the new photographs.
    """
    check_replaceable(scene, record)
    old = record.get("written") if isinstance(record.get("written"), dict) else {}
    written = _checksums(work, PARTS)
    _write_record(scene, {"written": {**(old or {}), **written}})  # complete at every moment, should the program be killed
    if (scene / "masks").exists() and foreign_files(scene, ("masks",), old or {}):
        aside = free_name(scene / "masks.old")
        (scene / "masks").rename(aside)
        log.warning("%s: the masks of earlier photographs are now in %s/", scene, aside.name)
    for part in PARTS:
        if (scene / part).exists():
            (scene / part).rename(work / f"{part}.old")
        if (work / part).exists():
            (work / part).rename(scene / part)
    return written


def _check_folders(photos: Path, scene: Path, record: dict) -> None:
    if _nested(photos, scene):
        raise UserError(
            f"{scene}: one of the scene folder and the photographs {photos} contains the other; choose another with dataset.root_dir="
        )
    other = record.get("photos")
    if isinstance(other, str) and other != str(photos.resolve()):
        raise UserError(f"{scene}: the scene of other photographs ({other}); choose another scene folder with dataset.root_dir=")


def reconstruct(photos: Path, scene: Path, masks: Path | None = None, matching: str = "auto", threads: int = -1) -> Report:
    """Create the scene folder from a folder of photographs or a video; an existing result for the same photographs is kept.

    Raises UserError with advice when there are too few photographs or they do not fit together, and when files of the scene folder would
    be lost.
    """
    if photos.is_file() and photos.suffix.lower() not in VIDEOS:
        raise UserError(f"{photos}: expected a folder of photographs or a video ({', '.join(VIDEOS)})")
    signature, record = _signature(photos), _read_record(scene)
    if (scene / "sparse/0/images.bin").is_file() and masks is None and record.get("signature") == signature:
        try:
            report = Report(**record["report"])
            log.info("%s: these photographs have been reconstructed before (delete %s to repeat it)", scene, scene / "sparse")
            return report
        except (KeyError, TypeError):
            pass  # the record of another version
    _check_folders(photos, scene, record)
    check_replaceable(scene, record)
    pycolmap = _pycolmap()
    try:
        scene.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix="sfm.part-", dir=scene))
    except OSError as error:
        raise UserError(f"{scene}: cannot be written ({error.strerror}); choose another folder with dataset.root_dir=") from None
    try:
        report = _reconstruct(pycolmap, photos, work, masks, matching, threads)
        written = _finish(scene, work, record)
        entries = {"signature": signature, "photos": str(photos.resolve()), "report": asdict(report), "written": written}
        _write_record(scene, entries)
    except OSError as error:
        raise UserError(f"{scene}: cannot be written ({error}); choose another folder with dataset.root_dir=") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    log.info("%s", report)
    if report.registered < ENOUGH * report.given:
        log.warning("many photographs were left out; %s", ADVICE)
    return report


def _solve(pycolmap, photos: list[Photo], work: Path, matching: str, threads: int, masks: Path | None):
    """(the largest reconstruction or None, number of reconstructions)."""
    names = [p.name for p in photos]
    shutil.rmtree(work / "models", ignore_errors=True)
    (work / "database.db").unlink(missing_ok=True)
    _features(pycolmap, photos, work, threads, masks)
    _matches(pycolmap, names, work, matching, threads)
    return _mapping(pycolmap, names, work, threads)


def _registered(model) -> set[str]:
    return set() if model is None else {model.image(i).name for i in model.reg_image_ids()}


def _log_skipped(folder: Path) -> None:
    for where, count in list_photos(folder)[1].items():
        more = "; --masks makes use of them" if where.lower() in ("mask/", "masks/") else ""
        log.info("%s: %d image files in %s are ignored%s", folder, count, where, more)


def _reconstruct(pycolmap, source: Path, work: Path, masks: Path | None, matching: str, threads: int) -> Report:
    pycolmap.set_random_seed(SEED)
    if source.is_file():
        if masks is not None:
            raise UserError(f"{source}: --masks needs a folder of photographs, got a video; extract its frames and mask these")
        extract_frames(source, work / "frames")
        source = work / "frames"
    _log_skipped(source)
    photos, left_out = collect(source, work / "images")
    if masks is not None:
        copy_masks(photos, masks, source, work / "masks")
    names = [p.name for p in photos]
    if matching == "auto":
        matching = "exhaustive" if len(names) <= ALL_PAIRS else "sequential"
    log.info("%d photographs; features, %s matching, cameras", len(names), matching)
    try:
        best, count = _solve(pycolmap, photos, work, matching, threads, work / "masks" if masks is not None else None)
        if masks is not None and len(_registered(best)) < ENOUGH * len(names):
            log.info("%d of %d photographs registered by features inside the masks; using all features", len(_registered(best)), len(names))
            best, count = max(
                (best, count), _solve(pycolmap, photos, work, matching, threads, None), key=lambda found: len(_registered(found[0]))
            )
    except (RuntimeError, ValueError) as error:  # exceptions of COLMAP's C++ code
        raise UserError(f"{source}: structure from motion failed ({str(error).strip().splitlines()[-1][:120]}); {ADVICE}") from None
    registered = _registered(best)
    left_out |= _why_left_out(pycolmap, names, registered, work)
    if best is None or len(registered) < LEAST:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(left_out.items())[:3])
        raise UserError(f"{source}: {len(registered)} of {len(names)} photographs fit together ({why}); {ADVICE}")
    if count > 1:
        log.warning("the photographs form %d groups that do not overlap; the largest is kept: add photographs in between", count)
    (work / "sparse/0").mkdir(parents=True)
    best.write_binary(work / "sparse/0")
    return Report(
        len(names) + len(left_out.keys() - set(names)), len(registered), best.compute_mean_reprojection_error(), best.num_points3D(),
        best.num_cameras(), left_out,
    )  # fmt: skip


def main() -> int:
    from utils.log import setup_logging

    setup_logging()
    p = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    p.add_argument("photos", type=Path, help="a folder of photographs, or a video")
    p.add_argument("--scene", type=Path, help="scene folder to create; default inputs/<name of the photographs' folder>")
    p.add_argument("--masks", type=Path)
    p.add_argument("--matching", choices=["auto", "exhaustive", "sequential"], default="auto")
    p.add_argument("--threads", type=int, default=-1)
    args = p.parse_args()
    try:
        scene = args.scene or scene_folder(args.photos)
        reconstruct(args.photos, scene, args.masks, args.matching, args.threads)
        log.info("next: python run.py --config confs/neus-colmap.yaml --train dataset.root_dir=%s", scene)
        return 0
    except UserError as error:
        log.error("error: %s", error)
        return 2


if __name__ == "__main__":
    sys.exit(main())
