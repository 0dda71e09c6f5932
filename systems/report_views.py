"""The views of the test on the page: cut from the test's sheets, with an error map, side by side under a slider."""

from dataclasses import dataclass
from html import escape

import cv2
import numpy as np

from systems.report_parts import Found, fitting, jpeg, known, section
from utils.errors import UserError
from utils.image import read_rgb

VIEWS = 8  # held-out views that are shown
SIDE = 800  # pixels, longest side of a picture of a view
WITHOUT_MAPS = ("neus", "nerf")  # methods whose sheets have one row, also where metrics.json of an older run states no size
# key of test/metrics.json, name, unit, decimals
NUMBERS = (
    ("psnr", "PSNR", "dB", 2), ("ssim", "SSIM", "", 4), ("psnr_cc", "PSNR, colour-corrected", "dB", 2),
    ("psnr_masked", "PSNR inside the masks", "dB", 2), ("lpips", "LPIPS", "", 4),
)  # fmt: skip


@dataclass(frozen=True)
class ViewPictures:
    """A view of the test: its row of metrics.json and its pictures, uint8 [h, w, 3]."""

    row: dict
    photo: np.ndarray
    render: np.ndarray
    depth: np.ndarray
    normal: np.ndarray

    @property
    def error(self) -> np.ndarray:
        """[h, w], the mean over the channels of |photo - render|, in 0 to 1."""
        return np.abs(self.photo.astype(np.float32) - self.render).mean(-1) / 255


def cut_sheet(picture: np.ndarray, row: dict, method: str | None) -> list[np.ndarray] | None:
    """[photo, render, depth, normal] of a sheet of the test, side by side in its first row; None where their size is unknown."""
    h, w = picture.shape[0], picture.shape[1] // 4
    if isinstance(row.get("size"), list) and len(row["size"]) == 2:
        w, h = row["size"]
    elif picture.shape[1] % 4 or method not in WITHOUT_MAPS:
        return None
    return [picture[:h, k * w : (k + 1) * w] for k in range(4)] if picture.shape[1] >= 4 * w and picture.shape[0] >= h else None


def view_pictures(found: Found, most: int = VIEWS) -> list[ViewPictures]:
    """The pictures of at most `most` views of the test, evenly chosen, reduced to SIDE pixels."""
    views = found.test.get("views")
    rows = [row for row in views if isinstance(row, dict) and isinstance(row.get("view"), int)] if isinstance(views, list) else []
    if len(rows) > most:
        rows = [rows[round(i * (len(rows) - 1) / (most - 1))] for i in range(most)]
    shown = []
    for row in rows:
        try:
            parts = cut_sheet(read_rgb(found.root / f"test/{row['view']:03d}.png"), row, found.option("model.name"))
        except UserError:
            continue
        if parts:
            shown.append(ViewPictures(row, *(fitting(part, SIDE, SIDE) for part in parts)))
    return shown


def error_scale(views: list[ViewPictures]) -> float:
    """The difference that the error maps show in their brightest colour: a round number that 1 % of the pixels exceed."""
    high = float(np.quantile(np.concatenate([view.error.ravel()[::7] for view in views]), 0.99))
    return next((s for s in (0.05, 0.1, 0.2, 0.4) if high <= 1.001 * s), 0.8)


def error_map(error: np.ndarray, scale: float) -> np.ndarray:
    """[h, w] -> uint8 [h, w, 3]: inferno, black at 0 and light yellow from `scale` on."""
    return cv2.applyColorMap(np.rint(np.clip(error / scale, 0, 1) * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]


def inferno(n: int = 9) -> list[str]:
    """n colours of the map from low to high, for CSS."""
    ramp = error_map(np.linspace(0, 1, n)[None], 1.0)[0]
    return [f"rgb({r},{g},{b})" for r, g, b in ramp.tolist()]


def comparison(view: ViewPictures, scale: float) -> str:
    """A view: photograph against render under a slider, and error map, depth and normals to look at or to put in the render's place."""
    h, w = view.photo.shape[:2]
    name = escape(str(view.row.get("name", view.row["view"])))
    tiles = "".join(
        f'<button type="button" aria-pressed="false"><img alt="" src="{jpeg(picture, most)}"><span>{label}</span></button>'
        for label, picture, most in (("error", error_map(view.error, scale), 80), ("depth", view.depth, 50), ("normals", view.normal, 70))
    )
    values = ", ".join(
        f"{label} {view.row[key]:.{decimals}f}{' ' + unit if unit else ''}"
        for key, label, unit, decimals in NUMBERS[:2]
        if known(view.row.get(key))
    )
    return (
        f'<figure class="view{" tall" if h > w else ""}" style="--ratio: {w} / {h}"><div class="pair"><div class="compare">'
        f'<img alt="Photograph {name}" src="{jpeg(view.photo)}"><img class="over" alt="Render" src="{jpeg(view.render)}">'
        '<span class="tag left">photograph</span><span class="tag right">render</span><span class="grip">↔</span>'
        f'<input type="range" min="0" max="100" step="0.1" value="50" aria-label="Border between photograph and render of {name}"></div>'
        f'<div class="tiles">{tiles}</div></div><figcaption><b>{name}</b>{" · " if values else ""}{values}</figcaption></figure>'
    )


def held_out(found: Found) -> str:
    views = view_pictures(found)
    if not views:
        return ""
    scale, total, test = error_scale(views), len(found.test["views"]), found.test
    words = "These views took no part in the training." if test.get("held_out") else "No views were held out: these are training views."
    if len(views) < total:
        words += f" {len(views)} of {total}, evenly chosen."
    if known(test.get("scale")) and test["scale"] < 1:
        words += f" Rendered at {test['scale']:.2f} of their size, and compared with photographs reduced alike."
    if test.get("held_out_cameras", "as given") != "as given":
        words += f" Their cameras are {escape(str(test['held_out_cameras']))}."
    words += " Tap error, depth or normals to put it under the slider."
    legend = (
        '<div class="scale"><span>Error: |photograph − render|, mean of the channels</span><span class="ramp">0<i style="background: '
        f'linear-gradient(90deg, {", ".join(inferno())})"></i>{100 * scale:g} % of full scale and more</span></div>'
    )
    figures = "\n".join(comparison(view, scale) for view in views)
    title = "Held-out views" if test.get("held_out") else "Training views"
    return section(title, f'<p class="note">{words}</p>', legend, f'<div class="views">{figures}</div>')
