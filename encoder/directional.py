"""Integrated directional encoding (Verbin et al., Ref-NeRF, 2022): spherical harmonics blurred by the roughness."""

import math

import torch
from torch import Tensor, nn


def _chain(top: int) -> tuple[Tensor, Tensor, Tensor]:
    """Factors of the recurrence of orthonormal Legendre functions over sin^m (m = 0..top): a, b [top + 1, top + 1], diagonal [top + 1]."""
    a, b = torch.zeros(top + 1, top + 1, dtype=torch.float64), torch.zeros(top + 1, top + 1, dtype=torch.float64)
    diagonal = [math.sqrt(1 / (4 * math.pi))]
    for m in range(1, top + 1):
        diagonal.append(-diagonal[-1] * math.sqrt((2 * m + 1) / (2 * m)))
    for degree in range(1, top + 1):
        for m in range(degree):
            a[degree, m] = math.sqrt((4 * degree**2 - 1) / (degree**2 - m**2))
            if degree > m + 1:
                b[degree, m] = -math.sqrt(((degree - 1) ** 2 - m**2) / (4 * (degree - 1) ** 2 - 1))
    return a.float(), b.float(), torch.tensor(diagonal)


class IntegratedDirectional(nn.Module):
    """Unit directions [N, 3] and roughness [N] -> [N, width]: the mean of Y_lm over a von Mises-Fisher lobe.

    degree d takes the bands l = 1, 2, 4, ..., 2^(d-1), all orders m = 0..l, real parts first (72 values for d = 5).
    roughness is 1 / kappa; a band fades as exp(-l (l + 1) / 2 * roughness). None is a mirror.
    """

    fractional, n_levels = False, 1

    def __init__(self, degree: int = 5):
        super().__init__()
        self.bands = tuple(2**k for k in range(degree))
        self.width = 2 * sum(band + 1 for band in self.bands)
        for name, value in zip(("a", "b", "diagonal"), _chain(self.bands[-1])):
            self.register_buffer(name, value, persistent=False)

    def forward(self, dirs: Tensor, roughness: Tensor | None = None) -> Tensor:
        x, y, z = dirs.unbind(-1)
        top = self.bands[-1]
        real, imaginary = [torch.ones_like(x)], [torch.zeros_like(x)]  # (x + i y)^m
        for _ in range(top):
            real, imaginary = (real + [real[-1] * x - imaginary[-1] * y], imaginary + [real[-1] * y + imaginary[-1] * x])
        real, imaginary = torch.stack(real, -1), torch.stack(imaginary, -1)  # [N, top + 1]
        unit = torch.eye(top + 1, dtype=x.dtype, device=x.device)
        before = torch.zeros_like(real)
        now = (unit[0] * self.diagonal[0]).expand_as(real)  # band 0
        parts = []
        for band in range(1, top + 1):
            before, now = now, self.a[band] * (z[..., None] * now + self.b[band] * before) + unit[band] * self.diagonal[band]
            if band in self.bands:
                fade = 1.0 if roughness is None else torch.exp(-0.5 * band * (band + 1) * roughness.reshape(-1, 1))
                parts.append((fade * (now * real)[..., : band + 1], fade * (now * imaginary)[..., : band + 1]))
        return torch.cat([p for p, _ in parts] + [p for _, p in parts], -1)
