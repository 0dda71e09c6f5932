"""Evidence between photographs: the patch around a pixel must look alike in the views that see the same piece of surface.

A colour network that depends on the direction can paint any surface so that each photograph comes out right. Here no network takes
part: the surface at the pixel, as a plane, carries its patch into other photographs, and the two are compared by normalised
cross-correlation (NCC), which does not see exposure. Geo-NeuS (Fu et al., NeurIPS 2022) and NeuralWarp (Darmon et al., CVPR 2022).
"""

from typing import Any

import cv2
import torch
from torch import Tensor
from torch.nn import functional as F

from models.method import Method, RenderContext, RenderOutput
from utils.rays import Cameras, RayBatch, Scene
from utils.stack import Stack

RAYS = 256  # of a step, whose patches are compared
HALF = 3  # pixels from the middle of a patch to its edge
SOURCES, BEST = 8, 4  # photographs that a patch is looked for in; those that agree best count, the others may be hidden
ANGLE, NARROW, WIDE = 15.0, 6.0, 15.0  # degrees between two views: the best, and the widths of the preference below and above it
LEAST = 0.2  # cosine between normal and line of sight, from which a patch is a fair picture of the surface
NEAR = 0.02  # radii: |sdf| at the rendered depth, below which the surface is where it was rendered
TEXTURE = 1.5 / 255  # standard deviation of a patch, below which there is nothing to compare


class _Bilinear(torch.autograd.Function):
    """Values [P] of grey pictures, uint8 [N * H * W], at pixels uv [P, 2] of the pictures that begin at `start` [P]; H, W: rows of W."""

    @staticmethod
    def forward(ctx: Any, grey: Tensor, start: Tensor, uv: Tensor, width: int) -> Tensor:
        low = uv.floor()
        cell = low.long()  # before the row is multiplied: a float32 counts to 2^24 pixels only
        at = start + cell[:, 1] * width + cell[:, 0]
        a, b, c, d = (grey.index_select(0, at + k).to(uv.dtype) / 255 for k in (0, 1, width, width + 1))
        x, y = (uv - low).unbind(-1)
        top, bottom = a + x * (b - a), c + x * (d - c)
        ctx.save_for_backward(torch.stack([(b - a) + y * (d - c - b + a), bottom - top], -1))
        return top + y * (bottom - top)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, Tensor, None]:
        (slope,) = ctx.saved_tensors
        return None, None, grad[:, None] * slope, None


def source_views(c2w: Tensor, views: list[int]) -> tuple[Tensor, Tensor]:
    """([N, SOURCES] int64, [N, SOURCES] bool): for each camera [N, 3, 4] the views to compare it with, best first, and whether they serve.

    Preferred are directions from the middle of the sphere that differ by ANGLE; the photograph itself and those beyond 60 degrees do not serve.
    """
    towards = F.normalize(c2w[:, :, 3].double(), dim=-1)
    angle = torch.rad2deg(torch.arccos((towards @ towards.T).clamp(-1, 1)))
    width = torch.where(angle < ANGLE, NARROW, WIDE)
    score = torch.exp(-((angle - ANGLE) ** 2) / (2 * width**2))
    score[torch.eye(len(c2w), dtype=torch.bool) | (angle > 60) | (angle < 0.5)] = 0
    usable = torch.zeros(len(c2w), dtype=torch.bool)
    usable[views] = True
    score[:, ~usable] = 0
    best = score.topk(min(SOURCES, len(c2w)), 1)
    return best.indices, best.values > 1e-4


class Patches:
    """The term `loss.patches` of a scene."""

    def __init__(self, scene: Scene, device: torch.device, half: int = HALF):
        n, self.height, self.width = scene.images.shape[:3]
        stack = Stack((n + 1, self.height, self.width), bool(scene.on_disk))  # room for the neighbours of the last pixel
        for i in range(n):
            cv2.cvtColor(scene.images[i].numpy(), cv2.COLOR_RGB2GRAY, dst=stack.array[i])
        self.grey = torch.from_numpy(stack.array).view(-1).to(device)
        self.stack = stack if device.type == "cpu" else None  # where the pictures lie in a file
        self.cameras: Cameras = scene.cameras.to(device)
        self.inverse = torch.linalg.inv(self.cameras.K)
        self.sources, self.serve = (t.to(device) for t in source_views(scene.cameras.c2w, list(scene.train)))
        side = torch.arange(-half, half + 1, dtype=torch.float32, device=device)
        v, u = torch.meshgrid(side, side, indexing="ij")
        self.offsets = torch.stack([u.flatten(), v.flatten(), torch.ones_like(u.flatten())])  # [3, Q]
        self.half = half

    def __call__(self, batch: RayBatch, output: RenderOutput, model: Method, context: RenderContext) -> Tensor:
        """Mean of 1 - NCC over RAYS pixels in their BEST views; 0 where there is no surface or nothing to compare."""
        assert batch.uv is not None
        opacity, depth = output.render.opacity.detach(), output.render.depth.detach()
        hit = (opacity > 0.5).to(torch.int64)
        pick = torch.argsort(hit, descending=True, stable=True)[:RAYS]
        dirs, origin, view, uv = batch.rays.dirs[pick], batch.rays.origins[pick], batch.view[pick], batch.uv[pick]
        depth = depth[pick] / opacity[pick].clamp(min=0.5)
        field = model.field_at(origin.detach() + depth[:, None] * dirs.detach(), context)
        slope = (field.grad.detach() * dirs.detach()).sum(-1)
        t = depth - field.sdf / slope.clamp(max=-LEAST)  # to where the ray meets the surface; its slope is that of the implicit function
        normal = F.normalize(field.grad, dim=-1, eps=1e-6)
        with torch.autocast(t.device.type, enabled=False):  # in float16 a patch would land pixels away
            cost, valid = self.compare(view, uv, origin.float(), dirs.float(), t.float(), normal.float(), model)
        serves = (hit[pick] > 0) & (field.sdf.detach().abs() < NEAR * model.radius) & (slope < -LEAST)
        valid = valid & serves[:, None]
        lowest = torch.where(valid, cost, torch.inf).topk(min(BEST, cost.shape[1]), 1, largest=False).values
        counted = torch.isfinite(lowest)
        return torch.where(counted, lowest, 0).sum() / lowest.numel()

    def compare(
        self, view: Tensor, uv: Tensor, origin: Tensor, dirs: Tensor, t: Tensor, normal: Tensor, model: Method | None = None
    ) -> tuple[Tensor, Tensor]:
        """(1 - NCC [R, S], whether it counts [R, S]) of pixels uv [R, 2] of views [R] in their source views.

        The surface of a ray is the plane through origins + t * dirs [R, 3] with this unit normal [R, 3].
        """
        K, c2w = self.cameras.K, self.cameras.c2w
        if model is not None and model.pose is not None:
            c2w = model.pose.cameras(c2w).to(c2w.dtype)
        source, serve = self.sources.index_select(0, view), self.serve.index_select(0, view)
        r, s = source.shape
        inverse = self.inverse.index_select(0, view)
        pixel = torch.cat([uv, torch.ones_like(uv[:, :1])], 1)
        rotation = c2w[:, :, :3]
        ref = rotation.index_select(0, view) @ inverse
        middle = (ref @ pixel[:, :, None])[:, :, 0]
        across = torch.stack([ref[:, :, 0], ref[:, :, 1], middle], -1)  # [R, 3, 3]: offsets (du, dv, 1) -> direction
        height = (normal * dirs).sum(-1) * t  # of the plane over the camera
        flat = source.reshape(-1)
        into = (K @ rotation.transpose(1, 2)).index_select(0, flat).view(r, s, 3, 3)
        centre = c2w[:, :, 3].index_select(0, flat).view(r, s, 3)
        base = (into @ (origin[:, None] - centre)[..., None])[..., 0]  # [R, S, 3]
        along = (normal[:, :, None] * across).sum(1)  # [R, 3]
        homography = base[..., None] * along[:, None, None] + height[:, None, None, None] * (into @ across[:, None])
        warped = homography @ self.offsets  # [R, S, 3, Q], each over normal . direction
        facing = (along[:, :, None] * self.offsets).sum(1)  # [R, Q]
        z = warped[:, :, 2]
        clear = (z.detach() / facing.detach()[:, None].clamp(max=-1e-6) > 1e-3).all(-1) & (facing.detach() < 0).all(-1)[:, None]
        xy = warped[:, :, :2] / torch.where(z.abs() > 1e-9, z, 1e-9)[:, :, None]
        size = self.cameras.sizes.index_select(0, flat).view(r, s, 2, 1).to(xy.dtype) - 1.001
        where = xy.detach()
        inside = ((where >= 0) & (where <= size)).all(2).all(2) & clear
        point = origin + t[:, None] * dirs
        back = F.normalize(centre - point[:, None], dim=-1).detach()
        seen = (back * normal.detach()[:, None]).sum(-1) > LEAST
        mine = self._around(view, uv)
        valid = serve & inside & seen & mine[1][:, None]
        xy = torch.where(valid[:, :, None, None], xy, 0).transpose(2, 3).reshape(-1, 2)
        start = (flat * (self.height * self.width)).view(r, s, 1).expand(r, s, self.offsets.shape[1]).reshape(-1)
        if self.stack is not None:
            cell = xy.detach().long()
            corner = start + cell[:, 1] * self.width + cell[:, 0]
            self.stack.expect(torch.stack([corner, corner + self.width + 1]).numpy())
        other = _Bilinear.apply(self.grey, start, xy, self.width).view(r, s, -1)  # type: ignore[no-untyped-call]
        a, b = mine[0] - mine[0].mean(-1, keepdim=True), other - other.mean(-1, keepdim=True)
        spread = (a * a).mean(-1)
        ncc = (a[:, None] * b).mean(-1) / ((spread[:, None] + 1e-6) * ((b * b).mean(-1) + 1e-6)).sqrt()
        return 1 - ncc, valid & (spread > TEXTURE**2)[:, None]

    def _around(self, view: Tensor, uv: Tensor) -> tuple[Tensor, Tensor]:
        """(the patches [R, Q] around pixels uv [R, 2], whether they lie in the picture [R])."""
        size = self.cameras.sizes.index_select(0, view).to(uv.dtype)
        inside = ((uv >= self.half) & (uv < size - self.half)).all(1)
        at = torch.where(inside[:, None], uv, float(self.half)).long()
        first = view * (self.height * self.width) + at[:, 1] * self.width + at[:, 0]
        step = (self.offsets[1] * self.width + self.offsets[0]).long()
        pixels = (first[:, None] + step).reshape(-1)
        if self.stack is not None:
            self.stack.expect(pixels.numpy())
        patch = self.grey.index_select(0, pixels).view(len(uv), -1)
        return patch.to(uv.dtype) / 255, inside
