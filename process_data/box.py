"""The region of interest by a box drawn on one photograph (dataset.region): x0,y0,x1,y1@IMAGE."""

import re
from dataclasses import dataclass

import numpy as np

from process_data.lens import Lens, distort, undistort
from process_data.sight import clear_sphere, clearance
from utils.errors import UserError, suggestion

LEAST = 5  # points in a box
GAP = 1.25  # neighbouring depths with a larger ratio belong to different things
COVER = 0.97  # share of the points inside the sphere
PAD = 1.15  # radius of the sphere, in radii of the ball around these points, or in half sides of the box
FORM = "x0,y0,x1,y1@IMAGE in pixels of the photograph, for example 400,300,1200,1500@IMG_1025.jpg"


@dataclass(frozen=True)
class Box:
    """A rectangle on one photograph with the camera of that photograph as it was taken."""

    view: int
    low: np.ndarray  # [2] left and top edge in pixels; pixel centres at integers
    high: np.ndarray  # [2] right and bottom edge
    K: np.ndarray  # [3, 3] of the file
    lens: Lens
    name: str

    def to_plane(self, uv: np.ndarray) -> np.ndarray:
        """Pixels [P, 2] of the file -> undistorted points [P, 2] on the plane z = 1."""
        return undistort(self.lens, (np.linalg.inv(self.K) @ np.concatenate([uv, np.ones((len(uv), 1))], 1).T).T[:, :2])

    def contains(self, camera: np.ndarray) -> np.ndarray:
        """[P] bool: points [P, 3] in the camera's frame that the photograph shows inside the box."""
        edge = np.linspace(0, 1, 17)
        rim = [(u, v) for u in edge for v in (0, 1)] + [(u, v) for u in (0, 1) for v in edge]
        plane = self.to_plane(self.low + np.array(rim) * (self.high - self.low))
        xy = camera[:, :2] / np.where(camera[:, 2:] > 1e-12, camera[:, 2:], np.inf)
        near = (camera[:, 2] > 1e-12) & ((xy >= plane.min(0)) & (xy <= plane.max(0))).all(1)  # lens models fold back further out
        uv = distort(self.lens, np.where(near[:, None], xy, 0)) @ self.K[:2, :2].T + self.K[:2, 2]
        return near & ((uv >= self.low) & (uv <= self.high)).all(1)


def parse_box(text: str) -> tuple[list[float], str]:
    """([x0, y0, x1, y1], name of the image). Raises UserError."""
    match = re.fullmatch(r"\s*([^@]+)@(.+?)\s*", text)
    try:
        numbers = [float(word) for word in match[1].split(",")] if match else []
    except ValueError:
        numbers = []
    if match is None or len(numbers) != 4 or not np.isfinite(numbers).all():
        raise UserError(f"dataset.region: expected {FORM}, got {text[:100]!r}")
    if not (numbers[0] < numbers[2] and numbers[1] < numbers[3]):
        raise UserError(f"dataset.region: the box {match[1]} is empty; expected x0 < x1 and y0 < y1: {FORM}")
    return numbers, match[2]


def find_view(name: str, names: list[str]) -> int:
    """The view of this name; its last part and its stem are enough where they are unique. Raises UserError."""
    for short in (lambda n: n, lambda n: n.rsplit("/", 1)[-1], lambda n: n.rsplit("/", 1)[-1].rsplit(".", 1)[0]):
        found = [i for i, known in enumerate(names) if short(known) == name]
        if len(found) == 1:
            return found[0]
    near = suggestion(name, names) or f"; the first of {len(names)} is {names[0]}"
    raise UserError(f"dataset.region: the scene has no photograph {name[:100]!r}{near}")


def make_box(text: str, names: list[str], cameras: list[tuple[np.ndarray, tuple[int, int], Lens]]) -> Box:
    """The box of dataset.region; cameras: (K, size, lens) of each file. Raises UserError."""
    (x0, y0, x1, y1), name = parse_box(text)
    view = find_view(name, names)
    K, (w, h), lens = cameras[view]
    if x0 < 0 or y0 < 0 or x1 > w or y1 > h:
        raise UserError(f"dataset.region: the box {x0:g},{y0:g},{x1:g},{y1:g} leaves {names[view]}, which has {w}x{h} pixels")
    return Box(view, np.array([x0, y0]) - 0.5, np.array([x1, y1]) - 0.5, K, lens, names[view])


def nearest_cluster(depth: np.ndarray) -> np.ndarray:
    """[P] bool: the nearest group of depths [P] > 0 without large gaps that holds 5 % of them or more."""
    order = np.argsort(depth)
    label = np.empty(len(depth), int)
    label[order] = np.concatenate([[0], np.cumsum(depth[order][1:] > GAP * depth[order][:-1])])
    count = np.bincount(label)
    return label == np.flatnonzero(count >= min(max(LEAST, 0.05 * len(depth)), count.max()))[0]


def box_sphere(
    box: Box, c2w: np.ndarray, points: np.ndarray | None, seen: np.ndarray | None, look_at: np.ndarray
) -> tuple[np.ndarray, float, str]:
    """(centre [3], radius, description) of the sphere around what the box shows.

    c2w [N, 3, 4]; points [P, 3] and seen [M, 2], the pairs (point, view) of tracks, where the scene has them. Without points the sphere
    lies at the depth of look_at [3]. Raises UserError when no points lie in the box.
    """
    pose = c2w[box.view]
    corners = box.to_plane(np.array([box.low, [box.high[0], box.low[1]], box.high, [box.low[0], box.high[1]]]))
    half = float((corners.max(0) - corners.min(0)).max()) / 2  # of the longer side, at depth 1
    if points is None or not len(points):
        depth = float((look_at - pose[:, 3]) @ pose[:, 2])
        if depth <= 0:
            raise UserError(f"dataset.region: the cameras converge behind {box.name}; draw the box on another photograph")
        centre = pose[:, 3] + pose[:, :3] @ (depth * np.append((corners.max(0) + corners.min(0)) / 2, 1))
        return centre, min(PAD * half * depth, clearance(c2w[:, :, 3], centre)), f"the box on {box.name}, at the depth of the look-at point"
    camera = (points - pose[:, 3]) @ pose[:, :3]
    inside = box.contains(camera)
    if seen is not None:
        tracked = np.zeros(len(points), bool)
        tracked[seen[seen[:, 1] == box.view, 0]] = True
        if (tracked & inside).sum() >= LEAST:
            inside &= tracked
    if inside.sum() < LEAST:
        raise UserError(f"dataset.region: {inside.sum()} points lie in the box on {box.name}, expected {LEAST} or more; draw a larger box")
    x = points[inside][nearest_cluster(camera[inside, 2])]
    fitted = clear_sphere(x, np.ones(len(x)), c2w[:, :, 3], COVER, PAD)
    centre = np.median(x, 0) if fitted is None else fitted[0]
    radius = max(0.0 if fitted is None else fitted[1], PAD * half * float((centre - pose[:, 3]) @ pose[:, 2]))
    return centre, min(radius, clearance(c2w[:, :, 3], centre)), f"the {len(x)} points in the box on {box.name}"
