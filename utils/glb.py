"""The container of binary glTF 2.0 (.glb): one mesh, its arrays and its material."""

import json
from typing import Any

import numpy as np

Y_UP = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], np.float64)  # the z axis to y, which is up in glTF
ARRAY, INDICES = 34962, 34963  # targets of buffer views


class Buffer:
    """The binary part of a .glb: parts one after the other, each from a multiple of 4 bytes on."""

    COMPONENTS = {"float32": 5126, "uint32": 5125, "uint16": 5123}

    def __init__(self) -> None:
        self.data, self.views, self.accessors = bytearray(), [], []  # type: ignore[var-annotated]

    def view(self, data: bytes, target: int | None = None) -> int:
        self.data += b"\0" * (-len(self.data) % 4)
        part = {"buffer": 0, "byteOffset": len(self.data), "byteLength": len(data)}
        self.views.append(part if target is None else {**part, "target": target})
        self.data += data
        return len(self.views) - 1

    def array(self, values: np.ndarray, target: int = ARRAY, bounds: bool = False) -> int:
        """values [N, 2 to 4] float32 or (normalised) uint16, or indices [N] uint32. The number of the accessor."""
        found: dict[str, Any] = {
            "bufferView": self.view(np.ascontiguousarray(values).tobytes(), target),
            "componentType": self.COMPONENTS[values.dtype.name],
            "count": len(values),
            "type": "SCALAR" if values.ndim == 1 else f"VEC{values.shape[1]}",
        }
        if values.dtype == np.uint16:
            found["normalized"] = True
        if bounds and len(values):
            found |= {"min": values.min(0).tolist(), "max": values.max(0).tolist()}
        self.accessors.append(found)
        return len(self.accessors) - 1

    def file(self, attributes: dict[str, int], indices: int, material: dict, node: dict, asset: dict, **more: Any) -> bytes:
        """The .glb file of one mesh: its attributes, indices and material; node: where it stands; more: of the document."""
        unlit = {"extensionsUsed": ["KHR_materials_unlit"]} if "KHR_materials_unlit" in material.get("extensions", {}) else {}
        document = {
            "asset": {"version": "2.0", **asset},
            **unlit,
            "scene": 0,
            "scenes": [{"nodes": [0]}],
            "nodes": [{"mesh": 0, **node}],
            "meshes": [{"primitives": [{"attributes": attributes, "indices": indices, "material": 0}]}],
            "materials": [material],
            **more,
            "accessors": self.accessors,
            "bufferViews": self.views,
            "buffers": [{"byteLength": len(self.data) + -len(self.data) % 4}],
        }
        text = json.dumps(document, separators=(",", ":")).encode()
        chunks = b""
        for kind, data, fill in ((b"JSON", text, b" "), (b"BIN\0", bytes(self.data), b"\0")):
            data += fill * (-len(data) % 4)
            chunks += len(data).to_bytes(4, "little") + kind + data
        return b"glTF" + (2).to_bytes(4, "little") + (12 + len(chunks)).to_bytes(4, "little") + chunks


def matt(**more: Any) -> dict:
    """A material without gloss."""
    return {"pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 1.0, **more}}
