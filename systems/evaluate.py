"""Evaluation of a trained system: metrics and pictures of held-out views, a video."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import torch
from tqdm import tqdm

from confs.schema import Config
from process_data.path import orbit
from process_data.rays import view_rays
from systems.base import cut_out, picture_background
from systems.metrics import view_metrics
from systems.validate import rows_of, truth_of, view_images
from utils.errors import UserError
from utils.files import write_atomic
from utils.image import sheet, write_png
from utils.log import RunFolder
from utils.rays import Cameras, Scene

log = logging.getLogger("neus")


def evaluate(
    system, scene: Scene, cfg: Config, run: RunFolder, device: torch.device, fitted: dict[int, tuple[float, float]] | None = None
) -> dict:
    """Metrics over the held-out views (over the training views, with a warning, when none are held out), and pictures.

    fitted: {view: (PSNR before, after)} of held-out cameras that were fitted to their photographs, for the record.
    """
    views = scene.test or scene.train
    if not scene.test:
        log.warning("no views are held out (dataset.hold_every=0): the figures below are of training views")
    rows = []
    for view in tqdm(views, desc="test", leave=False):
        w, h = scene.cameras.size(view)
        truth, mask, background = truth_of(scene, view, cfg)
        rays = view_rays(scene.cameras, view, cfg.model.radius).to(device)
        render = system.render_view(rays, background.to(device), chunk=cfg.trainer.chunk)
        metrics = view_metrics(render.rgb.view(h, w, 3).float().cpu(), truth, mask, cut_out(cfg, scene))
        rows.append({"view": view, "name": scene.names[view], **metrics})
        rgb, depth, normal = view_images(render, scene.cameras.c2w[view], h, w)
        maps = system.maps(rays, render, chunk=cfg.trainer.chunk)
        write_png(run / f"test/{view:03d}.png", rows_of([(truth * 255).round().to(torch.uint8), rgb, depth, normal], maps, h, w))
    means = {}
    for key in ("psnr", "ssim", "psnr_masked", "psnr_cc", "psnr_cc_masked"):
        known = [r[key] for r in rows if r[key] is not None]
        means[key] = float(np.mean(known)) if known else None
    empty = [r["name"] for r in rows if r["psnr_masked"] is None]
    if empty and means["psnr_masked"] is not None:
        log.warning(
            "the mask is empty in %d of %d held-out views (first: %s): psnr_masked leaves them out", len(empty), len(rows), empty[0]
        )
    result = {
        **means,
        "held_out": bool(scene.test),
        "background": scene.test_background if cfg.dataset.apply_mask else "image",
        "held_out_cameras": "fitted to their photographs" if fitted else "as given",
        **({"probe_psnr_given": _mean(fitted, 0), "probe_psnr_fitted": _mean(fitted, 1)} if fitted else {}),
        "views": rows,
    }
    write_atomic(run / "test/metrics.json", json.dumps(result, indent=1).encode())
    shown = ", ".join(f"{k} {v:.2f}" if k != "ssim" else f"ssim {v:.4f}" for k, v in means.items() if v is not None)
    log.info("test on %d views: %s -> %s", len(rows), shown, run / "test/metrics.json")
    return result


def _mean(fitted: dict[int, tuple[float, float]], k: int) -> float:
    return float(np.mean([pair[k] for pair in fitted.values()]))


def video(system, scene: Scene, cfg: Config, run: RunFolder, device: torch.device) -> None:
    """An mp4 of colour and normals along a path over the captured hemisphere; a gif where no encoder is to be had."""
    cameras = scale_cameras(orbit(scene.cameras, cfg.dataset.test_steps, cfg.model.radius), cfg.dataset.test_scale)
    background = picture_background(cfg, scene).to(device)
    frames = []
    for i in tqdm(range(len(cameras)), desc="video", leave=False):
        render = system.render_view(view_rays(cameras, i, cfg.model.radius).to(device), background, chunk=cfg.trainer.chunk)
        rgb, _, normal = view_images(render, cameras.c2w[i], cameras.height, cameras.width)
        frames.append(np.asarray(sheet([rgb, normal])))
    path = write_video(run / "video.mp4", frames)
    log.info("video: %d frames -> %s", len(frames), path)


def scale_cameras(cameras: Cameras, scale: float) -> Cameras:
    """Cameras of an image `scale` times as large, with even sides (video codecs want them)."""
    h, w = (max(2, round(n * scale / 2) * 2) for n in (cameras.height, cameras.width))
    fx, fy = w / cameras.width, h / cameras.height
    K = cameras.K.clone()
    K[:, 0] *= fx
    K[:, 1] *= fy
    K[:, 0, 2] += (fx - 1) / 2  # pixel centres at integers
    K[:, 1, 2] += (fy - 1) / 2
    return Cameras(K, cameras.c2w, h, w)


def write_video(path: Path, frames: Sequence[np.ndarray], fps: int = 24) -> Path:
    """Write frames [H, W, 3] uint8 as mp4, or as gif when there is no encoder; returns the path written."""
    even: Any = [f[: f.shape[0] // 2 * 2, : f.shape[1] // 2 * 2] for f in frames]
    part = path.with_name(path.stem + ".part.mp4")
    try:
        imageio.mimwrite(part, even, fps=fps, quality=8, macro_block_size=2)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        if error.errno is not None:
            raise UserError(f"{path} cannot be written ({error.strerror})") from None
        path = path.with_suffix(".gif")
        log.warning("no mp4 encoder (%s): writing a gif", error)
        imageio.mimwrite(path, even, duration=1000 / fps, loop=0)
    return path
