"""Loading of a scene of any layout: recognition of the layout, the reader, and the checks common to all layouts."""

import logging
from pathlib import Path

import torch

from confs.schema import DatasetConfig
from process_data.blender import read_blender
from process_data.colmap import MODEL_FOLDERS, read_colmap
from process_data.dtu import read_dtu
from process_data.glossy import read_glossy
from process_data.llff import read_llff
from process_data.metashape import NAMES, read_metashape
from process_data.middlebury import read_middlebury
from process_data.sdfstudio import read_sdfstudio
from process_data.transforms import read_transforms
from utils.errors import UserError
from utils.image import SUFFIXES
from utils.rays import Scene
from utils.stack import disk_folder

READERS = {
    "dtu": read_dtu, "blender": read_blender, "transforms": read_transforms, "colmap": read_colmap, "glossy": read_glossy,
    "sdfstudio": read_sdfstudio, "llff": read_llff, "middlebury": read_middlebury, "metashape": read_metashape,
}  # fmt: skip
SIGNS = {  # layout -> files that identify it (* stands for any characters), in order of preference
    "dtu": ("cameras_sphere.npz", "cameras.npz"),
    "blender": ("transforms_train.json",),
    "transforms": ("transforms.json",),
    "colmap": tuple(f"{folder}/images.{suffix}".removeprefix("./") for suffix in ("bin", "txt") for folder in MODEL_FOLDERS),
    "glossy": ("0-camera.pkl",),
    "sdfstudio": ("meta_data.json",),
    "metashape": NAMES,
    "llff": ("poses_bounds.npy",),
    "middlebury": ("*_par.txt",),
}
LOG = logging.getLogger("neus")


def _holds(root: Path, sign: str) -> bool:
    return any(root.glob(sign)) if "*" in sign else (root / sign).exists()


def recognise(cfg: DatasetConfig, log: logging.Logger = LOG) -> str:
    """The layout of the folder `cfg.root_dir`, a key of READERS. Raises UserError when no layout is recognised."""
    root = Path(cfg.root_dir)
    if cfg.name != "auto":
        return cfg.name
    if root.suffix == ".json":
        return "transforms"
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; set dataset.root_dir to the folder of your scene")
    signs = {**SIGNS, "dtu": (cfg.cameras,) if cfg.cameras else SIGNS["dtu"]}
    found = {layout: sign for layout, names in signs.items() for sign in reversed(names) if _holds(root, sign)}
    if found:
        layout, others = next(iter(found)), list(found)[1:]
        more = f" (also possible: {', '.join(others)}; set dataset.name)" if others else ""
        log.info("%s: recognised as %s by %s%s", root, layout, found[layout], more)
        return layout
    if (root / "image").is_dir():
        return "dtu"  # its reader reports the missing files
    if any(p.suffix.lower() in (*SUFFIXES, ".heic") for folder in (root, root / "images") if folder.is_dir() for p in folder.iterdir()):
        raise UserError(f"{root}: photographs without cameras; estimate these first: python run.py --photos {root}")
    expected = ", ".join(names[0] for names in SIGNS.values())
    raise UserError(f"{root}: no layout is recognised; expected one of {expected}, or set dataset.name")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def check_views(scene: Scene, root: str) -> None:
    """Raises UserError when there are fewer than two training views."""
    if len(scene.train) < 2:
        got = f"{len(scene.train)} training view(s) of {len(scene.names)} images"
        raise UserError(f"{root}: {got}, expected at least 2; add images, or set dataset.hold_every=0")


def check_masks(scene: Scene, root: str, log: logging.Logger = LOG) -> None:
    """Warns of black masks. Raises UserError when all masks are black."""
    if scene.masks is None:
        return
    black = [i for i, mask in enumerate(scene.masks) if int(mask.max()) < 128]
    if len(black) == len(scene.masks):
        raise UserError(
            f"{root}: all {len(black)} masks are black; expected 255 on the object; correct the masks, or set dataset.masks=false"
        )
    if black:
        log.warning(
            "%s: the mask is all black for %s; these views are treated as background", root, _listed([scene.names[i] for i in black])
        )


def check_cameras(scene: Scene, radius: float, root: str, log: logging.Logger = LOG) -> None:
    """Warns of cameras inside the sphere, and of principal points off the image centre. Raises UserError for cameras at infinity."""
    if not (torch.isfinite(scene.cameras.K).all() and torch.isfinite(scene.cameras.c2w).all()):
        raise UserError(f"{root}: some cameras lie at infinity in the frame of the unit sphere; check the camera file and scale_mat_0")
    inside = torch.nonzero(scene.cameras.c2w[:, :, 3].norm(dim=1) < radius).flatten().tolist()
    if inside:
        log.warning(
            "%s: %d of %d cameras lie inside the sphere of radius %g around the object (%s); check scale_mat_0, or set dataset.radius",
            *(root, len(inside), len(scene.names), radius, _listed([scene.names[i] for i in inside])),
        )
    middle = scene.cameras.K[:, :2, 2] / scene.cameras.sizes
    if bool(((middle < 0.2) | (middle > 0.8)).any(1).float().mean() > 0.5):
        log.warning("%s: the principal points lie far from the image centres; if the images were resized, rescale the cameras too", root)


def load_scene(cfg: DatasetConfig, radius: float = 1.0, log: logging.Logger = LOG) -> Scene:
    """Read the scene of `cfg` and check its views, masks and cameras; radius: of the sphere around the object. Raises UserError."""
    scene = READERS[recognise(cfg, log)](cfg, log)
    check_views(scene, cfg.root_dir)
    check_masks(scene, cfg.root_dir, log)
    check_cameras(scene, radius, cfg.root_dir, log)
    if scene.on_disk:
        log.info("photographs and masks are kept in temporary files in %s (dataset.on_disk)", disk_folder())
    if cfg.masks and scene.masks is None:
        log.warning("%s: no masks found; continuing without them (dataset.masks=false disables this warning)", cfg.root_dir)
    return scene
