"""Ways to spoil a value, the bytes of a file, an image, and an entry of a folder. Each returns what it did, in words."""

import io
import json
import os
import random
import shutil
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import PIL.Image

NUMBERS = [
    0,
    -1,
    1,
    0.5,
    1e-30,
    -1e-9,
    1e9,
    1e18,
    1e30,
    1e308,
    -1e308,
    2**31,
    2**63,
    2**64,
    10**40,
    float("nan"),
    float("inf"),
    float("-inf"),
]
WORDS = [
    "",
    " ",
    "x",
    "0",
    "nan",
    "null",
    "true",
    "../..",
    "/",
    "~",
    "a\nb",
    "a\x00b",
    "\x1b[31mred",
    "ünïcode-✓",
    "x" * 5000,
    "C:\\a\\b.png",
    "${x}",
]
OTHERS = [
    None,
    True,
    False,
    [],
    {},
    [[]],
    [[[[[]]]]],
    [1, 2],
    [0, 0, 0],
    {"a": 1},
    [None],
    ["x"] * 4,
    [[float("nan")] * 4] * 4,
    [[0] * 4] * 4,
]


def value(rng: random.Random):
    """A value that nobody expects."""
    return rng.choice(rng.choice([NUMBERS, WORDS, OTHERS]))


# ---- JSON ----


def _places(node, path=()) -> list[tuple]:
    here = [path] if path else []
    parts = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return here + [place for key, part in parts for place in _places(part, (*path, key))]


def spoil_tree(node, rng: random.Random) -> str:
    """Replace, remove or repeat one place of nested dicts and lists."""
    places = _places(node)
    short = [p for p in places if len(p) <= 3] or places
    *front, key = rng.choice(rng.choice([places, short]))
    parent = node
    for part in front:
        parent = parent[part]
    how, name = rng.choice(["replace", "replace", "replace", "remove", "repeat", "scale"]), "/".join(map(str, (*front, key)))
    if how == "remove":
        del parent[key]
    elif how == "repeat" and isinstance(parent, list):
        parent += [parent[key]] * rng.choice([1, 1, 300])
    elif how == "scale" and isinstance(parent[key], float):
        parent[key] *= rng.choice([-1, 0, 1e-3, 1e3, 1e12])
    else:
        how = "replace"
        parent[key] = value(rng)
        return f"{name} = {str(parent[key])[:30]!r}"
    return f"{how} {name}"


def spoil_json(path: Path, rng: random.Random) -> str:
    data = json.loads(path.read_text())
    what = spoil_tree(data, rng)
    path.write_text(json.dumps(data))
    return f"{path.name}: {what}"


# ---- bytes and text ----


def spoil_bytes(path: Path, rng: random.Random) -> str:
    data = bytearray(path.read_bytes())
    how = rng.choice(["flip", "flip", "head", "truncate", "truncate", "empty", "append", "zeros", "rubbish", "number"])
    if not data or how == "empty":
        data, how = bytearray(), "empty"
    elif how in ("flip", "head"):
        for _ in range(rng.choice([1, 1, 3, 30])):
            data[rng.randrange(len(data) if how == "flip" else min(64, len(data)))] ^= 1 << rng.randrange(8)
    elif how == "truncate":
        data = data[: rng.choice([rng.randrange(len(data)), len(data) - 1, len(data) // 2])]
    elif how == "append":
        data += rng.randbytes(rng.choice([1, 1000]))
    elif how == "number":  # a count or a coordinate
        at = rng.randrange(max(1, len(data) - 8))
        data[at : at + 8] = rng.choice(
            [struct.pack("<q", -1), struct.pack("<Q", 1 << 40), struct.pack("<d", float("nan")), struct.pack("<d", 1e300)]
        )
    else:
        data = bytearray(len(data)) if how == "zeros" else bytearray(rng.randbytes(rng.choice([1, 100, 5000])))
    path.write_bytes(bytes(data))
    return f"{path.name}: {how}"


def spoil_text(path: Path, rng: random.Random) -> str:
    """One word of a text file, or one line."""
    lines = path.read_text().splitlines()
    i = rng.randrange(len(lines))
    how = rng.choice(["word", "word", "word", "drop", "repeat", "cut"])
    if how == "word" and lines[i].split():
        words = lines[i].split(" ")
        k = rng.randrange(len(words))
        words[k] = str(value(rng))
        lines[i] = " ".join(words)
    elif how == "drop":
        del lines[i]
    elif how == "repeat":
        lines[i:i] = [lines[i]] * rng.choice([1, 500])
    else:
        lines[i] = lines[i][: len(lines[i]) // 2]
    path.write_text("\n".join(lines) + "\n")
    return f"{path.name}: {how} in line {i + 1}"


# ---- images ----


def _png_of(width: int, height: int, kind: int = 2) -> bytes:
    """A PNG that declares a size and holds next to nothing."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def _encoded(image: PIL.Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def spoil_image(path: Path, rng: random.Random) -> str:
    """Another image of the same name."""
    image = PIL.Image.open(path).convert("RGBA")
    w, h = image.size
    rgb, frames = image.convert("RGB"), [image.rotate(a).convert("RGB") for a in (90, 180)]
    float_tiff = cv2.imencode(".tiff", np.full((h, w), np.nan, np.float32))[1].tobytes()
    kinds = {
        "another size": lambda: _encoded(image.resize((w + rng.choice([-3, 1, 40]), h)), "PNG"),
        "a larger copy": lambda: _encoded(image.resize((3 * w, 3 * h)), "PNG"),
        "one pixel": lambda: _encoded(image.resize((1, 1)), "PNG"),
        "one row": lambda: _encoded(image.resize((w, 1)), "PNG"),
        "grey": lambda: _encoded(image.convert("L"), "PNG"),
        "grey and alpha": lambda: _encoded(image.convert("LA"), "PNG"),
        "16 bit": lambda: cv2.imencode(".png", np.array(rgb).astype(np.uint16) * 257)[1].tobytes(),
        "palette": lambda: _encoded(rgb.convert("P"), "PNG", transparency=0),
        "one bit": lambda: _encoded(image.convert("1"), "PNG"),
        "clear": lambda: _encoded(PIL.Image.new("RGBA", (w, h)), "PNG"),
        "black": lambda: _encoded(PIL.Image.new("RGB", (w, h)), "PNG"),
        "white": lambda: _encoded(PIL.Image.new("RGB", (w, h), "white"), "PNG"),
        "CMYK": lambda: _encoded(rgb.convert("CMYK"), "JPEG"),
        "turned by EXIF": lambda: _encoded(rgb, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"),
        "animated PNG": lambda: _encoded(rgb, "PNG", save_all=True, append_images=frames),
        "animated WebP": lambda: _encoded(rgb, "WEBP", save_all=True, append_images=frames),
        "GIF": lambda: _encoded(rgb, "GIF", save_all=True, append_images=frames),
        "pages": lambda: _encoded(rgb, "TIFF", save_all=True, append_images=frames),
        "floats": lambda: float_tiff,
        "a bomb": lambda: _png_of(
            *rng.choice([(60000, 60000), (16000, 16000), (2**31 - 1, 1), (65535, 4000), (12000, 12000)]), rng.choice([0, 2, 6])
        ),
        "no size": lambda: _png_of(0, 0),
        "an SVG": lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    }
    name = rng.choice(list(kinds))
    path.write_bytes(kinds[name]())
    return f"{path.name}: {name}"


# ---- entries of a folder ----


def spoil_entry(path: Path, rng: random.Random, outside: Path, others: list[Path]) -> str:
    """Something else in place of a file."""
    how = rng.choice(["gone", "folder", "dangling", "loop", "outside", "device", "pipe", "swap", "rename", "socket name"])
    other = rng.choice(others)
    if how == "swap":
        a, b = path.read_bytes(), other.read_bytes()
        path.write_bytes(b)
        other.write_bytes(a)
        return f"{path.name}: swapped with {other.name}"
    if how == "rename":
        names = [
            "ü✓.png",
            "a\nb.png",
            "error: x.png",
            " .png",
            "x" * 240 + ".png",
            "..png",
            "\x1b[2J.png",
            os.fsdecode(b"\xff\xfe.png"),
            path.stem,
            "a%s%d.png",
        ]
        new = path.with_name(rng.choice(names))
        shutil.move(path, new)
        return f"{path.name}: renamed to {new.name[:20]!r}"
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "dangling":
        os.symlink("nowhere", path)
    elif how == "loop":
        os.symlink(path.name, path)
    elif how == "outside":
        os.symlink(outside, path)
    elif how == "device":
        os.symlink(rng.choice(["/dev/zero", "/dev/null", "/dev/full"]), path)
    elif how == "pipe":
        os.mkfifo(path)
    return f"{path.name}: {how}"
