"""Corners of a dark square to a fraction of a pixel: the intersections of lines that are fitted to its four edges.

A corner detector is drawn inwards by the blurred corner itself, by 0.2 pixels: 0.4 % of a marker of 75 pixels. An edge is not: blur
widens it symmetrically.
"""

import cv2
import numpy as np

SAMPLES = 32  # profiles across each edge
STEPS = 33  # positions on a profile


def _offsets(grey: np.ndarray, at: np.ndarray, outward: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """Where the edge lies on profiles through at [4, SAMPLES, 2] along outward [4, 2], -reach to reach [4]: [4, SAMPLES] pixels.

    The mean position of the rise from dark to light; nan where there is none.
    """
    t = np.linspace(-1, 1, STEPS) * reach[:, None]  # [4, STEPS]
    points = (at[:, :, None] + t[:, None, :, None] * outward[:, None, None]).astype(np.float32)
    u, v = (np.ascontiguousarray(points[..., k].reshape(-1, STEPS)) for k in (0, 1))
    values = cv2.remap(grey, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE).reshape(4, -1, STEPS).astype(np.float64)
    rise = np.diff(values, axis=2).clip(min=0)
    rise[rise < 0.2 * rise.max(2, keepdims=True)] = 0
    total = rise.sum(2)
    middle = (t[:, 1:] + t[:, :-1]) / 2
    return np.where(total > 20, (rise * middle[:, None]).sum(2) / np.maximum(total, 1e-9), np.nan)


def _ends(s: np.ndarray, off: np.ndarray) -> np.ndarray | None:
    """Offsets [2] at s = 0 and s = 1 of the line through off [SAMPLES] over s, without outliers; None where too few are left."""
    good = np.isfinite(off)
    for _ in range(3):
        if good.sum() < SAMPLES // 3:
            return None
        line = np.polyfit(s[good], off[good], 1)
        away = np.abs(np.polyval(line, s) - off)
        good = np.isfinite(off) & (away < max(2.5 * float(np.median(away[good])), 0.05))
    return np.array([line[1], line[0] + line[1]])


def _meet(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> np.ndarray:
    """The point [2] where the lines a b and c d meet."""
    return a + (b - a) * np.linalg.solve(np.stack([b - a, c - d], 1), c - a)[0]


def refine(grey: np.ndarray, corners: np.ndarray, cells: int) -> np.ndarray:
    """Corners [4, 2] of a marker in grey [H, W] uint8, in pixels, clockwise from the top left; cells: along a side, with the border.

    The corners themselves where an edge cannot be fitted, or would move by more than 3 pixels and half a cell.
    """
    found = corners.astype(np.float64)
    s = np.linspace(0.1, 0.9, SAMPLES)
    for _ in range(2):
        along = np.roll(found, -1, 0) - found
        length = np.linalg.norm(along, axis=1)
        outward = np.stack([along[:, 1], -along[:, 0]], 1) / length[:, None]
        at = found[:, None] + s[None, :, None] * along[:, None]
        off = _offsets(grey, at, outward, np.clip(0.45 * length / cells, 1.5, 8))
        ends = [_ends(s, row) for row in off]
        lines = [(found[k] + e[0] * outward[k], found[k] + along[k] + e[1] * outward[k]) for k, e in enumerate(ends) if e is not None]
        if len(lines) < 4:
            return corners
        try:
            found = np.stack([_meet(*lines[k - 1], *lines[k]) for k in range(4)])
        except np.linalg.LinAlgError:
            return corners
        if not np.linalg.norm(found - corners, axis=1).max() < 3 + 0.5 * length.max() / cells:
            return corners
    return found
