"""Evaluation of a trained system: metrics and pictures of held-out views, a video."""

import contextlib
import io
import json
import logging
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import imageio.v2 as imageio
import numpy as np
import torch
from tqdm import tqdm

from confs.schema import Config
from process_data.path import orbit
from process_data.rays import view_rays
from systems.base import picture_background
from systems.budget import FRAMES, SMALLER, UNMEASURED, fitting_scale, plan_video, seconds_per_pixel
from systems.validate import view_images, view_picture
from utils.files import temporary_name, write_atomic
from utils.image import sheet, write_png
from utils.log import RunFolder
from utils.rays import Cameras, Scene

log = logging.getLogger("neus")
Look = Callable[[int, float], tuple[dict[str, float | None], np.ndarray]]


def scale_of_test(system, scene: Scene, cfg: Config, device: torch.device, views: Sequence[int], allowed: float) -> float:
    """The scale at which the pictures of the views take the seconds allowed: 1 where they do at full size."""
    pixels = int(scene.sizes[list(views)].prod(1).sum())
    if math.isinf(allowed) or pixels <= UNMEASURED:
        return 1.0
    size = scene.cameras.size(views[0])
    expected = pixels * seconds_per_pixel(size, lambda scale: view_picture(system, scene, cfg, device, views[0], scale))
    scale = fitting_scale(expected, allowed, size, SMALLER)
    if scale < 1:
        message = (
            "test: %d views at full size would take about %.0f s, of %.0f s (trainer.test_share): they are rendered at %.2f of their size, "
            "and compared with photographs reduced alike"
        )
        log.info(message, len(views), expected, allowed, scale)
    return scale


def evaluate(
    system, scene: Scene, cfg: Config, run: RunFolder, device: torch.device, allowed: float = math.inf,
    fitted: dict[int, tuple[float, float]] | None = None, look: Look | None = None,
) -> dict:  # fmt: skip
    """Metrics over the held-out views (over the training views, with a warning, when none are held out), and pictures.

    allowed: seconds; where the views take longer at full size, all are rendered and compared at a smaller one (`scale` of the result).
    fitted: {view: (PSNR before, after)} of held-out cameras that were fitted to their photographs, for the record.
    look: gives the metrics and the picture of a view at a scale, by default `view_picture`.
    """
    views = scene.test or scene.train
    if not scene.test:
        log.warning("no views are held out (dataset.hold_every=0): the figures below are of training views")
    scale = scale_of_test(system, scene, cfg, device, views, allowed)
    rows = []
    for view in tqdm(views, desc="test", leave=False):
        metrics, picture = look(view, scale) if look else view_picture(system, scene, cfg, device, view, scale)
        size = [max(1, round(n * scale)) for n in scene.cameras.size(view)]  # of each picture in the sheet
        rows.append({"view": view, "name": scene.names[view], "size": size, **metrics})
        write_png(run / f"test/{view:03d}.png", picture)
    means = {}
    for key in (key for key in rows[0] if key not in ("view", "name", "size")):
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
        "scale": scale,
        "background": scene.test_background if cfg.dataset.apply_mask else "image",
        "held_out_cameras": "fitted to their photographs" if fitted else "as given",
        **({"probe_psnr_given": _mean(fitted, 0), "probe_psnr_fitted": _mean(fitted, 1)} if fitted else {}),
        "views": rows,
    }
    write_atomic(run / "test/metrics.json", json.dumps(result, indent=1).encode())
    shown = ", ".join(f"{k} {v:.{2 if k.startswith('psnr') else 4}f}" for k, v in means.items() if v is not None)
    log.info("test on %d views: %s -> %s", len(rows), shown, run / "test/metrics.json")
    return result


def _mean(fitted: dict[int, tuple[float, float]], k: int) -> float:
    return float(np.mean([pair[k] for pair in fitted.values()]))


def video(system, scene: Scene, cfg: Config, run: RunFolder, device: torch.device, allowed: float = math.inf) -> None:
    """An mp4 of colour and normals along a path over the captured hemisphere; a gif where no encoder is to be had.

    allowed: seconds, which `plan_video` keeps to.
    """
    d, background = cfg.dataset, picture_background(cfg, scene).to(device)
    path = orbit(scene.cameras, d.test_steps or FRAMES, cfg.model.radius)
    size = path.size(0)

    def frame(camera: Cameras) -> np.ndarray:
        render = system.render_view(view_rays(camera, 0, cfg.model.radius).to(device), background, chunk=cfg.trainer.chunk)
        rgb, _, normal = view_images(render, camera.c2w[0], camera.height, camera.width)
        return np.asarray(sheet([rgb, normal]))

    usual, rate = plan_video(0.0, size, d.test_steps, d.test_scale, allowed), 0.0
    if usual[0] * size[0] * size[1] * usual[1] ** 2 > UNMEASURED and None in (d.test_steps, d.test_scale) and not math.isinf(allowed):
        rate = seconds_per_pixel(size, lambda scale: frame(scale_cameras(path[:1], scale)))
    frames, scale = plan_video(rate, size, d.test_steps, d.test_scale, allowed)
    cameras = scale_cameras(orbit(scene.cameras, frames, cfg.model.radius), scale)
    if (frames, scale) != usual:
        message = (
            "video: reduced to %d frames of %dx%d, to take about %.0f s (trainer.test_share; dataset.test_steps and test_scale set them)"
        )
        log.info(message, frames, cameras.width, cameras.height, allowed)
    pictures = [frame(cameras[i : i + 1]) for i in tqdm(range(frames), desc="video", leave=False)]
    written = write_video(run / "video.mp4", pictures, fps=24 if d.test_steps else max(1, round(24 * frames / FRAMES)))
    log.info("video: %d frames -> %s", frames, written)


def scale_cameras(cameras: Cameras, scale: float) -> Cameras:
    """Cameras of images `scale` times as large, with even sides (video codecs want them); all of one size."""
    return cameras.resized(*(max(2, round(n * scale / 2) * 2) for n in cameras.size(0)))


def write_video(path: Path, frames: Sequence[np.ndarray], fps: int = 24) -> Path:
    """Write frames [H, W, 3] uint8 as mp4, or as gif when there is no encoder; returns the path written. Raises UserError."""
    even = [np.ascontiguousarray(f[: f.shape[0] // 2 * 2, : f.shape[1] // 2 * 2]) for f in frames]
    part = temporary_name(path)
    try:
        _encode(part, even, fps)
        part.replace(path)
        return path
    except (OSError, RuntimeError, ImportError) as error:
        log.warning("no mp4 (%s): writing a gif", str(error).split("\n")[0])
    finally:
        part.unlink(missing_ok=True)
    buffer = io.BytesIO()
    imageio.mimwrite(buffer, list(even), format="GIF", duration=1000 / fps, loop=0)
    write_atomic(path.with_suffix(".gif"), buffer.getvalue())
    return path.with_suffix(".gif")


def _encode(path: Path, frames: Sequence[np.ndarray], fps: int) -> None:
    """Write frames of even sides as mp4. Raises OSError, and RuntimeError or ImportError where there is no ffmpeg."""
    from imageio_ffmpeg import write_frames

    h, w = frames[0].shape[:2]
    with contextlib.closing(
        write_frames(str(path), (w, h), fps=fps, quality=8, macro_block_size=2, output_params=["-f", "mp4"])
    ) as encoder:
        encoder.send(None)
        for picture in frames:
            encoder.send(picture)
    # an encoder that meets a full disk says nothing: it leaves a file without its index
    if int(cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FRAME_COUNT)) != len(frames):
        raise OSError("the encoder wrote no whole file; the disk may be full")
    with open(path, "rb") as file:
        os.fsync(file.fileno())
