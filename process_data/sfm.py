"""From photographs or a video to a scene with cameras: structure from motion by pycolmap (Schoenberger and Frahm 2016), on the CPU.

    python -m process_data.sfm PHOTOS [--scene inputs/NAME] [--masks DIR] [--matching exhaustive|sequential]

The scene folder has COLMAP's layout: images/ (upright copies), sparse/0, masks/. sfm.json holds the report and the checksums of the
files written; no other file of the scene folder is ever deleted. `dataset.name=colmap` reads the folder.
"""

import argparse
import itertools
import json
import logging
import re
import shutil
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from process_data.files import free_name
from process_data.frames import VIDEOS, extract_frames
from process_data.photos import ADVICE, LEAST, collect, copy_masks, find_photos, list_photos, printable
from process_data.solve import ALL_PAIRS, ERRORS, SEED, Attempt, Solver, improve, why_left_out
from utils.errors import UserError
from utils.files import checksum, write_atomic

log = logging.getLogger("neus")
ENOUGH = 0.7  # share of registered photographs below which the result is doubtful
RECORD = "sfm.json"
PARTS = ("images", "sparse", "masks")
HELP = {  # part of the reason -> advice
    "cannot be read": "copy the photographs that cannot be read again, or convert them to JPEG",
    "blurred": "take the blurred photographs again, with more light or a steadier camera",
    "features": "photographs with few features need more light, sharpness or a patterned cloth under the object",
    "no matches": "add photographs between those without matches and the others, a step of 10 to 20 degrees apart, or remove them",
    "inconsistent": "add photographs close to those that are inconsistent, and check that nothing but the camera moved",
}
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
    track_length: float = 0.0  # photographs in which a point is seen, mean
    seconds: dict[str, float] = field(default_factory=dict)  # of each step
    tried: list[str] = field(default_factory=list)  # the attempts and what each gave

    def __str__(self) -> str:
        longest = sorted(self.seconds.items(), key=lambda item: -item[1])[:3]
        lines = [
            f"structure from motion: {self.registered} of {self.given} photographs registered, {self.cameras} camera(s), {self.points} points "
            f"seen in {self.track_length:.1f} photographs each, mean reprojection error {self.error:.2f} px"
        ]
        lines += [f"  longest steps: {', '.join(f'{step} {s:.0f} s' for step, s in longest)}"] if longest else []
        lines += [f"  tried: {'; '.join(self.tried)}"] if len(self.tried) > 1 else []
        lines += [f"  left out: {printable(name)}: {printable(reason)}" for name, reason in self.left_out.items()]
        return "\n".join(lines + [f"  advice: {text}" for text in [advice(self.left_out)] if text])


def advice(left_out: dict[str, str]) -> str | None:
    """What helps most of the photographs left out; None when they are only repeated or none are."""
    causes = Counter(text for reason in left_out.values() for key, text in HELP.items() if key in reason)
    return causes.most_common(1)[0][0] if causes else None


def _pycolmap():
    try:
        import pycolmap
    except ImportError:
        raise UserError("structure from motion needs the package pycolmap: pip install pycolmap, or use a scene that has cameras") from None
    pycolmap.logging.minloglevel = pycolmap.logging.Level.FATAL.value
    return pycolmap


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


def _checksums(root: Path, parts: tuple[str, ...]) -> dict[str, str]:
    """{relative path: SHA-256} of the files in the folders."""
    return {p.relative_to(root).as_posix(): checksum(p) for part in parts for p in sorted((root / part).rglob("*")) if p.is_file()}


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
            ours = path.is_file() and name in written and checksum(path) == written[name]
            if path.is_symlink() or not (path.is_dir() or ours):
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
    try:
        return "" if any(not path.name.startswith(("sfm.part-", ".")) for path in scene.iterdir()) else None
    except FileNotFoundError:
        return None
    except OSError:
        return ""


def scene_folder(photos: Path) -> Path:
    """inputs/NAME for photographs in NAME/, NAME/images/ or NAME/DCIM/100CANON/, or for a video NAME.mp4.

    -scene is appended where the photographs lie there, -2, -3, ... where the scene of other photographs or other files lie there.
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


def _log_skipped(folder: Path) -> None:
    for where, count in list_photos(folder)[1].items():
        more = "; --masks makes use of them" if where.lower() in ("mask/", "masks/") else ""
        log.info("%s: %d image files in %s are ignored%s", folder, count, where, more)


def _cameras(solver: Solver, masks: Path | None) -> tuple[Attempt, list[str]]:
    """(the best reconstruction, what was tried); features outside the masks are used when those inside do not suffice."""
    best = solver.first(masks)
    if masks is not None and len(best.names) < ENOUGH * len(solver.photos):
        log.info("%d of %d photographs registered by features inside the masks; using all features", len(best.names), len(solver.photos))
        other = solver.first(None)
        if other.rank < best.rank:
            return best, [str(best), str(other)]
        best = other
    return improve(solver, best)


def _reconstruct(pycolmap, source: Path, work: Path, masks: Path | None, matching: str, threads: int) -> Report:
    pycolmap.set_random_seed(SEED)
    solver = Solver(pycolmap, [], work, matching, threads)
    if source.is_file():
        if masks is not None:
            raise UserError(f"{source}: --masks needs a folder of photographs, got a video; extract its frames and mask these")
        with solver.timed("frames of the video"):
            extract_frames(source, work / "frames")
        source = work / "frames"
    _log_skipped(source)
    with solver.timed("copies"):
        solver.photos, left_out = collect(source, work / "images")
        if masks is not None:
            copy_masks(solver.photos, masks, source, work / "masks")
    names = solver.names
    if matching == "auto":
        solver.matching = "exhaustive" if len(names) <= ALL_PAIRS else "sequential"
    log.info("%d photographs; features, %s matching, cameras", len(names), solver.matching)
    try:
        best, tried = _cameras(solver, work / "masks" if masks is not None else None)
    except ERRORS as error:
        what = (str(error).strip().splitlines() or ["no reason given"])[-1][:120]
        raise UserError(f"{source}: structure from motion failed ({what}); {ADVICE}") from None
    left_out |= why_left_out(solver, best.names)
    if best.model is None or len(best.names) < LEAST:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(left_out.items())[:3])
        raise UserError(f"{source}: {len(best.names)} of {len(names)} photographs fit together ({why}); {ADVICE}")
    if best.groups > 1:
        log.warning("the photographs form %d groups that do not overlap; the largest is kept: add photographs in between", best.groups)
    (work / "sparse/0").mkdir(parents=True)
    best.model.write_binary(work / "sparse/0")
    return Report(
        len(names) + len(left_out.keys() - set(names)), len(best.names), best.error, best.model.num_points3D(), best.model.num_cameras(),
        left_out, best.model.compute_mean_track_length(), {step: round(s, 1) for step, s in solver.seconds.items()}, tried,
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
