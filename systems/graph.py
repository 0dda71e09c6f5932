"""Training steps on a CUDA device replayed as a CUDA graph: the host launches two things a step instead of hundreds.

A graph has fixed shapes and fixed numbers, so it is captured anew after each refresh of the sampler: what depends on progress
(loss weights, learning rates, levels, lengths) and the number of rays change then. Only the drawn pixels change with each step.
"""

import contextlib
import functools
import logging
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from process_data.rays import Drawn, RayDataset

if TYPE_CHECKING:
    from systems.trainer import Trainer

log = logging.getLogger("neus")
ROOM = 1.15  # room for the samples of a step, in trainer.target_samples
FIRST = 3  # steps without a graph at the start, and one wherever a step first computes something new: they make state and load kernels
PATIENCE = 3  # captures that fail before steps are no longer captured


_newest: list[torch.cuda.CUDAGraph] = []  # the graph recorded last: its memory is the next one's, so it stays until then
_owner: "weakref.ref[StepGraph] | None" = None  # whose it is
_broken: list[torch.cuda.CUDAGraph] = []  # graphs whose capture failed: torch's allocator may still ask them


@functools.cache
def _side(device: int) -> torch.cuda.Stream:
    """The stream that steps are recorded on; torch records none on the default stream."""
    return torch.cuda.Stream(device)


def capture(step: Callable[[], object]) -> Callable[[], None]:
    """Record what `step` launches, without doing it; returns what does it, until the next call. Raises RuntimeError where something
    cannot be recorded, and leaves torch fit for steps without a graph then.

    `torch.cuda.graph` does the same, but empties the memory caches each time, and leaves its stream, the allocator and the random
    numbers behind as they are where a capture fails.
    """
    if not _newest:  # what steps without a graph have kept
        torch.cuda.empty_cache()
    graph = torch.cuda.CUDAGraph()
    pool = _newest[0].pool() if _newest else torch.cuda.graph_pool_handle()
    with torch.cuda.stream(_side(torch.cuda.current_device())):
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            step()
        except BaseException:
            with contextlib.suppress(RuntimeError):  # says no more than that something failed
                _end(graph, pool)
            raise
        _end(graph, pool)
    _newest[:] = [graph]
    return graph.replay


def _end(graph: torch.cuda.CUDAGraph, pool: Any) -> None:
    """End a capture; where that fails, put memory and random numbers back as without one."""
    try:
        graph.capture_end()
        return
    except RuntimeError:
        _broken.append(graph)
        device = torch.cuda.current_device()
        with contextlib.suppress(RuntimeError):  # which says that the first of the two has been done
            torch._C._cuda_endAllocateToPool(device, pool)
            torch._C._cuda_releasePool(device, pool)
        generator = torch.cuda.default_generators[device]
        generator.graphsafe_set_state(generator.clone_state())  # the old state may take itself for one in a capture, and refuse to go on
        _newest.clear()  # it draws from the old state
        raise


def _claim(owner: "StepGraph") -> None:
    """Graphs of others, which may still be replayed, keep their memory."""
    global _owner
    if _owner is None or _owner() is not owner:
        _newest.clear()
        _owner = weakref.ref(owner)


def release() -> None:
    """Give back the memory of the newest graph, which must not be replayed any more."""
    _newest.clear()
    torch.cuda.empty_cache()


class StepGraph:
    """Steps of a trainer whose system holds its shapes (`RaySystem.hold`)."""

    def __init__(self, trainer: "Trainer"):
        assert isinstance(trainer.loader.dataset, RayDataset)
        self.trainer, self.dataset = trainer, trainer.loader.dataset
        self.replay: Callable[[], None] | None = None
        self.drawn: Drawn | None = None  # the graph's inputs
        self.alone = 0  # steps taken without a graph
        self.known: frozenset[str] = frozenset()  # what these have computed
        self.failed = 0

    def step(self) -> int:
        """Take the trainer's next step; returns its number of rays. The terms are in `Trainer.terms`, valid until the next step."""
        t = self.trainer
        step = t.clock.step
        if t.system.due(step):
            self.replay = None
            self._follow_samples()
        drawn = self.dataset.drawn(step, t.n_rays)
        parts = t.system.parts(t.progress)
        ready = self.alone >= FIRST and self.failed < PATIENCE and (self.replay is not None or parts <= self.known)
        if not ready or (self.replay is None and not self._capture(drawn)):
            t.attempt(self.dataset.batch(*self.dataset.sent(drawn)))
            if t.terms:  # not where memory ran out
                self.alone += 1
                self.known |= parts
            return len(drawn[0])
        assert self.drawn is not None and self.replay is not None
        for to, new in zip(self.drawn, drawn):
            if to is not None and new is not None:
                to.copy_(new.pin_memory(), non_blocking=True)
        self.replay()
        return len(drawn[0])

    def close(self) -> None:
        """Free the graph and its memory."""
        self.replay = self.drawn = None
        self.trainer.optimizer.zero_grad(set_to_none=True)  # gradients lie there too
        release()

    def _follow_samples(self) -> None:
        """The number of rays that gave trainer.target_samples in the last step; waits for the device."""
        t = self.trainer
        found = int(t.system.stats.get("samples", 0))
        if found:
            wanted = t.n_rays * t.cfg.trainer.target_samples / found
            t.n_rays = int(max(16, min(wanted, 2 * t.n_rays, t.cfg.trainer.max_rays)))

    def _capture(self, drawn: Drawn) -> bool:
        """Whether the step could be recorded, in the memory of the graph before where there was one."""
        self.drawn = self.dataset.sent(drawn)
        inputs, progress = self.drawn, self.trainer.progress
        message = ""
        _claim(self)
        try:
            self.replay = capture(lambda: self.trainer.update(self.dataset.batch(*inputs), progress))
            self.failed = 0
            return True
        except RuntimeError as error:  # torch.OutOfMemoryError too
            message = str(error).splitlines()[0]
        self.trainer.forget()  # not in the `except`, where the traceback still holds the step's tensors
        release()
        self.failed += 1
        if self.failed == PATIENCE:
            log.warning("training steps cannot be captured as a CUDA graph (%s): going on without, at the pace of the host", message)
        return False
