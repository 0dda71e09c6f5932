"""Surfaces coloured by their distance to another, as .ply files with a legend. P points, F faces."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import trimesh
from scipy.spatial import cKDTree

from systems.mesh_eval import Counted, Surface
from utils.files import write_atomic
from utils.image import write_png

BEYOND = (214, 39, 40)  # judged, but too far to count
APART = (150, 150, 150)  # not judged
FINE = 20_000  # vertices that a mesh is subdivided to, so that colours show what lies inside its triangles


@dataclass(frozen=True)
class ErrorCloud:
    """Points (the vertices of a mesh where faces are given) and their distances to another surface."""

    points: np.ndarray  # [P, 3]
    distance: np.ndarray  # [P], NaN where it is not judged
    counted: np.ndarray  # [P] bool: part of the mean; a distance that is not lies beyond the protocol's limit
    faces: np.ndarray | None = None  # [F, 3]

    def colours(self, top: float) -> np.ndarray:
        """[P, 3] uint8: viridis from 0 to `top`, which also stands for what is larger; BEYOND and APART for the rest."""
        shade = np.rint(np.clip(np.nan_to_num(self.distance) / top, 0, 1) * 255).astype(np.uint8)
        rgb = colour_map()[shade]
        rgb[~self.counted] = BEYOND
        rgb[np.isnan(self.distance)] = APART
        return rgb


@dataclass(frozen=True)
class Compared:
    """What a comparison found: figures, and both surfaces with their errors."""

    result: dict[str, Any]
    prediction: ErrorCloud
    truth: ErrorCloud


def _fine(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    vertices, faces = np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces)
    while len(faces) and len(vertices) < FINE:
        vertices, faces = trimesh.remesh.subdivide(vertices, faces)
    return trimesh.Trimesh(vertices, faces, process=False)


def vertex_errors(
    pred: trimesh.Trimesh, gt: trimesh.Trimesh, unit: float = 1.0, counted: Counted | None = None
) -> tuple[ErrorCloud, ErrorCloud]:
    """(pred, gt) with the distance of each vertex to the other surface, over `unit`; a mesh of few vertices is subdivided.

    counted: as in `evaluate_mesh`; the other vertices are not judged.
    """
    pred, gt = _fine(pred), _fine(gt)
    a, b = Surface(pred, 1, 0, "cpu"), Surface(gt, 1, 0, "cpu")
    there, back = b.distance(np.asarray(pred.vertices))[0] / unit, a.distance(np.asarray(gt.vertices))[0] / unit
    if counted is not None and len(gt.faces):
        apart = ~counted(np.asarray(gt.vertices), np.asarray(gt.vertex_normals))
        there[apart[cKDTree(gt.vertices).query(pred.vertices, workers=-1)[1]]] = np.nan
        back[apart] = np.nan
    faces = np.asarray(gt.faces) if len(gt.faces) else None
    return (
        ErrorCloud(np.asarray(pred.vertices), there, np.isfinite(there), np.asarray(pred.faces)),
        ErrorCloud(np.asarray(gt.vertices), back, np.isfinite(back), faces),
    )


def colour_map() -> np.ndarray:
    """[256, 3] uint8: viridis, equal steps of which look equal, to the colour-blind too."""
    return cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_VIRIDIS)[:, 0, ::-1].copy()


def round_top(*clouds: ErrorCloud) -> float:
    """The end of the colour scale: the 95th percentile of what counts, rounded up to 1, 2 or 5 times a power of ten."""
    found = np.concatenate([c.distance[c.counted & np.isfinite(c.distance)] for c in clouds])
    most = float(np.percentile(found, 95)) if len(found) else 0.0
    if not most > 0:
        return 1e-6
    power = 10.0 ** math.floor(math.log10(most))
    return next(float(f"{k * power:.6g}") for k in (1, 2, 5, 10) if k * power >= most * (1 - 1e-9))


def ply(points: np.ndarray, colours: np.ndarray, faces: np.ndarray | None = None) -> list[bytes]:
    """A binary .ply file in parts: points [P, 3] as float32, colours [P, 3] uint8, faces [F, 3]."""
    vertex = np.empty(len(points), [("p", "<f4", 3), ("c", "u1", 3)])
    vertex["p"], vertex["c"] = points, colours
    head = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}"]
    head += [f"property float {k}" for k in "xyz"] + [f"property uchar {k}" for k in ("red", "green", "blue")]
    parts = [vertex.tobytes()]
    if faces is not None:
        face = np.empty(len(faces), [("n", "u1"), ("i", "<i4", 3)])
        face["n"], face["i"] = 3, faces
        head += [f"element face {len(faces)}", "property list uchar int vertex_indices"]
        parts.append(face.tobytes())
    return ["\n".join([*head, "end_header", ""]).encode(), *parts]


def legend(top: float, unit: str, beyond: str | None = None, apart: str | None = None, width: int = 720) -> np.ndarray:
    """The colour scale as a picture [H, W, 3] uint8; beyond, apart: what the two other colours mean."""
    notes = [(text, colour) for text, colour in ((beyond, BEYOND), (apart, APART)) if text]
    picture = np.full((112 + 30 * len(notes), width, 3), 255, np.uint8)
    left, right = 40, width - 40

    def text(words: str, x: int, y: int, size: float = 0.5) -> None:
        cv2.putText(picture, words, (x, y), cv2.FONT_HERSHEY_SIMPLEX, size, (0, 0, 0), 1, cv2.LINE_AA)

    text(f"distance to the other surface, {unit}", left, 26, 0.55)
    shade = np.rint(np.linspace(0, 255, right - left)).astype(np.int64)
    picture[40:72, left:right] = colour_map()[shade]
    for k in range(5):
        x = left + round(k / 4 * (right - left - 1))
        picture[72:78, x : x + 1] = 0
        label = f"{top * k / 4:.4g}" + (" and more" if k == 4 else "")
        wide = cv2.getTextSize(label, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)[0][0]
        text(label, max(2, min(x - wide // 2, width - wide - 2)), 96)
    for row, (words, colour) in enumerate(notes):
        y = 108 + 30 * row
        picture[y : y + 20, left : left + 32] = colour
        text(words, left + 42, y + 15)
    return picture


def write_comparison(folder: str | Path, found: Compared, unit: str, beyond: str | None = None, apart: str | None = None) -> list[Path]:
    """Write metrics.json, prediction_error.ply, truth_error.ply and legend.png into a folder; returns their paths.

    unit: of the distances, for the legend. Both surfaces share one colour scale.
    """
    folder, top = Path(folder), round_top(found.prediction, found.truth)
    clouds = {"prediction_error.ply": found.prediction, "truth_error.ply": found.truth}
    for name, cloud in clouds.items():
        write_atomic(folder / name, ply(cloud.points, cloud.colours(top), cloud.faces))
    write_png(folder / "legend.png", legend(top, unit, beyond, apart))
    write_atomic(folder / "metrics.json", json.dumps({**found.result, "colours_end_at": top}, indent=1).encode())
    return [folder / name for name in ("metrics.json", *clouds, "legend.png")]
