"""The signed distance field: hash grid + small MLP, with analytic normals.

`forward_torch` is the specification: the normal is a gradient taken by autograd, differentiated again in training.
`_FusedSDF` is the same with the derivatives written out: one forward and one backward pass over the table.
"""

import functools
import math
from typing import Protocol

import torch
from torch import Tensor, nn

from confs.model import SDFConfig
from encoder.encoding import Encoding
from encoder.hashgrid import HashGrid
from models.network import ACTIVATIONS
from utils.rays import FieldOutput


def fibonacci_sphere(n: int) -> Tensor:
    """n unit vectors spread evenly over the sphere [n, 3]."""
    i = torch.arange(n, dtype=torch.float64) + 0.5
    z = 1 - 2 * i / n
    phi = math.pi * (1 + 5**0.5) * i
    return torch.stack([(1 - z * z).sqrt() * phi.cos(), (1 - z * z).sqrt() * phi.sin(), z], 1).float()


class SDFLike(Protocol):
    """What the gradients below need of an SDF network."""

    cfg: SDFConfig
    encoding: Encoding
    radius: float

    def values(self, x: Tensor, n_levels: float) -> tuple[Tensor, Tensor]:
        """[S, 3] -> ([S, 1 + F] SDF and features, encoding [S, E]) without the gradient."""


def by_autograd(net: "SDFLike", x: Tensor, n_levels: float) -> tuple[Tensor, Tensor, Tensor, None]:
    """(values [S, 1 + F], gradient of the first [S, 3], encoding, no Laplacian) of net.values, differentiable again."""
    again = torch.is_grad_enabled()  # else the values of each layer are freed on the way back
    with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):  # autocast reaches the way back too
        x = x if again and x.requires_grad else x.detach().requires_grad_(True)
        out, y = net.values(x, n_levels)
        (grad,) = torch.autograd.grad(out[:, 0].sum(), x, create_graph=again)
    return (out, grad, y, None) if again else (out.detach(), grad, y.detach(), None)


TAPS: dict[int, list[list[float]]] = {
    6: [[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]],
    4: [[1.0, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]],  # corners of a tetrahedron, brought to length 1 below
}


@functools.cache
def _taps(n: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """TAPS[n], of length 1 [n, 3]; copied to a device once: a CUDA graph takes no copies from the host."""
    tap = torch.tensor(TAPS[n], dtype=dtype, device=device)
    return tap / tap[:1].norm()


def by_differences(net: "SDFLike", x: Tensor, n_levels: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`by_autograd` by differences over cfg.eps with cfg.taps points, and the Laplacian [S] (Li et al., Neuralangelo, 2023).

    A difference wider than a grid cell has a gradient in all cells it spans, which smooths; eps 0 follows the finest open level.
    """
    eps = eps_at(net, n_levels)
    tap = _taps(net.cfg.taps, x.device, x.dtype)
    n, k = len(x), len(tap)
    out, y = net.values(torch.cat([x, (x[:, None] + eps * tap).view(-1, 3)]), n_levels)
    around = out[n:, 0].view(n, k)
    with torch.autocast(x.device.type, enabled=False):  # float16 holds none of a difference's digits
        grad = (around @ tap) * (3 / (k * eps))  # sum of tap tap^T is k / 3
    laplacian = (around.sum(1) - k * out[:n, 0]) * (6 / (k * eps**2))
    return out[:n], grad, y[:n], laplacian


def eps_at(net: "SDFLike", n_levels: float) -> float:
    """Step of the differences: cfg.eps radii, or (0) a cell of the finest open level."""
    if net.cfg.eps:
        return net.cfg.eps * net.radius
    if isinstance(net.encoding, HashGrid):
        return 2 * net.radius / net.encoding.spec.resolutions[max(1, int(n_levels)) - 1]
    return net.radius * 2.0 ** -max(0.0, n_levels - 1)  # of waves: a sixth of the shortest


class SDFNetwork(nn.Module):
    """Points [S, 3] -> FieldOutput: sdf, its gradient, features for the colour.

    At step 0 the network is a sphere of `sphere_radius`: the rows of the first layer are evenly spread directions d_k, and
    the mean of relu(d_k . x) over the sphere is |x| / 4 (geometric initialisation after Atzmon & Lipman, SAL, 2020).
    """

    def __init__(self, cfg: SDFConfig, encoding: Encoding, radius: float):
        super().__init__()
        self.cfg, self.encoding, self.radius = cfg, encoding, radius
        self.n_features = cfg.feature + encoding.width * cfg.pass_encoding  # of FieldOutput.feature
        widths = [encoding.width + 3, *[cfg.hidden] * cfg.layers]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:]))
        self.out = nn.Linear(cfg.hidden, 1 + cfg.feature)
        self._sphere(cfg.sphere_radius * radius)

    @torch.no_grad()
    def _sphere(self, sphere_radius: float) -> None:
        hidden = self.out.in_features
        first, *inner = [layer for layer in self.layers if isinstance(layer, nn.Linear)]
        first.weight[:, :3] = fibonacci_sphere(hidden)
        first.weight[:, 3:].normal_(0, 0.1 if isinstance(self.encoding, HashGrid) else 0.0)  # a table starts near 0: no dent; waves do not
        first.bias.zero_()
        for layer in inner:
            nn.init.eye_(layer.weight)
            layer.weight.add_(torch.randn_like(layer.weight) * 1e-3)
            layer.bias.zero_()
        self.out.weight[0] = 4.0 / hidden
        self.out.weight[1:].normal_(0, 1 / math.sqrt(hidden))
        self.out.bias.zero_()
        on_sphere = fibonacci_sphere(256).to(first.weight) * sphere_radius
        self.out.bias[0] -= self.values(on_sphere, self.n_levels)[0][:, 0].mean()

    @property
    def n_levels(self) -> int:
        return self.encoding.n_levels

    def values(self, x: Tensor, n_levels: float) -> tuple[Tensor, Tensor]:
        """[S, 3] -> ([S, 1 + F], encoding [S, L * F]) without the gradient."""
        activate, _ = ACTIVATIONS[self.cfg.activation]
        with torch.autocast(x.device.type, enabled=False):  # differences and slopes need all digits
            y = self.encoding(x / (2 * self.radius) + 0.5, n_levels)
            a = torch.cat([x, y], 1)
            for layer in self.layers:
                a, _ = activate(layer(a))
            return self.out(a), y

    def sdf(self, x: Tensor, n_levels: float) -> Tensor:
        """Signed distance [S] alone: for occupancy and meshes."""
        quick = isinstance(self.encoding, HashGrid) and self.encoding.backend == "warp" and x.device.type == "cpu" and len(self.layers) == 1
        if not quick or torch.is_grad_enabled():
            return self.values(x, n_levels)[0][:, 0]
        from encoder import hashgrid_warp
        from models import sdf_cpu

        assert isinstance(self.encoding, HashGrid) and isinstance(self.layers[0], nn.Linear)
        y, _ = hashgrid_warp.forward(
            (x / (2 * self.radius) + 0.5).contiguous(), self.encoding.table, self.encoding.spec, int(n_levels), False
        )
        first = self.layers[0]
        return sdf_cpu.values(x, y, (first.weight, first.bias, self.out.weight[:1], self.out.bias[:1]), self.cfg.activation)[:, 0]

    def forward_torch(self, x: Tensor, n_levels: float) -> FieldOutput:
        """The specification, by autograd."""
        return self._output(*by_autograd(self, x, n_levels))

    def _output(self, out: Tensor, grad: Tensor, y: Tensor, laplacian: Tensor | None = None, eps: float = 0.0) -> FieldOutput:
        return FieldOutput(out[:, 0], grad, torch.cat([out[:, 1:], y], 1) if self.cfg.pass_encoding else out[:, 1:], laplacian, eps)

    def forward(self, x: Tensor, n_levels: float) -> FieldOutput:
        """x [S, 3] in the unit sphere's frame; levels from n_levels on are closed."""
        if self.cfg.normals == "finite":
            return self._output(*by_differences(self, x, n_levels), eps_at(self, n_levels))
        if not (isinstance(self.encoding, HashGrid) and self.encoding.backend == "warp"):
            return self.forward_torch(x, n_levels)
        from models.sdf_fused import FusedSDF

        weights = [p for layer in (*self.layers, self.out) for p in (layer.weight, layer.bias)]
        out, grad, y = FusedSDF.apply(x, self.encoding.table, self.encoding.spec, n_levels, self.radius, self.cfg.activation, *weights)
        return self._output(out, grad, y.T)
