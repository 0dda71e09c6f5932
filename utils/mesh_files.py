"""The bytes of mesh files: .ply, .obj, .stl, .3mf and .glb. Vertices are written as they are, in the frame and unit the caller chose.

`units` and `world_to_mesh` of the mesh's metadata go where a format has room for them (utils/mesh_frame.py).
"""

import io
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
import trimesh

from utils.colour import srgb_to_linear
from utils.glb import INDICES, Y_UP, Buffer, matt
from utils.mesh_frame import comments

CORE = "http://schemas.microsoft.com/3dmanufacturing/core/2015/02"
MATERIAL = "http://schemas.microsoft.com/3dmanufacturing/material/2015/02"
MODEL = "3D/3dmodel.model"
STEP = 100_000  # lines that are formatted at a time


def vertex_colours(mesh: trimesh.Trimesh) -> np.ndarray | None:
    """Vertex colours [V, 4] uint8, sRGB, or None for a mesh without vertex colours."""
    visual: Any = mesh.visual
    return np.asarray(visual.vertex_colors) if visual.kind == "vertex" else None


def area_vectors(triangles: np.ndarray) -> np.ndarray:
    """Of triangles [F, 3, 3], the vectors [F, 3] along their normals with twice their areas as lengths."""
    return np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])


def vertex_normals(mesh: trimesh.Trimesh) -> np.ndarray:
    """Unit normals [V, 3] of the vertices: the mean of the faces around them by area. (0, 0, 1) where there is no area."""
    return mean_normals(np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces))


def mean_normals(x: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """`vertex_normals` of vertices x [V, 3] and faces [F, 3]."""
    weighted, at = area_vectors(x[faces]), faces.ravel()
    total = np.stack([np.bincount(at, np.repeat(weighted[:, k], 3), minlength=len(x)) for k in range(3)], 1)
    length = np.linalg.norm(total, axis=1, keepdims=True)
    return np.where(length > 0, total / np.where(length > 0, length, 1), [0.0, 0.0, 1.0])


def lines(table: np.ndarray, form: str) -> Iterator[bytes]:
    """The rows of a table in the format of a line, many lines at a time."""
    for a in range(0, len(table), STEP):
        part = table[a : a + STEP]
        yield (form * len(part) % tuple(part.ravel().tolist())).encode()


def ply(mesh: trimesh.Trimesh) -> Iterator[bytes]:
    """Binary .ply: x y z nx ny nz, red green blue alpha where the mesh has colours, its vertex attributes [V]; comments follow the format."""
    colours = vertex_colours(mesh)
    table = {
        name: ("<f4", values) for name, values in zip(("x", "y", "z", "nx", "ny", "nz"), np.hstack([mesh.vertices, vertex_normals(mesh)]).T)
    }
    if colours is not None:
        table |= {name: ("u1", values) for name, values in zip(("red", "green", "blue", "alpha"), colours.T)}
    table |= {name: ("<f4", np.asarray(values)) for name, values in mesh.vertex_attributes.items() if np.ndim(values) == 1}
    vertices = np.empty(len(mesh.vertices), [(name, kind) for name, (kind, _) in table.items()])
    for name, (_, values) in table.items():
        vertices[name] = values
    faces = np.empty(len(mesh.faces), [("count", "u1"), ("vertices", "<i4", 3)])
    faces["count"], faces["vertices"] = 3, mesh.faces
    head = ["ply", "format binary_little_endian 1.0", *(f"comment {text}" for text in comments(mesh.metadata))]
    head += [f"element vertex {len(vertices)}"]
    head += [f"property {'float' if kind == '<f4' else 'uchar'} {name}" for name, (kind, _) in table.items()]
    head += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header\n"]
    yield "\n".join(head).encode()
    yield vertices.tobytes()
    yield faces.tobytes()


def obj(mesh: trimesh.Trimesh) -> Iterator[bytes]:
    """.obj: `v x y z r g b` (colours in [0, 1]), `vn`, `f v//vn`, a normal for each vertex."""
    colours, faces = vertex_colours(mesh), np.asarray(mesh.faces) + 1
    rows = np.asarray(mesh.vertices) if colours is None else np.concatenate([mesh.vertices, colours[:, :3] / 255], 1)
    yield from (f"# {text}\n".encode() for text in comments(mesh.metadata))
    yield from lines(rows, "v %.9g %.9g %.9g" + ("\n" if colours is None else " %.4f %.4f %.4f\n"))
    yield from lines(vertex_normals(mesh), "vn %.4f %.4f %.4f\n")
    yield from lines(faces.repeat(2, axis=1), "f %d//%d %d//%d %d//%d\n")


def stl(mesh: trimesh.Trimesh) -> Iterator[bytes]:
    """Binary .stl. The format has no unit; printing programs take millimetres."""
    corner = np.asarray(mesh.vertices, np.float32)[mesh.faces]
    same = (corner == corner[:, [1, 2, 0]]).all(2).any(1)  # a reader merges equal corners: such a face would become an edge
    corner = corner[~same]
    normal = area_vectors(corner.astype(np.float64))
    length = np.linalg.norm(normal, axis=1, keepdims=True)
    table = np.zeros(len(corner), [("normal", "<f4", 3), ("corner", "<f4", (3, 3)), ("attribute", "<u2")])
    table["normal"], table["corner"] = normal / np.where(length > 0, length, 1), corner
    yield f"units: {mesh.metadata.get('units', 'unknown')}".encode().ljust(80)  # must not begin with "solid": that is the text format
    yield struct.pack("<I", len(table))
    yield table.tobytes()


def _colour_group(colours: np.ndarray) -> tuple[list[bytes], np.ndarray]:
    """(XML of the distinct colours of [V, 4], the number [V] of each vertex's colour); 5 bits a channel, for a small file."""
    coarse = np.rint(colours[:, :3] * (31 / 255)).astype(np.int64) @ [1024, 32, 1]
    distinct, number = np.unique(coarse, return_inverse=True)
    rgb = np.rint(np.stack([distinct // 1024, distinct // 32 % 32, distinct % 32], 1) * (255 / 31)).astype(np.int64)
    return [b'<m:colorgroup id="2">', *lines(rgb, '<m:color color="#%02X%02X%02X"/>\n'), b"</m:colorgroup>\n"], number.reshape(-1)


def _model(mesh: trimesh.Trimesh) -> Iterator[bytes]:
    """The XML of a 3MF model: one object with the mesh and a colour for each vertex, moved into the positive octant."""
    colours, faces = vertex_colours(mesh), np.asarray(mesh.faces)
    group, number = ([], None) if colours is None else _colour_group(colours)
    yield f'<?xml version="1.0" encoding="UTF-8"?>\n<model unit="millimeter" xml:lang="en-US" xmlns="{CORE}" xmlns:m="{MATERIAL}">\n'.encode()
    yield f'<metadata name="Description">units: {mesh.metadata.get("units", "unknown")}</metadata>\n<resources>\n'.encode()
    yield from group
    yield b'<object id="1" type="model"><mesh><vertices>\n'
    yield from lines(np.asarray(mesh.vertices, np.float64), '<vertex x="%.7g" y="%.7g" z="%.7g"/>\n')
    yield b"</vertices><triangles>\n"
    if number is None:
        yield from lines(faces, '<triangle v1="%d" v2="%d" v3="%d"/>\n')
    else:
        form = '<triangle v1="%d" v2="%d" v3="%d" pid="2" p1="%d" p2="%d" p3="%d"/>\n'
        yield from lines(np.concatenate([faces, number[faces]], 1), form)
    shift = " ".join(f"{v:.7g}" for v in -np.asarray(mesh.vertices).min(0))
    yield b"</triangles></mesh></object>\n</resources>\n"
    yield f'<build><item objectid="1" transform="1 0 0 0 1 0 0 0 1 {shift}"/></build>\n</model>\n'.encode()


def threemf(mesh: trimesh.Trimesh) -> bytes:
    """.3mf (3MF core specification 1.3, colours of the materials extension), whose unit is the millimetre."""
    package = "http://schemas.openxmlformats.org/package/2006"
    xml = '<?xml version="1.0" encoding="UTF-8"?>\n'
    types = (
        f'{xml}<Types xmlns="{package}/content-types">'
        '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        '<Default Extension="model" ContentType="application/vnd.ms-package.3dmanufacturing-3dmodel+xml"/></Types>'
    )
    relations = (
        f'{xml}<Relationships xmlns="{package}/relationships"><Relationship Target="/{MODEL}" Id="rel0" '
        'Type="http://schemas.microsoft.com/3dmanufacturing/2013/01/3dmodel"/></Relationships>'
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=4) as archive:
        archive.writestr("[Content_Types].xml", types)
        archive.writestr("_rels/.rels", relations)
        with archive.open(MODEL, "w", force_zip64=True) as file:
            for part in _model(mesh):
                file.write(part)
    return buffer.getvalue()


def glb(mesh: trimesh.Trimesh) -> bytes:
    """Binary glTF 2.0: y up, normals, vertex colours in linear light (16 bits), a matt material."""
    colours, buffer = vertex_colours(mesh), Buffer()
    attributes = {
        "POSITION": buffer.array((np.asarray(mesh.vertices) @ Y_UP.T).astype(np.float32), bounds=True),
        "NORMAL": buffer.array((vertex_normals(mesh) @ Y_UP.T).astype(np.float32)),
    }
    if colours is not None:
        linear = srgb_to_linear(torch.from_numpy(colours[:, :3] / 255.0)).numpy()
        values = np.concatenate([np.rint(linear * 65535), np.full((len(linear), 1), 65535)], 1)
        attributes["COLOR_0"] = buffer.array(values.astype(np.uint16))
    indices = buffer.array(np.asarray(mesh.faces).astype(np.uint32).reshape(-1), INDICES)
    return buffer.file(attributes, indices, matt(), {}, {"extras": {"units": mesh.metadata.get("units", "unknown")}})


WRITERS: dict[str, Callable[[trimesh.Trimesh], bytes | Iterable[bytes]]] = {
    ".ply": ply,
    ".obj": obj,
    ".stl": stl,
    ".3mf": threemf,
    ".glb": glb,
}
