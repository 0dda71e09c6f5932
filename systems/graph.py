"""Training steps on a CUDA device replayed as a CUDA graph: the host launches two things a step instead of hundreds.

A graph has fixed shapes and fixed numbers, so it is captured anew after each refresh of the sampler: what depends on progress
(loss weights, learning rates, levels, lengths) and the number of rays change then. Only the drawn pixels change with each step.
"""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from process_data.rays import RayDataset

if TYPE_CHECKING:
    from systems.trainer import Trainer

log = logging.getLogger("neus")
ROOM = 1.15  # room for the samples of a step, in trainer.target_samples
FIRST = 3  # steps without a graph at the start: they make the optimiser's state and compile kernels
PATIENCE = 3  # captures that fail before steps are no longer captured


def capture(step: Callable[[], object]) -> Callable[[], None]:
    """Record what `step` launches, without doing it; returns what does it. Raises RuntimeError where something cannot be recorded."""
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        step()
    return graph.replay


class StepGraph:
    """Steps of a trainer whose system holds its shapes (`RaySystem.hold`)."""

    def __init__(self, trainer: "Trainer"):
        assert isinstance(trainer.loader.dataset, RayDataset)
        self.trainer, self.dataset = trainer, trainer.loader.dataset
        self.replay: Callable[[], None] | None = None
        self.drawn: tuple[Tensor, Tensor | None] | None = None  # the graph's inputs
        self.first = trainer.clock.step + FIRST
        self.failed = 0

    def step(self) -> int:
        """Take the trainer's next step; returns its number of rays. The terms are in `Trainer.terms`, valid until the next step."""
        t = self.trainer
        step = t.clock.step
        if t.system.due(step):
            self.replay = None
            self._follow_samples()
        drawn, points = self.dataset.draw(step, t.n_rays), self.dataset.draw_points(step)
        if step < self.first or self.failed >= PATIENCE:
            t.attempt(self._batch(*self._sent(drawn, points)))
            return len(drawn)
        if self.replay is None and not self._capture(drawn, points):
            t.attempt(self._batch(*self._sent(drawn, points)))
            return len(drawn)
        assert self.drawn is not None and self.replay is not None
        for to, new in zip(self.drawn, (drawn, points)):
            if to is not None and new is not None:
                to.copy_(new.pin_memory(), non_blocking=True)
        self.replay()
        return len(drawn)

    def _follow_samples(self) -> None:
        """The number of rays that gave trainer.target_samples in the last step; waits for the device."""
        t = self.trainer
        found = int(t.system.stats.get("samples", 0))
        if found:
            wanted = t.n_rays * t.cfg.trainer.target_samples / found
            t.n_rays = int(max(16, min(wanted, 2 * t.n_rays, t.cfg.trainer.max_rays)))

    def _sent(self, drawn: Tensor, points: Tensor | None) -> tuple[Tensor, Tensor | None]:
        device = self.trainer.device
        return drawn.to(device, non_blocking=True), None if points is None else points.to(device, non_blocking=True)

    def _batch(self, drawn: Tensor, points: Tensor | None):
        return self.dataset.batch(drawn, points)

    def _capture(self, drawn: Tensor, points: Tensor | None) -> bool:
        """Whether the step could be recorded; the device's memory of an older graph is free by then."""
        self.drawn = self._sent(drawn, points)
        inputs, progress = self.drawn, self.trainer.progress
        message = ""
        try:
            self.replay = capture(lambda: self.trainer.update(self._batch(*inputs), progress))
            self.failed = 0
            return True
        except RuntimeError as error:  # torch.OutOfMemoryError too
            message = str(error).splitlines()[0]
        self.failed += 1
        if self.failed == PATIENCE:
            log.warning("training steps cannot be captured as a CUDA graph (%s): going on without, at the pace of the host", message)
        return False
