"""An overview image of a scene: cameras, points and the unit sphere, from above and from the side."""

from collections.abc import Callable

import cv2
import numpy as np

from utils.projection import project
from utils.rays import Scene

SIZE = 640  # pixels of a panel
VIEWS = (("from above", (0, 1)), ("from the side", (0, 2)))  # axes of the unit sphere's frame that point right and up
TRAIN, HELD, SPHERE, POINT, INK = (40, 90, 220), (230, 120, 20), (20, 150, 60), (150, 150, 150), (40, 40, 40)


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
        for u, v in to_pixels(some):
            cv2.circle(picture, (int(u), int(v)), 1, POINT, -1)
    middle = tuple(int(v) for v in to_pixels(np.zeros((1, 3)))[0])
    cv2.circle(picture, middle, round(radius / reach * SIZE / 2), SPHERE, 2, cv2.LINE_AA)
    _cameras(picture, scene, to_pixels, 0.06 * reach)
    for colour, width in ((255, 255, 255), 3), (INK, 1):
        text = f"{title}: {'xyz'[axes[0]]} right, {'xyz'[axes[1]]} up"
        cv2.putText(picture, text, (10, 22), cv2.FONT_HERSHEY_SIMPLEX, 0.55, colour, width, cv2.LINE_AA)
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


def _centre_photograph(scene: Scene, radius: float, height: int) -> np.ndarray:
    """The photograph of the middle training view with the outline of the sphere."""
    view = scene.train[len(scene.train) // 2]
    photo = scene.image(view).numpy().copy()
    c2w, K = scene.cameras.c2w[view].double().numpy(), scene.cameras.K[view].double().numpy()
    away = c2w[:, 3]
    distance = float(np.linalg.norm(away))
    if distance > radius:
        # the outline of the sphere is a circle around the axis to its centre, at the distance radius^2 / distance from the centre
        normal = away / distance
        first = np.cross(normal, np.eye(3)[np.abs(normal).argmin()])
        first /= np.linalg.norm(first)
        turn = np.linspace(0, 2 * np.pi, 90)[:, None]
        ring = np.cos(turn) * first + np.sin(turn) * np.cross(normal, first)
        x = normal * radius**2 / distance + ring * radius * np.sqrt(1 - (radius / distance) ** 2)
        uv, depth = project(x, K, c2w)
        if (depth > 1e-3).all():
            uv = np.clip(uv, -1e4, 1e4)
            cv2.polylines(photo, [np.rint(uv).astype(np.int32)], True, SPHERE, max(1, photo.shape[1] // 300), cv2.LINE_AA)
    return cv2.resize(photo, (max(1, round(photo.shape[1] * height / photo.shape[0])), height), interpolation=cv2.INTER_AREA)


def scene_picture(scene: Scene, radius: float = 1.0) -> np.ndarray:
    """uint8 [H, W, 3]: two orthographic views (training cameras blue, held-out ones orange, sphere green) and a photograph."""
    panels = [_panel(scene, radius, axes, title) for title, axes in VIEWS]
    return np.concatenate([*panels, _centre_photograph(scene, radius, SIZE)], 1)
