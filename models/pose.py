"""Refinement of the cameras during training: a small rotation and translation of each (as in BARF, Lin et al., 2021)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from utils.rays import Rays, sphere_span


def gauge_basis(centres: Tensor, held: Tensor) -> Tensor:
    """Orthonormal columns [6 N, 7] of the corrections that move all training cameras together: rotation, translation, scale.

    centres [N, 3]; held [N] bool: cameras that are not of training; a correction is (rotation vector, translation) of each camera, stored [N, 6]. No photograph can tell such a common
    motion from one of the object.
    """
    n = len(centres)
    x = centres.double()
    columns = torch.zeros(7, n, 6, dtype=torch.float64)
    for k, axis in enumerate(torch.eye(3, dtype=torch.float64)):
        columns[k, :, :3] = axis
        columns[k, :, 3:] = torch.linalg.cross(axis.expand_as(x), x)
        columns[3 + k, :, 3 + k] = 1
    columns[6, :, 3:] = x
    columns[:, held] = 0
    u, s, _ = torch.linalg.svd(columns.view(7, -1).T, full_matrices=False)
    u = (u * (s > 1e-6 * s[0])).view(n, 6, 7)
    u[held] = 0  # exactly: Adam makes a whole step of the smallest gradient
    return u.view(-1, 7).float()


def rotation(w: Tensor) -> Tensor:
    """Rotation vectors [N, 3] (radians) -> matrices [N, 3, 3]; differentiable at 0."""
    x, y, z = w.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).view(-1, 3, 3)
    square = (w * w).sum(-1)[:, None, None]  # Rodrigues' formula; by its series where the angle is small
    angle = square.clamp(min=1e-4).sqrt()
    a = torch.where(square < 1e-4, 1 - square / 6 + square**2 / 120, torch.sin(angle) / angle)
    b = torch.where(square < 1e-4, 0.5 - square / 24 + square**2 / 720, (1 - torch.cos(angle)) / angle**2)
    return torch.eye(3, dtype=w.dtype, device=w.device) + a * cross + b * (cross @ cross)


def moved(rays: Rays, turn: Tensor, shift: Tensor, radius: float) -> Rays:
    """Rays [R] of cameras that are turned by the rotations turn, [R, 3, 3] or [1, 3, 3], and shifted, [R, 3] or [1, 3].

    Origins and directions carry gradients, near and far do not.
    """
    dirs = (turn * rays.dirs[:, None]).sum(-1)
    origins = rays.origins + shift
    return Rays(origins, dirs, *sphere_span(origins.detach(), dirs.detach(), radius))


class CameraRefinement(nn.Module):
    """A rotation about its centre and a translation for each of N cameras, in the unit sphere's frame, 0 at the start.

    Corrections that move all training cameras together are projected out, so the scene keeps its place, orientation and scale.
    Held-out cameras are not trained; `systems/cameras.py` fits them to their photographs.
    """

    basis: Tensor  # [6 N, 7]
    held: Tensor  # [N] bool

    def __init__(self, centres: Tensor, train: Sequence[int]):
        """centres [N, 3] of the cameras; train: indices of the training views."""
        super().__init__()
        self.delta = nn.Parameter(torch.zeros(len(centres), 6))  # radians, radii
        held = torch.ones(len(centres), dtype=torch.bool)
        held[list(train)] = False
        self.register_buffer("basis", gauge_basis(centres, held))
        self.register_buffer("held", held)

    def corrections(self) -> tuple[Tensor, Tensor]:
        """(rotation vectors [N, 3], translations [N, 3]) without the common motion of the training cameras."""
        flat = self.delta.view(-1)
        free = (flat - self.basis @ (self.basis.T @ flat)).view_as(self.delta)
        delta = torch.where(self.held[:, None], self.delta, free)
        return delta[:, :3], delta[:, 3:]

    def refine(self, rays: Rays, view: Tensor, radius: float) -> Rays:
        """Rays [R] of the views [R] (int64) from the refined cameras."""
        with torch.autocast(rays.dirs.device.type, enabled=False):  # a product in float16 turns by pixels
            w, shift = self.corrections()
            return moved(rays, rotation(w).index_select(0, view), shift.index_select(0, view), radius)

    @torch.no_grad()
    def cameras(self, c2w: Tensor) -> Tensor:
        """The refined cameras of c2w [N, 3, 4], in float64 from start to end."""
        w, shift = (t.double().to(c2w.device) for t in self.corrections())
        c2w = c2w.double()
        return torch.cat([rotation(w) @ c2w[:, :, :3], c2w[:, :, 3:] + shift[:, :, None]], 2)

    def largest(self) -> tuple[float, float]:
        """(largest rotation in degrees, largest translation in radii) of a training camera."""
        with torch.no_grad():
            w, shift = self.corrections()
            used = ~self.held
            return float(torch.rad2deg(w[used].norm(dim=1).max())), float(shift[used].norm(dim=1).max())
