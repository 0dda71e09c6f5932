"""Printed markers (AprilTag, ArUco) in photographs with known cameras: the scale of the world in metres, and up.

The black square of every marker has one known side. Its corners are detected at full size, moved through the lens, triangulated, and
their distances compared with that side. `python -m process_data.markers --out sheet.pdf` writes a sheet to print
(process_data/marker_sheet.py).
"""

import argparse
import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from process_data.axes import unit, up_axis
from process_data.dlt import robust
from process_data.lens import Lens, to_plane, undistort
from process_data.marker_edges import refine
from process_data.marker_sheet import PAPERS, write_sheet
from utils.errors import UserError
from utils.image import as_rgb, read_raster

log = logging.getLogger("neus")
FAMILIES = {  # in the order in which they are looked for; the sheets have the first
    "AprilTag 36h11": cv2.aruco.DICT_APRILTAG_36h11, "ArUco 6x6": cv2.aruco.DICT_6X6_250, "ArUco 5x5": cv2.aruco.DICT_5X5_250,
    "ArUco 4x4": cv2.aruco.DICT_4X4_100,
}  # fmt: skip
MIN_VIEWS = 3  # photographs with markers
PIXELS = 0.002  # tolerance of a corner, in longer sides of the photograph; at least 2 pixels
AGREE = 0.02  # relative difference of the sizes of markers, at most
PARALLAX = 3.0  # degrees between the directions from which a marker is seen, at least
LYING = 30.0  # degrees between a board's normal and the cameras' up direction: the board lies on the ground
ADVICE = "see 'python -m process_data.markers --help' for a sheet to print, or set dataset.marker_size=null"


@dataclass(frozen=True)
class Shot:
    """A photograph with its camera: K [3, 3] of the file's pixels, centres at integers; c2w [3, 4], OpenCV axes."""

    image: Path
    K: np.ndarray
    lens: Lens
    c2w: np.ndarray


@dataclass(frozen=True)
class Marker:
    """A triangulated marker: corners [4, 3] in the world, from the top left clockwise, and the number of photographs they are from."""

    number: int
    corners: np.ndarray
    views: int

    @property
    def sides(self) -> np.ndarray:
        """[4] lengths in the world."""
        return np.linalg.norm(self.corners - np.roll(self.corners, -1, 0), axis=1)

    @property
    def spread(self) -> float:
        """Standard deviation of the sides over their mean."""
        return float(self.sides.std(ddof=1) / self.sides.mean())

    @property
    def normal(self) -> np.ndarray:
        """[3] unit, towards the side that is printed on."""
        return unit(np.cross(self.corners[3] - self.corners[1], self.corners[2] - self.corners[0]))


@dataclass(frozen=True)
class Board:
    """What the markers tell: metres in a unit of the world, its relative standard error, up [3] where they lie on the ground, in words."""

    metres_per_unit: float
    error: float
    up: np.ndarray | None
    line: str


# ---- photographs ----


def detect(grey: np.ndarray, family: str) -> dict[int, np.ndarray]:
    """{number: corners [4, 2] in pixels} of a photograph [H, W] uint8; numbers that are seen twice are left out."""
    dictionary = cv2.aruco.getPredefinedDictionary(FAMILIES[family])
    corners, numbers, _ = cv2.aruco.ArucoDetector(dictionary).detectMarkers(grey)
    found = [] if numbers is None else [int(i) for i in np.ravel(numbers)]
    cells = dictionary.markerSize + 2
    return {i: refine(grey, np.asarray(c, np.float64).reshape(4, 2), cells) for i, c in zip(found, corners) if found.count(i) == 1}


def _sighted(shots: list[Shot], workers: int) -> tuple[str, list[dict[int, np.ndarray]]]:
    """(family, what `detect` finds in each photograph) of the first family that is found in any."""

    def one(pair: tuple[Shot, str]) -> dict[int, np.ndarray]:
        return detect(cv2.cvtColor(as_rgb(read_raster(pair[0].image)), cv2.COLOR_RGB2GRAY), pair[1])

    for family in FAMILIES:
        with ThreadPoolExecutor(workers) as pool:
            seen = list(pool.map(one, [(shot, family) for shot in shots]))
        if any(seen):
            return family, seen
    return "", [{} for _ in shots]


# ---- geometry ----


def _parallax(x: np.ndarray, c2w: np.ndarray) -> float:
    """The largest angle, in degrees, between the directions from x [3] to cameras [V, 3, 4]."""
    rays = unit(c2w[:, :, 3] - x)
    return float(np.degrees(np.arccos(np.clip(rays @ rays.T, -1, 1))).max())


def locate(shots: list[Shot], seen: list[dict[int, np.ndarray]]) -> list[Marker]:
    """The markers that two photographs or more agree on, from directions that differ."""
    found = []
    for number in sorted({i for marks in seen for i in marks}):
        at = [k for k, marks in enumerate(seen) if number in marks]
        if len(at) < 2:
            continue
        xy = np.stack([undistort(shots[k].lens, to_plane(shots[k].K, seen[k][number])) for k in at])
        c2w = np.stack([shots[k].c2w for k in at])
        focal = np.array([np.sqrt(shots[k].K[0, 0] * shots[k].K[1, 1]) for k in at])
        longer = np.array([2 * max(shots[k].K[0, 2], shots[k].K[1, 2]) for k in at])  # about the longer side, pixels
        corners, agree = robust(xy, c2w, np.maximum(PIXELS * longer, 2.0) / focal)
        if agree.sum() >= 2 and _parallax(corners.mean(0), c2w[agree]) >= PARALLAX:
            found.append(Marker(number, corners, int(agree.sum())))
    return found


def _lying_up(markers: list[Marker], c2w: np.ndarray) -> np.ndarray | None:
    """Normal [3] of the plane of all markers when they face the cameras' up direction; None when they do not lie flat on the ground."""
    x = np.concatenate([m.corners for m in markers])
    values, axes = np.linalg.svd(x - x.mean(0), full_matrices=False)[1:]
    normals = np.stack([m.normal for m in markers])
    normal = axes[2] * (1.0 if axes[2] @ normals.sum(0) >= 0 else -1.0)
    flat = values[2] < 0.05 * values[1] and (normals @ normal).min() > np.cos(np.radians(15))
    return normal if flat and normal @ up_axis(c2w) > np.cos(np.radians(LYING)) else None


def _checked(markers: list[Marker], where: str) -> list[Marker]:
    """The markers whose own sides agree. Raises UserError when the sizes of different markers disagree."""
    square = [m for m in markers if m.spread < AGREE] or markers
    sizes = np.array([m.sides.mean() for m in square])
    off = np.abs(sizes / np.median(sizes) - 1)
    if len(square) == 1:
        off = np.array([square[0].spread])
    if off.max() > AGREE:
        odd = square[int(off.argmax())]
        raise UserError(
            f"{where}: the sizes of the markers disagree by {off.max():.1%} (marker {odd.number}), expected at most {AGREE:.0%}; "
            "use markers of one size, each number once, on a flat sheet, and check the cameras"
        )
    return square


def measure(shots: list[Shot], side: float, where: str, workers: int = 1) -> Board:
    """The scale of the cameras' world from the markers of `side` metres in the photographs.

    where: names the scene in errors. Raises UserError when there are too few markers, or when their sizes disagree.
    """
    family, seen = _sighted(shots, workers)
    views = sum(bool(marks) for marks in seen)
    if not views:
        raise UserError(f"{where}: dataset.marker_size is set, but no markers are found in {len(shots)} photographs; {ADVICE}")
    if views < MIN_VIEWS:
        raise UserError(f"{where}: markers are found in {views} of {len(shots)} photographs, expected {MIN_VIEWS} or more; {ADVICE}")
    if not any(sum(i in marks for marks in seen) >= 2 for i in {i for marks in seen for i in marks}):
        raise UserError(f"{where}: no marker is seen in more than one photograph, expected {MIN_VIEWS} or more views of one; {ADVICE}")
    located = locate(shots, seen)
    if not located:
        raise UserError(f"{where}: the photographs disagree on where the markers lie; keep them fixed, each number once; check the cameras")
    markers = _checked(located, where)
    sizes = np.array([m.sides.mean() for m in markers])
    scale = side / float(sizes.mean())
    several = len(sizes) > 1
    error = float(sizes.std(ddof=1) / sizes.mean() / np.sqrt(len(sizes)) if several else markers[0].spread / 2)
    sightings = sum(m.number in marks for m in markers for marks in seen)
    up = _lying_up(markers, np.stack([shot.c2w for shot in shots]))
    line = (
        f"markers: {len(markers)} of {family} in {views} of {len(shots)} photographs, {sum(m.views for m in markers)} of {sightings} sightings agree, "
        f"side {side:g} m: 1 world unit = {scale:.5g} m, standard error {error:.2%}"
        + ("; they lie on the ground" if up is not None else "")
    )
    return Board(scale, error, up, line)


def main(words: list[str] | None = None) -> int:
    """Write a sheet of markers."""
    parser = argparse.ArgumentParser(prog="python -m process_data.markers", description="Write a sheet of markers to print at 100 %.")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="sheet.pdf or sheet.png")
    parser.add_argument("--paper", choices=sorted(PAPERS), default="a4")
    parser.add_argument("--size", type=float, default=50.0, metavar="MM", help="side of a marker's black square, mm")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="number of the first marker: each sheet needs its own numbers")
    args = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        log.info(
            "%s", write_sheet(args.out, cv2.aruco.getPredefinedDictionary(FAMILIES["AprilTag 36h11"]), args.paper, args.size, args.first)
        )
    except UserError as error:
        log.error("error: %s", error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
