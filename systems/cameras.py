"""Refined cameras: those of held-out views fitted to their photographs, and all of them written beside the run."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from confs.model import MaterialConfig
from confs.schema import Config
from models.pose import moved, rotation
from process_data.normalize import to_sphere
from process_data.rays import make_rays
from systems.base import RaySystem, cut_out, picture_background
from systems.validate import truth_of
from utils.errors import UserError
from utils.files import read_file, write_atomic
from utils.log import RunFolder
from utils.rays import Rays, Scene

log = logging.getLogger("neus")
FILE = "cameras.json"  # in a run folder
STEPS, RAYS = 120, 512  # of the fit of one held-out camera
LR = (0.002, 0.0001)  # radians and radii a step, at the start and the end of the fit
PROBE = 4096  # pixels of a view on which the fit is judged


def refined(system: RaySystem, scene: Scene) -> Scene:
    """The scene with the cameras as the model has refined them; the scene itself where they are not refined."""
    pose = system.model.pose
    if pose is None:
        return scene
    c2w = pose.cameras(scene.cameras.c2w.to(pose.delta.device)).float().cpu()
    return replace(scene, cameras=replace(scene.cameras, c2w=c2w))


def align_held_out(system: RaySystem, scene: Scene, cfg: Config) -> dict[int, tuple[float, float]]:
    """Fit the camera of each held-out view to its photograph while the field stays as it is (as in BARF, Lin et al., 2021).

    The cameras as given are as wrong as those of training were, and a shift of one pixel hides what a metric is to show. Returns
    {view: (PSNR with the camera as given, with the fitted one)} on PROBE pixels, after the least-squares fit of the colours; a fit that
    is worse is undone. Empty where cameras are not refined. Deterministic for one seed.
    """
    pose = system.model.pose
    if pose is None or not scene.test:
        return {}
    trainable = [p for p in system.model.parameters() if p.requires_grad]
    for p in trainable:
        p.requires_grad_(False)
    try:
        with torch.random.fork_rng():  # the background is sampled at random
            torch.manual_seed(cfg.seed or 0)
            found = {view: _align(system, scene, cfg, view) for view in tqdm(scene.test, desc="cameras", leave=False)}
    finally:
        for p in trainable:
            p.requires_grad_(True)
    before, after = (float(np.mean([pair[k] for pair in found.values()])) for k in (0, 1))
    log.info("held-out cameras fitted to their photographs, the field fixed: PSNR %.2f -> %.2f on %d pixels a view", before, after, PROBE)
    return found


class _Fit:
    """One held-out view: its pixels, and the loss of a camera."""

    def __init__(self, system: RaySystem, scene: Scene, cfg: Config, view: int):
        self.system, self.cfg, self.view, self.device = system, cfg, view, system.device
        self.cameras = scene.cameras.to(system.device)
        truth, mask, _ = truth_of(scene, view, cfg)
        self.truth = truth.reshape(-1, 3).to(system.device)
        self.width = truth.shape[1]
        self.background = picture_background(cfg, scene).to(system.device)
        self.mask = None if mask is None or not cut_out(cfg, scene) else mask.reshape(-1).to(system.device)
        self.generator = torch.Generator().manual_seed(view + 1)

    def draw(self, n: int) -> tuple[Tensor, Rays]:
        """(pixel indices [n], their rays from the camera as given)."""
        index = torch.randint(len(self.truth), (n,), generator=self.generator).to(self.device)
        uv = torch.stack([index % self.width, index // self.width], 1).to(self.cameras.K.dtype)
        return index, make_rays(self.cameras, torch.full_like(index, self.view), uv, self.cfg.model.radius)

    def colours(self, rays: Rays, delta: Tensor, training: bool) -> tuple[Tensor, Tensor]:
        """(colour [n, 3], opacity [n]) from the camera moved by delta [6]."""
        rays = moved(rays, rotation(delta[None, :3]), delta[None, 3:], self.cfg.model.radius)
        jitter = torch.rand(len(rays), generator=self.generator).to(self.device) if training else None
        render = self.system.model.render(rays, self.system.model.context(1.0, training, self.background, jitter)).render
        return render.rgb, render.opacity

    @torch.no_grad()
    def psnr(self, index: Tensor, rays: Rays, delta: Tensor) -> float:
        rgb, _ = self.colours(rays, delta, False)
        truth = self.truth[index]
        colour = _colour_fit(rgb, truth)
        error = (rgb @ colour[:3] + colour[3] - truth).square().mean()
        return float(-10 * torch.log10(error.clamp(min=1e-10)))


def _colour_fit(rgb: Tensor, truth: Tensor) -> Tensor:
    """The affine map [4, 3] of colours rgb [n, 3] nearest to truth, held near the identity; no gradient."""
    with torch.no_grad():
        a = torch.cat([rgb, torch.ones_like(rgb[:, :1])], 1).double()
        start = torch.eye(4, 3, dtype=a.dtype, device=a.device)
        ridge = 1e-3 * len(a) * torch.eye(4, dtype=a.dtype, device=a.device)
        return (start + torch.linalg.solve(a.T @ a + ridge, a.T @ (truth.double() - a @ start))).float()


def _align(system: RaySystem, scene: Scene, cfg: Config, view: int) -> tuple[float, float]:
    pose = system.model.pose
    assert pose is not None
    fit = _Fit(system, scene, cfg, view)
    probe = fit.draw(PROBE)
    delta = torch.zeros(6, device=system.device, requires_grad=True)
    optimizer = torch.optim.Adam([delta], lr=LR[0], betas=(0.9, 0.99))
    before = fit.psnr(*probe, delta.detach())
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = LR[0] * (LR[1] / LR[0]) ** (step / STEPS)
        index, rays = fit.draw(RAYS)
        rgb, opacity = fit.colours(rays, delta, True)
        colour = _colour_fit(rgb, fit.truth[index])
        loss = (rgb @ colour[:3] + colour[3] - fit.truth[index]).abs().mean()
        if fit.mask is not None:
            loss = loss + 0.1 * (opacity - fit.mask[index]).abs().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if delta.grad is None or not bool(torch.isfinite(delta.grad).all()):
            continue
        optimizer.step()
    after = fit.psnr(*probe, delta.detach())
    with torch.no_grad():
        pose.delta[view] = delta if after > before else 0
    return before, max(before, after)


def write_cameras(scene: Scene, run: RunFolder) -> None:
    """cameras.json in the run folder: the cameras of the resized, undistorted photographs in world units.

    In instant-ngp's layout (transforms.json, OpenGL axes); `file_path` is the name of the photograph in the scene.
    """
    to_world = scene.to_world.numpy()
    scale = float(np.cbrt(np.linalg.det(to_world[:3, :3])))
    frames = []
    for i, name in enumerate(scene.names):
        c2w, K = scene.cameras.c2w[i].double().numpy(), scene.cameras.K[i].double().numpy()
        pose = np.eye(4)
        pose[:3, :3] = to_world[:3, :3] / scale @ c2w[:, :3] @ np.diag([1.0, -1.0, -1.0])
        pose[:3, 3] = to_world[:3, :3] @ c2w[:, 3] + to_world[:3, 3]
        w, h = scene.cameras.size(i)
        frames.append(
            {"file_path": name, "w": w, "h": h, "fl_x": K[0, 0], "fl_y": K[1, 1], "cx": K[0, 2] + 0.5, "cy": K[1, 2] + 0.5,
             "held_out": i in scene.test, "transform_matrix": pose.tolist()}
        )  # fmt: skip
    write_atomic(run / FILE, json.dumps({"frames": frames}, indent=1).encode())


def with_cameras_of(scene: Scene, folder: Path) -> Scene:
    """The scene with the poses that `write_cameras` left in a run folder; the scene itself where it lacks any of its photographs.

    Raises UserError for a damaged file.
    """
    path = folder / FILE
    try:
        poses = {frame["file_path"]: np.array(frame["transform_matrix"], float) for frame in json.loads(read_file(path))["frames"]}
        if not set(scene.names) <= set(poses):
            log.warning("%s is of other photographs: the cameras stay as they are given", path)
            return scene
        pose = np.stack([poses[name] for name in scene.names])
        if pose.shape[1:] != (4, 4) or not np.isfinite(pose).all():
            raise ValueError
    except FileNotFoundError:
        return scene
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{path} is damaged; remove it to take the cameras as they are given") from None
    c2w = to_sphere(pose[:, :3] @ np.diag([1.0, -1.0, -1.0, 1.0]), scene.to_world.numpy())
    log.info("cameras as refined in %s", folder)
    return replace(scene, cameras=replace(scene.cameras, c2w=torch.from_numpy(c2w).to(scene.cameras.c2w)))


def cameras_of_shape(scene: Scene, cfg: Config, run: RunFolder, new: bool, writes: bool) -> Scene:
    """Where a material is trained on the mesh of a run that refined the cameras: the scene with these, which a new run keeps as its own."""
    if not isinstance(cfg.model, MaterialConfig):
        return scene
    mesh = Path(cfg.model.mesh or "")
    if new and not mesh.is_dir() and mesh.parent.name != "mesh":  # of no run
        return scene
    shape = mesh if mesh.is_dir() else mesh.parent.parent
    found = with_cameras_of(scene, shape if new else run.root)
    if new and writes and found is not scene:
        write_cameras(found, run)
    return found
