"""Real spherical harmonics of directions, the usual view encoding (Fridovich-Keil et al., Plenoxels, 2022)."""

import torch
from torch import Tensor

from encoder.encoding import Encoding


def spherical_harmonics(dirs: Tensor, degree: int) -> Tensor:
    """Unit directions [..., 3] -> [..., degree^2], the bands 0 .. degree - 1 (degree 1..5)."""
    x, y, z = dirs.unbind(-1)
    xx, yy, zz = x * x, y * y, z * z
    bands = [torch.full_like(x, 0.28209479177387814)]
    if degree > 1:
        bands += [-0.48860251190291987 * y, 0.48860251190291987 * z, -0.48860251190291987 * x]
    if degree > 2:
        bands += [
            1.0925484305920792 * x * y, -1.0925484305920792 * y * z, 0.31539156525252005 * (2 * zz - xx - yy),
            -1.0925484305920792 * x * z, 0.5462742152960396 * (xx - yy),
        ]  # fmt: skip
    if degree > 3:
        bands += [
            -0.5900435899266435 * y * (3 * xx - yy), 2.890611442640554 * x * y * z, -0.4570457994644658 * y * (4 * zz - xx - yy),
            0.3731763325901154 * z * (2 * zz - 3 * xx - 3 * yy), -0.4570457994644658 * x * (4 * zz - xx - yy),
            1.445305721320277 * z * (xx - yy), -0.5900435899266435 * x * (xx - 3 * yy),
        ]  # fmt: skip
    if degree > 4:
        bands += [
            2.5033429417967046 * x * y * (xx - yy), -1.7701307697799304 * y * z * (3 * xx - yy), 0.9461746957575601 * x * y * (7 * zz - 1),
            -0.6690465435572892 * y * z * (7 * zz - 3), 0.10578554691520431 * (zz * (35 * zz - 30) + 3), -0.6690465435572892 * x * z * (7 * zz - 3),
            0.47308734787878004 * (xx - yy) * (7 * zz - 1), -1.7701307697799304 * x * z * (xx - 3 * yy),
            0.6258357354491761 * (xx * (xx - 3 * yy) - yy * (3 * xx - yy)),
        ]  # fmt: skip
    return torch.stack(bands, -1)


class SphericalHarmonics(Encoding):
    """Encoding of unit directions [N, 3] -> [N, degree^2]."""

    def __init__(self, degree: int = 4):
        super().__init__()
        self.degree, self.width = degree, degree**2

    def forward(self, dirs: Tensor, n_levels: float | None = None) -> Tensor:
        return spherical_harmonics(dirs, self.degree)
