"""What a render hands to the losses."""

from dataclasses import dataclass

from torch import Tensor

from models.background import Behind
from models.proposal import Proposed
from utils.rays import FieldOutput, Render, Samples


@dataclass(frozen=True)
class Traced:
    """A render and what it was made of."""

    render: Render
    samples: Samples
    field: FieldOutput | None  # at the samples, of a method with an SDF
    weights: Tensor  # [S]
    extra: FieldOutput | None = None  # at points that were asked for besides
    behind: Behind | None = None  # the learned background
    proposed: Proposed | None = None  # where samples were drawn by a proposal: n for each of the rays that have any
