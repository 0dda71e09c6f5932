"""What moves or does not belong: parts of photographs that the scene cannot explain lose their say.

People who pass, hands, reflections and shadows are in one photograph and not in the others, so their colours stay wrong for long. A
running mean of the colour error is kept for each cell of each photograph. Where it is far above what is usual in the scene, the
photograph is trusted less there. A pixel alone would not do: a fine texture has large errors too. RobustNeRF (Sabour et al., 2023)
judges patches of rays; here the cells remember, so that the rays of a batch may lie anywhere.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CELL = 16  # pixels along a side of a cell
FRESH = 0.1  # weight of a new error in the running mean
FLOOR = 0.01  # mean absolute error below which a cell says nothing about what is usual (a plain background)
USUAL = 2.5  # multiple of the usual error at which a cell is trusted by half
LEAST_SCALE = 0.05  # lower bound of that error
LEAST = 0.05  # trust that is always left
BEGIN = 0.03  # progress before which all is trusted: every colour is wrong at first


class Distractors(nn.Module):
    """Trust in [LEAST, 1] for cells of N photographs of at most width x height pixels."""

    pending: Tensor  # [2, N * h * w] rays since the last refresh, and the sum of their absolute colour errors; of this process alone
    error: Tensor  # [N * h * w] running mean of the absolute colour error, h x w cells a photograph
    seen: Tensor  # [N * h * w] whether a ray fell into the cell, 0 or 1
    trust: Tensor  # [N * h * w]

    def __init__(self, n: int, width: int, height: int):
        super().__init__()
        self.shape = (n, -(-height // CELL), -(-width // CELL))
        cells = self.shape[0] * self.shape[1] * self.shape[2]
        self.register_buffer("pending", torch.zeros(2, cells))
        for name, value in (("error", 0.0), ("seen", 0.0), ("trust", 1.0)):
            self.register_buffer(name, torch.full((cells,), value))

    def cells(self, view: Tensor, uv: Tensor) -> Tensor:
        """Index [R] of the cell of pixels uv [R, 2] of photographs view [R]."""
        column, row = (torch.div(uv[:, i].long(), CELL, rounding_mode="floor") for i in (0, 1))
        return (view * self.shape[1] + row) * self.shape[2] + column

    @torch.no_grad()
    def note(self, cell: Tensor, error: Tensor) -> None:
        """Keep the absolute colour errors [R] of rays in the cells [R] for the next refresh; what is not finite is left out."""
        fine = torch.isfinite(error)
        found = torch.stack([fine.to(self.pending.dtype), torch.where(fine, error, 0).to(self.pending.dtype)])
        self.pending.index_add_(1, cell, found)

    @torch.no_grad()
    def refresh(self, together: Callable[[list[Tensor]], None] | None = None) -> None:
        """Trust from the errors so far: 1 / (1 + (error / scale)^4) of a cell and its neighbours, scale USUAL times the median.

        together: adds up tensors, in place, over the processes of a run, which then trust alike.
        """
        if together is not None:
            together([self.pending])
        count, total = self.pending
        share = torch.where(self.seen > 0, 1 - (1 - FRESH) ** count, (count > 0).to(count.dtype))
        self.error.add_(share * (total / count.clamp(min=1) - self.error))
        self.seen.copy_(torch.maximum(self.seen, (count > 0).to(count.dtype)))
        self.pending.zero_()
        known = (self.seen > 0) & (self.error > FLOOR)
        usual = torch.where(known, self.error, torch.nan).nanmedian().nan_to_num(0.0)
        scale = (USUAL * usual).clamp(min=LEAST_SCALE)
        n, h, w = self.shape
        both = torch.stack([self.error * self.seen, self.seen]).view(2 * n, 1, h, w)
        mean = F.avg_pool2d(both, 3, 1, 1).view(2, -1)
        smooth = mean[0] / mean[1].clamp(min=1e-6)
        self.trust.copy_((1 / (1 + (smooth / scale) ** 4)).clamp(min=LEAST))

    def trusted(self, view: Tensor, uv: Tensor, truth: Tensor, rgb: Tensor, progress: float) -> Tensor:
        """Rendered colours rgb [R, 3] of pixels uv [R, 2], unchanged; the gradient of any loss on them is scaled by the trust.

        Their errors against the photographs' colours, truth [R, 3], are taken note of.
        """
        cell = self.cells(view, uv)
        self.note(cell, (rgb.detach() - truth).abs().mean(-1))
        if progress < BEGIN:
            return rgb
        return torch.lerp(rgb.detach(), rgb, self.trust.index_select(0, cell)[:, None].to(rgb.dtype))
