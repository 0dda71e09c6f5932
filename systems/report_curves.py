"""Curves of a training run as SVG, coloured by the page's style."""

import math
from collections.abc import Sequence
from html import escape

import numpy as np

WIDTH, HEIGHT = 340, 214  # of a chart, units of its viewBox
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 8, 34  # margins
POINTS = 220  # of a line; longer ones are averaged
Curve = tuple[np.ndarray, np.ndarray]


def by_time(rows: list[dict]) -> tuple[list[dict], np.ndarray, np.ndarray]:
    """(rows of metrics.jsonl with a clock, their steps, their seconds); of a step logged twice, as by a resumed run, the later row."""
    known = {row["step"]: row for row in rows if "seconds" in row}
    kept = [known[step] for step in sorted(known)]
    return kept, np.array([row["step"] for row in kept], float), np.array([row["seconds"] for row in kept], float)


def series(rows: list[dict], seconds: np.ndarray, key: str) -> Curve:
    """(seconds, values) of the rows that have a finite value of this key."""
    found = [(t, float(row[key])) for row, t in zip(rows, seconds) if isinstance(row.get(key), (int, float)) and math.isfinite(row[key])]
    t, y = np.array(found, float).reshape(-1, 2).T
    return t, y


def shortened(x: np.ndarray, y: np.ndarray, n: int = POINTS) -> Curve:
    """At most n points, each the mean of its neighbours."""
    if len(x) <= n:
        return x, y
    parts = np.array_split(np.arange(len(x)), n)
    return np.array([x[p].mean() for p in parts]), np.array([y[p].mean() for p in parts])


def ticks(low: float, high: float, n: int = 5) -> list[float]:
    """About n round numbers from low to high."""
    rough = max(high - low, 1e-12) / n
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= rough)
    return [round(step * k, 12) for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten from low to high; 1, 2 and 5 times them where there are few."""
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5)):
        found = [m * 10.0**p for p in powers for m in steps if low * 0.999 <= m * 10.0**p <= high * 1.001]
        if len(found) >= 3:
            break
    return found[:: max(1, len(found) // 6)]


def label(value: float) -> str:
    return f"{value:g}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")


def chart(name: str, curves: dict[str, Curve], unit: str, log: bool = False, dots: Sequence[str] = ()) -> str:
    """A figure with axes, a line for each curve (dots for the names in `dots`) and a legend; "" when there is nothing to draw.

    unit: what x counts. log: a logarithmic y axis, on which only positive values are drawn.
    """
    curves = {key: (x[y > 0], y[y > 0]) if log else (x, y) for key, (x, y) in curves.items()}
    curves = {key: shortened(*curve) for key, curve in curves.items() if len(curve[0])}
    if not curves:
        return ""
    x_high = max(float(x.max()) for x, _ in curves.values()) or 1.0
    y_all = np.concatenate([y for _, y in curves.values()])
    low, high = float(y_all.min()), float(y_all.max())
    low, high = (low / 1.15, high * 1.15) if log else (low - 0.05 * (high - low or 1), high + 0.05 * (high - low or 1))
    scale = math.log10 if log else float

    def at_x(v: float) -> float:
        return LEFT + v / x_high * (WIDTH - LEFT - RIGHT)

    def at_y(v: float) -> float:
        return HEIGHT - BOTTOM - (scale(v) - scale(low)) / (scale(high) - scale(low)) * (HEIGHT - TOP - BOTTOM)

    parts = _grid(log_ticks(low, high) if log else ticks(low, high), ticks(0, x_high), at_x, at_y, unit)
    for k, (key, (x, y)) in enumerate(curves.items()):
        if key in dots:
            parts += [f'<circle class="dot k{k % 8}" cx="{at_x(a):.1f}" cy="{at_y(b):.1f}" r="3.5"/>' for a, b in zip(x, y)]
        else:
            points = " ".join(f"{at_x(a):.1f},{at_y(b):.1f}" for a, b in zip(x, y))
            parts.append(f'<polyline class="line k{k % 8}" points="{points}"/>')
    legend = "".join(
        f'<li><i class="k{k % 8}"></i>{escape(key)} <b>{float(y[-1]):.4g}</b></li>' for k, (key, (_, y)) in enumerate(curves.items())
    )
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(name)} over {unit}">{"".join(parts)}</svg>'
    note = " <small>logarithmic</small>" if log else ""
    return f'<figure class="chart"><h3>{escape(name)}{note}</h3>{svg}<ul class="legend">{legend}</ul></figure>'


def _grid(rows: list[float], columns: list[float], at_x, at_y, unit: str) -> list[str]:
    """Grid lines with their numbers."""
    foot = HEIGHT - BOTTOM
    parts = []
    for v in rows:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at_y(v):.1f}" y2="{at_y(v):.1f}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{at_y(v) + 4:.1f}" text-anchor="end">{label(v)}</text>')
    for v in columns:
        parts.append(f'<line class="tick" x1="{at_x(v):.1f}" x2="{at_x(v):.1f}" y1="{foot}" y2="{foot + 4}"/>')
        parts.append(f'<text x="{at_x(v):.1f}" y="{foot + 17}" text-anchor="middle">{label(v)}</text>')
    parts.append(f'<text class="unit" x="{WIDTH - RIGHT}" y="{HEIGHT - 3}" text-anchor="end">{unit}</text>')
    return parts


def curves_of(rows: list[dict]) -> list[str]:
    """Figures of the loss terms, PSNR and sharpness over the time of training."""
    rows_by_time, steps, seconds = by_time(rows)
    if not rows_by_time:
        return []
    unit, per = ("minutes", 60.0) if seconds[-1] >= 120 else ("seconds", 1.0)
    names = sorted({key for row in rows_by_time for key in row if key.startswith("loss/")})
    losses = {key.removeprefix("loss/"): series(rows_by_time, seconds / per, key) for key in names}
    order = sorted(losses, key=lambda key: -float(np.median(losses[key][1])) if len(losses[key][1]) else 0.0)
    checked = [row for row in rows if isinstance(row.get("val/psnr"), (int, float))]
    held = series(checked, np.interp([row["step"] for row in checked], steps, seconds) / per, "val/psnr")
    figures = [
        chart("Loss terms, weighted", {key: losses[key] for key in order}, unit, log=True),
        chart(
            "PSNR, dB",
            {"training rays": series(rows_by_time, seconds / per, "psnr"), "validation view": held},
            unit,
            dots=["validation view"],
        ),
        chart("Sharpness, inv_s", {"inv_s": series(rows_by_time, seconds / per, "inv_s")}, unit, log=True),
    ]
    return [figure for figure in figures if figure]
