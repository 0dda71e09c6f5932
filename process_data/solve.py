"""Cameras of prepared photographs by pycolmap on the CPU: features, matches, reconstruction, and further attempts for those left out."""

import contextlib
import itertools
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from process_data.photos import Photo

log = logging.getLogger("neus")
ALL_PAIRS = 250  # photographs up to which all pairs are matched
OVERLAP = 20  # above that, each is matched with this many successors
LARGEST = 1600  # pixels of the longer side for feature extraction
ENLARGED = 1000  # pixels of the longer side up to which features are also found at twice the size; larger photographs have enough
FEATURES, FEW_FEATURES, MANY = 8192, 4096, 100  # features of a photograph; FEW_FEATURES above MANY photographs
FULL_LENS = 10  # photographs of one camera from which the OPENCV model is estimated; SIMPLE_RADIAL for fewer
ERRORS = (RuntimeError, ValueError)  # exceptions of COLMAP's C++ code
SEED = 0


@dataclass(frozen=True)
class Attempt:
    """A reconstruction, the largest one of its attempt."""

    name: str
    model: Any = None  # pycolmap.Reconstruction
    groups: int = 0  # reconstructions of photographs that do not overlap
    seconds: float = 0.0

    @property
    def names(self) -> set[str]:
        """Of the registered photographs."""
        return set() if self.model is None else {self.model.image(i).name for i in self.model.reg_image_ids()}

    @property
    def error(self) -> float:
        """Mean reprojection error in pixels."""
        return float("inf") if self.model is None else self.model.compute_mean_reprojection_error()

    @property
    def rank(self) -> tuple[int, float]:
        """The better attempt is the greater: more photographs, then the smaller error."""
        return len(self.names), -self.error

    def __str__(self) -> str:
        what = f"{len(self.names)} photographs, {self.error:.2f} px" if self.names else "no reconstruction"
        return f"{self.name}: {what}, {self.seconds:.0f} s"


@dataclass
class Solver:
    """Structure from motion of the photographs in work/images."""

    pycolmap: Any
    photos: list[Photo]
    work: Path
    matching: str  # exhaustive | sequential
    threads: int = -1
    seconds: dict[str, float] = field(default_factory=dict)  # of each step

    @property
    def names(self) -> list[str]:
        return [p.name for p in self.photos]

    @property
    def database(self) -> Path:
        return self.work / "database.db"

    @contextlib.contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Add the seconds of a step."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - start

    def first(self, masks: Path | None) -> Attempt:
        """Features, inside the masks when given, matches and incremental reconstruction. Raises RuntimeError, ValueError."""
        self.database.unlink(missing_ok=True)
        with self.timed("features"):
            extract(self, masks)
        with self.timed("matching"):
            match(self, pairs(self.names, self.matching))
        log.info("features %.0f s, matching %.0f s", self.seconds["features"], self.seconds["matching"])
        return self.attempt("incremental", lambda: incremental(self), "cameras")

    def attempt(self, name: str, run: Callable[[], list], step: str) -> Attempt:
        """The largest reconstruction of those that `run` returns; logged."""
        start = time.perf_counter()
        with self.timed(step):
            models = sorted(run(), key=lambda model: model.num_reg_images(), reverse=True)
        result = Attempt(name, models[0] if models else None, _groups(models), time.perf_counter() - start)
        log.info("%s (of %d)", result, len(self.photos))
        return result


def _groups(models: list) -> int:
    """Reconstructions that hold photographs of their own; models: the largest first."""
    seen: set[str] = set()
    count = 0
    for model in models:
        names = {model.image(i).name for i in model.reg_image_ids()}
        count += bool(names - seen)
        seen |= names
    return count


def improve(solver: Solver, best: Attempt) -> tuple[Attempt, list[str]]:
    """(the best reconstruction, what was tried and gave what): further attempts while photographs are left out.

    Each attempt adds to the best reconstruction so far, but for the last, which begins anew. An attempt that fails is only reported.
    """
    tried = [str(best)]
    for name, run in (("lower thresholds", _lower), ("guided matching", _guided), ("global", _global)):
        if len(best.names) == len(solver.photos):
            break
        if name == "global" and not hasattr(solver.pycolmap, "global_mapping"):
            continue
        try:
            result = solver.attempt(name, lambda run=run, best=best: run(solver, best), "further attempts")  # type: ignore[misc]
        except ERRORS as error:
            tried.append(f"{name}: failed ({(str(error).strip().splitlines() or ['?'])[-1][:120]})")
            log.info("%s", tried[-1])
            continue
        tried.append(str(result))
        best = max(best, result, key=lambda attempt: attempt.rank)
    return best, tried


def _lower(solver: Solver, best: Attempt) -> list:
    return incremental(solver, best.model, lower=True)


def _guided(solver: Solver, best: Attempt) -> list:
    """Match the pairs of photographs left out again, along the epipolar lines of a first estimate."""
    left = set(solver.names) - best.names
    again = [pair for pair in pairs(solver.names, solver.matching) if left & set(pair)]
    with solver.pycolmap.Database.open(solver.database) as database:
        ids = {image.name: image.image_id for image in database.read_all_images()}
        for a, b in again:
            for delete in (database.delete_matches, database.delete_two_view_geometry):
                with contextlib.suppress(*ERRORS):
                    delete(ids[a], ids[b])
    match(solver, again, guided=True)
    return incremental(solver, best.model, lower=True)


def _global(solver: Solver, best: Attempt) -> list:
    """Global structure from motion (GLOMAP, Pan et al. 2024)."""
    options = solver.pycolmap.GlobalPipelineOptions()
    options.num_threads, options.random_seed = solver.threads, SEED
    options.mapper.global_positioning.use_gpu = options.mapper.bundle_adjustment.ceres.use_gpu = False
    with tempfile.TemporaryDirectory(dir=solver.work) as folder:
        shutil.copy(solver.database, Path(folder) / "database.db")  # it writes to its database
        return list(solver.pycolmap.global_mapping(Path(folder) / "database.db", solver.work / "images", Path(folder), options).values())


# ---- features, matches, reconstruction ----


def lens_model(n: int) -> str:
    """COLMAP's camera model for n photographs of one camera: few photographs do not determine tangential distortion."""
    return "OPENCV" if n >= FULL_LENS else "SIMPLE_RADIAL"


def chunks(items: list, size: int) -> Iterator[list]:
    return (items[i : i + size] for i in range(0, len(items), size))


def extract(solver: Solver, masks: Path | None) -> None:
    """SIFT features of all photographs, inside the masks when given; photographs with equal EXIF share a camera."""
    pycolmap, photos = solver.pycolmap, solver.photos
    reader, options = pycolmap.ImageReaderOptions(), pycolmap.FeatureExtractionOptions()
    options.max_image_size, options.num_threads, options.use_gpu = LARGEST, solver.threads, False
    options.sift.max_num_features = FEATURES if len(photos) <= MANY else FEW_FEATURES
    if masks is not None:
        reader.mask_path = masks
    groups = {camera: [p for p in photos if p.camera == camera] for camera in dict.fromkeys(p.camera for p in photos)}
    with tqdm(total=len(photos), desc="features", leave=False) as bar:
        for group in groups.values():
            reader.existing_camera_id, reader.camera_model = -1, lens_model(len(group))
            options.sift.first_octave = -1 if max(group[0].size) <= ENLARGED else 0
            for chunk in chunks([p.name for p in group], 8 * (os.cpu_count() or 1)):
                pycolmap.extract_features(
                    solver.database, solver.work / "images", chunk, pycolmap.CameraMode.SINGLE, reader, options, pycolmap.Device.cpu
                )
                with pycolmap.Database.open(solver.database) as database:
                    reader.existing_camera_id = database.read_image_with_name(chunk[0]).camera_id
                bar.update(len(chunk))


def pairs(names: list[str], matching: str) -> list[tuple[str, str]]:
    """Pairs to match: all (exhaustive), or each name with OVERLAP successors and those 2^k steps ahead (sequential)."""
    if matching == "exhaustive":
        return list(itertools.combinations(names, 2))
    steps = sorted({*range(1, OVERLAP + 1), *(2**k for k in range(5, 16))})
    return [(names[i], names[i + step]) for i in range(len(names)) for step in steps if i + step < len(names)]


def match(solver: Solver, wanted: list[tuple[str, str]], guided: bool = False) -> None:
    """Match the pairs and verify the matches by two-view geometry. guided: also along epipolar lines, and with fewer inliers."""
    pycolmap = solver.pycolmap
    matcher, pairing, verify = pycolmap.FeatureMatchingOptions(), pycolmap.ImportedPairingOptions(), pycolmap.TwoViewGeometryOptions()
    matcher.num_threads, matcher.use_gpu, matcher.guided_matching = solver.threads, False, guided
    if guided:
        verify.min_num_inliers, matcher.sift.max_ratio = 10, 0.85
    pairing.match_list_path = solver.work / "pairs.txt"
    with tqdm(total=len(wanted), desc="matching", leave=False) as bar:
        for chunk in chunks(wanted, 200):
            (solver.work / "pairs.txt").write_text("".join(f"{a} {b}\n" for a, b in chunk), "utf-8")
            pycolmap.match_image_pairs(solver.database, matcher, pairing, verify, pycolmap.Device.cpu)
            bar.update(len(chunk))


def incremental(solver: Solver, start: Any = None, lower: bool = False) -> list:
    """The reconstructions found one photograph at a time; start: a reconstruction to add to; lower: with fewer inliers and less parallax."""
    options = solver.pycolmap.IncrementalPipelineOptions()
    options.num_threads, options.random_seed, options.extract_colors = solver.threads, SEED, False
    options.min_model_size = min(10, len(solver.names))
    if lower:
        options.min_num_matches = options.mapper.abs_pose_min_num_inliers = 12
        options.mapper.abs_pose_min_inlier_ratio = 0.15
        options.mapper.init_min_num_inliers, options.mapper.init_min_tri_angle = 50, 6.0
    with tempfile.TemporaryDirectory(dir=solver.work) as folder, tqdm(total=len(solver.names), desc="cameras", leave=False) as bar:
        begin = {}
        if start is not None:
            start.write_binary(folder)
            begin["input_path"] = folder
        (Path(folder) / "models").mkdir()
        found = solver.pycolmap.incremental_mapping(
            solver.database, solver.work / "images", Path(folder) / "models", options, **begin,
            initial_image_pair_callback=lambda: bar.update(2), next_image_callback=lambda: bar.update(1),
        )  # fmt: skip
    return list(found.values())


def why_left_out(solver: Solver, registered: set[str]) -> dict[str, str]:
    """{name: reason} of the photographs that are not registered."""
    with solver.pycolmap.Database.open(solver.database) as database:
        ids = {image.image_id: image.name for image in database.read_all_images()}
        partners = dict.fromkeys(solver.names, 0)
        verified, counts = database.read_two_view_geometry_num_inliers()
        for pair, count in zip(verified, counts):
            if count >= 15:
                for i in solver.pycolmap.pair_id_to_image_pair(pair):
                    partners[ids[i]] += 1
        features = {name: database.num_keypoints_for_image(i) for i, name in ids.items()}
    return {name: _reason(features.get(name, 0), partners[name]) for name in solver.names if name not in registered}


def _reason(features: int, partners: int) -> str:
    if features < 200:
        return f"only {features} features: blurred, dark or without texture"
    if not partners:
        return "no matches with other photographs"
    return f"matches with {partners} others, but inconsistent with the reconstruction"
