"""Light from far away: directions on a lat-long map, a map that is learned, one that is given, and NeRO's networks.

A map has Blender's orientation: z up, the middle row the horizon, and the azimuth running clockwise from the image's left
edge (see `to_map`). Radiance is linear.
"""

import math
from math import pi

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoder.directional import IntegratedDirectional
from encoder.frequency import Frequency, IntegratedFrequency
from models.network import mlp

TURN = 0.5  # u of the direction +x: where Blender has it


def to_map(dirs: Tensor) -> Tensor:
    """Unit directions [..., 3] -> (u, v) [..., 2] in [0, 1): u to the right, v downwards."""
    u = TURN - torch.atan2(dirs[..., 1], dirs[..., 0]) / (2 * pi)
    return torch.stack([u % 1, torch.arccos(dirs[..., 2].clamp(-1, 1)) / pi], -1)


def from_map(uv: Tensor) -> Tensor:
    """(u, v) [..., 2] -> unit directions [..., 3]; undoes `to_map`."""
    azimuth, polar = 2 * pi * (TURN - uv[..., 0]), pi * uv[..., 1]
    return torch.stack([polar.sin() * azimuth.cos(), polar.sin() * azimuth.sin(), polar.cos()], -1)


def map_directions(height: int, device: torch.device | str = "cpu") -> Tensor:
    """Directions [height, 2 height, 3] of the centres of a map's pixels."""
    v = (torch.arange(height, device=device) + 0.5) / height
    u = (torch.arange(2 * height, device=device) + 0.5) / (2 * height)
    return from_map(torch.stack(torch.meshgrid(u, v, indexing="xy"), -1))


def look_up(image: Tensor, dirs: Tensor) -> Tensor:
    """Bilinear values [N, C] of a map [H, W, C] in unit directions [N, 3]; it closes on itself sideways."""
    w = image.shape[1]
    closed = torch.cat([image[:, -1:], image, image[:, :1]], 1).permute(2, 0, 1)[None]
    uv = to_map(dirs)
    grid = torch.stack([(2 * (uv[:, 0] * w + 1) / (w + 2)) - 1, 2 * uv[:, 1] - 1], -1)
    found = F.grid_sample(closed, grid.view(1, 1, -1, 2), mode="bilinear", padding_mode="border", align_corners=False)
    return found[0, :, 0].T


class TextureLight(nn.Module):
    """Distant light as a map of log radiance that is learned. Directions [N, 3] -> radiance [N, 3]."""

    def __init__(self, height: int, largest: float, start: float = 1.0):
        """start: radiance before training, everywhere."""
        super().__init__()
        self.largest = largest
        self.log_radiance = nn.Parameter(torch.full((height, 2 * height, 3), math.log(start)))

    def image(self) -> Tensor:
        """[H, W, 3] radiance."""
        return torch.exp(self.log_radiance.clamp(max=self.largest))

    def forward(self, points: Tensor, dirs: Tensor) -> Tensor:
        return look_up(self.image(), dirs)

    def roughness(self) -> Tensor:
        """Mean squared step of log radiance between neighbouring texels."""
        x = self.log_radiance
        return (x[1:] - x[:-1]).square().mean() + (x - x.roll(1, 1)).square().mean()


class NetworkLight(nn.Module):
    """NeRO's outer light: radiance by the direction, and with `sphere` by the place where the ray leaves the unit sphere."""

    def __init__(self, hidden: int, largest: float, sphere: bool, radius: float):
        super().__init__()
        self.encoding, self.sphere, self.radius, self.largest = IntegratedDirectional(5), sphere, radius, largest
        self.net = mlp(self.encoding.width * (1 + sphere), hidden, 3, 3)

    def forward(self, points: Tensor, dirs: Tensor) -> Tensor:
        parts = [self.encoding(dirs)]
        if self.sphere:
            along = (points * dirs).sum(-1)
            reach = (along**2 + (self.radius**2 - (points * points).sum(-1)).clamp(min=0)).sqrt() - along
            parts.append(self.encoding(F.normalize(points + reach[:, None] * dirs, dim=-1)))
        return torch.exp(self.net(torch.cat(parts, -1)).clamp(max=self.largest))


class InnerLight(nn.Module):
    """NeRO's indirect light: radiance that reaches points [N, 3] from directions [N, 3] in which the object itself stands."""

    def __init__(self, hidden: int, largest: float):
        super().__init__()
        self.position, self.direction, self.largest = Frequency(3, 8), IntegratedDirectional(5), largest
        self.net = mlp(self.position.width + self.direction.width, hidden, 3, 3)

    def forward(self, points: Tensor, dirs: Tensor) -> Tensor:
        return torch.exp(self.net(torch.cat([self.position(points), self.direction(dirs)], -1)).clamp(max=self.largest))


class HumanLight(nn.Module):
    """The photographer as a picture in the upright plane through the camera: radiance [N, 3] and how far it covers [N, 1].

    cameras [N, 3]: camera centres; the plane stands square to their level line to the origin, z is up (NeRO, section 3.4).
    """

    def __init__(self, hidden: int, largest: float):
        super().__init__()
        self.encoding, self.largest = IntegratedFrequency(2, 6), largest
        self.net = mlp(self.encoding.width, hidden, 3, 4)
        nn.init.constant_(self.net[-1].bias, -2.0)

    def forward(self, points: Tensor, dirs: Tensor, cameras: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
        toward = F.normalize(torch.cat([-cameras[:, :2], torch.zeros_like(cameras[:, :1])], -1), dim=-1, eps=1e-6)
        side = torch.stack([toward[:, 1], -toward[:, 0], torch.zeros_like(toward[:, 0])], -1)
        approach = (dirs * toward).sum(-1)
        t = ((cameras - points) * toward).sum(-1) / torch.where(approach < -1e-6, approach, -1.0)
        at = points + t[:, None] * dirs - cameras
        plane = torch.stack([(at * side).sum(-1), -at[:, 2]], -1)
        near = (approach < -1e-6) & (t > 0) & (plane.abs().amax(-1) < 2)
        variance = ((spread * t.clamp(min=0)) ** 2)[:, None].expand(-1, 2)
        out = self.net(self.encoding(plane.clamp(-2, 2), variance=variance.clamp(max=4)))
        return torch.exp(out[:, :3].clamp(max=self.largest)), torch.sigmoid(out[:, 3:]) * near[:, None]


def _over_pixels(image: Tensor) -> Tensor:
    """Mean over each pixel [H, W] of what bilinear look-up finds in it: beside a lamp a pixel is brighter than its own value."""
    rows = torch.cat([image[:1], image, image[-1:]])
    image = 0.75 * image + 0.125 * (rows[:-2] + rows[2:])
    return 0.75 * image + 0.125 * (image.roll(1, 1) + image.roll(-1, 1))


class EnvironmentMap:
    """A given lat-long map [H, W, 3]: radiance, and directions drawn where it is bright."""

    def __init__(self, image: Tensor, to_frame: Tensor | None = None):
        """to_frame [3, 3]: rotation from the world, in which the map stands, to the frame of the directions."""
        self.image = image.contiguous()
        self.to_frame = torch.eye(3, device=image.device) if to_frame is None else to_frame.to(image)
        h, w = image.shape[:2]
        sine = torch.sin((torch.arange(h, device=image.device, dtype=torch.float64) + 0.5) / h * pi)[:, None]
        power = _over_pixels(image.double().mean(-1).clamp(min=0))
        power = (power + 0.02 * power.mean() + 1e-12) * sine  # no direction is left out
        self.share = (power / power.sum()).reshape(-1)  # of a pixel
        self.cumulative = self.share.cumsum(0)
        self.rows = self.cumulative[w - 1 :: w].contiguous()
        self.row_share = torch.diff(self.rows, prepend=self.rows.new_zeros(1))
        self.density = (self.share.view(h, w) / sine * (h * w / (2 * pi * pi))).float()  # per steradian

    def radiance(self, dirs: Tensor) -> Tensor:
        """[N, 3] -> [N, 3]."""
        return look_up(self.image, dirs @ self.to_frame)

    def sample(self, u: Tensor) -> Tensor:
        """Directions [..., 3] from u [..., 2]: u even in the square, they are even over the map's power, rows and columns."""
        h, w = self.image.shape[:2]
        across, along = u[..., 0].double() * self.rows[-1], u[..., 1].double()
        row = torch.searchsorted(self.rows, across).clamp(max=h - 1)
        share = self.row_share[row]
        before = self.rows[row] - share
        down = ((across - before) / share).clamp(0, 1)
        flat = before + along * share
        index = torch.searchsorted(self.cumulative, flat).clamp(row * w, row * w + w - 1)
        right = ((flat - (self.cumulative[index] - self.share[index])) / self.share[index]).clamp(0, 1)
        uv = torch.stack([(index - row * w + right) / w, (row + down) / h], -1)
        return from_map(uv.to(self.image.dtype)) @ self.to_frame.T

    def pdf(self, dirs: Tensor) -> Tensor:
        """Density [...] per steradian of `sample` at dirs [..., 3]."""
        h, w = self.image.shape[:2]
        uv = to_map(dirs @ self.to_frame)
        row, column = (uv[..., 1] * h).long().clamp(0, h - 1), (uv[..., 0] * w).long().clamp(0, w - 1)
        return self.density[row, column]
