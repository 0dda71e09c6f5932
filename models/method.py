"""What a method must offer, what a render depends on, and what it returns. `tests/models/test_method.py` has one in 60 lines.

A method is a `Method`; its options are a `MethodConfig`; an `Entry` of `systems/build.py: METHODS` names both. Systems, losses
and the trainer know these types alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from confs.model import MethodConfig
from models.proposal import ProposalSamples
from utils.rays import FieldOutput, Rays, Render, Samples

if TYPE_CHECKING:
    from models.appearance import Appearance
    from models.background import Background, BackgroundOutput
    from models.distractors import Distractors
    from models.pose import CameraRefinement
    from models.shading import ShadingOutput


@dataclass(frozen=True)
class RenderContext:
    """What a render depends on besides the rays and the weights. `Method.context` makes it."""

    progress: float  # of the run, in [0, 1]
    training: bool  # stratified samples and gradients; else a picture, without random numbers
    levels: float  # open levels of the position encoding
    step: float  # least length of an interval, in the unit sphere's frame
    max_inv_s: float  # upper bound of the sharpness
    background: Tensor  # [3] or [R, 3] sRGB behind the object; a learned background replaces it
    jitter: Tensor | None = None  # [R] in [0, 1): shift of a ray's samples, in steps
    embedding: Tensor | None = None  # [R, width] of the photographs of the rays (model.appearance=embedding); None: their mean
    extra: Tensor | None = None  # [P, 3] further points at which to evaluate the field, in the same pass through the network
    full_background: bool = False  # evaluate the learned background also where the object hides it
    min_inv_s: float = 0.0  # lower bound of the sharpness


@dataclass(frozen=True)
class RenderOutput:
    """A render and its parts; a part that a method does not have is None."""

    render: Render
    samples: Samples | None = None
    weights: Tensor | None = None  # [S]
    field: FieldOutput | None = None  # at the samples
    extra: FieldOutput | None = None  # at `RenderContext.extra`
    background: "BackgroundOutput | None" = None
    proposals: ProposalSamples | None = None  # of a proposal sampler


class Sampler(nn.Module, ABC):
    """Chooses the intervals along rays at which a field is evaluated."""

    @property
    def share(self) -> float:
        """Share of the sphere in which samples are taken."""
        return 1.0

    def due(self, step: int) -> bool:
        """Whether `refresh` updates anything before this step."""
        return False

    def refresh(self, step: int, value: Callable[[Tensor], Tensor]) -> None:
        """Update what the choice rests on, if anything; value: points [P, 3] -> occupancy [P] in [0, 1]."""
        return

    @abstractmethod
    def sample(
        self, rays: Rays, step: float, jitter: Tensor | None, field: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Samples, ProposalSamples | None]:
        """Intervals of R rays of at least `step`; jitter [R] in [0, 1) shifts them; field: points [P, 3] -> distance [P]."""


class Method(nn.Module, ABC):
    """Rays -> colour, opacity, depth and normals. Its state is its weights and its sampler's buffers, nothing else."""

    shown: tuple[str, ...] = ("psnr",)  # figures of `stats` on the progress bar
    sampler: Sampler | None  # where samples are chosen
    background: "Background | None"  # the learned background
    pose: "CameraRefinement | None"  # the refinement of the cameras
    appearance: "Appearance | None"  # exposure and white balance of the photographs
    distractors: "Distractors | None"  # how far each part of the photographs is trusted
    composite_backend: str
    view_dependent = False  # whether `colour_from` depends on the direction

    def __init__(self, cfg: MethodConfig):
        super().__init__()
        self.cfg, self.radius = cfg, cfg.radius
        self.sampler, self.background, self.composite_backend = None, None, "torch"
        self.pose, self.appearance, self.distractors = None, None, None

    @property
    def capabilities(self) -> frozenset[str]:
        """What is computed; the loss terms need these (`confs/effects.py: NEEDS`)."""
        return self.cfg.capabilities

    # ------------------------------------------------------------------ what a method must offer

    @abstractmethod
    def render(self, rays: Rays, context: RenderContext) -> RenderOutput:
        """Render R rays."""

    @abstractmethod
    def surface(self, context: RenderContext) -> Callable[[Tensor], Tensor]:
        """(points [P, 3] -> [P], negative inside, slope at most about 1) of the surface a mesh is extracted from."""

    @abstractmethod
    def colour_at(self, points: Tensor, context: RenderContext) -> Tensor:
        """sRGB [P, 3] of surface points [P, 3], independent of the view."""

    # ------------------------------------------------------------------ what a method may offer

    def colour_from(self, points: Tensor, dirs: Tensor, context: RenderContext) -> Tensor:
        """sRGB [P, 3] of surface points [P, 3] seen along unit dirs [P, 3]: of a view_dependent method, in place of `colour_at`."""
        raise NotImplementedError

    def levels_at(self, progress: float) -> float:
        """Open levels of the position encoding."""
        return 1.0

    def step_at(self, progress: float, training: bool) -> float:
        """Least length of an interval."""
        return 2 * 3**0.5 * self.radius / 256

    def max_inv_s_at(self, progress: float) -> float:
        """Upper bound of the sharpness."""
        return float("inf")

    def min_inv_s_at(self, progress: float) -> float:
        """Lower bound of the sharpness."""
        return 0.0

    def before_step(self, step: int, context: RenderContext) -> None:
        """Refresh the sampler before training step `step`."""
        return

    def hold(self, room: int) -> bool:
        """From now on a training step has fixed shapes, with room for so many samples, and reads nothing back from the device, so that
        it can be replayed as a CUDA graph. False: this method cannot."""
        return False

    def own_groups(self, optim: Any) -> list[dict]:
        """Optimiser groups of parameters with a learning rate of their own; optim: `OptimConfig`."""
        return []

    def stats(self, context: RenderContext) -> dict[str, Any]:
        """Figures for every line of the log; after `hold` they may be tensors []."""
        return {"levels": context.levels}

    def maps(self, rays: Rays, render: Render, context: RenderContext, chunk: int) -> dict[str, Tensor]:
        """Further pictures of a rendered view, by label: [R, 3] in [0, 1]."""
        return {}

    def diagnosis(self) -> str:
        """One clause on the state of the geometry, for errors."""
        return f"model.radius {self.radius:g}"

    # capability "sdf"
    def field_at(self, points: Tensor, context: RenderContext) -> FieldOutput:
        """SDF, gradient and features at points [P, 3]."""
        raise NotImplementedError

    def sdf_at(self, points: Tensor, context: RenderContext) -> Tensor:
        """Signed distance [P] at points [P, 3]."""
        return self.field_at(points, context).sdf

    # capability "occlusion"
    def occlusion_pair(self, rays: Rays, output: RenderOutput, context: RenderContext) -> tuple[Tensor, Tensor]:
        """(predicted, marched) probability [P] that reflected rays hit the object."""
        raise NotImplementedError

    def shade(self, rays: Rays, render: Render, context: RenderContext) -> "tuple[Tensor, ShadingOutput]":
        """(indices [P] of the rays with a surface, their shading)."""
        raise NotImplementedError

    # ------------------------------------------------------------------ offered to all

    def context(
        self, progress: float = 1.0, training: bool = False, background: Tensor | None = None, jitter: Tensor | None = None,
        extra: Tensor | None = None, full_background: bool = False, embedding: Tensor | None = None,
    ) -> RenderContext:  # fmt: skip
        """The context of a render at this progress; background black unless given."""
        if background is None:
            background = next(self.parameters()).new_zeros(3)
        return RenderContext(
            progress, training, self.levels_at(progress), self.step_at(progress, training), self.max_inv_s_at(progress), background, jitter,
            embedding, extra, full_background, self.min_inv_s_at(progress),
        )  # fmt: skip

    def composited(self, rgb: Tensor, opacity: Tensor, rays: Rays, context: RenderContext) -> "tuple[Tensor, BackgroundOutput | None]":
        """(colour over the background [R, 3], the learned background or None) of foreground colour [R, 3] and opacity [R]."""
        if self.background is None:
            return rgb + (1 - opacity)[:, None] * context.background, None
        found = self.background(rays, opacity, context)
        return rgb + (1 - opacity)[:, None] * found.rgb, found


@torch.no_grad()
def in_parts(function: Callable[[Tensor], Tensor], points: Tensor, size: int = 65536) -> Tensor:
    """function of points [P, 3], `size` at a time."""
    return torch.cat([function(part) for part in points.split(size)])
