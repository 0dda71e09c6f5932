"""The system of the methods with an SDF: a watch on the sharpness inv_s."""

import logging
import math

import torch

from confs.schema import Config
from models.neus import NeuS
from systems.base import RaySystem
from systems.start import start_from_points
from utils.rays import Scene

log = logging.getLogger("neus")


class NeuSSystem(RaySystem):
    """`RaySystem` that warns when the surface stays soft."""

    model: NeuS

    def __init__(self, model: NeuS, cfg: Config, device: torch.device):
        super().__init__(model, cfg, device)
        first = math.exp(10 * model.variance.v.item())
        self.watch = InvSWatch(min(first, model.max_inv_s(0.0)))

    def begin(self, scene: Scene) -> None:
        """Before step 0: a surface from the points, where model.start is points or sweep."""
        if self.model.cfg.start in ("points", "sweep") and not start_from_points(self.model, scene, self.cfg.seed or 0, self.device):
            log.warning(
                "model.start=%s: too few points inside the sphere, or unknown which views see them; starting from a sphere",
                self.model.cfg.start,
            )
        self.watch.first = min(math.exp(10 * self.model.variance.v.item()), self.model.max_inv_s(0.0))

    def slow_stats(self, progress: float) -> dict[str, float]:
        self.watch(self.stats["inv_s"], progress)
        return super().slow_stats(progress)


class InvSWatch:
    """Warns once when inv_s falls below its initial value or has hardly grown by half time: the surface stays soft."""

    def __init__(self, first: float) -> None:
        """first: inv_s at the start of the run, which a resumed run shares."""
        self.first, self.warned = first, False

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
            log.warning("inv_s stalls at %.0f at half time: the surface stays soft; check cameras and masks, or train longer", inv_s)
