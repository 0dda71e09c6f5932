"""Textured meshes in files: binary glTF 2.0 (.glb), self-contained, and Wavefront .obj with .mtl and picture.

Coordinates of a .glb are y up, as the format asks: those of the mesh with its z axis turned to y. Blender's importer undoes that, so a .glb and
an .obj of one mesh coincide there. The colours of the picture are sRGB; the light is in them already, so the material is unlit, and for
programs that do not know that extension without gloss.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from utils.atlas import Atlas
from utils.mesh_frame import comments

Y_UP = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], np.float64)  # the z axis to y
FAR_OFF = 100  # times its size: a mesh farther from the origin is moved there, and placed by its node, lest float32 rounds its points
ARRAY, INDICES = 34962, 34963  # targets of buffer views
FLOAT, UNSIGNED = 5126, 5125  # types of components


@dataclass(frozen=True)
class Textured:
    """A mesh with a picture on it."""

    vertices: np.ndarray  # [V, 3] float64
    normals: np.ndarray  # [V, 3] unit
    faces: np.ndarray  # [F, 3] int64
    atlas: Atlas
    picture: np.ndarray  # [T, T, 3] uint8, sRGB, the first row at the top
    metadata: dict = field(default_factory=dict)  # units, world_to_mesh


def png(picture: np.ndarray) -> bytes:
    """The .png file of RGB [H, W, 3] uint8."""
    return cv2.imencode(".png", picture[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 4])[1].tobytes()


def jpeg(picture: np.ndarray, quality: int = 95) -> bytes:
    """The .jpg file of RGB [H, W, 3] uint8, colours at full resolution."""
    full = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    return cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality, *full])[1].tobytes()


class _Buffer:
    """The binary part of the file: parts one after the other, each from a multiple of 4 bytes on."""

    def __init__(self) -> None:
        self.data, self.views, self.accessors = bytearray(), [], []  # type: ignore[var-annotated]

    def view(self, data: bytes, target: int | None = None) -> int:
        self.data += b"\0" * (-len(self.data) % 4)
        part = {"buffer": 0, "byteOffset": len(self.data), "byteLength": len(data)}
        self.views.append(part if target is None else {**part, "target": target})
        self.data += data
        return len(self.views) - 1

    def array(self, values: np.ndarray, target: int, bounds: bool = False) -> int:
        """values [N, 2 or 3] float32, or indices [N] uint32."""
        kind = "SCALAR" if values.ndim == 1 else f"VEC{values.shape[1]}"
        component = UNSIGNED if values.dtype == np.uint32 else FLOAT
        found: dict[str, Any] = {
            "bufferView": self.view(np.ascontiguousarray(values).tobytes(), target), "componentType": component, "count": len(values), "type": kind,
        }  # fmt: skip
        if bounds:
            found |= {"min": values.min(0).tolist(), "max": values.max(0).tolist()}
        self.accessors.append(found)
        return len(self.accessors) - 1


def glb(mesh: Textured, image: bytes, mime: str) -> bytes:
    """The binary glTF file; image: the encoded picture of this MIME type, image/png or image/jpeg."""
    at = mesh.atlas.vertex
    points = mesh.vertices @ Y_UP.T
    low, high = points.min(0), points.max(0)
    middle = (low + high) / 2
    middle = middle if np.abs(middle).max() > FAR_OFF * (high - low).max() else np.zeros(3)
    uv = mesh.atlas.uv * (1, -1) + (0, 1)  # glTF: v downwards
    buffer = _Buffer()
    attributes = {
        "POSITION": buffer.array((points - middle)[at].astype(np.float32), ARRAY, bounds=True),
        "NORMAL": buffer.array((mesh.normals @ Y_UP.T)[at].astype(np.float32), ARRAY),
        "TEXCOORD_0": buffer.array(uv.astype(np.float32), ARRAY),
    }
    indices = buffer.array(mesh.atlas.faces.astype(np.uint32).reshape(-1), INDICES)
    picture = buffer.view(image)
    node: dict[str, Any] = {"mesh": 0, "name": "object"}
    if middle.any():
        node["translation"] = middle.tolist()
    extras = {"units": mesh.metadata.get("units", "world")}
    if "world_to_mesh" in mesh.metadata:
        extras["world_to_mesh"] = np.asarray(mesh.metadata["world_to_mesh"], float).tolist()  # before y is turned up
    material = {
        "name": "photographs",
        "pbrMetallicRoughness": {"baseColorTexture": {"index": 0}, "metallicFactor": 0.0, "roughnessFactor": 1.0},
        "extensions": {"KHR_materials_unlit": {}},
    }
    document = {
        "asset": {"version": "2.0", "generator": "neus", "extras": extras},
        "extensionsUsed": ["KHR_materials_unlit"],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [node],
        "meshes": [{"name": "object", "primitives": [{"attributes": attributes, "indices": indices, "material": 0, "mode": 4}]}],
        "materials": [material],
        "textures": [{"sampler": 0, "source": 0}],
        "samplers": [{"magFilter": 9729, "minFilter": 9987, "wrapS": 33071, "wrapT": 33071}],  # linear, with mipmaps, clamped
        "images": [{"bufferView": picture, "mimeType": mime}],
        "accessors": buffer.accessors,
        "bufferViews": buffer.views,
        "buffers": [{"byteLength": len(buffer.data) + -len(buffer.data) % 4}],
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    chunks = b""
    for kind, data, fill in ((b"JSON", text, b" "), (b"BIN\0", bytes(buffer.data), b"\0")):
        data += fill * (-len(data) % 4)
        chunks += len(data).to_bytes(4, "little") + kind + data
    return b"glTF" + (2).to_bytes(4, "little") + (12 + len(chunks)).to_bytes(4, "little") + chunks


def obj(mesh: Textured, material: str, step: int = 100_000) -> Iterator[bytes]:
    """The text of an .obj file that uses the file `material`; `step` lines at a time. Axes as those of the mesh."""
    yield from (f"# {text}\n".encode() for text in comments(mesh.metadata))
    yield f"mtllib {material}\nusemtl photographs\n".encode()
    a, f = mesh.atlas, mesh.faces + 1
    corners = np.stack([f, a.faces + 1, f], 2).reshape(len(f), 9)  # vertex/texture/normal of each
    face = "f %d/%d/%d %d/%d/%d %d/%d/%d\n"
    tables = ((mesh.vertices, "v %.9g %.9g %.9g\n"), (a.uv, "vt %.7f %.7f\n"), (mesh.normals, "vn %.5f %.5f %.5f\n"), (corners, face))
    for table, form in tables:
        for at in range(0, len(table), step):
            part = table[at : at + step]
            yield (form * len(part) % tuple(part.ravel().tolist())).encode()


def mtl(picture: str) -> bytes:
    """The text of the .mtl file of a picture's name: its colours, no gloss."""
    return f"newmtl photographs\nKa 1 1 1\nKd 1 1 1\nKs 0 0 0\nillum 1\nmap_Kd {picture}\n".encode()
