"""The confidence of an exported mesh: a property of its vertices, mesh/confidence.png, mesh/confidence.json, and advice in the log."""

import json
import logging
from typing import Any

import cv2
import numpy as np
import torch
import trimesh

from confs.schema import Config
from models.raytrace import vertex_normals
from systems.advice import LOW, advice, cut_off, known_up
from systems.confidence import Cues, measure
from systems.visibility import far_apart
from utils.files import write_atomic
from utils.image import sheet, write_png
from utils.log import RunFolder
from utils.mesh import area_vectors, render_mesh, transform
from utils.rays import Scene

log = logging.getLogger("neus")
WIDTH = 480  # pixels, widest of the pictures
VIEWS = 3  # cameras of training whose pictures are shown


def add_confidence(mesh: trimesh.Trimesh, system, scene: Scene, cfg: Config, run: RunFolder, device: torch.device) -> None:
    """Give a mesh in the world its vertex attribute `confidence` [V] float32, and write the files. Called before the mesh is saved.

    The attribute becomes a property of mesh.ply; whatever changes the vertices after this call loses it.
    """
    local = transform(mesh, np.linalg.inv(scene.to_world.numpy()))
    cues = measure(local, system.surface(), scene, cfg.model.radius, device)
    value = cues.confidence.astype(np.float32)
    mesh.vertex_attributes["confidence"] = value
    area = vertex_areas(local)
    up = known_up(scene, cfg)
    x = np.asarray(local.vertices)
    cut = cut_off(cues, x, cfg.model.radius)
    found = {**summary(cues, area), "advice": advice(cues, area, x, cut, scene, up)}
    write_atomic(run / "mesh/confidence.json", json.dumps(found, indent=1).encode())
    write_png(run / "mesh/confidence.png", picture(local, value, np.where(cut, 0, area), scene, up))
    log.info(
        "confidence: mean %.2f, %.0f%% of the surface below %g -> %s",
        found["mean"],
        100 * found["share_below_half"],
        LOW,
        run / "mesh/confidence.png",
    )
    for line in found["advice"]:
        log.info("advice: %s", line)


def vertex_areas(mesh: trimesh.Trimesh) -> np.ndarray:
    """[V] a third of the area of the faces around each vertex; 1 each where there is no area."""
    faces = np.asarray(mesh.faces)
    area = np.linalg.norm(area_vectors(np.asarray(mesh.vertices)[faces]), axis=1) / 6
    found = np.bincount(faces.ravel(), np.repeat(area, 3), minlength=len(mesh.vertices))
    return found if found.sum() > 0 else np.ones(len(mesh.vertices))


def summary(cues: Cues, area: np.ndarray) -> dict[str, Any]:
    """Figures weighted by area [V]: mean confidence, shares by the number of views that see the surface, share below a half."""
    share = area / area.sum()
    views = np.bincount(cues.views.clip(0, 3), share, minlength=4)
    return {
        "mean": float((cues.confidence * share).sum()),
        "share_by_views": {name: float(v) for name, v in zip(("0", "1", "2", "3+"), views)},
        "share_below_half": float(share[cues.confidence < LOW].sum()),
    }


# ------------------------------------------------------------------------------------------------ the picture
def colours(value: np.ndarray) -> np.ndarray:
    """uint8 [..., 3] of values in [0, 1]: viridis, dark violet for 0 to yellow for 1."""
    index = np.rint(np.clip(value, 0, 1) * 255).astype(np.uint8)
    return cv2.applyColorMap(index.reshape(-1, 1), cv2.COLORMAP_VIRIDIS)[:, 0, ::-1].reshape(*np.shape(value), 3)


def picture(mesh: trimesh.Trimesh, value: np.ndarray, area: np.ndarray, scene: Scene, up: np.ndarray | None) -> np.ndarray:
    """A mesh in the unit sphere's frame coloured by confidence [V]: from a few far-apart cameras, and from the side that is least sure.

    area [V]: what a vertex counts in the choice of that side.
    """
    tensors = torch.from_numpy(np.asarray(mesh.vertices)).float(), torch.as_tensor(np.asarray(mesh.faces))
    normal = vertex_normals(*tensors).double().numpy()
    shots = [(scene.names[i], *_camera(scene, i)) for i in far_apart(scene.cameras, scene.train, VIEWS)]
    shots.append(("the least sure side", *_worst_camera(np.asarray(mesh.vertices), normal, area * (1 - value) ** 4, scene, up)))
    painted, tiles = colours(value), []
    for _, K, c2w, (w, h) in shots:
        towards = c2w[:, 3] - np.asarray(mesh.vertices)
        facing = np.abs((towards * normal).sum(1)) / np.linalg.norm(towards, axis=1).clip(1e-12)
        shaded = trimesh.Trimesh(
            mesh.vertices, mesh.faces, vertex_colors=(painted * (0.55 + 0.45 * facing[:, None])).astype(np.uint8), process=False
        )
        tiles.append(render_mesh(shaded, K, c2w, h, w, "vertex"))
    tallest = max(len(tile) for tile in tiles)
    tiles = [np.pad(tile, ((0, tallest - len(tile)), (0, 0), (0, 0)), constant_values=255) for tile in tiles]
    for tile, (name, *_) in zip(tiles, shots):
        _text(tile, name, (6, 18))
    row = sheet(tiles)
    return np.concatenate([row, legend(row.shape[1])], 0)


def _camera(scene: Scene, i: int) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """(K, camera to frame, (width, height)) of a view, reduced to WIDTH."""
    (w, h), K = scene.cameras.size(i), scene.cameras.K[i].double().numpy().copy()
    f = min(1.0, WIDTH / w)
    K[:2] *= f
    K[:2, 2] += (f - 1) / 2
    return K, scene.cameras.c2w[i].double().numpy(), (max(1, round(f * w)), max(1, round(f * h)))


def _worst_camera(x: np.ndarray, normal: np.ndarray, doubt: np.ndarray, scene: Scene, up: np.ndarray | None):
    """As `_camera`: from where the vertices [V, 3] with doubts [V] face, at the usual distance, the whole mesh in the picture."""
    middle = (x.min(0) + x.max(0)) / 2
    towards = (normal * doubt[:, None]).sum(0)
    eyes = scene.cameras.c2w[list(scene.train), :, 3].double().numpy() - middle
    towards = towards if np.linalg.norm(towards) > 1e-9 else -eyes.mean(0)
    towards = towards / max(float(np.linalg.norm(towards)), 1e-12)
    level = up if up is not None and abs(up @ towards) < 0.95 else np.eye(3)[np.abs(towards).argmin()]
    right = np.cross(-towards, level)
    right /= np.linalg.norm(right)
    size = float(np.linalg.norm(x - middle, axis=1).max())
    distance = max(float(np.median(np.linalg.norm(eyes, axis=1))), 1.5 * size)
    side = WIDTH * 3 // 4
    focal = 0.48 * side * distance / size * (1 - (size / distance) ** 2) ** 0.5
    K = np.array([[focal, 0, side / 2 - 0.5], [0, focal, side / 2 - 0.5], [0, 0, 1]])
    return K, np.stack([right, np.cross(-towards, right), -towards, middle + distance * towards], 1), (side, side)


def legend(width: int) -> np.ndarray:
    """uint8 [40, width, 3]: the colours from 0 to 1, with words."""
    strip = np.full((40, width, 3), 255, np.uint8)
    left, right = int(0.25 * width), int(0.75 * width)
    strip[12:28, left:right] = colours(np.linspace(0, 1, right - left))[None]
    for text, at in (("0: a guess", left - 95), ("0.5", (left + right) // 2 - 12), ("1: sure", right + 8)):
        _text(strip, text, (max(0, at), 25))
    return strip


def _text(image: np.ndarray, text: str, at: tuple[int, int]) -> None:
    """Black on a white rim, into the picture."""
    for colour, width in ((255, 3), (0, 1)):
        cv2.putText(image, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (colour,) * 3, width, cv2.LINE_AA)
