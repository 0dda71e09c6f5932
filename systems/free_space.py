"""Free space: what lies between a camera and a point on the surface that it sees."""

import numpy as np

CELLS = 96  # along a side of the grid
CROSSED = 3  # lines of sight that make a cell free


def numbers(x: np.ndarray, radius: float) -> np.ndarray:
    """The cell [P] of points [P, 3] in [-radius, radius]^3."""
    at = ((x / radius + 1) * (CELLS / 2)).astype(np.int64).clip(0, CELLS - 1)
    return (at[:, 0] * CELLS + at[:, 1]) * CELLS + at[:, 2]


def free_cells(eyes: np.ndarray, seen: np.ndarray, spacing: float, radius: float) -> np.ndarray:
    """[CELLS^3] bool: cells that at least CROSSED lines of sight cross, from eyes [M, 3] to seen points [M, 3], well before the points.

    spacing: between the points. Lines to points outside the sphere count too.
    """
    away = eyes - seen
    length = np.linalg.norm(away, axis=1)
    away /= np.maximum(length, 1e-9)[:, None]
    step = radius / CELLS  # half a cell
    margin = 3 * max(2 * step, spacing)
    along = (seen * away).sum(1)  # where the line leaves the sphere on its way to the camera
    reach = np.sqrt(np.maximum(radius**2 - (seen * seen).sum(1) + along**2, 0))
    start, end = np.maximum(margin, -along - reach), np.minimum(length, -along + reach)
    count = np.zeros(CELLS**3, np.int64)
    for k in range(int(np.ceil(max(float((end - start).max(initial=0)), 0) / step))):
        t = start + k * step
        on = t < end
        count += np.bincount(numbers(seen[on] + away[on] * t[on, None], radius), minlength=CELLS**3)
    return count >= 2 * CROSSED


def centres(cells: np.ndarray, radius: float) -> np.ndarray:
    """The middles [P, 3] of the cells [CELLS^3] bool."""
    at = np.stack(np.unravel_index(np.flatnonzero(cells), (CELLS,) * 3), 1)
    return ((at + 0.5) * (2 / CELLS) - 1) * radius
