"""Semi-global matching (Hirschmueller, PAMI 2008): the depth of a pixel is chosen together with those of its neighbours.

Where a window alone is no evidence (little texture, few photographs that see the place), the best of a hundred depths is one by chance.
Along each line of pixels, dynamic programming finds what every depth of a pixel can reach at best when depths change little from one pixel
to the next; the mean over the lines through a pixel takes the place of its own score.
"""

import numpy as np


def semi_global(score: np.ndarray, slant: float, jump: float) -> np.ndarray:
    """Scores [h, w, D] float32 in [0, 1] of the depths of each pixel -> their mean over the lines to the left, right, up and down.

    slant: what a change by one depth from a pixel to the next costs, in units of the score; jump: what any larger change costs.
    """
    total = np.zeros_like(score)
    for rows, out in ((score, total), (score.transpose(1, 0, 2), total.transpose(1, 0, 2))):
        for order in (range(len(rows)), range(len(rows) - 1, -1, -1)):
            before = np.zeros_like(rows[0])
            for r in order:
                best = before.max(1, keepdims=True)
                reached = np.maximum(before, best - jump)
                np.maximum(reached[:, 1:], before[:, :-1] - slant, out=reached[:, 1:])
                np.maximum(reached[:, :-1], before[:, 1:] - slant, out=reached[:, :-1])
                reached -= best  # lines of any length weigh the same
                reached += rows[r]
                out[r] += reached
                before = reached
    return total / 4
