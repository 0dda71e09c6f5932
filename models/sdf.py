"""The signed distance field: hash grid + small MLP, with analytic normals.

`forward_torch` is the specification: the normal is a gradient taken by autograd, differentiated again in training.
`_FusedSDF` is the same with the derivatives written out: one forward and one backward pass over the table.
"""

import math

import torch
from torch import Tensor, nn

from encoder.hashgrid import HashGrid
from models.network import ACTIVATIONS
from utils.rays import FieldOutput


def fibonacci_sphere(n: int) -> Tensor:
    """n unit vectors spread evenly over the sphere [n, 3]."""
    i = torch.arange(n, dtype=torch.float64) + 0.5
    z = 1 - 2 * i / n
    phi = math.pi * (1 + 5**0.5) * i
    return torch.stack([(1 - z * z).sqrt() * phi.cos(), (1 - z * z).sqrt() * phi.sin(), z], 1).float()


class SDFNetwork(nn.Module):
    """Points [S, 3] -> FieldOutput: sdf, its gradient, features for the colour.

    At step 0 the network is a sphere of `sphere_radius`: the first layer looks along evenly spread directions d_k, and the
    mean of relu(d_k . x) over the sphere is |x| / 4 (geometric initialisation after Atzmon & Lipman, SAL, 2020).
    """

    def __init__(
        self,
        grid: HashGrid,
        radius: float,
        hidden: int,
        layers: int,
        n_features: int,
        activation: str,
        sphere_radius: float,
        show_grid: bool = False,
    ):
        super().__init__()
        self.grid, self.radius, self.activation, self.show_grid = grid, radius, activation, show_grid
        self.n_features = n_features + grid.width * show_grid  # of FieldOutput.feature
        widths = [grid.width + 3, *[hidden] * layers]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:]))
        self.out = nn.Linear(hidden, 1 + n_features)
        self._sphere(sphere_radius)

    @torch.no_grad()
    def _sphere(self, sphere_radius: float) -> None:
        hidden = self.out.in_features
        first = self.layers[0]
        first.weight[:, :3] = fibonacci_sphere(hidden)
        first.weight[:, 3:].normal_(0, 0.1)  # the table starts near 0, so this does not dent the sphere
        first.bias.zero_()
        for layer in self.layers[1:]:
            nn.init.eye_(layer.weight)
            layer.weight.add_(torch.randn_like(layer.weight) * 1e-3)
            layer.bias.zero_()
        self.out.weight[0] = 4.0 / hidden
        self.out.weight[1:].normal_(0, 1 / math.sqrt(hidden))
        self.out.bias.zero_()
        on_sphere = fibonacci_sphere(256).to(first.weight) * sphere_radius
        self.out.bias[0] -= self._values(on_sphere, self.grid.spec.n_levels)[0][:, 0].mean()

    def _values(self, x: Tensor, n_levels: int) -> tuple[Tensor, Tensor]:
        """[S, 3] -> ([S, 1 + F], encoding [S, L * F]) without the gradient."""
        activate, _ = ACTIVATIONS[self.activation]
        y = self.grid(x / (2 * self.radius) + 0.5, n_levels)
        a = torch.cat([x, y], 1)
        for layer in self.layers:
            a, _ = activate(layer(a))
        return self.out(a), y

    def sdf(self, x: Tensor, n_levels: int) -> Tensor:
        """Signed distance [S] alone: for occupancy and meshes."""
        return self._values(x, n_levels)[0][:, 0]

    def forward_torch(self, x: Tensor, n_levels: int) -> FieldOutput:
        """The specification, by autograd."""
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            out, y = self._values(x, n_levels)
            (grad,) = torch.autograd.grad(out[:, 0].sum(), x, create_graph=True)
        return self._output(out, grad, y)

    def _output(self, out: Tensor, grad: Tensor, y: Tensor) -> FieldOutput:
        return FieldOutput(out[:, 0], grad, torch.cat([out[:, 1:], y], 1) if self.show_grid else out[:, 1:])

    def forward(self, x: Tensor, n_levels: int) -> FieldOutput:
        """x [S, 3] in the unit sphere's frame; levels from n_levels on are closed."""
        if self.grid.backend != "warp":
            return self.forward_torch(x, n_levels)
        from models.sdf_fused import FusedSDF

        weights = [p for layer in (*self.layers, self.out) for p in (layer.weight, layer.bias)]
        out, grad, y = FusedSDF.apply(x, self.grid.table, self.grid.spec, n_levels, self.radius, self.activation, *weights)
        return self._output(out, grad, y.T)
