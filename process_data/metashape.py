"""Agisoft Metashape: the XML file of File > Export > Export Cameras, with the photographs in images/ or beside it.

The frame camera (Metashape user manual, appendix "Camera models"), for (x, y) on the plane z = 1 of a camera with OpenCV axes:

    x' = x (1 + k1 r^2 + k2 r^4 + k3 r^6 + k4 r^8) + p1 (r^2 + 2 x^2) + 2 p2 x y,  y' likewise with p2 (r^2 + 2 y^2) + 2 p1 x y
    u = w / 2 + cx + x' f + x' b1 + y' b2,  v = h / 2 + cy + y' f

so that p1 and p2 are OpenCV's p2 and p1, and the pixel centres are at +0.5. A fisheye camera replaces the radius r by the angle to the
axis first. A camera's transform maps it to its component or chunk, whose transform (rotation, translation, scale) leads to the world.
Cameras that are disabled or not aligned are left out.
"""

import io
import logging
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np

from confs.schema import DatasetConfig
from process_data.capture import Capture, View, assemble, checked_intrinsics, checked_pose, masks_complete
from process_data.files import find_image, find_mask, report_missing
from process_data.lens import Lens
from process_data.normalize import similarity, similarity_parts
from utils.errors import UserError, raise_all
from utils.files import read_file
from utils.rays import Scene

LOG = logging.getLogger("neus")
NAMES = ("cameras.xml", "*[cC]ameras*.xml", "[mM]etashape*.xml")
IMAGE_FOLDERS = ("images", "image", "input", ".")
MOST_BYTES = 1 << 28
COEFFICIENTS = ("f", "cx", "cy", "b1", "b2", "k1", "k2", "k3", "k4", "p1", "p2", "p3", "p4")
FISHEYES = ("fisheye", "equidistant_fisheye", "equidistantfisheye")


class _NoDoctype(ET.TreeBuilder):
    """Refuses document type declarations: they define entities, which expand to gigabytes."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise UserError("has a document type declaration, which exports of Metashape do not have; export it again")


def read_xml(path: Path) -> ET.Element:
    """The root element. Raises UserError."""
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise UserError(f"{size / 2**20:.0f} MiB, expected at most {MOST_BYTES >> 20} MiB; export the cameras alone")
        return ET.parse(io.BytesIO(read_file(path)), ET.XMLParser(target=_NoDoctype())).getroot()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (ET.ParseError, ValueError, LookupError, RecursionError) as error:
        raise UserError(f"{path}: not readable XML, perhaps truncated ({str(error)[:80]}); export the cameras again") from None


def _numbers(text: str | None, n: tuple[int, ...], what: str) -> np.ndarray:
    """The numbers of a text, as many as one of n. Raises UserError."""
    try:
        values = np.array((text or "").split()[:17], np.float64)
    except ValueError:
        values = np.zeros(0)
    if len(values) not in n or not (np.abs(values) < 1e12).all():
        raise UserError(f"{what}: expected {n[0]} finite numbers; export the cameras again")
    return values


def _similarity(element: ET.Element | None, where: str) -> np.ndarray:
    """[4, 4] of a <transform> of a chunk or component: 16 numbers, or rotation, translation and scale; the identity without it."""
    if element is None:
        return np.eye(4)
    if not len(element) and (element.text or "").strip():
        matrix = _numbers(element.text, (16,), f"{where}: transform").reshape(4, 4)
    else:
        rotation, shift, scale = (element.find(tag) for tag in ("rotation", "translation", "scale"))
        turn = np.eye(3) if rotation is None else _numbers(rotation.text, (9,), f"{where}: rotation").reshape(3, 3)
        move = np.zeros(3) if shift is None else _numbers(shift.text, (3,), f"{where}: translation")
        factor = 1.0 if scale is None else float(_numbers(scale.text, (1,), f"{where}: scale")[0])
        matrix = similarity(factor, turn, move)
    try:
        similarity_parts(matrix)
    except UserError as error:
        raise UserError(f"{where}: transform: {error}; export the cameras again") from None
    return matrix


def _lens(kind: str, k: dict[str, float], where: str) -> Lens:
    radial = (k["k1"], k["k2"], k["k3"], k["k4"])
    if k["p3"] or k["p4"]:
        raise UserError(f"{where}: p3 and p4 are not supported; fix them at 0 in the camera calibration, or export undistorted photographs")
    if kind == "frame":
        return Lens("brown", (*radial[:2], k["p2"], k["p1"], radial[2], 0.0, 0.0, 0.0, radial[3]))
    if kind not in FISHEYES or k["p1"] or k["p2"]:
        raise UserError(f"{where}: {kind[:40]!r} with these coefficients is not supported; expected frame, or fisheye with p1 = p2 = 0")
    return Lens("fisheye", radial)


def read_sensor(sensor: ET.Element, where: str) -> tuple[np.ndarray, tuple[int, int], Lens]:
    """(K [3, 3], (width, height), lens) of a sensor, by its adjusted calibration. Raises UserError."""
    found = sensor.findall("calibration")
    calibration = next((c for c in found if c.get("class") == "adjusted"), found[0] if found else None)
    if calibration is None:
        raise UserError(f"{where}: no calibration; align the photographs, and export the cameras again")
    resolution = calibration.find("resolution")
    resolution = sensor.find("resolution") if resolution is None else resolution
    sides = [] if resolution is None else [resolution.get("width", ""), resolution.get("height", "")]
    if len(sides) != 2 or not all(side.isdecimal() and len(side) < 7 for side in sides):
        raise UserError(f"{where}: no resolution; export the cameras again")
    size = (int(sides[0]), int(sides[1]))
    k = {tag: float(_numbers(calibration.findtext(tag, "0"), (1,), f"{where}: {tag}")[0]) for tag in COEFFICIENTS}
    K = checked_intrinsics(k["f"] + k["b1"], k["f"], size[0] / 2 + k["cx"], size[1] / 2 + k["cy"], size, where)
    if abs(k["b2"]) > k["f"]:
        raise UserError(f"{where}: b2 is {k['b2']:g} pixels for a focal length of {k['f']:g}; check the calibration")
    K[0, 1] = k["b2"]
    return K, size, _lens(calibration.get("type", sensor.get("type", "frame")), k, where)


def _pose(camera: ET.Element, to_world: np.ndarray, where: str) -> np.ndarray:
    """Camera to world [3, 4]. Raises UserError."""
    matrix = _numbers(camera.findtext("transform"), (16,), f"{where}: transform").reshape(4, 4)
    if np.abs(matrix[3] - [0, 0, 0, 1]).max() > 1e-6:
        raise UserError(f"{where}: transform: the last row is not 0 0 0 1; export the cameras again")
    c2w, (scale, rotation, shift) = checked_pose(matrix, f"{where}: transform"), similarity_parts(to_world)
    return np.concatenate([rotation @ c2w[:, :3], (scale * rotation @ c2w[:, 3] + shift)[:, None]], 1)


def _chunk(root: ET.Element, path: Path, log: logging.Logger) -> tuple[ET.Element, list[ET.Element]]:
    """(the chunk with the most aligned, enabled cameras, these cameras). Raises UserError."""
    chunks = [root] if root.tag == "chunk" else root.findall("chunk")
    cameras = {
        i: [c for c in chunk.iterfind("cameras//camera") if c.find("transform") is not None and c.get("enabled", "1") not in ("0", "false")]
        for i, chunk in enumerate(chunks)
    }
    best = max(cameras, key=lambda i: len(cameras[i]), default=None)
    if best is None or not cameras[best]:
        raise UserError(f"{path}: no aligned cameras; align the photographs in Metashape, then File > Export > Export Cameras")
    if len(chunks) > 1:
        log.info("%s: %d chunks; the one with the most cameras (%d) is read", path, len(chunks), len(cameras[best]))
    return chunks[best], cameras[best]


def _file(root: Path) -> Path:
    """The XML file. Raises UserError."""
    for name in (*NAMES, "*.xml"):
        found = sorted(root.glob(name)) if root.is_dir() else []
        if found:
            return found[0]
    raise UserError(f"{root}: no cameras.xml; export it from Metashape: File > Export > Export Cameras")


def _worlds(chunk: ET.Element, path: Path) -> dict[str | None, np.ndarray]:
    """{id of a component: its transform to the world [4, 4]}; under None, the transform of the chunk. Raises UserError."""
    whole = _similarity(chunk.find("transform"), f"{path}: chunk")
    parts = {c.get("id"): c.find("transform") for c in chunk.iterfind("components/component")}
    found = {i: whole if part is None else _similarity(part, f"{path}: component {str(i)[:20]}") for i, part in parts.items()}
    return {**found, None: whole}


def metashape_capture(cfg: DatasetConfig, log: logging.Logger = LOG) -> Capture:
    """The views of the folder `cfg.root_dir`, sorted by name. Raises UserError that lists all problems."""
    root = Path(cfg.root_dir)
    path = _file(root)
    chunk, cameras = _chunk(read_xml(path), path, log)
    worlds, sensors = _worlds(chunk, path), {s.get("id"): s for s in chunk.iterfind("sensors/sensor")}
    bases = [root / f for f in IMAGE_FOLDERS if (root / f).is_dir()]
    masks = [root / f for f in ("masks", "mask") if (root / f).is_dir()] if cfg.masks else []
    models: dict[str | None, tuple[np.ndarray, tuple[int, int], Lens]] = {}
    views, missing, problems = [], [], []
    for camera in cameras:
        name, sensor = camera.get("label", ""), camera.get("sensor_id")
        image = next((p for p in (find_image(base, name) for base in bases) if p), None) if name else None
        if image is None:
            missing.append(name)
            continue
        try:
            if sensor not in sensors:
                raise UserError(f"{path}: {name[:80]}: no sensor {str(sensor)[:20]}; export the cameras again")
            if sensor not in models:
                models[sensor] = read_sensor(sensors[sensor], f"{path}: sensor {str(sensor)[:20]}")
            K, size, lens = models[sensor]
            pose = _pose(camera, worlds.get(camera.get("component_id"), worlds[None]), f"{path}: {name[:80]}")
        except UserError as error:
            problems += [] if str(error) in problems else [str(error)]
            continue
        views.append(View(image.name, image, K, size, pose, lens, find_mask(masks, image.name)))
    raise_all(problems)
    report_missing(path, missing, len(cameras), log)
    masks_complete(views, root, "masks")
    return Capture(root, sorted(views, key=lambda v: v.name), auto_up="estimated")


def read_metashape(cfg: DatasetConfig, log: logging.Logger = LOG) -> Scene:
    """Read the folder `cfg.root_dir`. Raises UserError that lists all problems."""
    return assemble(metashape_capture(cfg, log), cfg, log)
