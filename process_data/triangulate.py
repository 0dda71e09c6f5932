"""Points for a scene that has cameras but neither points nor masks: features, matches and triangulation with the known poses by pycolmap.

Each photograph, undistorted and at most LARGEST pixels wide or high, is matched with those taken from nearby. Matches off the epipolar
lines of the known cameras are dropped (Hartley and Zisserman 2004, 11.4.3), the others triangulated (Schoenberger and Frahm 2016); poses
stay as they are. As in structure from motion, views that are held out of training take part.

The points are kept in the scene folder, in points.ply; points.json holds their tracks, and the signature of cameras and files that they
were made from.
"""

import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from tqdm import tqdm

from process_data.axes import unit
from process_data.colmap_files import Point, good_points, point_tracks
from process_data.points import read_ply_points
from utils.errors import UserError
from utils.files import write_atomic

if TYPE_CHECKING:
    from process_data.capture import View

LOG = logging.getLogger("neus")
POINTS, RECORD, MAKER = "points.ply", "points.json", "process_data.triangulate"
MOST_BYTES = 1 << 24  # of points.json; MOST photographs with FEATURES observations have half of it
LARGEST = 1000  # pixels of the longer side
FEATURES = 3000  # of a photograph
MOST = 150  # photographs; of more, as many at even steps
NEIGHBOURS = 8  # photographs that each is matched with
WIDEST = 60.0  # degrees between the optical axes of two photographs that are matched
OFF_LINE = 2.0  # pixels from the epipolar line
LEAST = 15  # matches of a pair
SEED = 0
Found = tuple[np.ndarray, np.ndarray]  # points [P, 3] in the world, tracks [M, 2] int64: pairs (point, view)
Develop = Callable[["View", int], tuple[np.ndarray, np.ndarray]]  # view, longest side -> (uint8 [H, W, 3], K [3, 3]) without distortion


# ---- the files in the scene folder ----


def signature(views: "list[View]") -> str:
    """A checksum of the cameras, and of the names and sizes of the files."""
    digest = hashlib.sha256(f"{LARGEST} {FEATURES} {NEIGHBOURS} {OFF_LINE}".encode())
    for view in views:
        parts = (view.name, view.image.stat().st_size, view.size, view.lens.kind, view.lens.params, view.K.tolist(), view.c2w.tolist())
        digest.update(repr(parts).encode())
    return digest.hexdigest()


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _record(root: Path) -> dict:
    """The contents of points.json; {} when there is none. Raises UserError when the files are not ours or were changed."""
    path, points = root / RECORD, root / POINTS
    try:
        text = path.read_bytes() if path.is_file() and path.stat().st_size <= MOST_BYTES else b""
        data = json.loads(text) if path.exists() else {}
    except (OSError, ValueError, RecursionError):
        data = None
    foreign = not isinstance(data, dict) or (path.exists() and data.get("made by") != MAKER)
    if not isinstance(data, dict) or foreign or (points.exists() and data.get("sha256") != _checksum(points)):
        raise UserError(f"{root}: {POINTS} or {RECORD} is not a file of ours, or was changed, and is left alone")
    return data


def _ply(points: np.ndarray) -> bytes:
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(points)}\n"
    return (header + "".join(f"property double {axis}\n" for axis in "xyz") + "end_header\n").encode() + points.astype("<f8").tobytes()


def _kept(root: Path, record: dict, n_views: int) -> Found | None:
    """The points and tracks in the files; None when these are of a former format, or do not fit each other. Raises UserError."""
    listed = record.get("tracks")
    if not isinstance(listed, list) or bool(listed) != bool(record.get("points")) or not (root / POINTS).is_file():
        return None
    if not listed:
        return np.zeros((0, 3)), np.zeros((0, 2), np.int64)
    points = read_ply_points(root / POINTS)
    try:
        tracks = np.array(listed)
    except (ValueError, OverflowError):  # lists of several lengths
        return None
    fits = tracks.dtype.kind == "i" and tracks.shape[1:] == (2,) and len(points) == record["points"]
    return (points, tracks.astype(np.int64)) if fits and ((tracks >= 0) & (tracks < (len(points), n_views))).all() else None


def _keep(root: Path, points: np.ndarray, tracks: np.ndarray, name: str) -> None:
    """Write both files; the record first: at every moment it fits the points, or the points are made again. Raises UserError."""
    data = _ply(points)
    record = {"made by": MAKER, "signature": name, "points": len(points), "sha256": hashlib.sha256(data).hexdigest()}
    record["tracks"] = tracks.tolist()
    (root / POINTS).unlink(missing_ok=True)  # ours, as _record has found
    write_atomic(root / RECORD, json.dumps(record).encode())
    write_atomic(root / POINTS, data)


# ---- pairs and matches ----


def pairs(c2w: np.ndarray) -> list[tuple[int, int]]:
    """Pairs i < j of cameras [N, 3, 4] to match: each with its NEIGHBOURS nearest in place and direction, within WIDEST degrees."""
    centres, forward = c2w[:, :, 3], unit(c2w[:, :, 2])
    apart = np.linalg.norm(centres[:, None] - centres[None], axis=2)
    cosine = np.clip(forward @ forward.T, -1, 1)
    cost = apart / max(float(np.median(apart)), 1e-12) + (1 - cosine)
    cost[(cosine < np.cos(np.radians(WIDEST))) | np.eye(len(c2w), dtype=bool)] = np.inf
    nearest = np.argsort(cost, axis=1, kind="stable")[:, :NEIGHBOURS]
    return sorted({(min(i, int(j)), max(i, int(j))) for i in range(len(c2w)) for j in nearest[i] if np.isfinite(cost[i, j])})


def essential(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """E [3, 3] with y^T E x = 0 for the same point in the camera frames of a (x) and b (y); a, b: camera to world [3, 4]."""
    R = b[:, :3].T @ a[:, :3]
    x, y, z = b[:, :3].T @ (a[:, 3] - b[:, 3])
    return np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ R


def off_line(F: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Sampson distance [M] in pixels of matches x, y [M, 2] from the epipolar geometry F [3, 3]."""
    x, y = (np.concatenate([p, np.ones((len(p), 1))], 1) for p in (x, y))
    lines, back = x @ F.T, y @ F
    slope = (lines[:, :2] ** 2).sum(1) + (back[:, :2] ** 2).sum(1)
    return np.abs((y * lines).sum(1)) / np.sqrt(np.maximum(slope, 1e-30))


# ---- pycolmap ----


def _pycolmap():
    """The package, None when it is not installed."""
    try:
        import pycolmap
    except ImportError:
        return None
    pycolmap.logging.minloglevel = pycolmap.logging.Level.FATAL.value
    return pycolmap


def _features(pycolmap, names: list[str], work: Path) -> None:
    options = pycolmap.FeatureExtractionOptions()
    options.sift.max_num_features, options.sift.first_octave, options.use_gpu = FEATURES, 0, False
    with tqdm(total=len(names), desc="points: features", leave=False) as bar:
        for i in range(0, len(names), 8):
            pycolmap.extract_features(
                work / "database.db", work, names[i : i + 8], pycolmap.CameraMode.PER_IMAGE, pycolmap.ImageReaderOptions(), options,
                pycolmap.Device.cpu,
            )  # fmt: skip
            bar.update(len(names[i : i + 8]))


def _match(pycolmap, chosen: list[tuple[str, str]], work: Path) -> None:
    options, pairing = pycolmap.FeatureMatchingOptions(), pycolmap.ImportedPairingOptions()
    options.use_gpu, options.skip_geometric_verification, pairing.match_list_path = False, True, work / "pairs.txt"
    with tqdm(total=len(chosen), desc="points: matches", leave=False) as bar:
        for i in range(0, len(chosen), 50):
            (work / "pairs.txt").write_text("".join(f"{a} {b}\n" for a, b in chosen[i : i + 50]))
            pycolmap.match_image_pairs(work / "database.db", options, pairing, pycolmap.TwoViewGeometryOptions(), pycolmap.Device.cpu)
            bar.update(len(chosen[i : i + 50]))


def _verify(pycolmap, database, ids: list[int], chosen: list[tuple[int, int]], K: list[np.ndarray], c2w: np.ndarray) -> None:
    """Keep the matches near the epipolar lines of the known cameras."""
    keypoints = [database.read_keypoints(i)[:, :2] - 0.5 for i in ids]
    for a, b in chosen:
        if not database.exists_matches(ids[a], ids[b]):
            continue
        found = database.read_matches(ids[a], ids[b])
        E = essential(c2w[a], c2w[b])
        off = off_line(np.linalg.inv(K[b]).T @ E @ np.linalg.inv(K[a]), keypoints[a][found[:, 0]], keypoints[b][found[:, 1]])
        geometry = pycolmap.TwoViewGeometry()
        geometry.config, geometry.E = pycolmap.TwoViewGeometryConfiguration.CALIBRATED, E
        geometry.inlier_matches = found[off < OFF_LINE]
        if len(geometry.inlier_matches) >= LEAST:
            database.write_two_view_geometry(ids[a], ids[b], geometry)


def _model(pycolmap, database, names: list[str], K: list[np.ndarray], c2w: np.ndarray):
    """(a reconstruction of the known cameras without points, the ids of its images); the cameras are written to the database too."""
    model, ids = pycolmap.Reconstruction(), []
    for name, k, pose in zip(names, K, c2w):
        image = database.read_image_with_name(name)
        camera = database.read_camera(image.camera_id)
        camera.model = pycolmap.CameraModelId.PINHOLE
        camera.params = [k[0, 0], k[1, 1], k[0, 2] + 0.5, k[1, 2] + 0.5]
        camera.has_prior_focal_length = True
        database.update_camera(camera)
        model.add_camera_with_trivial_rig(camera)
        inverse = np.concatenate([pose[:, :3].T, -pose[:, :3].T @ pose[:, 3:]], 1)
        known = pycolmap.Image(name=name, camera_id=image.camera_id, image_id=image.image_id)
        model.add_image_with_trivial_frame(known, pycolmap.Rigid3d(inverse))
        ids.append(image.image_id)
    return model, ids


def _points(pycolmap, model, work: Path) -> list[Point]:
    options = pycolmap.IncrementalPipelineOptions()
    options.random_seed, options.triangulation.random_seed, options.extract_colors = SEED, SEED, False
    options.num_threads = 1  # sums in one order: the points are the same in every run
    (work / "model").mkdir()
    solved = pycolmap.triangulate_points(model, work / "database.db", work, work / "model", options=options)
    points = [p for _, p in sorted(solved.points3D.items())]
    seen = [tuple(e.image_id for e in p.track.elements) for p in points]
    return good_points([Point(tuple(p.xyz), p.error, len(images), images) for p, images in zip(points, seen)])


def triangulate(pycolmap, views: "list[View]", develop: Develop) -> Found:
    """At least 10 points or none, and their tracks. Raises UserError when COLMAP fails or a photograph cannot be read."""
    taken = np.linspace(0, len(views) - 1, min(len(views), MOST)).round().astype(int).tolist()
    views = [views[i] for i in taken]
    c2w = np.stack([view.c2w for view in views])
    middle = c2w[:, :, 3].mean(0)
    scale = max(float(np.linalg.norm(c2w[:, :, 3] - middle, axis=1).max()), 1e-12)
    c2w[:, :, 3] = (c2w[:, :, 3] - middle) / scale  # georeferenced worlds have coordinates of millions
    chosen, K = pairs(c2w), []
    names = [f"{i:05d}.png" for i in range(len(views))]
    pycolmap.set_random_seed(SEED)
    with tempfile.TemporaryDirectory(prefix="points-") as folder:
        work = Path(folder)
        for view, name in zip(views, names):
            image, k = develop(view, LARGEST)
            cv2.imwrite(str(work / name), cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), [cv2.IMWRITE_PNG_COMPRESSION, 1])
            K.append(k)
        try:
            _features(pycolmap, names, work)
            _match(pycolmap, [(names[a], names[b]) for a, b in chosen], work)
            with pycolmap.Database.open(work / "database.db") as database:
                model, ids = _model(pycolmap, database, names, K, c2w)
                _verify(pycolmap, database, ids, chosen, K, c2w)
            points = _points(pycolmap, model, work)
        except (RuntimeError, ValueError) as error:  # exceptions of COLMAP's C++ code
            raise UserError(f"triangulation failed ({str(error).strip()[-120:]})") from None
    return np.array([p.xyz for p in points]).reshape(-1, 3) * scale + middle, point_tracks(points, dict(zip(ids, taken)))


def scene_points(root: Path, views: "list[View]", develop: Develop, log: logging.Logger = LOG) -> Found | None:
    """Points of the views and their tracks, from the scene folder when they were made before; None without enough of them.

    Nothing here ends a run: without pycolmap, in a folder that cannot be written and on failure, a line of the log says so.
    """
    record: dict | None = {}
    name = signature(views)
    try:
        record = _record(root)
        kept = _kept(root, record, len(views)) if record.get("signature") == name else None
        if kept is not None:
            return kept if len(kept[0]) else None
    except UserError as error:
        log.info("%s; the points of this scene are not kept", error)
        record = None
    pycolmap = _pycolmap()
    if pycolmap is None:
        log.info("%s: neither points nor masks; pip install pycolmap to triangulate points, which place the unit sphere better", root)
        return None
    began = time.perf_counter()
    try:
        points, tracks = triangulate(pycolmap, views, develop)
    except (UserError, OSError) as error:
        log.warning("%s: %s; continuing without points", root, error)
        return None
    log.info("%s: %d points triangulated from %d photographs in %.0f s", root, len(points), len(views), time.perf_counter() - began)
    if record is not None:
        try:
            _keep(root, points, tracks, name)
        except (UserError, OSError) as error:
            log.info("%s; the points are made again in the next run", error)
    return (points, tracks) if len(points) else None
