"""The one door to the data: a reader by name, then the checks that hold for every layout."""

import logging

import torch

from confs.schema import DatasetConfig
from process_data.dtu import read_dtu
from utils.errors import UserError
from utils.rays import Scene

READERS = {"dtu": read_dtu}
LOG = logging.getLogger("neus")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def check_views(scene: Scene, root: str) -> None:
    """At least two views to train on. Raises UserError."""
    if len(scene.train) < 2:
        got = f"{len(scene.train)} training view(s) of {len(scene.names)} images"
        raise UserError(f"{root}: {got}, expected at least 2; add images, or set dataset.hold_every=0")


def check_masks(scene: Scene, root: str, log: logging.Logger = LOG) -> None:
    """Warn of all-black masks; raise UserError when all are."""
    if scene.masks is None:
        return
    black = [i for i, mask in enumerate(scene.masks) if int(mask.max()) < 128]
    if len(black) == len(scene.masks):
        raise UserError(f"{root}: all {len(black)} masks are black; expected 255 on the object: mend the masks, or set dataset.masks=false")
    if black:
        log.warning("%s: the mask is all black for %s: the object counts as unseen there", root, _listed([scene.names[i] for i in black]))


def check_cameras(scene: Scene, radius: float, root: str, log: logging.Logger = LOG) -> None:
    """Warn of cameras inside the sphere and of principal points off the middle (images resized, cameras not); UserError at infinity."""
    if not (torch.isfinite(scene.cameras.K).all() and torch.isfinite(scene.cameras.c2w).all()):
        raise UserError(f"{root}: some cameras lie at infinity in units of the object's sphere; check the camera file and scale_mat_0")
    inside = torch.nonzero(scene.cameras.c2w[:, :, 3].norm(dim=1) < radius).flatten().tolist()
    if inside:
        log.warning(
            "%s: %d of %d cameras lie inside the sphere of radius %g that should hold the object (%s): check scale_mat_0",
            *(root, len(inside), len(scene.names), radius, _listed([scene.names[i] for i in inside])),
        )
    middle = scene.cameras.K[:, :2, 2] / torch.tensor([scene.cameras.width, scene.cameras.height])
    if bool(((middle < 0.2) | (middle > 0.8)).any(1).float().mean() > 0.5):
        log.warning("%s: the principal points lie off the middle of the images: were these resized without the cameras?", root)


def load_scene(cfg: DatasetConfig, radius: float = 1.0, log: logging.Logger = LOG) -> Scene:
    """Read the scene of `cfg` and check it: object within `radius` of the origin, cameras and masks that make sense. Raises UserError."""
    scene = READERS[cfg.name](cfg, log)
    check_views(scene, cfg.root_dir)
    check_masks(scene, cfg.root_dir, log)
    check_cameras(scene, radius, cfg.root_dir, log)
    if cfg.masks and scene.masks is None:
        log.warning("%s: no masks found; going on without them (dataset.masks=false silences this)", cfg.root_dir)
    return scene
