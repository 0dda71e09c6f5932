"""Files of meshes, spoilt, and what the protocols of `--eval MESH` compare with."""

import json
import random
import struct
from pathlib import Path

import numpy as np
import trimesh

from tests.fuzzing import spoil

SUFFIXES = (".ply", ".ply", ".ply", ".obj", ".obj", ".glb", ".glb", ".glb", ".stl", ".off", ".xyz")
COUNTS = ("-1", "0", "1", "99999999999", "2147483648", "x", "1e3", "")


def ball(radius: float = 0.6) -> trimesh.Trimesh:
    mesh = trimesh.creation.icosphere(2, radius)
    mesh.visual.vertex_colors = np.full((len(mesh.vertices), 4), 128, np.uint8)
    return mesh


def write_truths(folder: Path) -> None:
    """What the protocols compare with: a crop volume, a matrix, and the files of a DTU scan, all around a ball at the origin."""
    from scipy.io import savemat

    (folder / "dtu/ObsMask").mkdir(parents=True)
    (folder / "dtu/Points/stl").mkdir(parents=True)
    savemat(
        folder / "dtu/ObsMask/ObsMask24_10.mat",
        {"ObsMask": np.ones((9, 9, 9), np.uint8), "BB": np.array([[-2.0] * 3, [2.0] * 3]), "Res": 0.5},
    )
    savemat(folder / "dtu/ObsMask/Plane24.mat", {"P": np.array([[0.0], [0], [1], [9]])})
    ball().export(folder / "dtu/Points/stl/stl024_total.ply")
    polygon = [[-9, -9, 0], [9, -9, 0], [9, 9, 0], [-9, 9, 0]]
    crop = {"class_name": "SelectionPolygonVolume", "orthogonal_axis": "Z", "axis_min": -9.0, "axis_max": 9.0, "bounding_polygon": polygon}
    (folder / "crop.json").write_text(json.dumps(crop))
    np.savetxt(folder / "align.txt", np.eye(4))


# ---- the bytes of a mesh ----


def _ply(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """One word of the header."""
    head, end, body = data.partition(b"end_header\n")
    how = rng.choice(["count", "count", "type", "format", "drop", "twice", "no end", "list", "comment"])
    lines = head.decode("latin-1").splitlines()
    if how == "count":
        i = rng.choice([i for i, line in enumerate(lines) if line.startswith("element")])
        lines[i] = f"{lines[i].rpartition(' ')[0]} {rng.choice(COUNTS)}"
    elif how in ("type", "list"):
        i = rng.choice([i for i, line in enumerate(lines) if line.startswith("property")])
        lines[i] = rng.choice(
            [
                "property list uchar int x",
                "property double x",
                "property int64 x",
                "property",
                "property x",
                "property list int float vertex_indices",
                "property list float double x y",
            ]
        )
    elif how == "format":
        lines[1] = rng.choice(["format ascii 1.0", "format binary_big_endian 1.0", "format x", "format"])
    elif how == "drop":
        del lines[rng.randrange(len(lines))]
    elif how == "twice":
        lines += lines[rng.randrange(len(lines)) :]
    elif how == "comment":
        lines[2:2] = [
            rng.choice(
                [
                    "comment world_to_mesh 1 2 3",
                    "comment world_to_mesh " + "nan " * 16,
                    "comment world_to_mesh " + "0 " * 15 + "1",
                    "comment units x",
                    "comment TextureFile ../sentinel/a.txt",
                ]
            )
        ]
    return "\n".join(lines).encode("latin-1") + b"\n" + (b"" if how == "no end" else end) + body, f"header: {how}"


def _glb(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Lengths of the file and its parts, or the JSON within."""
    size = struct.unpack("<I", data[12:16])[0]
    tree, rest = json.loads(data[20 : 20 + size]), data[20 + size :]
    how = rng.choice(["length", "chunk", "binary", "tree", "tree", "tree", "uri", "cycle", "accessor", "accessor", "view", "sparse"])
    if how in ("length", "chunk", "binary"):
        at = {"length": 8, "chunk": 12, "binary": 20 + size}[how]
        return data[:at] + struct.pack("<I", rng.choice([0, 1, 2**32 - 1, 2**31, len(data) * 2])) + data[at + 4 :], f"{how} length"
    if how == "uri":
        tree["buffers"][0]["uri"] = rng.choice(
            ["../sentinel/a.txt", "/etc/passwd", "/dev/zero", "data:x", "data:application/octet-stream;base64,====", "http://localhost:9/x"]
        )
    elif how == "cycle":
        tree["nodes"] = [{"children": [0], "mesh": 0}, {"children": [0]}]
        tree["scenes"] = [{"nodes": [rng.choice([0, 1])]}]
    elif how == "accessor":
        rng.choice(tree["accessors"])[rng.choice(["count", "count", "byteOffset", "componentType", "bufferView", "type"])] = rng.choice(
            [-1, 0, 10**7, 10**9, 10**12, 5125, 5120, "MAT4", "VEC3", None]
        )
    elif how == "view":
        rng.choice(tree["bufferViews"])[rng.choice(["byteOffset", "byteLength", "byteStride", "buffer"])] = rng.choice(
            [-1, 0, 3, 10**9, 10**12, None]
        )
    elif how == "sparse":
        del tree["accessors"][0]["bufferView"]
        tree["accessors"][0] |= {"count": rng.choice([10, 10**7, 10**10]), "sparse": {"count": 10**9}}
    else:
        how = spoil.spoil_tree(tree, rng)
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    return b"glTF" + struct.pack("<III", 2, 20 + len(text) + len(rest), len(text)) + b"JSON" + text + rest, f"json: {how}"


def _obj(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    line = rng.choice([
        "f 1 2 99999", "f -9999 -1 -2", "f 0 0 0", "f 1 2", "f", "f 1//1 2//9999 3//1", "f 1/2/3/4/5 6 7", "v nan nan nan", "v 1e400 0 0", "v 1e300 -1e300 1e300", "v", "v 1", "v x y z",
        "f 1 2 3 4 5 6 7 8 9", "mtllib ../sentinel/a.txt", "mtllib /dev/zero", "usemtl \x00", "g " + "x" * 5000, "# world_to_mesh 1 2", "f 1.5 2 3", "f 99999999999999999999 1 2", "call x.obj", "l 1 2", "\\",
    ])  # fmt: skip
    lines = data.decode().splitlines()
    if line.startswith("#"):
        lines.insert(0, line)
    else:
        lines.insert(rng.choice([0, len(lines) // 2, len(lines)]), line)
    return "\n".join(lines).encode(), line[:30]


def _short(data: bytes, rng: random.Random, suffix: str) -> tuple[bytes, str]:
    """.stl, .off and .xyz."""
    if suffix == ".stl":
        count = rng.choice([0, 1, 2**31, 2**32 - 1])
        return data[:80] + struct.pack("<I", count) + data[84:], f"{count} faces"
    text = rng.choice(
        [
            "OFF\n-1 3 0\n",
            "OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 9\n",
            "OFF\n99999999999 1 0\n",
            "OFF",
            "1 2\n3 4\n",
            "nan nan nan\n",
            "1 2 3\n" * 3,
            "a b c\n",
            "COFF\n1 1 1\n",
        ]
    )
    return text.encode(), repr(text[:20])


def _numbers(mesh: trimesh.Trimesh, rng: random.Random) -> str:
    """Vertices and faces that no mesh should have."""
    x, faces = np.array(mesh.vertices), np.array(mesh.faces)
    how = rng.choice(
        [
            "NaN",
            "all NaN",
            "one far",
            "all huge",
            "all tiny",
            "one point",
            "a line",
            "out of range",
            "negative",
            "degenerate",
            "one face",
            "no faces",
            "far away",
            "nothing",
        ]
    )
    if how in ("NaN", "one far"):
        x[rng.randrange(len(x))] = rng.choice([np.nan, np.inf]) if how == "NaN" else rng.choice([1e6, 1e18, 1e38])
    elif how in ("all NaN", "all huge", "all tiny", "one point", "far away"):
        x = {
            "all NaN": x * np.nan,
            "all huge": x * rng.choice([1e15, 1e25, 1e37]),
            "all tiny": x * rng.choice([1e-15, 1e-30]),
            "one point": x * 0,
            "far away": x + 1e7,
        }[how]
    elif how == "a line":
        x[:, 1:] = 0
    elif how in ("out of range", "negative"):
        faces[rng.randrange(len(faces)), rng.randrange(3)] = len(x) + 5 if how == "out of range" else -5
    elif how == "degenerate":
        faces[:, 1] = faces[:, 0]
    elif how != "nothing":
        faces = faces[: how == "one face"]
    else:
        x, faces = x[:0], faces[:0]
    mesh.__init__(x, faces, process=False)  # type: ignore[misc]
    return how


def write_spoilt(path: Path, rng: random.Random, outside: Path) -> str:
    """Write a ball under the path and spoil it."""
    mesh, how = ball(), rng.choice(["numbers", "numbers", "format", "format", "format", "bytes", "bytes", "entry", "suffix"])
    what = _numbers(mesh, rng) if how == "numbers" else how
    ascii_ply = path.suffix == ".ply" and rng.random() < 0.3
    try:
        if path.suffix == ".xyz":
            np.savetxt(path, mesh.vertices)
        else:
            mesh.export(path, **({"encoding": "ascii"} if ascii_ply else {}))
    except Exception:  # what trimesh does not write
        path.write_bytes(b"")
    if how == "bytes":
        return spoil.spoil_bytes(path, rng)
    if how == "entry":
        return spoil.spoil_entry(path, rng, outside, [path])
    if how == "suffix":
        path.write_bytes(trimesh.exchange.stl.export_stl(mesh) if path.suffix != ".stl" else b"ply\n")
    if how == "format":
        change = {".ply": _ply, ".glb": _glb, ".obj": _obj}.get(path.suffix, lambda d, r: _short(d, r, path.suffix))
        data, what = change(path.read_bytes(), rng)
        path.write_bytes(data)
    return f"{path.name}: {what}"
