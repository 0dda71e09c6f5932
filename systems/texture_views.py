"""A photograph made ready for texturing: its colours at the common exposure, and where they can be trusted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from confs.schema import Config
from models.appearance import Appearance
from models.raytrace import MeshTracer
from process_data.rays import view_rays
from systems.base import cut_out
from utils.rays import Cameras, Scene

BLUR = 0.006  # of the longer side: sigma of the low frequencies, which are averaged over the views
FINE = 1.2  # pixels: what a blur of this sigma takes away tells a sharp photograph from one out of focus
EDGE = 4.0  # pixels from an edge at which a photograph counts in full; it does not count in the pixel beside one
THIN = 0.02  # weight beside the edge of something nearer, so that thin parts have a colour at all
JUMP = 6.0  # tangent of the steepest slope: a larger difference in depth between two pixels is an edge


@dataclass(frozen=True)
class Photograph:
    """One view."""

    K: Tensor  # [3, 3]
    c2w: Tensor  # [3, 4]
    rgb: Tensor  # [h, w, 3] uint8
    depth: Tensor  # [h, w] along the optical axis to the mesh, inf where it is missed
    margin: Tensor  # [h, w] uint8, weight times 255: 0 at the edge of the mask and the picture, little beside edges of depth
    kept: Tensor | None  # [h, w] bool: the pixels whose colours are the object's; None: all
    exposure: Tensor  # [4, 3] colours of the photograph -> at the common exposure, affine

    def layers(self, blur: float) -> Tensor:
        """[9, h, w]: colours, their low frequencies, margin, depth, sharpness. blur: pixels per texel, above 1 where the photograph is finer."""
        rgb = (self.rgb.float() / 255 @ self.exposure[:3] + self.exposure[3]).cpu().numpy()
        mask = np.ones(rgb.shape[:2], np.float32) if self.kept is None else self.kept.cpu().numpy().astype(np.float32)
        wide = BLUR * max(mask.shape)
        low = blurred(rgb, mask, wide)
        fine = np.abs(rgb - blurred(rgb, mask, FINE)).mean(2, keepdims=True)
        sharp = blurred(fine, mask, 2 * wide)
        if blur > 1.2:
            rgb = blurred(rgb, mask, 0.5 * np.sqrt(blur**2 - 1))
        stack = torch.from_numpy(np.concatenate([rgb, low, sharp], 2).transpose(2, 0, 1)).to(self.depth)
        depth = torch.where(torch.isfinite(self.depth), self.depth, 1e6)
        return torch.cat([stack[:6], self.margin[None].to(self.depth) / 255, depth[None], stack[6:]])


class Photographs(Sequence[Photograph]):
    """Photographs of views, each made anew when it is asked for: all at once take six bytes of memory a pixel."""

    def __init__(self, views: Sequence[int], make: Callable[[int], Photograph]):
        self.views, self.make = views, make

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, i):  # type: ignore[no-untyped-def]
        return self.make(self.views[i])


def blurred(rgb: np.ndarray, mask: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian mean [h, w, C] of the colours where mask [h, w] is 1; the colours themselves where nothing is near."""
    size = (0, 0)
    weight = cv2.GaussianBlur(mask, size, sigma)[..., None]
    mean = cv2.GaussianBlur(rgb * mask[..., None], size, sigma).reshape(rgb.shape) / np.maximum(weight, 1e-6)
    return np.where(weight > 1e-3, mean, rgb).astype(np.float32)


def common_exposure(appearance: Appearance | None, view: int, device: torch.device) -> Tensor:
    """[4, 3]: colours c of photograph `view` -> c M[:3] + M[3] at the exposure that all have in common; the inverse of `photographed`."""
    identity = torch.eye(4, 3, device=device)
    if appearance is None or appearance.kind != "affine":
        return identity
    with torch.no_grad():
        probes = torch.cat([torch.zeros(1, 3, device=device), torch.eye(3, device=device)])
        seen = appearance.photographed(probes, 1.0, torch.full((4,), view, device=device))
        matrix, offset = seen[1:] - seen[:1], seen[0]
        if float(torch.linalg.cond(matrix)) > 20:  # not an exposure
            return identity
        inverse = torch.linalg.inv(matrix)
        return torch.cat([inverse, -(offset @ inverse)[None]])


def _ramp(distance: np.ndarray) -> np.ndarray:
    """Weight by the distance in pixels to the nearest bad pixel."""
    x = np.clip((distance - 1) / (EDGE - 1), 0, 1)
    return x * x * (3 - 2 * x)


def depth_edges(depth: np.ndarray, focal: float) -> np.ndarray:
    """[h, w] bool: pixels beside a jump in depth [h, w], inf where nothing is hit."""
    z = np.where(np.isfinite(depth), depth, 1e6)
    edge = np.zeros(z.shape, bool)
    for axis in (0, 1):
        a, b = (z[:-1], z[1:]) if axis == 0 else (z[:, :-1], z[:, 1:])
        jump = np.abs(a - b) > JUMP * np.minimum(a, b) / focal
        edge[(slice(None),) * axis + (slice(None, -1),)] |= jump
        edge[(slice(None),) * axis + (slice(1, None),)] |= jump
    return edge


def photograph(system, scene: Scene, cfg: Config, cameras: Cameras, view: int, tracer: MeshTracer, device: torch.device) -> Photograph:
    """View `view` of the scene; cameras on `device`; tracer: the mesh in the unit sphere's frame."""
    rays = view_rays(cameras, view, cfg.model.radius)
    w, h = cameras.size(view)
    K, c2w = cameras.K[view], cameras.c2w[view]
    depth = (tracer(rays.origins, rays.dirs).t * (rays.dirs @ c2w[:, 2])).view(h, w)
    z = depth.cpu().numpy()
    z = np.where(np.isfinite(z), z, np.inf)
    inside = np.zeros((h + 2, w + 2), np.uint8)
    inside[1:-1, 1:-1] = 1
    kept = None
    mask = scene.mask(view)
    if mask is not None and cut_out(cfg, scene):
        inside[1:-1, 1:-1] = mask.cpu().numpy() > 240
        kept = torch.from_numpy(inside[1:-1, 1:-1] > 0).to(device)
    margin = _ramp(cv2.distanceTransform(inside, cv2.DIST_L2, 5)[1:-1, 1:-1])
    edges = depth_edges(z, float(K[0, 0]))
    if edges.any():
        margin = margin * np.maximum(_ramp(cv2.distanceTransform((~edges).astype(np.uint8), cv2.DIST_L2, 5)), THIN)
    exposure = common_exposure(system.model.appearance, view, device)
    weight = torch.from_numpy(np.rint(255 * margin).astype(np.uint8)).to(device)
    return Photograph(K, c2w, scene.image(view).to(device), torch.from_numpy(z.astype(np.float32)).to(device), weight, kept, exposure)


def look(photo: Photograph, layers: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Points x [P, 3] in a photograph: (its layers there [P, 9], whether they are in sight [P], if only at an edge).

    A point is in sight where it lies in the picture and the mesh is not nearer by more than four pixels there.
    """
    local = (x - photo.c2w[:, 3]) @ photo.c2w[:, :3]
    z = local[:, 2]
    homogeneous = local @ photo.K.T
    uv = homogeneous[:, :2] / z.clamp(min=1e-6)[:, None]
    h, w = photo.depth.shape
    grid = uv * torch.tensor([2 / max(w - 1, 1), 2 / max(h - 1, 1)], device=x.device) - 1
    found = F.grid_sample(layers[None], grid.clamp(-2, 2)[None, None], align_corners=True, padding_mode="border")[0, :, 0].T
    inside = (z > 1e-6) & (grid.abs() <= 1).all(1)
    return found, inside & (z < found[:, 7] + 4 * z / photo.K[0, 0])
