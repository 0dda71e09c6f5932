"""The files of an exported mesh: ply, obj and glb as it is placed, stl and 3mf for printing, in millimetres."""

import logging

import numpy as np
import trimesh

from confs.schema import ExportConfig
from systems.placement import Placement, frame_facts
from utils.decimate import is_closed
from utils.log import RunFolder
from utils.mesh import save_mesh, transform

log = logging.getLogger("neus")
PRINT = ("stl", "3mf")


def textured(e: ExportConfig) -> bool:
    """Whether a textured mesh is written (systems/texture.py)."""
    return "glb" in e.formats if e.texture == "auto" else bool(e.texture)


def print_scale(mesh: trimesh.Trimesh, units: str, size_mm: float | None) -> tuple[float, str, str]:
    """(length in a file for printing over that in the placed mesh, its units: millimetres or world, a line for the log).

    units: of the placed mesh, metres or world. size_mm: the longest side of the box is to have this length.
    """
    longest = float(np.ptp(np.asarray(mesh.vertices), axis=0).max())
    if size_mm is not None:
        return size_mm / longest, "millimetres", f"millimetres, the longest side {size_mm:g} mm (export.size_mm)"
    if units == "metres":
        return 1000.0, "millimetres", f"millimetres, the longest side {1000 * longest:.4g} mm"
    return (
        1.0,
        "world",
        (
            f"the unit is UNKNOWN: world units are written, the longest side {longest:.4g}, which printing programs take for millimetres; "
            "set export.size_mm, or export.metres_per_unit, or use --scale-distance"
        ),
    )


def for_print(placed: trimesh.Trimesh, scale: float, units: str) -> trimesh.Trimesh:
    """A copy of the placed mesh in other units; its metadata tells the way from the world."""
    matrix = np.diag([scale, scale, scale, 1.0])
    mesh = transform(placed, matrix)
    mesh.metadata.update(units=units, world_to_mesh=matrix @ placed.metadata["world_to_mesh"])
    return mesh


def write_formats(mesh: trimesh.Trimesh, placed: Placement, e: ExportConfig, run: RunFolder) -> tuple[list[str], dict]:
    """Write mesh/mesh.* of a mesh in the world; returns (the names of the files, {"print": the frame of those for printing} or {}).

    A .glb that is to have a texture is left to `systems/texture.py`.
    """
    stands = placed.place(mesh)
    names = ["ply", *(name for name in dict.fromkeys(e.formats) if name != "ply" and not (name == "glb" and textured(e)))]
    for name in names:
        if name not in PRINT:
            save_mesh(stands, run / f"mesh/mesh.{name}")
    printed, frame = [name for name in names if name in PRINT], {}
    if printed:
        scale, units, words = print_scale(stands, placed.units, e.size_mm)
        log.info("%s: %s", ", ".join(printed), words)
        if not is_closed(mesh.faces):
            log.warning("%s: the mesh is not closed, and may not print: export.closed=true makes a solid", ", ".join(printed))
        scaled = for_print(stands, scale, units)
        for name in printed:
            save_mesh(scaled, run / f"mesh/mesh.{name}")
        frame = {"print": frame_facts(units, scaled.metadata["world_to_mesh"])}
    return [f"mesh.{name}" for name in names], frame
