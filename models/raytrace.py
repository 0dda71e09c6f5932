"""Rays against a triangle mesh: Warp's mesh queries on the CPU and on CUDA, and a plain torch twin."""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_matrix
from torch import Tensor
from torch.nn import functional as F

from utils.device import choose

FAR = 1e6


@dataclass(frozen=True)
class Hits:
    """First intersections of N rays with the mesh."""

    t: Tensor  # [N] distance along the ray, inf where it misses
    face: Tensor  # [N] int64, 0 where it misses
    weights: Tensor  # [N, 3] barycentric, of the face's three vertices

    @property
    def found(self) -> Tensor:
        """[N] bool."""
        return torch.isfinite(self.t)


def trace_torch(vertices: Tensor, faces: Tensor, origins: Tensor, dirs: Tensor, chunk: int = 1 << 22) -> Hits:
    """Every ray against every triangle (Moeller and Trumbore, 1997): the specification, for small meshes."""
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    e1, e2 = b - a, c - a
    parts, step = [], max(1, chunk // max(len(faces), 1))
    for o, d in zip(origins.split(step), dirs.split(step)):
        p = torch.cross(d[:, None].expand(-1, len(faces), 3), e2[None].expand(len(d), -1, 3), dim=-1)
        det = (e1 * p).sum(-1)
        inverse = torch.where(det.abs() > 1e-12, 1 / det, 0.0)
        s = o[:, None] - a
        u = (s * p).sum(-1) * inverse
        q = torch.cross(s, e1[None].expand(len(d), -1, 3), dim=-1)
        v = (d[:, None] * q).sum(-1) * inverse
        t = (e2 * q).sum(-1) * inverse
        ok = (det.abs() > 1e-12) & (u >= 0) & (v >= 0) & (u + v <= 1) & (t > 0)
        t, face = torch.where(ok, t, torch.inf).min(1)
        row = torch.arange(len(d), device=d.device)
        u, v = u[row, face], v[row, face]
        parts.append((t, torch.where(torch.isfinite(t), face, 0), torch.stack([1 - u - v, u, v], -1)))
    return Hits(*(torch.cat(column) for column in zip(*parts)))


class MeshTracer:
    """First hits of rays with a mesh. backend: warp where it runs, else torch."""

    def __init__(self, vertices: Tensor, faces: Tensor, backend: str | None = None):
        self.vertices, self.faces = vertices.float().contiguous(), faces.long().contiguous()
        self.backend = backend or choose("trace", "auto", vertices.device)
        self.mesh: Any = None
        if self.backend == "warp":
            from utils.warp_launch import triangle_mesh

            self.mesh = triangle_mesh(self.vertices, self.faces)

    @torch.no_grad()
    def __call__(self, origins: Tensor, dirs: Tensor) -> Hits:
        """origins, dirs [N, 3] -> Hits[N]."""
        if self.backend == "torch":
            return trace_torch(self.vertices, self.faces, origins, dirs)
        import warp as wp

        from models.raytrace_warp import trace
        from utils import warp_launch

        n, device = len(origins), origins.device
        t = torch.full((n,), torch.inf, device=device)
        face = torch.zeros(n, dtype=torch.int32, device=device)
        weights = torch.zeros(n, 3, device=device)
        if not n:
            return Hits(t, face.long(), weights)
        kept = origins.float().contiguous(), dirs.float().contiguous()
        rays = [warp_launch.array(x, wp.vec3) for x in kept]
        out = [warp_launch.array(t, wp.float32), warp_launch.array(face, wp.int32), warp_launch.array(weights, wp.vec3)]

        def part(begin: int, stop: int) -> None:
            run = 1 if device.type == "cuda" else stop - begin
            warp_launch.launch(trace, -(-(stop - begin) // run), [self.mesh.id, *rays, FAR, begin, stop, run, *out], device)

        warp_launch.run([functools.partial(part, *edge) for edge in warp_launch.split(n, device, 256)])
        return Hits(t, face.long(), weights)


def vertex_normals(vertices: Tensor, faces: Tensor, rounds: int = 0) -> Tensor:
    """Unit normals [V, 3], the faces' weighted by area, then averaged with their neighbours `rounds` times."""
    corner = vertices[faces]
    area = torch.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0], dim=-1)
    normal = torch.zeros_like(vertices).index_add_(0, faces.reshape(-1), area.repeat_interleave(3, 0))
    normal = F.normalize(normal, dim=-1, eps=1e-20)
    if rounds:
        f, v = faces.cpu().numpy(), len(vertices)
        pairs = np.concatenate(
            [f[:, [0, 1]], f[:, [1, 2]], f[:, [2, 0]], f[:, [1, 0]], f[:, [2, 1]], f[:, [0, 2]], np.arange(v)[:, None].repeat(2, 1)]
        )
        mean = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(v, v)).tocsr()
        array = normal.double().cpu().numpy()
        for _ in range(rounds):
            array = mean @ array
            array /= np.linalg.norm(array, axis=1, keepdims=True).clip(1e-20)
        normal = torch.from_numpy(array).to(normal)
    return normal


def interpolate(values: Tensor, faces: Tensor, hits: Hits, index: Tensor) -> Tensor:
    """Values of vertices [V, C] at the hits of the rays `index` [M] -> [M, C]."""
    corners = values[faces[hits.face[index]]]  # [M, 3, C]
    return (corners * hits.weights[index][..., None]).sum(1)
