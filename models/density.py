"""From signed distance to opacity (Wang et al., NeuS, 2021, section 3)."""

import torch
from torch import Tensor, nn

EPS = 1e-5


class Variance(nn.Module):
    """The learned sharpness inv_s = exp(10 v), v starting at `init`."""

    def __init__(self, init: float = 0.3):
        super().__init__()
        self.v = nn.Parameter(torch.tensor(float(init)))

    def forward(self, most: float = float("inf"), least: float = 1e-6) -> Tensor:
        """inv_s, a scalar tensor in 1 / unit-sphere units, from `least` to `most`: an upper bound that rises slowly keeps the surface soft
        at first, a lower one that rises makes it sharp in the end."""
        return torch.exp(10 * self.v).clamp(max(1e-6, least), most)


def section_ends(sdf: Tensor, cosine: Tensor, dt: Tensor, anneal: float, within: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Estimated sdf at both ends of an interval [S], from a point in it and the slope along the ray there.

    cosine [S] = direction . normal; anneal 0 -> 1 moves from a softened to the true cosine; within [S]: how far into the
    interval the point lies, by default its middle.
    """
    slope = -(torch.relu(0.5 - 0.5 * cosine) * (1 - anneal) + torch.relu(-cosine) * anneal)
    within = dt * 0.5 if within is None else within
    return sdf - slope * within, sdf + slope * (dt - within)


def neus_alpha(sdf: Tensor, cosine: Tensor, dt: Tensor, inv_s: Tensor, anneal: float = 1.0, within: Tensor | None = None) -> Tensor:
    """Opacity [S] of intervals of length dt [S] (NeuS eq. 13), from the field at their middle, or at `within` [S] from their start."""
    return alpha_between(*section_ends(sdf, cosine, dt, anneal, within), inv_s)


def alpha_between(before: Tensor, after: Tensor, inv_s: Tensor | float) -> Tensor:
    """Opacity [S] of intervals with the SDF `before` and `after` them [S]."""
    before, after = torch.sigmoid(before * inv_s), torch.sigmoid(after * inv_s)
    return ((before - after + EPS) / (before + EPS)).clamp(0, 1)


def cell_alpha(sdf: Tensor, reach: float, inv_s: Tensor) -> Tensor:
    """Upper bound of the opacity within `reach` of points [S]: the fall of the sigmoid over sdf +/- reach.

    Unlike `neus_alpha` it vanishes deep inside as well as far outside, so that an occupancy grid keeps only a shell.
    """
    return torch.sigmoid((sdf + reach) * inv_s) - torch.sigmoid((sdf - reach) * inv_s)
