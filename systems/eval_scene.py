"""What a scene's cameras and masks say of a mesh in the world: which faces lie outside the masks, which surface was seen at all."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import trimesh

from confs.load import load_config
from models.raytrace import MeshTracer
from process_data.load import load_scene
from process_data.normalize import split_views
from utils.device import missing
from utils.errors import UserError
from utils.mesh import cull_by_masks, transform
from utils.projection import in_frame, project
from utils.rays import Scene

LEAST_COSINE = 0.1  # between a surface's normal and the direction to a camera that sees it
BEHIND = 0.02  # of the sphere's radius, and at least two pixels: a point this far behind the first surface still counts as seen
EXHAUSTIVE = 1e8  # pairs of a point and a triangle that are tested one by one where Warp does not run
VIEWS = 2  # training views that must see a point for it to be judged
CORNERS = np.array([[-0.5, -0.5], [0.5, -0.5], [-0.5, 0.5], [0.5, 0.5]])  # of a pixel, from its centre
DILATION = 0.02  # of the width: by default the masks grow by this much


@dataclass(frozen=True)
class Judge:
    """A scene that decides which parts of a prediction and of the truth are compared."""

    scene: Scene
    folder: str
    dilation: int | None  # pixels, None without masks
    views: tuple[int, ...]  # whose masks and pixel sizes are used: all but those that the scene's files hold out

    @property
    def unit(self) -> float:
        """Radius of the unit sphere in world units."""
        return float(np.cbrt(abs(np.linalg.det(self.scene.to_world.numpy()[:3, :3]))))

    @property
    def words(self) -> str:
        """How the prediction was culled, for a report."""
        if self.dilation is None:
            return f"no ({self.folder} has no masks)"
        return f"{len(self.views)} masks of {self.folder}, dilated by {self.dilation} px (square)"

    def _local(self, mesh: trimesh.Trimesh) -> trimesh.Trimesh:
        return transform(mesh, np.linalg.inv(self.scene.to_world.numpy()))

    def cull(self, mesh: trimesh.Trimesh) -> trimesh.Trimesh:
        """The mesh without the faces outside the masks: each vertex lies inside the mask of every picture that contains it.

        Raises UserError when nothing is left.
        """
        if self.scene.masks is None or self.dilation is None:
            return mesh
        share = self.dilation / self.scene.cameras.width
        kept = cull_by_masks(self._local(mesh), self.scene.cameras, self.scene.masks, share, self.views)
        if not len(kept.faces):
            raise UserError(f"every face of the mesh falls outside the masks of {self.folder}; does it lie in the world of its cameras?")
        return transform(kept, self.scene.to_world.numpy())

    def seen(self, truth: trimesh.Trimesh, points: np.ndarray, normals: np.ndarray) -> np.ndarray:
        """Which points [P, 3] on the truth, with unit normals [P, 3], at least VIEWS training views see -> [P] bool.

        A view sees a point in its picture that faces it, where no surface lies before it, neither on the line of sight nor at the corners
        of the point's pixel: a pixel that two surfaces share shows neither.
        """
        local, cameras = self._local(truth), self.scene.cameras
        to_local = np.linalg.inv(self.scene.to_world.numpy())
        x = points @ to_local[:3, :3].T + to_local[:3, 3]
        n = normals @ to_local[:3, :3].T * self.unit  # a similarity turns normals as it turns directions
        tracer = MeshTracer(torch.tensor(np.asarray(local.vertices), dtype=torch.float32), torch.tensor(np.asarray(local.faces)))
        if tracer.backend == "torch" and len(local.faces) * len(x) > EXHAUSTIVE:
            raise UserError(f"--scene traces lines of sight, which takes hours without Warp ({missing('warp', torch.device('cpu'))})")
        count, behind = np.zeros(len(x), np.int64), max(BEHIND, 2 * self.pixel(self.scene.to_world.numpy()[:3, 3]))
        for i in self.scene.train:
            uv, z = project(x, cameras.K[i], cameras.c2w[i])
            centre = cameras.c2w[i, :, 3].double().numpy()
            distance = np.linalg.norm(x - centre, axis=1)
            at = np.flatnonzero(in_frame(uv, z, cameras.size(i)) & (((centre - x) * n).sum(1) > LEAST_COSINE * distance))
            at = at[distance[at] <= _first(tracer, centre, x[at] - centre) + behind]
            pixel, which = np.unique(np.round(uv[at]), axis=0, return_inverse=True)
            corners = (pixel[:, None] + CORNERS).reshape(-1, 2) @ np.eye(2, 3) + [0, 0, 1]  # homogeneous, four a pixel
            sight = corners @ np.linalg.inv(cameras.K[i].double().numpy()).T @ cameras.c2w[i, :, :3].double().numpy().T
            nearest = _first(tracer, centre, sight).reshape(-1, 4).min(1)
            count[at] += distance[at] <= nearest[which.ravel()] + behind
        return count >= VIEWS

    def pixel(self, centre: np.ndarray) -> float:
        """Median over the views of a pixel's width at a point [3] of the world, in units of the sphere's radius."""
        to_local = np.linalg.inv(self.scene.to_world.numpy())
        local = to_local[:3, :3] @ centre + to_local[:3, 3]
        cameras = self.scene.cameras[list(self.views)]
        distance = np.linalg.norm(cameras.c2w[:, :, 3].double().numpy() - local, axis=1)
        return float(np.median(distance / cameras.K[:, 0, 0].double().numpy()))


def _first(tracer: MeshTracer, centre: np.ndarray, sight: np.ndarray) -> np.ndarray:
    """Distance [P] from a point [3] to the first surface along directions [P, 3] of any length, inf where there is none."""
    dirs = torch.tensor(sight / np.linalg.norm(sight, axis=1, keepdims=True), dtype=torch.float32)
    return tracer(torch.tensor(centre, dtype=torch.float32).expand(len(dirs), 3), dirs).t.double().numpy()


def load_judge(folder: str, overrides: Sequence[str] = (), dilation: int | None = None) -> Judge:
    """Read the scene of a folder at full size. dilation: of its masks, pixels; by default DILATION of the width. Raises UserError."""
    if not Path(folder).exists():
        raise UserError(f"--scene {folder}: no such folder; give the scene that the prediction was made from")
    fixed = [f"dataset.root_dir={folder}", "dataset.img_downscale=1", "dataset.triangulate=false"]
    cfg = load_config(None, [*fixed, *overrides])
    scene = load_scene(cfg.dataset, cfg.model.radius)
    every = tuple(range(len(scene.names)))
    views = every if (scene.train, scene.test) == split_views(len(every), cfg.dataset.hold_every) else scene.train
    if scene.masks is None:
        if dilation is not None:
            raise UserError(f"--mask-dilation: {folder} has no masks")
        return Judge(scene, folder, None, views)
    return Judge(scene, folder, max(1, int(DILATION * scene.cameras.width)) if dilation is None else dilation, views)
