"""What is known of a scene before its training: whether it has masks, and where its surface roughly is."""

import logging
from typing import TYPE_CHECKING

from confs.schema import Config
from systems.plane_sweep import swept
from systems.start import oriented_points
from utils.errors import UserError
from utils.log import RunFolder
from utils.rays import Scene

if TYPE_CHECKING:
    from systems.run import Job

log = logging.getLogger("neus")
OTHERWISE = "leave out model.start for the best start that there is, or set model.start=sphere"


def fit_to_scene(job: "Job", scene: Scene, start: str | None = None) -> Config:
    """The job's config with `start` known of the surface, or the one without masks where it uses masks that the scene does not have."""
    cfg = job.cfg
    if not cfg.dataset.apply_mask or scene.masks is not None:
        return job.load(start=start)
    if start is None:
        log.warning(
            "%s has no masks: training without them, with a learned background; for photographs on a plain background set "
            "dataset.apply_mask=false model.background=white (or black)",
            cfg.dataset.root_dir,
        )
    return job.load(masks=False, start=start)


def with_surface(job: "Job", scene: Scene, run: RunFolder, writes: bool, train: bool = True) -> tuple[Scene, Config]:
    """The scene with the points of a plane sweep where the config wants them, and the config with the best start that there is.

    Raises UserError where model.start asks for points that there are not: its settings are of a surface that is known.
    """
    radius = job.cfg.model.radius
    if job.state:
        again = getattr(job.cfg.model, "start", "") == "sweep"
        return (swept(scene, radius, run, writes, anew=train) or scene if again else scene), job.cfg
    cfg = fit_to_scene(job, scene)
    kind = getattr(cfg.model, "start", "sphere")
    found = None
    points = oriented_points(scene, radius) is not None
    # mirrors deceive a sweep; photographs with points of their own were not better with one (docs/recipes.md, "Hollows")
    if kind == "sweep" or (kind == "auto" and cfg.model.background == "learned" and cfg.model.name == "neus" and not points):
        found = swept(scene, radius, run, writes)
    start = "sweep" if found is not None else "points" if points else "sphere"
    if kind == "sweep" and found is None:
        raise UserError(f"model.start=sweep, but the photographs agree on too few points (they need texture and overlap); {OTHERWISE}")
    if kind == "points" and not points:
        raise UserError(f"model.start=points, but the sphere holds too few points, or it is unknown which views see them; {OTHERWISE}")
    return found or scene, fit_to_scene(job, scene, start)
