"""Gradients of hash tables, added where they are kept.

autograd gives each use of a table a gradient of its own, of millions of rows, most of them 0, and adds these: with five uses in a step,
that took a tenth of it.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

_on = False


@contextlib.contextmanager
def gradients_in_place() -> Iterator[None]:
    """Around `loss.backward()`: encoders add to the .grad of their table at once. Hooks of the table are not called."""
    global _on
    before, _on = _on, True
    try:
        yield
    finally:
        _on = before


def kept_gradient(table: Tensor) -> Tensor | None:
    """The .grad of a table, made where there is none; None where autograd is to be given a gradient of its own.

    On CUDA it always is: steps are recorded as graphs there, and this was not tried with them.
    """
    if not (_on and table.is_leaf and table.device.type == "cpu" and table.dtype == torch.float32):
        return None
    if table.grad is None:
        table.grad = torch.zeros_like(table)
    return table.grad
