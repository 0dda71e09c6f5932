"""The occupancy grid: nerfacc's estimator with a cheaper refresh and our own marching."""

import logging
from collections.abc import Callable

import torch
from nerfacc import OccGridEstimator
from torch import Tensor

from confs.model import OccupancyConfig
from models.march import march
from models.method import Sampler
from models.proposal import ProposalSamples
from utils.rays import Rays, Samples

logging.getLogger("nerfacc").setLevel(logging.ERROR)
log = logging.getLogger("neus")


def dilate(cells: Tensor) -> Tensor:
    """Cells [X, Y, Z] bool and their 26 neighbours."""
    for axis in range(3):
        n = cells.shape[axis]
        grown = cells.clone()
        grown.narrow(axis, 1, n - 1).logical_or_(cells.narrow(axis, 0, n - 1))
        grown.narrow(axis, 0, n - 1).logical_or_(cells.narrow(axis, 1, n - 1))
        cells = grown
    return cells


class OccupancyGrid(OccGridEstimator, Sampler):
    """Cells of [-radius, radius]^3 that may hold the surface.

    An `OccGridEstimator` whose public interface (buffers, `sampling`, `update_every_n_steps`) stays as it is. The refresh is ours:
    it evaluates the occupied cells, their neighbours and every 16th other cell, each once, so that it is cheap and its result
    does not depend on the order of threads; the marching is ours unless `backend` is "nerfacc" (CUDA alone). Cells outside the
    sphere are never occupied (-1, nerfacc's mark of unseen cells).
    """

    STRIDE = 16
    occs: Tensor  # [cells] running maximum, -1 outside the sphere
    binaries: Tensor  # [1, X, Y, Z] bool
    resolution: Tensor
    grid_coords: Tensor

    def __init__(self, cfg: OccupancyConfig, radius: float, backend: str = "torch"):
        super().__init__([-radius] * 3 + [radius] * 3, resolution=cfg.resolution, levels=1)
        self.cfg, self.radius, self.margin, self.backend = cfg, radius, cfg.margin, backend
        self.phase, self.warned = 0, False
        self.room = 0  # of the samples of a training step, where it is fixed: `march`
        centres = (self.grid_coords + 0.5) / cfg.resolution * 2 - 1
        self.occs[centres.norm(dim=1) > 1 + 3**0.5 / cfg.resolution] = -1
        self.binaries = (self.occs >= 0).view(self.binaries.shape)

    @property
    def cell(self) -> float:
        """Width of a cell."""
        return 2 * self.radius / self.cfg.resolution

    @property
    def share(self) -> float:
        """Occupied share of the sphere's cells."""
        return float(self.binaries.sum() / (self.occs >= 0).sum().clamp(min=1))

    def due(self, step: int) -> bool:
        return step % self.cfg.every == 0

    def refresh(self, step: int, value: Callable[[Tensor], Tensor]) -> None:
        """Update every `every` steps. An empty grid would give no samples and no gradient: all cells are then occupied again."""
        if self.due(step):
            self.phase = step // self.cfg.every % self.STRIDE
            self.raise_cells(self.cells_to_refresh(everywhere=step == 0), value)
            if not self.binaries.any():
                if not self.warned:
                    log.warning("step %d: no cell is occupied any more; all are occupied again", step)
                self.warned = True
                self.binaries = (self.occs >= 0).view(self.binaries.shape)

    def cells_to_refresh(self, everywhere: bool) -> Tensor:
        """Indices of the cells to evaluate: all within the sphere, or the occupied ones, their neighbours and every STRIDE-th other."""
        chosen = dilate(self.binaries[0]).flatten()
        chosen[self.phase :: self.STRIDE] = True
        return torch.nonzero((chosen | everywhere) & (self.occs >= 0))[:, 0]

    @torch.no_grad()
    def raise_cells(self, cells: Tensor, value: Callable[[Tensor], Tensor]) -> None:
        """Raise the running maximum at a random point of each cell, and binarise it (nerfacc's rule)."""
        corner = self.grid_coords[cells]
        unit = (corner + torch.rand_like(corner, dtype=torch.float32)) / self.cfg.resolution
        found = value(unit * (2 * self.radius) - self.radius)
        self.occs[cells] = torch.maximum(self.occs[cells] * self.cfg.decay, found)
        threshold = self.occs[self.occs >= 0].mean().clamp(max=self.cfg.threshold)
        self.binaries = (self.occs > threshold).view(self.binaries.shape)

    def sample(
        self, rays: Rays, step: float, jitter: Tensor | None = None, field: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Samples, ProposalSamples | None]:
        """Intervals of length `step` in occupied cells between near and far, offset by jitter [R] in [0, 1) steps."""
        if self.backend == "nerfacc":
            near = rays.near if jitter is None else rays.near + jitter * step
            index, t_starts, t_ends = super().sampling(rays.origins, rays.dirs, t_min=near, t_max=rays.far, render_step_size=step)
            counts = torch.bincount(index, minlength=len(rays))
            return Samples(t_starts, t_ends, index, torch.cat([counts.new_zeros(1), counts.cumsum(0)])), None
        room = self.room if jitter is not None and self.backend == "warp" else 0
        return march(rays, self.binaries, self.radius, step, jitter, backend=self.backend, room=room), None
