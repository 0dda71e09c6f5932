"""A closed solid from a trained field: the surface is cut as a field, so that marching cubes caps what is cut.

A cut is a function of points that is positive where nothing shall be. The solid is where the surface's distance and all cuts
are negative: the largest of them is its field. All are lengths, in the unit sphere's frame.
"""

import importlib.util
import logging
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
import trimesh
from torch import Tensor
from torch.nn import functional as F

from utils.decimate import edge_counts, is_closed
from utils.rays import Cameras

log = logging.getLogger("neus")
Field = Callable[[Tensor], Tensor]
LARGEST = 512  # pixels: masks are reduced to this for their distance
STEEPEST = 1.5  # bound on the gradient of a cut


def mask_distance(mask: np.ndarray, dilation: int) -> Tensor:
    """Signed distance [h', w'] in pixels of `mask` [h, w] bool to its outline moved outwards by `dilation` pixels; negative inside.

    h', w' are h, w, or smaller by one factor; the unit stays the pixel of the mask.
    """
    mask = cv2.dilate(mask.astype(np.uint8), np.ones((2 * dilation + 1, 2 * dilation + 1), np.uint8))
    if mask.all() or not mask.any():
        return torch.full((2, 2), -1.0 if mask.all() else 1.0) * max(mask.shape)
    signed = cv2.distanceTransform(1 - mask, cv2.DIST_L2, 5) - cv2.distanceTransform(mask, cv2.DIST_L2, 5)
    signed -= 0.5 * np.sign(signed)  # the outline lies between two pixels
    scale = min(1.0, LARGEST / max(mask.shape))
    size = (max(2, round(mask.shape[1] * scale)), max(2, round(mask.shape[0] * scale)))
    return torch.from_numpy(cv2.resize(signed, size, interpolation=cv2.INTER_AREA) if scale < 1 else signed)


class ViewCut:
    """What `cull_by_masks` and `cull_unseen` of utils/mesh.py remove, as a cut: continuous, positive in what is removed.

    masks [N, H, W] uint8 or None; dilation in pixels; min_views: of the views, at least this many must have a point in frame.
    """

    def __init__(self, cameras: Cameras, masks: Tensor | None, dilation: int, min_views: int, views: Sequence[int], device: torch.device):
        self.cameras, self.views, self.min_views = cameras.to(device), list(views), min(min_views, len(views))
        self.distance: list[Tensor] | None = None
        if masks is not None:
            sizes = [cameras.size(i) for i in self.views]
            self.distance = [
                mask_distance(masks[i, :h, :w].cpu().numpy() > 127, dilation).to(device) for i, (w, h) in zip(self.views, sizes)
            ]

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """[P, 3] -> [P]."""
        return torch.cat([self._part(part) for part in x.split(65536)]) if len(x) else x.new_zeros(0)

    def _part(self, x: Tensor) -> Tensor:
        out, frames = x.new_full((len(x),), -torch.inf), []
        for k, i in enumerate(self.views):
            uv, z, footprint = self._project(x, i)
            w, h = self.cameras.size(i)
            within = torch.minimum(uv + 0.5, uv.new_tensor([w - 0.5, h - 0.5]) - uv).amin(1) * footprint
            within = torch.minimum(within, z)  # length from the point to the edge of the frame, negative outside
            if self.min_views:
                frames.append(within)
            if self.distance is not None:
                at = ((2 * uv + 1) / uv.new_tensor([w, h]) - 1).clamp(-2, 2)
                pixels = F.grid_sample(self.distance[k][None, None], at[None, None], align_corners=False, padding_mode="border")
                out = torch.maximum(out, torch.minimum(pixels.view(-1) * footprint, within))
        if self.min_views:
            out = torch.maximum(out, -torch.stack(frames).topk(self.min_views, 0).values[-1])
        return out

    def _project(self, x: Tensor, i: int) -> tuple[Tensor, Tensor, Tensor]:
        """(pixels [P, 2], depth [P], length of a pixel there [P]); pixels are finite where depth is not positive."""
        K, c2w = self.cameras.K[i].to(x), self.cameras.c2w[i].to(x)
        camera = (x - c2w[:, 3]) @ c2w[:, :3]
        z = camera[:, 2]
        depth = z.clamp(min=1e-4)
        pixels = camera @ K.T
        return pixels[:, :2] / depth[:, None], z, depth / ((K[0, 0] + K[1, 1]) / 2)


class Cached:
    """A cut that is evaluated once on a lattice of `n` cells along the sphere's box, and again only where it is near zero.

    Elsewhere a value of the right sign is returned, as far from zero as a cell is wide at least.
    """

    def __init__(self, cut: Field, radius: float, n: int, device: torch.device):
        self.cut, self.n, self.reach = cut, n, 1.05 * radius
        axis = torch.linspace(-self.reach, self.reach, n + 1, device=device)
        inside = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).view(-1, 3)
        self.values = torch.cat([cut(part) for part in inside.split(262144)])
        self.near = 2 * STEEPEST * (2 * self.reach / n) * 3**0.5 / 2

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        i = ((x + self.reach) * (self.n / (2 * self.reach))).round().long().clamp(0, self.n)
        out = self.values[(i[:, 0] * (self.n + 1) + i[:, 1]) * (self.n + 1) + i[:, 2]].clone()
        at = torch.nonzero((out.abs() < self.near) | (x.abs().amax(1) > self.reach))[:, 0]
        out[at] = self.cut(x[at])
        return out


def intersected(surface: Field, cuts: Sequence[Field]) -> Field:
    """The field of what is inside the surface and outside every cut."""

    def field(x: Tensor) -> Tensor:
        value = surface(x).reshape(-1)
        for cut in cuts:
            value = torch.maximum(value, cut(x).to(value))
        return value

    return field


def checked(mesh: trimesh.Trimesh) -> tuple[bool, str]:
    """(whether the mesh is a solid, what holds): closed, oriented, of positive volume by trimesh; a manifold by manifold3d where installed."""
    solid = bool(mesh.is_watertight and mesh.is_volume)
    if not solid:
        count = edge_counts(mesh.faces)
        what = f"{int((count == 1).sum())} open edges, {int((count > 2).sum())} edges with more than two faces"
        return False, what if (count != 2).any() else "its faces are not oriented alike, or its volume is not positive"
    if importlib.util.find_spec("manifold3d") is None:
        return True, "watertight and of positive volume; not checked by manifold3d (pip install manifold3d)"
    status = manifold_status(mesh)
    return status == "NoError", f"watertight and of positive volume; manifold3d: {status}"


def manifold_status(mesh: trimesh.Trimesh) -> str:
    """What manifold3d says about the mesh: NoError for a manifold. Raises ImportError without it."""
    import manifold3d

    return _manifold(mesh, manifold3d).status().name


def _manifold(mesh: trimesh.Trimesh, manifold3d):
    """manifold3d's solid, of float64 vertices."""
    vertices, faces = (
        np.array(mesh.vertices, np.float64, order="C"),
        np.array(mesh.faces, np.uint64, order="C"),
    )  # it takes no read-only arrays
    return manifold3d.Manifold(manifold3d.Mesh64(vertices, faces))


def repaired(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    """The mesh with the vertices doubled where two parts of its surface touch, by manifold3d; as it is where that is missing or fails."""
    if is_closed(mesh.faces) or importlib.util.find_spec("manifold3d") is None:
        return mesh
    import manifold3d

    solid = _manifold(mesh, manifold3d)
    if solid.status() != manifold3d.Error.NoError or solid.is_empty():
        return mesh
    out = solid.to_mesh64()
    return trimesh.Trimesh(np.asarray(out.vert_properties)[:, :3], np.asarray(out.tri_verts).astype(np.int64), process=False)
