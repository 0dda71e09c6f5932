"""An overview image of a scene: cameras, points and the unit sphere, from above, from the side, and over three photographs."""

from collections.abc import Callable

import cv2
import numpy as np

from process_data.axes import unit
from process_data.normalize import resize_intrinsics
from process_data.sight import in_front
from utils.projection import project
from utils.rays import Scene

SIZE = 640  # pixels of a panel
PHOTOS = 3  # photographs
VIEWS = (("from above", (0, 1)), ("from the side", (0, 2)))  # axes of the unit sphere's frame that point right and up
TRAIN, HELD, SPHERE, POINT, INK = (40, 90, 220), (230, 120, 20), (20, 150, 60), (150, 150, 150), (40, 40, 40)
INSIDE = (90, 220, 60)  # points inside the sphere


def _reach(scene: Scene, radius: float) -> float:
    """Half the width of a panel, which shows the sphere and all but the 2 % furthest cameras."""
    centres = scene.cameras.c2w[:, :, 3].abs().max(1).values
    return 1.15 * max(float(centres.quantile(0.98)), 1.2 * radius)


def _panel(scene: Scene, radius: float, axes: tuple[int, int], title: str) -> np.ndarray:
    """uint8 [SIZE, SIZE, 3]: orthographic view along the third axis."""
    reach, picture = _reach(scene, radius), np.full((SIZE, SIZE, 3), 255, np.uint8)

    def to_pixels(x: np.ndarray) -> np.ndarray:
        """Points [P, 3] -> integer pixels [P, 2]."""
        flat = np.nan_to_num(x[:, list(axes)]) / reach
        flat = np.clip(flat, -50, 50) * [1, -1]
        return np.rint((flat + 1) / 2 * (SIZE - 1)).astype(np.int32)

    if scene.points is not None:
        some = scene.points[:: max(1, len(scene.points) // 20000)].double().numpy()
        inside = np.linalg.norm(some, axis=1) < radius
        for colour, part in (POINT, ~inside), (INSIDE, inside):
            for u, v in to_pixels(some[part]):
                cv2.circle(picture, (int(u), int(v)), 1, colour, -1)
    middle = tuple(int(v) for v in to_pixels(np.zeros((1, 3)))[0])
    cv2.circle(picture, middle, round(radius / reach * SIZE / 2), SPHERE, 2, cv2.LINE_AA)
    _cameras(picture, scene, to_pixels, 0.06 * reach)
    _write(picture, f"{title}: {'xyz'[axes[0]]} right, {'xyz'[axes[1]]} up")
    return picture


def _cameras(picture: np.ndarray, scene: Scene, to_pixels: Callable[[np.ndarray], np.ndarray], size: float) -> None:
    """Draw each camera as a pyramid of this size with its apex at the centre of projection."""
    held = set(scene.test)
    for i in range(len(scene.cameras)):
        w, h = scene.cameras.size(i)
        corners = np.array([[0, 0, 1], [w - 1, 0, 1], [w - 1, h - 1, 1], [0, h - 1, 1]], np.float64)
        c2w, K = scene.cameras.c2w[i].double().numpy(), scene.cameras.K[i].double().numpy()
        ends = to_pixels(c2w[:, 3] + size * (corners @ np.linalg.inv(K).T) @ c2w[:, :3].T)
        tip, colour = tuple(int(v) for v in to_pixels(c2w[None, :, 3])[0]), HELD if i in held else TRAIN
        cv2.polylines(picture, [ends], True, colour, 1, cv2.LINE_AA)
        for end in ends:
            cv2.line(picture, tip, tuple(int(v) for v in end), colour, 1, cv2.LINE_AA)


def _photograph(scene: Scene, view: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(photograph uint8 [h, w, 3] that fits a panel, its K [3, 3], c2w [3, 4])."""
    photo = scene.image(view).numpy()
    h, w = photo.shape[:2]
    f = SIZE / max(h, w)
    size = max(1, round(w * f)), max(1, round(h * f))
    K = resize_intrinsics(scene.cameras.K[view].double().numpy(), size[0] / w, size[1] / h)
    return cv2.resize(photo, size, interpolation=cv2.INTER_AREA if f < 1 else cv2.INTER_LINEAR), K, scene.cameras.c2w[view].double().numpy()


def spread_views(scene: Scene, n: int) -> list[int]:
    """At most n training views far apart: the middle one, then each time the one furthest from all chosen before."""
    centres = scene.cameras.c2w[list(scene.train), :, 3].double().numpy()
    directions = unit(centres)
    chosen = [len(centres) // 2]
    while len(chosen) < min(n, len(centres)):
        gap = np.linalg.norm(directions[:, None] - directions[chosen], axis=2).min(1)
        gap[chosen] = -1
        chosen.append(int(gap.argmax()))
    return [scene.train[i] for i in chosen]


def _outline(radius: float, eye: np.ndarray) -> np.ndarray | None:
    """[91, 3] the outline of the sphere as seen from `eye` [3]; None from inside.

    It is a circle around the axis to the centre, at the distance radius^2 / |eye| from it.
    """
    distance = float(np.linalg.norm(eye))
    if distance <= radius:
        return None
    normal = eye / distance
    first = unit(np.cross(normal, np.eye(3)[np.abs(normal).argmin()]))
    turn = np.linspace(0, 2 * np.pi, 91)[:, None]
    ring = np.cos(turn) * first + np.sin(turn) * np.cross(normal, first)
    return normal * radius**2 / distance + ring * radius * np.sqrt(1 - (radius / distance) ** 2)


def _marked_photograph(scene: Scene, radius: float, view: int) -> np.ndarray:
    """uint8 [SIZE, w, 3]: a photograph with the outline of the sphere and the visible points, green inside it and grey outside."""
    photo, K, c2w = _photograph(scene, view)
    h, w = photo.shape[:2]
    if scene.points is not None:
        some = scene.points[:: max(1, len(scene.points) // 20000)].double().numpy()
        uv, depth = project(some, K, c2w)
        shown = in_front(uv, depth, np.array([w, h]))
        inside = np.linalg.norm(some, axis=1) < radius
        for colour, part in ((POINT, shown & ~inside), (INSIDE, shown & inside)):
            for u, v in np.rint(uv[part]).astype(int):
                cv2.circle(photo, (int(u), int(v)), 2, colour, -1)
    ring = _outline(radius, c2w[:, 3])
    if ring is not None:
        uv, depth = project(ring, K, c2w)
        uv, front = np.rint(np.clip(uv, -1e4, 1e4)).astype(np.int32), depth > 1e-3
        for i in np.flatnonzero(front[1:] & front[:-1]):
            cv2.line(photo, uv[i].tolist(), uv[i + 1].tolist(), SPHERE, 3, cv2.LINE_AA)
    _write(photo, scene.names[view] + (" (inside the sphere)" if ring is None else ""))
    return np.pad(photo, ((0, SIZE - h), (0, 0), (0, 0)), constant_values=255)


def _write(picture: np.ndarray, text: str) -> None:
    for colour, width in ((255, 255, 255), 3), (INK, 1):
        cv2.putText(picture, text, (10, 22), cv2.FONT_HERSHEY_SIMPLEX, 0.55, colour, width, cv2.LINE_AA)


def scene_picture(scene: Scene, radius: float = 1.0) -> np.ndarray:
    """uint8 [H, W, 3]: two orthographic views (training cameras blue, held-out ones orange, sphere green) and three photographs."""
    panels = [_panel(scene, radius, axes, title) for title, axes in VIEWS]
    return np.concatenate([*panels, *(_marked_photograph(scene, radius, view) for view in spread_views(scene, PHOTOS))], 1)
