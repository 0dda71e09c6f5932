"""Lights of both NeRO stages: lat-long maps (learned or given), NeRO's light networks, the photographer.

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
from models.network import mlp, output_layer

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
    """Distant light as a learned map of log radiance. Directions [N, 3] -> radiance [N, 3]."""

    def __init__(self, height: int, largest: float, start: float = 1.0):
        """start: radiance before training."""
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


def limited_exp(x: Tensor, most: float) -> Tensor:
    """exp(x), saturating at `most`: radiance is positive and bounded."""
    return most * torch.sigmoid(x - math.log(most))


def photographer_plane(points: Tensor, dirs: Tensor, cameras: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Intersection of rays (points [S, 3], dirs [S, 3]) with the upright plane through the camera [S, 3] that faces the origin; z is up.

    Returns (position on the plane [S, 2]: right and up of the camera; distance [S]; hit [S] bool), zeros where there is no hit.
    """
    away = F.normalize(torch.cat([cameras[:, :2], torch.zeros_like(cameras[:, :1])], 1), dim=-1, eps=1e-6)
    approach = (dirs * away).sum(-1)
    hit = approach > 1e-3
    distance = torch.where(hit, ((cameras - points) * away).sum(-1), 0.0) / torch.where(hit, approach, 1.0)
    hit = hit & (distance > 0)
    offset = points + distance[:, None] * dirs - cameras
    right = torch.stack([-away[:, 1], away[:, 0]], -1)
    position = torch.stack([(offset[:, :2] * right).sum(-1), offset[:, 2]], -1)
    return torch.where(hit[:, None], position, 0.0), torch.where(hit, distance, 0.0), hit


def distance_to_sphere(points: Tensor, dirs: Tensor, radius: float) -> Tensor:
    """Distance [P] along unit dirs [P, 3] at which rays from points [P, 3] leave the sphere; 0 for points outside it."""
    along = (points * dirs).sum(-1)
    return (-along + (along**2 - (points * points).sum(-1) + radius**2).clamp(min=0).sqrt()).clamp(min=0)


class NetworkLight(nn.Module):
    """NeRO's outer light: radiance by direction, and with `sphere` by the point where the ray leaves the sphere too."""

    def __init__(self, hidden: int, largest: float, sphere: bool, radius: float):
        super().__init__()
        self.encoding, self.sphere, self.radius, self.largest = IntegratedDirectional(5), sphere, radius, largest
        self.net = mlp(self.encoding.width * (1 + sphere), hidden, 3, 3)

    def forward(self, points: Tensor, dirs: Tensor) -> Tensor:
        parts = [self.encoding(dirs)]
        if self.sphere:
            reach = distance_to_sphere(points, dirs, self.radius)
            parts.append(self.encoding(F.normalize(points + reach[:, None] * dirs, dim=-1)))
        return torch.exp(self.net(torch.cat(parts, -1)).clamp(max=self.largest))


class InnerLight(nn.Module):
    """NeRO's indirect light: radiance that reaches points [N, 3] from directions [N, 3] in which the object occludes the outer light."""

    def __init__(self, hidden: int, largest: float):
        super().__init__()
        self.position, self.direction, self.largest = Frequency(3, 8), IntegratedDirectional(5), largest
        self.net = mlp(self.position.width + self.direction.width, hidden, 3, 3)

    def forward(self, points: Tensor, dirs: Tensor) -> Tensor:
        return torch.exp(self.net(torch.cat([self.position(points), self.direction(dirs)], -1)).clamp(max=self.largest))


class PhotographerLight(nn.Module):
    """The photographer as an image in the upright plane through the camera: radiance [N, 3] and coverage [N, 1] (NeRO, section 3.4)."""

    REACH = 2.0  # half width of the image, in radii

    def __init__(self, hidden: int, largest: float):
        super().__init__()
        self.encoding, self.largest = IntegratedFrequency(2, 6), largest
        self.net = mlp(self.encoding.width, hidden, 3, 4)
        nn.init.constant_(output_layer(self.net).bias, -2.0)

    def forward(self, points: Tensor, dirs: Tensor, cameras: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
        """cameras [N, 3]: camera centres; spread [N]: standard deviation of the lobe per unit distance."""
        position, distance, hit = photographer_plane(points, dirs, cameras)
        hit = hit & (position.abs().amax(-1) < self.REACH)
        variance = ((spread * distance) ** 2)[:, None].expand(-1, 2)
        out = self.net(self.encoding(position.clamp(-self.REACH, self.REACH), variance=variance.clamp(max=4)))
        return torch.exp(out[:, :3].clamp(max=self.largest)), torch.sigmoid(out[:, 3:]) * hit[:, None]


def _over_pixels(image: Tensor) -> Tensor:
    """Mean over each pixel [H, W] of the bilinearly interpolated map: beside a lamp it exceeds the pixel's own value."""
    rows = torch.cat([image[:1], image, image[-1:]])
    image = 0.75 * image + 0.125 * (rows[:-2] + rows[2:])
    return 0.75 * image + 0.125 * (image.roll(1, 1) + image.roll(-1, 1))


class EnvironmentMap:
    """A lat-long map [H, W, 3]: radiance, and directions sampled by its power."""

    def __init__(self, image: Tensor, to_frame: Tensor | None = None):
        """to_frame [3, 3]: rotation from the world, in which the map stands, to the frame of the directions."""
        self.image = image.contiguous()
        self.to_frame = torch.eye(3, device=image.device) if to_frame is None else to_frame.to(image)
        h, w = image.shape[:2]
        sine = torch.sin((torch.arange(h, device=image.device, dtype=torch.float64) + 0.5) / h * pi)[:, None]
        power = _over_pixels(image.double().mean(-1).clamp(min=0))
        power = (power + 0.02 * power.mean() + 1e-12) * sine  # every direction has some density
        self.share = (power / power.sum()).reshape(-1)  # of a pixel
        self.cumulative = self.share.cumsum(0)
        self.rows = self.cumulative[w - 1 :: w].contiguous()
        self.row_share = torch.diff(self.rows, prepend=self.rows.new_zeros(1))
        self.density = (self.share.view(h, w) / sine * (h * w / (2 * pi * pi))).float()  # per steradian

    def radiance(self, dirs: Tensor) -> Tensor:
        """[N, 3] -> [N, 3]."""
        return look_up(self.image, dirs @ self.to_frame)

    def sample(self, u: Tensor) -> Tensor:
        """Directions [..., 3] from u [..., 2]: uniform u give directions distributed as the map's power."""
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
