"""A sheet of markers at exact size, as PDF or PNG: a grid of markers with their numbers, and a bar of 100 mm to check the print."""

import io
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from utils.errors import UserError
from utils.files import write_atomic

PAPERS = {"a4": (210.0, 297.0), "letter": (215.9, 279.4)}  # width and height, mm
PER_MM = 20  # pixels; both papers have a whole number of them
DPI = PER_MM * 25.4
MARGIN, FOOT, LABEL = 12.0, 22.0, 3.0  # mm: printers leave the margin white; the bar and the text; height of a number
BAR = 100.0  # mm


@dataclass(frozen=True)
class Sheet:
    """A picture [H, W] uint8 with PER_MM pixels a millimetre, and the markers' corners {number: [4, 2]} in mm from its top left corner."""

    picture: np.ndarray
    corners: dict[int, np.ndarray]


def _grid(paper: str, size: float, gap: float) -> list[tuple[float, float]]:
    """Top left corners in mm of as many markers as fit, row by row, centred."""
    width, height = PAPERS[paper]
    columns, rows = (int((room - 2 * MARGIN + gap) // (size + gap)) for room in (width, height - FOOT))
    left = (width - columns * (size + gap) + gap) / 2
    return [(left + c * (size + gap), MARGIN + r * (size + gap)) for r in range(rows) for c in range(columns)]


def draw_sheet(dictionary: cv2.aruco.Dictionary, paper: str = "a4", size: float = 50.0, first: int = 0) -> Sheet:
    """The sheet; size: side of a marker in mm, first: number of the first marker. Raises UserError."""
    width, height = (round(side * PER_MM) for side in PAPERS[paper])
    gap = max(LABEL + 3, 1.5 * size / (dictionary.markerSize + 2))  # white round a marker: a cell at least
    corners = _grid(paper, size, gap) if size >= 10 else []
    if not corners:
        raise UserError(f"--size {size:g}: expected the side of a marker in mm, from 10 to {min(PAPERS[paper]) - 2 * MARGIN:g} on {paper}")
    most = len(dictionary.bytesList)
    if not 0 <= first <= most - len(corners):
        raise UserError(f"--first {first}: expected 0 to {most - len(corners)}: there are {most} markers, and {len(corners)} on a sheet")
    image = Image.new("L", (width, height), 255)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(LABEL * PER_MM)
    side, placed = round(size * PER_MM), {}
    for number, (x, y) in enumerate(corners, first):
        at = round(x * PER_MM), round(y * PER_MM)
        image.paste(Image.fromarray(cv2.aruco.generateImageMarker(dictionary, number, side)), at)
        draw.text((at[0], at[1] + side + 0.3 * LABEL * PER_MM), str(number), 0, font)
        placed[number] = (np.array(at) + np.array([[0, 0], [side, 0], [side, side], [0, side]])) / PER_MM
    _foot(draw, font, width, height, f"Markers of {side / PER_MM:g} mm: --marker-size {side / PER_MM / 1000:g}")
    return Sheet(np.asarray(image), placed)


def _foot(draw: ImageDraw.ImageDraw, font, width: int, height: int, line: str) -> None:
    """The bar with a tick every 10 mm, and what to do with it."""
    left, top = (width - BAR * PER_MM) / 2, height - (MARGIN + 8) * PER_MM
    draw.rectangle((left, top, left + BAR * PER_MM - 1, top + PER_MM - 1), 0)
    for k in range(11):
        x = left + min(10 * k * PER_MM, BAR * PER_MM - 4)
        draw.rectangle((x, top - 2 * PER_MM, x + 3, top), 0)
    text = f"Print at 100 %. This bar is {BAR:g} mm long: measure it. {line}"
    draw.text((width / 2, top + 2 * PER_MM), text, 0, font, anchor="ma")


def write_sheet(path: Path, dictionary: cv2.aruco.Dictionary, paper: str = "a4", size: float = 50.0, first: int = 0) -> str:
    """Write the sheet as .pdf or .png; returns a line that says what it holds. Raises UserError."""
    kind = {".pdf": "PDF", ".png": "PNG"}.get(path.suffix.lower())
    if kind is None:
        raise UserError(f"--out {path}: cannot write a sheet as '{path.suffix}'; give a name that ends in .pdf or .png")
    sheet, buffer = draw_sheet(dictionary, paper, size, first), io.BytesIO()
    picture = Image.fromarray(sheet.picture).convert("1", dither=Image.Dither.NONE)
    if kind == "PDF":
        picture.save(buffer, kind, resolution=DPI)
    else:
        picture.save(buffer, kind, dpi=(DPI, DPI))
    write_atomic(path, buffer.getvalue())
    numbers = sorted(sheet.corners)
    return (
        f"{path}: {len(numbers)} markers of {size:g} mm, numbers {numbers[0]} to {numbers[-1]}, on {paper}; print it at 100 %, measure its "
        f"bar of {BAR:g} mm, lay it beside the object, and add --marker-size {size / 1000:g}"
    )
