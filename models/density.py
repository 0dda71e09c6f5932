"""From signed distance to opacity (Wang et al., NeuS, 2021, section 3)."""

import torch
from torch import Tensor, nn

from utils.schedule import Spec, ramp

EPS = 1e-5


class Variance(nn.Module):
    """The learned sharpness inv_s = exp(10 v), v starting at `init`, capped at `max_inv_s`, a schedule.

    A cap that rises slowly keeps the surface from setting before its shape is found.
    """

    def __init__(self, init: float = 0.3, max_inv_s: Spec = 20000.0):
        super().__init__()
        self.v = nn.Parameter(torch.tensor(float(init)))
        self.schedule = ramp(max_inv_s, log=True)
        self.cap = self.schedule(1.0)

    def before_step(self, progress: float) -> None:
        """Move the cap."""
        self.cap = self.schedule(progress)

    def forward(self) -> Tensor:
        """inv_s, a scalar tensor in 1 / unit-sphere units."""
        return torch.exp(10 * self.v).clamp(1e-6, self.cap)


def section_ends(sdf: Tensor, cosine: Tensor, dt: Tensor, anneal: float, within: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Estimated sdf at both ends of an interval [S], from a point in it and the slope along the ray there.

    cosine [S] = direction . normal; anneal 0 -> 1 moves from a softened to the true cosine; within [S]: how far into the
    interval the point lies, by default its middle.
    """
    slope = -(torch.relu(0.5 - 0.5 * cosine) * (1 - anneal) + torch.relu(-cosine) * anneal)
    within = dt * 0.5 if within is None else within
    return sdf - slope * within, sdf + slope * (dt - within)


def neus_alpha(sdf: Tensor, cosine: Tensor, dt: Tensor, inv_s: Tensor, anneal: float = 1.0, within: Tensor | None = None) -> Tensor:
    """Opacity [S] of intervals of length dt [S] (NeuS eq. 13); the field was looked at in their middle, or `within` [S] of the start."""
    before, after = section_ends(sdf, cosine, dt, anneal, within)
    before, after = torch.sigmoid(before * inv_s), torch.sigmoid(after * inv_s)
    return ((before - after + EPS) / (before + EPS)).clamp(0, 1)


def cell_alpha(sdf: Tensor, reach: float, inv_s: Tensor) -> Tensor:
    """How opaque space at these points [S] can be within `reach`: the fall of the sigmoid over sdf +/- reach.

    Unlike `neus_alpha` it vanishes deep inside as it does far outside, so that an occupancy grid keeps only a shell.
    """
    return torch.sigmoid((sdf + reach) * inv_s) - torch.sigmoid((sdf - reach) * inv_s)
