"""Where the mesh of a run stands: in the world of the cameras, or upright on the plane z = 0; in units of the world, or in metres."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import trimesh

from confs.schema import Config, ExportConfig
from process_data.normalize import similarity, similarity_parts
from process_data.region import estimated_up, standing
from utils.errors import UserError
from utils.mesh import transform
from utils.mesh_frame import read_frame
from utils.rays import Scene

log = logging.getLogger("neus")


@dataclass(frozen=True)
class Placement:
    """The similarity from the world to the mesh's files."""

    world_to_mesh: np.ndarray  # [4, 4]
    upright: bool  # z up, the middle of the base at the origin; else the axes and the origin of the world
    units: str  # metres, world

    @property
    def words(self) -> str:
        return f"{'upright, z up, the base at 0' if self.upright else 'axes of the world'}, {self.units if self.units == 'metres' else 'world units'}"

    def place(self, mesh: trimesh.Trimesh) -> trimesh.Trimesh:
        """A mesh of the world in the frame of the files; its metadata records the way back."""
        placed = transform(mesh, self.world_to_mesh)
        placed.metadata.update(units=self.units, world_to_mesh=self.world_to_mesh)
        return placed


def is_upright(e: ExportConfig, scene: Scene) -> bool:
    return e.frame == "upright" or (e.frame == "auto" and scene.arbitrary_world)


def metres_per_unit(e: ExportConfig, scene: Scene) -> tuple[float | None, str]:
    """(metres in a unit of the world or None, where that comes from)."""
    if e.metres_per_unit is not None:
        return e.metres_per_unit, "export.metres_per_unit"
    return scene.metres_per_unit, "" if scene.metres_per_unit is None else "markers"


def upright_axes(scene: Scene, cfg: Config) -> tuple[np.ndarray, str]:
    """(rotation [3, 3] from the upright frame, z up, to the world; where it comes from)."""
    if scene.up is not None:
        return standing(scene.up.numpy()), "as given"
    if cfg.dataset.up == "given":
        return np.eye(3), "as given"
    _, rotation, _ = similarity_parts(scene.to_world.numpy())
    points = None if scene.points is None else scene.points.double().numpy()
    up, words = estimated_up(scene.cameras.c2w.double().numpy(), points, np.zeros(3), cfg.model.radius)
    return standing(rotation @ up), words


def up_in_sphere(scene: Scene, cfg: Config) -> np.ndarray:
    """[3] unit: up, in the unit sphere's frame."""
    return similarity_parts(scene.to_world.numpy())[1].T @ upright_axes(scene, cfg)[0][:, 2]


def placement(mesh: trimesh.Trimesh, scene: Scene, cfg: Config) -> Placement:
    """The frame of the files of a mesh that lies in the world."""
    scale = metres_per_unit(cfg.export, scene)[0]
    units = "world" if scale is None else "metres"
    if not is_upright(cfg.export, scene):
        return Placement(similarity(scale or 1.0, np.eye(3), np.zeros(3)), False, units)
    turn, words = upright_axes(scene, cfg)
    log.info("export.frame=upright: up %s", words)
    turn = turn.T
    x = (scale or 1.0) * np.asarray(mesh.vertices) @ turn.T
    low, high = x.min(0), x.max(0)
    base = np.array([*(low + high)[:2] / 2, low[2]])
    return Placement(similarity(scale or 1.0, turn, -base), True, units)


def frame_facts(units: str, world_to_mesh: np.ndarray) -> dict:
    """The frame of a mesh's files, for scene.json."""
    return {"units": units, "world_to_mesh": world_to_mesh.tolist()}


def _scale_of_mesh(run: str | None) -> float:
    """Length in the files of the run folder's mesh over that in the world; 1 without a mesh."""
    folder = Path(run) if run else None
    folder = folder.parent.parent if folder is not None and folder.is_file() else folder  # RUN/ckpt/last.pt
    path = None if folder is None else folder / "mesh/mesh.ply"
    frame = read_frame(path) if path is not None and path.is_file() else {}
    return similarity_parts(frame["world_to_mesh"])[0] if "world_to_mesh" in frame else 1.0


def scale_from_distance(text: str, run: str | None = None) -> float:
    """Metres in a unit of the world, from "x,y,z x,y,z METRES": two points and their true distance. Raises UserError.

    The points are those of the run folder's mesh, in whatever units it was written; before there is one, of the cameras' world.
    """
    words = text.split()
    try:
        a, b = (np.array([float(v) for v in word.split(",")]) for word in words[:2])
        (metres,) = (float(word) for word in words[2:])
        valid = a.shape == b.shape == (3,) and np.isfinite([*a, *b, metres]).all()
    except ValueError:
        valid = False
    if not valid:
        raise UserError(f'--scale-distance: expected "x,y,z x,y,z METRES", two points of the mesh and their distance, got "{text[:100]}"')
    apart = float(np.linalg.norm(a - b))
    if not metres > 0:
        raise UserError(f"--scale-distance: the distance is {metres:g} m, expected a positive number of metres")
    if not apart > 1e-9 * max(1e-9, float(np.abs([a, b]).max())):
        raise UserError("--scale-distance: the two points are the same, expected two points that lie apart")
    return metres * _scale_of_mesh(run) / apart
