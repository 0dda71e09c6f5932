"""Which training views see a point of a mesh: it lies in the picture and faces the camera, and nothing of the mesh lies between."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from models.raytrace import MeshTracer
from utils.projection import in_frame, project
from utils.rays import Cameras

LEAST = 0.15  # cosine between normal and direction to a camera, below which the camera says little
LIFT = 2e-3  # of the sphere's radius: where sight lines start, above the mesh


def framed(x: np.ndarray, cameras: Cameras, i: int) -> np.ndarray:
    """Whether points [P, 3] lie in the picture of camera i -> [P] bool."""
    return in_frame(*project(x, cameras.K[i], cameras.c2w[i]), cameras.size(i))


def clear(tracer: MeshTracer, x: Tensor, normal: Tensor, towards: Tensor, distance: Tensor, lift: float = LIFT) -> Tensor:
    """Whether nothing of the mesh lies between points on it [P, 3], lifted along their normals, and what lies `towards` [P, 3], unit,
    at `distance` [P] -> [P] bool."""
    return tracer(x + normal * lift, towards).t > distance


def seen_from(
    x: np.ndarray, normal: np.ndarray, cameras: Cameras, views: Sequence[int], tracer: MeshTracer, least: float = LEAST, lift: float = LIFT
) -> np.ndarray:
    """Cosines [N, P], float32, between unit normals and the directions to the N views that see the points [P, 3], 0 where one does not."""
    device = tracer.vertices.device
    found = np.zeros((len(views), len(x)), np.float32)
    for row, i in enumerate(views):
        away = cameras.c2w[i, :, 3].double().numpy() - x
        distance = np.linalg.norm(away, axis=1)
        away /= distance[:, None].clip(1e-12)
        cosine = (away * normal).sum(1)
        at = np.flatnonzero(framed(x, cameras, i) & (cosine > least))
        from_x, up, towards, far = (torch.from_numpy(v[at]).float().to(device) for v in (x, normal, away, distance))
        at = at[clear(tracer, from_x, up, towards, far, lift).cpu().numpy()]
        found[row, at] = cosine[at]
    return found


def far_apart(cameras: Cameras, views: Sequence[int], n: int) -> list[int]:
    """At most n of the views, each as far as can be from those before."""
    centres = cameras.c2w[list(views), :, 3].numpy()
    chosen = [0]
    while len(chosen) < min(n, len(centres)):
        chosen.append(int(np.linalg.norm(centres[:, None] - centres[chosen], axis=-1).min(1).argmax()))
    return [views[k] for k in chosen]
