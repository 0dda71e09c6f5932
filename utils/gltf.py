"""Textured meshes in files: binary glTF 2.0 (.glb), self-contained, and Wavefront .obj with .mtl and picture.

Coordinates of a .glb are y up, as the format asks: those of the mesh with its z axis turned to y. Blender's importer undoes that, so a .glb and
an .obj of one mesh coincide there. The colours of the picture are sRGB; the light is in them already, so the material is unlit, and for
programs that do not know that extension without gloss.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from utils.atlas import Atlas
from utils.glb import INDICES, Y_UP, Buffer, matt
from utils.mesh_frame import comments

FAR_OFF = 100  # times its size: a mesh farther from the origin is moved there, and placed by its node, lest float32 rounds its points


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


def glb(mesh: Textured, image: bytes, mime: str) -> bytes:
    """The binary glTF file; image: the encoded picture of this MIME type, image/png or image/jpeg."""
    at = mesh.atlas.vertex
    points = mesh.vertices @ Y_UP.T
    low, high = points.min(0), points.max(0)
    middle = (low + high) / 2
    middle = middle if np.abs(middle).max() > FAR_OFF * (high - low).max() else np.zeros(3)
    uv = mesh.atlas.uv * (1, -1) + (0, 1)  # glTF: v downwards
    buffer = Buffer()
    attributes = {
        "POSITION": buffer.array((points - middle)[at].astype(np.float32), bounds=True),
        "NORMAL": buffer.array((mesh.normals @ Y_UP.T)[at].astype(np.float32)),
        "TEXCOORD_0": buffer.array(uv.astype(np.float32)),
    }
    indices = buffer.array(mesh.atlas.faces.astype(np.uint32).reshape(-1), INDICES)
    picture = buffer.view(image)
    node: dict[str, Any] = {"name": "object", **({"translation": middle.tolist()} if middle.any() else {})}
    extras = {"units": mesh.metadata.get("units", "world")}
    if "world_to_mesh" in mesh.metadata:
        extras["world_to_mesh"] = np.asarray(mesh.metadata["world_to_mesh"], float).tolist()  # before y is turned up
    material = {"name": "photographs", **matt(baseColorTexture={"index": 0}), "extensions": {"KHR_materials_unlit": {}}}
    return buffer.file(
        attributes, indices, material, node, {"generator": "neus", "extras": extras},
        textures=[{"sampler": 0, "source": 0}],
        samplers=[{"magFilter": 9729, "minFilter": 9987, "wrapS": 33071, "wrapT": 33071}],  # linear, with mipmaps, clamped
        images=[{"bufferView": picture, "mimeType": mime}],
    )  # fmt: skip


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
