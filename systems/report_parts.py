"""What a run folder holds, read for the page: facts, the log, pictures. A part that is missing or damaged is left out."""

import base64
import json
import re
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from utils.errors import UserError
from utils.files import read_facts
from utils.image import read_rgb, resize

KIB = 1024
LINE = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d+ ([A-Z]+) (.*)$")


@dataclass
class Log:
    """Facts of log.txt."""

    began: str = ""  # date and time
    device: str = ""
    photographs: str = ""
    steps: int = 0  # trained
    minutes: float = 0.0  # of training
    warnings: dict[str, int] = field(default_factory=dict)  # message -> how often


@dataclass(frozen=True)
class Found:
    """The facts in a run folder; empty where a file is missing."""

    root: Path
    config: dict
    scene: dict
    test: dict
    truth: dict
    confidence: dict
    rows: list[dict]
    log: Log
    commit: str

    def option(self, key: str) -> Any:
        """The value of config.yaml at a dotted key; None where there is none."""
        value: Any = self.config
        for word in key.split("."):
            value = value.get(word) if isinstance(value, dict) else None
        return value


def read_rows(path: Path) -> list[dict]:
    """The lines of metrics.jsonl that have a step; a last line cut short is left out."""
    rows = []
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def read_log(path: Path) -> Log:
    """Facts of log.txt. The device is that of the last training, also when a later test ran on another one."""
    log, device, sizes = Log(), "", ""
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else []:
        match = LINE.match(line)
        if not match:
            continue
        when, level, text = match.groups()
        log.began = log.began or when
        if level == "WARNING":
            log.warnings[text] = log.warnings.get(text, 0) + 1
        if found := re.search(r"; device (\w+), (\d+) CPU threads;", text):
            device = found[1] if found[1] != "cpu" else f"CPU, {found[2]} threads"
            log.device = log.device or device
        if found := re.search(r": photographs of \d+ sizes: (.*)", text):
            sizes = re.sub(r"(\d)x(\d)", r"\1 × \2", found[1])
        elif found := re.match(r"(\d+) images of (\d+)x(\d+):", text):  # of several sizes: the box that holds them all
            log.photographs, sizes = sizes or f"{found[1]} of {found[2]} × {found[3]} pixels", ""
        if found := re.match(r"trained (\d+) steps in ([\d.]+) minutes", text):
            log.steps, log.minutes, log.device = int(found[1]), float(found[2]), device
    return log


def read_run(root: Path) -> Found:
    """Raises UserError when the folder does not exist."""
    if not root.is_dir():
        raise UserError(f"{root}: no such run folder; give outputs/NAME/TRIAL")
    commit = root / "commit.txt"
    return Found(
        root,
        read_facts(root / "config.yaml"),
        read_facts(root / "scene.json"),
        read_facts(root / "test/metrics.json"),
        read_facts(root / "mesh/metrics.json"),
        read_facts(root / "mesh/confidence.json"),
        read_rows(root / "metrics.jsonl"),
        read_log(root / "log.txt"),
        commit.read_text(errors="replace").strip() if commit.is_file() else "",
    )


# ------------------------------------------------------------------------------------------------ text
def known(value: object) -> bool:
    """Whether it is a number (JSON's NaN is one of none)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


def as_list(value: Any) -> list:
    return value if isinstance(value, list) else []


def as_dict(value: Any) -> dict:
    return value if isinstance(value, dict) else {}


def section(title: str, *parts: str) -> str:
    """A section of the parts that are not empty; "" without any."""
    body = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>" if body else ""


# ------------------------------------------------------------------------------------------------ pictures
def data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def fitting(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    """The picture reduced to fit into width x height; a smaller one stays as it is."""
    h, w = picture.shape[:2]
    f = min(1.0, width / w, height / h)
    return resize(picture, max(1, round(w * f)), max(1, round(h * f)))


def jpeg(picture: np.ndarray, most: int = 110) -> str:
    """uint8 [H, W, 3] as a data URI of at most about `most` KiB of JPEG."""
    for quality in (88, 82, 74, 64, 50, 35):
        _, data = cv2.imencode(".jpg", np.ascontiguousarray(picture[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality])
        if len(data) <= most * KIB:
            break
    return data_uri(data.tobytes(), "image/jpeg")


def picture_of(path: Path, width: int, height: int, most: int) -> tuple[str, tuple[int, int]] | None:
    """(data URI, (width, height)) of a picture file reduced to fit; None where it is missing or damaged."""
    try:
        picture = fitting(read_rgb(path), width, height)
    except UserError:
        return None
    return jpeg(picture, most), (picture.shape[1], picture.shape[0])


def first_frame(path: Path) -> tuple[str, tuple[int, int]] | None:
    """(data URI, (width, height)) of the first frame of a video; None where it cannot be decoded."""
    ok, frame = cv2.VideoCapture(str(path)).read() if path.is_file() else (False, None)
    return (jpeg(frame[..., ::-1], 60), (frame.shape[1], frame.shape[0])) if ok and frame is not None else None
