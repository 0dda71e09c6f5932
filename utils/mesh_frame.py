"""The frame of a mesh file, in comments of the file: its units, and the similarity from the cameras' world to the mesh.

`comment world_to_mesh` (.ply) or `# world_to_mesh` (.obj) is followed by the 16 numbers of a matrix, row by row:
x_mesh = M x_world. A file without it lies in the world.
"""

from pathlib import Path

import numpy as np

from utils.errors import UserError

KEYS = ("units", "world_to_mesh")
HEADER = 1 << 16  # bytes that are searched for comments


def comments(metadata: dict) -> list[str]:
    """The lines that record the metadata of a mesh: units (metres or world), world_to_mesh [4, 4]."""
    lines = [f"units {metadata['units']}"] if "units" in metadata else []
    if "world_to_mesh" in metadata:
        lines.append("world_to_mesh " + " ".join(f"{float(v):.17g}" for v in np.ravel(metadata["world_to_mesh"])))
    return lines


def _words(path: Path) -> list[list[bytes]]:
    """The words of the comments at the head of a .ply or .obj file."""
    with open(path, "rb") as file:
        lines = file.read(HEADER).split(b"\n")
    if path.suffix.lower() == ".ply":
        return [
            line.split()[1:] for line in lines[: lines.index(b"end_header") if b"end_header" in lines else None] if line[:8] == b"comment "
        ]
    ends = next((i for i, line in enumerate(lines) if line[:1] not in (b"#", b"")), len(lines))
    return [line[1:].split() for line in lines[:ends]]


def read_frame(path: Path) -> dict:
    """The metadata that `comments` wrote, empty for other files. Raises UserError when the matrix is damaged."""
    found = {words[0].decode(errors="replace"): words[1:] for words in _words(path) if words and words[0].decode(errors="replace") in KEYS}
    frame: dict = {}
    if found.get("units") in ([b"metres"], [b"world"]):
        frame["units"] = found["units"][0].decode()
    if "world_to_mesh" in found:
        try:
            matrix = np.array([float(word) for word in found["world_to_mesh"]]).reshape(4, 4)
            scale = abs(np.linalg.det(matrix[:3, :3])) ** (1 / 3)
            ok = np.isfinite(matrix).all() and np.allclose(matrix[3], [0, 0, 0, 1]) and 1e-12 < scale < 1e12
            ok = ok and np.allclose(matrix[:3, :3] @ matrix[:3, :3].T / scale**2, np.eye(3), atol=1e-3)
        except ValueError:
            ok = False
        if not ok:
            raise UserError(f"{path}: its comment world_to_mesh is damaged, expected the 16 numbers of a similarity; export the mesh again")
        frame["world_to_mesh"] = matrix
    return frame
