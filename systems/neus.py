"""The NeuS system: how it is rendered, what is noted, what a mesh is taken from."""

import logging

import torch
from torch import Tensor

from confs.schema import Config
from models.neus import NeuS
from models.traced import Traced
from systems.base import RaySystem
from utils.rays import RayBatch, Rays, Render

log = logging.getLogger("neus")


class NeuSSystem(RaySystem):
    """Geometry as a signed distance, its sharpness inv_s learned beside it."""

    shown = ("psnr", "inv_s")

    def __init__(self, model: NeuS, cfg: Config, device: torch.device):
        super().__init__(model, cfg, device)
        self.watch = InvSWatch()

    def own_groups(self) -> list[dict]:
        return [
            {"name": "variance", "params": list(self.model.variance.parameters()), "lr": self.cfg.optim.lr_variance, "weight_decay": 0.0}
        ]

    def trace(self, batch: RayBatch, background: Tensor, jitter: Tensor, extra: Tensor | None, progress: float) -> Traced:
        return self.model.render(batch.rays, progress, background, jitter, extra)

    def view(self, rays: Rays, background: Tensor, progress: float, everywhere: bool) -> Render:
        step = self.model.step_length(self.model.test_step)
        return self.model.render(rays, progress, background, step=step, everywhere=everywhere).render

    def _note(self, traced: Traced, truth: Tensor, progress: float) -> None:
        super()._note(traced, truth, progress)
        self.stats["inv_s"] = float(self.model.variance().detach())
        self.watch.start(self.stats["inv_s"])

    def slow_stats(self, progress: float) -> dict[str, float]:
        self.watch(self.stats["inv_s"], progress)
        return super().slow_stats(progress)

    def surface(self, progress: float = 1.0):
        """(points [P, 3] -> signed distance [P]) of the surface a mesh is taken from."""
        levels = self.model.open_levels(progress)
        return torch.no_grad()(lambda x: self.model.sdf.sdf(x, levels))

    def diagnosis(self) -> str:
        """One clause on the state of the geometry, for errors."""
        return f"inv_s {float(self.model.variance().detach()):.0f}, occupied {self.model.occupancy.share:.2%}"


class InvSWatch:
    """Warns once when the sharpness inv_s falls below its start or hardly grew by half time: the surface stays a fog."""

    def __init__(self) -> None:
        self.first: float | None = None
        self.warned = False

    def start(self, inv_s: float) -> None:
        """The first value seen is the one to beat."""
        self.first = inv_s if self.first is None else self.first

    def __call__(self, inv_s: float, progress: float) -> None:
        if self.warned or progress < 0.1:
            return
        if inv_s < 0.9 * self.first:
            self.warned = True
            log.warning(
                "inv_s fell to %.0f, below its start %.0f: the surface is dissolving; check cameras, masks and model.radius",
                inv_s,
                self.first,
            )
        elif progress > 0.5 and inv_s < 2 * self.first:
            self.warned = True
            log.warning("inv_s stalls at %.0f at half time: the surface stays a fog; check cameras and masks, or train longer", inv_s)
