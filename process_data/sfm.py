"""From photographs alone to a scene with cameras: structure from motion by pycolmap (Schoenberger and Frahm 2016), on the CPU.

    python -m process_data.sfm DIR [--scene inputs/NAME] [--masks DIR] [--matching exhaustive|sequential]

The scene folder is COLMAP's: images/ (upright copies), sparse/0, masks/, and sfm.json with the report. `dataset.name=colmap` reads it.
"""

import argparse
import itertools
import json
import logging
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from process_data.photos import ADVICE, LEAST, Photo, collect, copy_masks, find_photos
from utils.errors import UserError

log = logging.getLogger("neus")
ALL_PAIRS = 250  # photographs up to which each is matched with each
OVERLAP = 20  # else: with this many that follow it
LARGEST = 2000  # pixels along the longer side for features: more are slow and rarely help
SEED = 0


@dataclass(frozen=True)
class Report:
    """What structure from motion made of the photographs."""

    given: int  # photographs in the folder
    registered: int
    error: float  # mean reprojection error, pixels
    points: int
    cameras: int
    left_out: dict[str, str]  # name -> why

    def __str__(self) -> str:
        lines = [
            f"structure from motion: {self.registered} of {self.given} photographs registered, {self.cameras} camera(s), {self.points} points, "
            f"mean reprojection error {self.error:.2f} px"
        ]
        return "\n".join(lines + [f"  left out: {name}: {why}" for name, why in self.left_out.items()])


def _pycolmap():
    try:
        import pycolmap
    except ImportError:
        raise UserError(
            "structure from motion needs the package pycolmap: pip install pycolmap, or give a scene that has cameras"
        ) from None
    pycolmap.logging.minloglevel = pycolmap.logging.Level.FATAL.value
    return pycolmap


def _chunks(items: list, size: int) -> Iterator[list]:
    return (items[i : i + size] for i in range(0, len(items), size))


# ---- the three steps ----


def _features(pycolmap, photos: list[Photo], work: Path, threads: int) -> None:
    """SIFT of all photographs; those whose EXIF agrees share a camera."""
    reader, options = pycolmap.ImageReaderOptions(), pycolmap.FeatureExtractionOptions()
    reader.camera_model = "OPENCV" if len(photos) >= 10 else "SIMPLE_RADIAL"
    options.max_image_size, options.num_threads, options.use_gpu = LARGEST, threads, False
    groups = {camera: [p.name for p in photos if p.camera == camera] for camera in dict.fromkeys(p.camera for p in photos)}
    with tqdm(total=len(photos), desc="features", leave=False) as bar:
        for names in groups.values():
            reader.existing_camera_id = -1
            for chunk in _chunks(names, 8):
                pycolmap.extract_features(
                    work / "database.db", work / "images", chunk, pycolmap.CameraMode.SINGLE, reader, options, pycolmap.Device.cpu
                )
                with pycolmap.Database.open(work / "database.db") as database:
                    reader.existing_camera_id = database.read_image_with_name(chunk[0]).camera_id
                bar.update(len(chunk))


def _pairs(names: list[str], matching: str) -> list[tuple[str, str]]:
    """What is matched with what: each with each, or with those that follow (a video; every doubling of the step too)."""
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
    """The largest reconstruction, or None, and the number of reconstructions."""
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
            reasons[name] = f"only {features.get(name, 0)} features: blurred, dark or plain"
        elif not partners[name]:
            reasons[name] = "shows nothing that another photograph shows"
        else:
            reasons[name] = f"matches {partners[name]} others, but does not fit the rest"
    return reasons


# ---- all of it ----


def _signature(photos: Path) -> list:
    return [[p.relative_to(photos).as_posix(), p.stat().st_size] for p in find_photos(photos)]


def scene_folder(photos: Path) -> Path:
    """inputs/<name of the photographs' folder>, or that with -scene where the photographs themselves lie there."""
    scene = Path("inputs") / photos.resolve().name
    return scene.with_name(scene.name + "-scene") if scene.resolve() == photos.resolve() else scene


def reconstruct(photos: Path, scene: Path, masks: Path | None = None, matching: str = "auto", threads: int = -1) -> Report:
    """Make the scene folder from the photographs; what is there already for the same photographs is kept.

    Raises UserError with advice when there are too few photographs or they do not fit together.
    """
    here, there = photos.resolve(), scene.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise UserError(f"{scene}: the scene folder and the photographs {photos} lie in each other; choose another with dataset.root_dir=")
    signature, record = _signature(photos), scene / "sfm.json"
    if record.is_file() and (scene / "sparse/0/images.bin").is_file():
        try:
            old = json.loads(record.read_text())
            if old["signature"] == signature and masks is None:
                log.info("%s: the cameras of these photographs are known (delete %s to find them anew)", scene, record)
                return Report(**old["report"])
        except (ValueError, KeyError, TypeError):
            pass  # written by another version: do it again
    if (scene / "sparse").exists() and not record.is_file():
        raise UserError(f"{scene}: has a reconstruction of other origin (sparse/); choose another folder with dataset.root_dir=")
    pycolmap, work = _pycolmap(), scene / "sfm.part"
    try:
        shutil.rmtree(work, ignore_errors=True)
        (work / "images").mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{scene}: cannot be written ({error.strerror}); choose another folder with dataset.root_dir=") from None
    try:
        report = _reconstruct(pycolmap, photos, work, masks, matching, threads)
        _finish(scene, work)
        record.write_text(json.dumps({"signature": signature, "report": asdict(report)}, indent=1))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    log.info("%s", report)
    if report.registered < 0.7 * report.given:
        log.warning("many photographs were left out; %s", ADVICE)
    return report


def _reconstruct(pycolmap, source: Path, work: Path, masks: Path | None, matching: str, threads: int) -> Report:
    pycolmap.set_random_seed(SEED)
    photos, left_out = collect(source, work / "images")
    if masks is not None:
        copy_masks(photos, masks, source, work / "masks")
    names = [p.name for p in photos]
    if matching == "auto":
        matching = "exhaustive" if len(names) <= ALL_PAIRS else "sequential"
    log.info("%d photographs; features, %s matching, cameras", len(names), matching)
    try:
        _features(pycolmap, photos, work, threads)
        _matches(pycolmap, names, work, matching, threads)
        best, count = _mapping(pycolmap, names, work, threads)
    except (RuntimeError, ValueError) as error:  # what COLMAP's C++ throws
        raise UserError(f"{source}: structure from motion failed ({str(error).strip().splitlines()[-1][:120]}); {ADVICE}") from None
    registered = {best.image(i).name for i in best.reg_image_ids()} if best is not None else set()
    left_out |= _why_left_out(pycolmap, names, registered, work)
    if len(registered) < LEAST:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(left_out.items())[:3])
        raise UserError(f"{source}: {len(registered)} of {len(names)} photographs fit together ({why}); {ADVICE}")
    if count > 1:
        log.warning("the photographs fall into %d groups that do not overlap; the largest is kept: add photographs in between", count)
    (work / "sparse/0").mkdir(parents=True)
    best.write_binary(work / "sparse/0")
    return Report(
        len(names) + len(left_out.keys() - set(names)), len(registered), best.compute_mean_reprojection_error(), best.num_points3D(),
        best.num_cameras(), left_out,
    )  # fmt: skip


def _finish(scene: Path, work: Path) -> None:
    """Put the results in the place of older ones; masks that were there belong to other copies and step aside."""
    if (scene / "masks").exists() and not (work / "masks").exists():
        shutil.rmtree(scene / "masks.old", ignore_errors=True)
        (scene / "masks").rename(scene / "masks.old")
        log.warning("%s: masks of earlier photographs are now masks.old/", scene)
    for part in ("images", "sparse", "masks"):
        if (work / part).exists():
            shutil.rmtree(scene / part, ignore_errors=True)
            (work / part).rename(scene / part)


def main() -> int:
    from utils.log import setup_logging

    setup_logging()
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("photos", type=Path)
    p.add_argument("--scene", type=Path, help="folder to make; default inputs/<name of the photographs' folder>")
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
