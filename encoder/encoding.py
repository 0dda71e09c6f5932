"""What every encoding offers."""

from torch import Tensor, nn


class Encoding(nn.Module):
    """[N, D] -> [N, width]. An encoding of positions takes points in [0, 1]^3 and the number of open levels."""

    width: int  # length of an encoded point
    n_levels: int = 1  # levels that can be opened one after the other
    fractional: bool = False  # whether levels open gradually

    def forward(self, x: Tensor, n_levels: float | None = None) -> Tensor:
        raise NotImplementedError
