"""Colours of a mesh's vertices as the photographs show them: the mean over the cameras that see a vertex best.

Along its normal, where no camera may ever have been, a field that depends on the view has learned nothing.
"""

from collections.abc import Sequence

import numpy as np
import torch
import trimesh
from torch import Tensor

from models.raytrace import MeshTracer, vertex_normals
from systems.visibility import LEAST, clear, framed
from utils.rays import Cameras


@torch.no_grad()
def best_views(mesh: trimesh.Trimesh, cameras: Cameras, views: Sequence[int], device: torch.device, n: int = 3) -> tuple[Tensor, Tensor]:
    """(directions of sight [V, n, 3], unit, from a camera to a vertex; their weights [V, n], which sum to 1) on `device`.

    mesh: vertices in the unit sphere's frame. A camera counts where the vertex lies in its picture, faces it, and nothing of the mesh
    lies between. Weights are the cosines. A vertex that no camera sees is looked at from the camera it faces most.
    """
    x = torch.as_tensor(np.asarray(mesh.vertices), dtype=torch.float32, device=device)
    faces = torch.as_tensor(np.asarray(mesh.faces), device=device)
    normal = vertex_normals(x, faces)
    tracer = MeshTracer(x, faces)
    best, facing = torch.zeros(len(x), n, device=device), torch.full((len(x),), -2.0, device=device)
    towards, hidden = torch.zeros(len(x), n, 3, device=device), -normal
    for i in views:
        inside = torch.as_tensor(framed(np.asarray(mesh.vertices), cameras, i), device=device)
        away = cameras.c2w[i, :, 3].to(x) - x
        distance = away.norm(dim=1, keepdim=True)
        away = away / distance
        cosine = (away * normal).sum(1)
        hidden = torch.where((cosine > facing)[:, None], -away, hidden)
        facing = torch.maximum(facing, cosine)
        at = torch.nonzero(inside & (cosine > LEAST) & (cosine > best.amin(1)))[:, 0]  # the others are seen better by n cameras
        if len(at):
            at = at[clear(tracer, x[at], normal[at], away[at], distance[at, 0])]
            worst = best[at].argmin(1)
            best[at, worst] = cosine[at]
            towards[at, worst] = -away[at]
    unseen = best.sum(1) == 0
    towards[unseen, 0], best[unseen, 0] = hidden[unseen], 1.0
    return towards, best / best.sum(1, keepdim=True)
