"""What the page of `--view` shows, as numbers: the upright frame, cameras, the region of interest, the curve.

The page's frame is that of the unit sphere turned upright, z up: x_page = U x, U a rotation [3, 3].
"""

import json
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from confs.schema import Config
from process_data.normalize import similarity_parts
from systems.placement import upright_axes
from utils.image import resize
from utils.rays import Cameras, Scene

THUMB = 128  # longer side of the photographs on the page, pixels


def upright(scene: Scene, cfg: Config) -> np.ndarray:
    """U [3, 3], from the unit sphere's frame to the page's, whose axes are those of an upright mesh."""
    return upright_axes(scene, cfg)[0].T @ similarity_parts(scene.to_world.numpy())[1]


def quaternion(rotation: np.ndarray) -> np.ndarray:
    """[3, 3] -> (w, x, y, z)."""
    return np.roll(Rotation.from_matrix(rotation).as_quat(), 1)


def camera_pose(c2w: np.ndarray, turn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(quaternion wxyz [4], position [3]) on the page of a camera [3, 4] of the unit sphere's frame; turn: U. OpenCV axes in both."""
    return quaternion(turn @ c2w[:, :3]), turn @ c2w[:, 3]


def visitor_camera(wxyz: np.ndarray, position: np.ndarray, fov: float, aspect: float, rows: int, turn: np.ndarray) -> Cameras:
    """One camera in the unit sphere's frame, of an image with so many rows, from a pose on the page; the inverse of `camera_pose`.

    fov: vertical, radians; aspect: width over height.
    """
    width = max(1, round(rows * aspect))
    focal = rows / 2 / np.tan(fov / 2)
    K = np.array([[focal, 0, (width - 1) / 2], [0, focal, (rows - 1) / 2], [0, 0, 1]])
    c2w = turn.T @ np.concatenate([Rotation.from_quat(np.roll(wxyz, -1)).as_matrix(), np.asarray(position)[:, None]], 1)
    return Cameras(torch.from_numpy(K).float()[None], torch.from_numpy(c2w).float()[None], rows, width)


def thumbnail(scene: Scene, view: int, most: int = THUMB) -> np.ndarray:
    """[h, w, 3] uint8: the photograph, its longer side at most `most` pixels."""
    w, h = scene.cameras.size(view)
    scale = min(1.0, most / max(w, h))
    return resize(scene.image(view).numpy(), max(1, round(w * scale)), max(1, round(h * scale)))


# ---- the region of interest ----


def region_in_world(position: np.ndarray, factor: float, scene: Scene, turn: np.ndarray) -> tuple[np.ndarray, float]:
    """(dataset.center [3], dataset.radius), in the world and its units, of the sphere around a point of the page.

    factor: its radius over that of the sphere that the run uses.
    """
    scale, rotation, shift = similarity_parts(scene.to_world.numpy())
    return scale * rotation @ (turn.T @ np.asarray(position, float)) + shift, scale * factor


def region_overrides(centre: np.ndarray, radius: float, cfg: Config) -> list[str]:
    """The options of a new run with this region of interest; `region_in_world` gives both."""
    # a box on a photograph decides the region too, and a run of the same name would be written into the same folder
    undo = ["dataset.region=null"] * (cfg.dataset.region is not None) + ["trainer.trial_name=null"] * (cfg.trainer.trial_name is not None)
    return [f"dataset.center=[{','.join(f'{v:.6g}' for v in centre)}]", f"dataset.radius={radius:.6g}", *undo]


def region_command(overrides: list[str], run: Path) -> str:
    """The command line of a new run with these options and otherwise those of the run folder."""
    return f"python run.py --config {run / 'config.yaml'} --train " + " ".join(f"'{word}'" if "[" in word else word for word in overrides)


# ---- the curve ----


class Curve:
    """The rows of a run's metrics.jsonl, read on as the file grows."""

    def __init__(self, path: Path):
        self.path, self.at, self.rows = path, 0, np.zeros((0, 4))  # step, loss, psnr, seconds

    def read(self) -> bool:
        """Read the complete new lines; whether there were any. A run that was resumed goes on from its own step."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self.at)
                data = file.read()
        except OSError:
            return False
        data = data[: data.rfind(b"\n") + 1]
        self.at += len(data)
        found = []
        for line in data.splitlines():
            try:
                row = json.loads(line)
                found.append([float(row[key]) for key in ("step", "loss", "psnr", "seconds")])
            except (ValueError, KeyError, TypeError):
                continue
        if found:
            rows = np.concatenate([self.rows, found])
            least = np.minimum.accumulate(rows[::-1, 0])[::-1]  # step from here on
            self.rows = rows[rows[:, 0] < np.append(least[1:], np.inf)]
        return bool(found)

    def points(self, most: int = 300) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(step, loss, psnr), each [n]: means of neighbouring rows, at most `most` of them."""
        rows = self.rows[np.isfinite(self.rows).all(1)]
        size = max(1, -(-len(rows) // most))
        means = [rows[i : i + size].mean(0) for i in range(0, len(rows), size)]
        step, loss, psnr = np.array(means).reshape(-1, 4).T[:3]
        return step, loss, psnr
