"""Integrated directional encoding (Verbin et al., Ref-NeRF, 2022): spherical harmonics blurred by the roughness."""

import math

import torch
from torch import Tensor

from encoder.encoding import Encoding
from utils.autocast import backward_float32, forward_float32


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


class _Harmonics(torch.autograd.Function):
    """`harmonics` with its derivatives written out: by z a value's is its neighbour's polynomial, by x and y the power below."""

    @staticmethod
    @forward_float32
    def forward(ctx, dirs: Tensor, fade: Tensor, a: Tensor, b: Tensor, diagonal: Tensor, bands: tuple[int, ...]) -> Tensor:
        real, imaginary, legendre = _factors(dirs, a, b, diagonal, bands)
        ctx.save_for_backward(real, imaginary, legendre, fade)
        ctx.bands = bands
        return _combine(real, imaginary, legendre, fade, bands)

    @staticmethod
    @backward_float32
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        real, imaginary, legendre, fade = ctx.saved_tensors
        rows, top = grad.T.contiguous(), ctx.bands[-1]
        half = len(rows) // 2
        to_real, to_imaginary = torch.zeros_like(real), torch.zeros_like(real)  # gradient by (x + i y)^m
        by_z, by_fade, at = torch.zeros_like(real[0]), torch.zeros_like(fade), 0
        for k, (band, p) in enumerate(zip(ctx.bands, legendre.split([band + 1 for band in ctx.bands]))):
            g_real, g_imaginary = rows[at : at + band + 1], rows[half + at : half + at + band + 1]
            waves = g_real * real[: band + 1] + g_imaginary * imaginary[: band + 1]
            by_fade[k] = (p * waves).sum(0)
            m = torch.arange(band, device=grad.device, dtype=grad.dtype)[:, None]
            slope = -((band - m) * (band + m + 1)).sqrt()
            by_z += fade[k] * (slope * p[1:] * waves[:-1]).sum(0)
            faded = fade[k] * p
            to_real[: band + 1].addcmul_(faded, g_real)
            to_imaginary[: band + 1].addcmul_(faded, g_imaginary)
            at += band + 1
        m = torch.arange(1, top + 1, device=grad.device, dtype=grad.dtype)[:, None]
        u, v = m * to_real[1:], m * to_imaginary[1:]
        by_x = (u * real[:-1]).addcmul_(v, imaginary[:-1]).sum(0)
        by_y = (v * real[:-1]).addcmul_(u, imaginary[:-1], value=-1).sum(0)
        return torch.stack([by_x, by_y, by_z], 1), by_fade, None, None, None, None


def _factors(dirs: Tensor, a: Tensor, b: Tensor, diagonal: Tensor, bands: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """(real, imaginary part of (x + i y)^m [top + 1, N]; the bands' polynomials of z below each other [sum of l + 1, N])."""
    x, y, z = dirs.unbind(-1)
    top = bands[-1]
    real, imaginary = [torch.ones_like(x)], [torch.zeros_like(x)]
    for _ in range(top):
        real, imaginary = (real + [real[-1] * x - imaginary[-1] * y], imaginary + [real[-1] * y + imaginary[-1] * x])
    before = torch.zeros_like(z)[None]
    now = diagonal[0].expand_as(before)  # band 0
    parts = []
    for band in range(1, top + 1):
        before = torch.cat([before, torch.zeros_like(now[: band - len(before)])])
        new = a[band, :band, None] * (z * now + b[band, :band, None] * before)
        before, now = now, torch.cat([new, diagonal[band].expand_as(z)[None]])
        if band in bands:
            parts.append(now)
    return torch.stack(real), torch.stack(imaginary), torch.cat(parts)


def _combine(real: Tensor, imaginary: Tensor, legendre: Tensor, fade: Tensor, bands: tuple[int, ...]) -> Tensor:
    faded = [f * p for f, p in zip(fade, legendre.split([band + 1 for band in bands]))]
    return torch.cat([p * wave[: len(p)] for wave in (real, imaginary) for p in faded]).T


def harmonics(dirs: Tensor, fade: Tensor, a: Tensor, b: Tensor, diagonal: Tensor, bands: tuple[int, ...]) -> Tensor:
    """Y_lm of unit directions [N, 3], each band l times its fade [L, N] -> [N, width], real parts first; by autograd: the specification."""
    return _combine(*_factors(dirs, a, b, diagonal, bands), fade, bands)


class IntegratedDirectional(Encoding):
    """Unit directions [N, 3] and roughness [N] -> [N, width]: the mean of Y_lm over a von Mises-Fisher lobe.

    degree d takes the bands l = 1, 2, 4, ..., 2^(d-1), all orders m = 0..l, real parts first (72 values for d = 5).
    roughness is 1 / kappa; a band fades as exp(-l (l + 1) / 2 * roughness). None is a mirror. Differentiable once.
    """

    fall: Tensor

    def __init__(self, degree: int = 5):
        super().__init__()
        self.bands = tuple(2**k for k in range(degree))
        self.width = 2 * sum(band + 1 for band in self.bands)
        for name, value in zip(("a", "b", "diagonal"), _chain(self.bands[-1])):
            self.register_buffer(name, value, persistent=False)
        self.register_buffer("fall", torch.tensor([-0.5 * band * (band + 1) for band in self.bands])[:, None], persistent=False)

    def forward(self, dirs: Tensor, roughness: Tensor | None = None) -> Tensor:  # type: ignore[override]
        fade = dirs.new_ones(len(self.bands), len(dirs)) if roughness is None else torch.exp(self.fall * roughness.reshape(1, -1))
        return _Harmonics.apply(dirs, fade, self.a, self.b, self.diagonal, self.bands)
