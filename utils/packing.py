"""Charts packed into a square: each slides down onto those below, where it leaves the least room (Levy et al., 2002)."""

import cv2
import numpy as np

from utils.charts import Flat

COLUMNS = 1024  # of the horizon, at most
GAP = 2  # texels around each chart


def pack(flat: Flat, size: int) -> tuple[np.ndarray, float]:
    """(corners [F, 3, 2] in texels of a square of `size` a side, y downwards, GAP from other charts; texels per unit of the mesh)."""
    corner, extent = _upright(flat)
    used = float((extent[:, 0] * extent[:, 1]).sum())
    scale = 0.9 * size / np.sqrt(max(used, 1e-300))
    scale = min(scale, (size - 2 * GAP - 2) / max(float(extent.max(initial=0.0)), 1e-300))
    best: tuple[np.ndarray, float] | None = None
    for _ in range(8):
        at, height = _place(flat, corner, scale, size)
        if height <= size:
            best = at, scale
            if height > 0.97 * size or scale * 1.005 * extent.max(initial=0.0) > size - 2 * GAP - 2:
                break
        scale *= min(max(np.sqrt(0.985 * size / height), 0.7), 1.4) if best is None or height <= size else 0.985
        scale = min(scale, (size - 2 * GAP - 2) / max(float(extent.max(initial=0.0)), 1e-300))
        if best is not None and scale <= best[1]:
            break
    while best is None:
        scale *= 0.9
        at, height = _place(flat, corner, scale, size)
        best = (at, scale) if height <= size else None
    at, scale = best
    return corner * scale + at[flat.chart][:, None], scale


def _upright(flat: Flat) -> tuple[np.ndarray, np.ndarray]:
    """(corners [F, 3, 2] of charts turned into their smallest rectangles, taller than wide, from 0; their extents [C, 2])."""
    order = np.argsort(flat.chart, kind="stable")
    ends = np.cumsum(np.bincount(flat.chart, minlength=flat.n))
    corner, extent = np.empty_like(flat.corner), np.zeros((flat.n, 2))
    for c, (a, b) in enumerate(zip([0, *ends[:-1]], ends)):
        at = order[a:b]
        points = flat.corner[at].reshape(-1, 2)
        middle = points.mean(0)
        hull = cv2.convexHull((points - middle).astype(np.float32))
        angle = np.deg2rad(cv2.minAreaRect(hull)[2])
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        points = (points - middle) @ turn.T
        low, high = points.min(0), points.max(0)
        if high[0] - low[0] > high[1] - low[1]:
            points = points @ np.array([[0.0, 1], [-1, 0]])
            low, high = points.min(0), points.max(0)
        corner[at], extent[c] = (points - low).reshape(-1, 3, 2), high - low
    return corner, extent


def _profiles(flat: Flat, corner: np.ndarray, scale: float, cell: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each chart the first and last cell [w] it needs in each column of cells, its gap included."""
    low = np.floor((corner.min(1) * scale) / cell).astype(np.int64)
    high = np.floor((corner.max(1) * scale + 2 * GAP) / cell).astype(np.int64)
    wide = np.zeros(flat.n, np.int64)
    np.maximum.at(wide, flat.chart, high[:, 0] + 1)
    start = np.concatenate([[0], np.cumsum(wide)])
    bottom, top = np.full(start[-1], 1 << 40), np.full(start[-1], -1)
    at = start[flat.chart] + low[:, 0]
    span = high[:, 0] - low[:, 0]
    for k in range(int(span.max(initial=-1)) + 1):
        on = np.flatnonzero(span >= k)
        np.minimum.at(bottom, at[on] + k, low[on, 1])
        np.maximum.at(top, at[on] + k, high[on, 1])
    return [(bottom[a:b], top[a:b]) for a, b in zip(start[:-1], start[1:])]


def _place(flat: Flat, corner: np.ndarray, scale: float, size: int) -> tuple[np.ndarray, float]:
    """(where each chart's corner lies [C, 2] texels, the height that all take) in a strip `size` texels wide."""
    cell = max(1, -(-size // COLUMNS))
    columns = size // cell
    horizon = np.zeros(columns, np.int64)
    at = np.zeros((flat.n, 2))
    profiles = _profiles(flat, corner, scale, cell)
    for c in sorted(range(flat.n), key=lambda c: -int(profiles[c][1].max())):
        bottom, top = profiles[c]
        if len(bottom) > columns:
            return at, float("inf")
        windows = np.lib.stride_tricks.sliding_window_view(horizon, len(bottom))
        y = (windows - bottom).max(1)
        wasted = y * len(bottom) - windows.sum(1) + (y + int(top.max())) * len(bottom) // 2
        x = int(wasted.argmin())
        horizon[x : x + len(bottom)] = y[x] + top + 1
        at[c] = x * cell + GAP, y[x] * cell + GAP
    return at, float(horizon.max() * cell)
