"""Exposure and white balance of each photograph, and an embedding of it for what these do not explain."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Appearance(nn.Module):
    """What differs between photographs of one scene other than the camera.

    kind "affine": an affine map of the colour [3] -> [3] for each photograph (after Urban Radiance Fields, Rematas et al., 2022);
    "embedding": a vector for each, an input of the colour network (NeRF in the Wild, Martin-Brualla et al., 2021).
    The mean over the training photographs is the identity (or 0), which held-out views, the video and the mesh are rendered with.
    """

    used: Tensor  # [N] float, 1 for training photographs

    def __init__(self, kind: str, n: int, train: Sequence[int], width: int = 8):
        super().__init__()
        self.kind = kind
        used = torch.zeros(n)
        used[list(train)] = 1
        self.register_buffer("used", used)
        self.values = nn.Parameter(torch.zeros(n, 12 if kind == "affine" else width))

    def centred(self) -> Tensor:
        """Values [N, K] less their mean over the training photographs; 0 for held-out ones."""
        mean = (self.values * self.used[:, None]).sum(0) / self.used.sum()
        return (self.values - mean) * self.used[:, None]

    def embedding(self, view: Tensor) -> Tensor | None:
        """[R, width] of the views [R]; None for kind "affine"."""
        return None if self.kind == "affine" else self.centred().index_select(0, view)

    def photographed(self, rgb: Tensor, covered: Tensor | float, view: Tensor) -> Tensor:
        """Rendered colours [R, 3] as photograph view [R] shows them; covered [R]: the share of a pixel that is photographed.

        rgb is the sum of photographed colours weighted by `covered`; so is the result. Identity for kind "embedding".
        """
        if self.kind != "affine":
            return rgb
        a = self.centred().index_select(0, view)
        offset = a[:, 9:] * (covered[:, None] if isinstance(covered, Tensor) else covered)
        return rgb + (a[:, :9].view(-1, 3, 3) * rgb[:, None]).sum(-1) + offset
