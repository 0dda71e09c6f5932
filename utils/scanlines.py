"""Which pixels a triangle covers, for many triangles at once. Pixel centres at integers."""

import numpy as np


def _repeat(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(which [S], the how manyth of it [S]) of counts [N] things, S their sum."""
    which = np.repeat(np.arange(len(counts)), counts)
    return which, np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)


def covers(corner: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(flattened pixel [P], face [P]): which faces [F, 3, 2] (pixels) contain the centres of which pixels of a square picture.

    A centre that lies on an edge that two faces share may be in both. Row by row of each face, then along the row: the work is that of the
    pixels covered, whatever the shape of the faces.
    """
    y = corner[..., 1]
    low, high = np.ceil(y.min(1)).clip(0, None).astype(np.int64), np.floor(y.max(1)).clip(None, size - 1).astype(np.int64)
    face, row = _repeat((high - low + 1).clip(0))
    row += low[face]
    left, right = np.full(len(face), np.inf), np.full(len(face), -np.inf)
    for k in range(3):
        a, b = corner[:, k], corner[:, (k + 1) % 3]
        on = np.flatnonzero((a[face, 1] <= row) != (b[face, 1] <= row))
        f = face[on]
        x = a[f, 0] + (row[on] - a[f, 1]) / (b[f, 1] - a[f, 1]) * (b[f, 0] - a[f, 0])
        left[on], right[on] = np.minimum(left[on], x), np.maximum(right[on], x)
    some = np.flatnonzero(left <= right)
    face, row, left, right = face[some], row[some], left[some], right[some]
    first, last = np.ceil(left).clip(0, None).astype(np.int64), np.floor(right).clip(None, size - 1).astype(np.int64)
    span, along = _repeat((last - first + 1).clip(0))
    return row[span] * size + first[span] + along, face[span]
