"""Cases of `--relight`: light maps, files of cameras and the checkpoint, spoilt. And of `--view`: the page of a spoilt run, on a port that may be taken."""

import logging
import os
import random
import shutil
import signal
import socket
import struct
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import torch

import run
from tests.fuzzing import runs, scenes, spoil
from utils.hdr import write_hdr
from utils.log import log

RUN = "outputs/n/t"
TINY = ["relight.width=8", "relight.height=8", "relight.frames=1", "relight.samples=2", "relight.engine=embedded", "trainer.device=cpu"]
NAMES = ["light", "a%sb", "ü✓", "x" * 240, "a\nb", "..", "-", "error: x"]


def lamp(rows: int = 8) -> np.ndarray:
    """A light map [rows, 2 rows, 3]: grey with a lamp."""
    image = np.full((rows, 2 * rows, 3), 0.3, np.float32)
    image[rows // 4, rows // 2] = 20.0
    return image


def write_exr(path: Path, image: np.ndarray, channels: str = "RGB", **header: object) -> None:
    import OpenEXR

    planes = {name: np.ascontiguousarray(image[..., i % image.shape[2]]) for i, name in enumerate(channels)}
    OpenEXR.File({"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage, **header}, planes).write(str(path))


def _rgbe(width: int | str, height: int | str, data: bytes = b"\2\2\0\x10" * 8, axes: str = "-Y {h} +X {w}") -> bytes:
    """A Radiance file that declares a size and holds little."""
    return f"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n{axes.format(h=height, w=width)}\n".encode() + data


def _pixels(image: np.ndarray, rng: random.Random) -> str:
    """Spoil the numbers of a light map."""
    value = rng.choice([np.nan, np.inf, -np.inf, -1.0, 1e38, 0.0, 1e-38])
    share = rng.choice([0.0, 0.3, 1.0])
    chosen = np.array([rng.random() <= share for _ in range(image[..., 0].size)]).reshape(image.shape[:2])
    chosen.flat[rng.randrange(chosen.size)] = True
    image[chosen] = value
    return f"{value:g} in {int(chosen.sum())} pixels"


def _light(path: Path, rng: random.Random, box: Path) -> str:
    """Write a light map under the name and spoil it."""
    exr, image = path.suffix == ".exr", lamp()
    how = rng.choice(["bytes", "bytes", "bytes", "pixels", "pixels", "entry", "shape", "shape", "header", "header", "header", "another"])
    if how == "pixels":
        how = _pixels(image, rng)
    if how == "shape":
        h, w = rng.choice([(1, 1), (1, 32), (32, 1), (8, 8), (2, 2), (3, 7), (500, 2)])
        image, how = np.resize(image, (h, w, 3)), f"{h} x {w}"
    write_exr(path, image) if exr else write_hdr(path, image)
    if how == "bytes":
        return spoil.spoil_bytes(path, rng)
    if how == "entry":
        return spoil.spoil_entry(path, rng, box / "sentinel/a.txt", [path])
    if how == "another":
        path.write_bytes(
            rng.choice([b"", b"hello", spoil._png_of(20000, 20000), b"#?RADIANCE", b"v/1\x01", b"v/1\x01\2\2\0\0" * 9, b"#?RGBE\n\n\n"])
        )
    elif how == "header":
        how = _exr_header(path, rng) if exr else _hdr_header(path, rng)
    return f"{path.name}: {how}"


def _hdr_header(path: Path, rng: random.Random) -> str:
    sizes = [(2**31 - 1, 2**31 - 1), (100_000, 100_000), (0, 0), (-5, 8), (10**20, 4), ("x", "y"), (16, 8), (1 << 15, 1 << 14), (30_000, 3)]
    w, h = rng.choice(sizes)
    axes = rng.choice(["-Y {h} +X {w}", "-Y {h} +X {w}", "+Y {h} +X {w}", "-X {w} +Y {h}", "", "-Y {h}"])
    path.write_bytes(_rgbe(w, h, rng.choice([b"", bytes(1000), b"\xff" * 1000, b"\2\2\0\x10" * 8]), axes))
    return f"declares {w} x {h} {axes!r}"


def _exr_header(path: Path, rng: random.Random) -> str:
    """Other channels, types and windows; a data window of another size, written into the bytes."""
    image = lamp()
    way = rng.choice(["channels", "ints", "window", "window", "window"])
    if way == "channels":
        names = rng.choice([["Y"], ["R"], ["Z"], ["Y", "RY", "BY"], ["R", "G"], ["left.R", "left.G"]])
        write_exr(path, image, names)  # type: ignore[arg-type]
        return f"channels {names}"
    if way == "ints":
        write_exr(path, (image * 10).astype(np.uint32))
        return "whole numbers"
    data = bytearray(path.read_bytes())
    key = rng.choice([b"dataWindow\0box2i\0", b"displayWindow\0box2i\0"])
    box = rng.choice(
        [(0, 0, 2**31 - 1, 2**31 - 1), (0, 0, 65535, 65534), (-(2**31), 0, 5, 5), (5, 5, 0, 0), (0, 0, 60_000, 3), (100, 100, 115, 107)]
    )
    at = data.index(key) + len(key) + 4
    data[at : at + 16] = struct.pack("<4i", *box)
    path.write_bytes(bytes(data))
    return f"{key.split(bytes(1))[0].decode()} {box}"


def relight(sources: Path, box: Path, rng: random.Random):
    """A trained material and a light; one of them is spoilt, or the cameras."""
    folder, ckpt, given = box / RUN, box / RUN / "ckpt/last.pt", box / "given"
    given.mkdir()
    shutil.copytree(sources / "runs/material", folder)
    light = given / f"{rng.choice(NAMES) if rng.random() < 0.3 else 'light'}{rng.choice(['.hdr', '.exr'])}"
    way, more = rng.random(), []
    if way < 0.55:
        what = _light(light, rng, box)
    else:
        write_hdr(light.with_suffix(".hdr"), lamp())
        light = light.with_suffix(".hdr")
        what = light.name[:20]
    if 0.55 <= way < 0.8:
        poses = given / "poses.json"
        shutil.copy(sources / "frames/transforms.json", poses)
        what = rng.choice([spoil.spoil_json, spoil.spoil_json, spoil.spoil_json, spoil.spoil_bytes, _frames])(poses, rng)
        more = ["--poses", str(poses)]
    elif 0.8 <= way < 0.95:
        shutil.rmtree(folder) if rng.random() < 0.3 else None
        if folder.exists():
            state = torch.load(ckpt, weights_only=True)
            what = runs._tensor(state, rng)
            torch.save(state, ckpt)
        else:
            shutil.copytree(sources / "runs" / rng.choice(["neus", "nerf"]), folder)
            what = "no material"
    elif way >= 0.95:
        target = folder / "relight"
        target.write_text("x") if rng.random() < 0.5 else os.symlink(box / "sentinel/deep", target)
        what = "relight/ is no folder of ours"
    words = ["--relight", "--resume", str(folder), "--hdr", str(light), *more, *TINY]
    return run.main, words, f"{what}{' with poses' if more else ''}"


def _frames(path: Path, rng: random.Random) -> str:
    """Names of cameras that lead elsewhere, or none."""
    import json

    data = json.loads(path.read_text())
    how = rng.choice(["none", "names", "a list", "sizes", "many pixels"])
    if how == "none":
        data["frames"] = []
    elif how == "names":
        for frame in data["frames"]:
            frame["file_path"] = rng.choice(["../../../../sentinel/a.txt", "/etc/passwd", "..", "a\0b", "x" * 500, "", "a/b/.", "ü%s"])
    elif how == "a list":
        data = data["frames"]
    elif how == "sizes":
        data["frames"][0] |= {"w": 31, "h": 9}
    else:
        data |= {"w": 10**6, "h": 10**6}
    path.write_text(json.dumps(data))
    return f"{path.name}: frames: {how}"


# ---- --view ----


class _Visitor(logging.Handler):
    """Once the page is there: asks for it, then ends the program as Ctrl-C does."""

    def emit(self, record: logging.LogRecord) -> None:
        if "Ctrl-C ends it" in record.getMessage():
            threading.Thread(target=self.visit, daemon=True).start()
        elif record.getMessage().startswith("view: http"):
            self.url = record.getMessage().split()[1]

    def visit(self) -> None:
        try:
            with urllib.request.urlopen(self.url, timeout=5) as answer:
                assert answer.status == 200
        finally:
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGINT)


def viewed(taken: bool, port: int):
    """run.py, visited; taken: another program listens at the port."""

    def main(words: list[str]) -> int:
        other = socket.socket()
        if taken:
            other.bind(("127.0.0.1", port))
            other.listen()
        log.addHandler(_Visitor())
        with other:
            return run.main(words)

    return main


def view(sources: Path, box: Path, rng: random.Random):
    """`--view` of a run: whole, with another port, or spoilt."""
    shutil.rmtree(box / "scene")
    shutil.copytree(sources / "dtu", box / "scene")
    folder, way = box / RUN, rng.random()
    shutil.copytree(sources / "runs" / rng.choice(["neus", "neus", "nerf"]), folder)
    path, port, taken, what = folder / "ckpt/last.pt", rng.randrange(20_000, 30_000), rng.random() < 0.3, "whole"
    if 0.15 < way < 0.3:
        what = spoil.spoil_bytes(path, rng)
    elif way < 0.5:
        state = torch.load(path, weights_only=True)
        what = rng.choice([runs._tensor, runs._state])(state, rng)
        torch.save(state, path)
    elif way < 0.8:
        what = runs._folder(folder, rng, box)
    elif way < 0.9:
        what = scenes.spoil_one(box / "scene", rng, box)
    number = rng.choice(["0", "-1", "65536", "x", "", "80", "1e3"]) if way > 0.9 else str(port)
    words = [
        "--view",
        "--resume",
        str(folder),
        f"--view-port={number}",
        f"dataset.root_dir={box / 'scene'}",
        "trainer.device=cpu",
        "trainer.threads=1",
    ]
    return viewed(taken, port), words, f"{what}, port {number}{' is taken' if taken else ''}"
