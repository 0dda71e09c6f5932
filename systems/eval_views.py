"""Figures of the held-out views at full size: `--eval --resume CKPT`."""

import logging
import math
from typing import Any

import numpy as np
import torch

from confs.schema import Config
from process_data.rays import view_rays
from systems.base import cut_out
from systems.budget import seconds_per_pixel
from systems.evaluate import evaluate
from systems.lpips import Lpips, Unavailable, load_lpips
from systems.metrics import view_metrics
from systems.validate import rows_of, truth_of, view_images, view_picture
from utils.log import RunFolder
from utils.rays import Scene

log = logging.getLogger("neus")

COLUMNS = {  # head -> (key, digits)
    "psnr": ("psnr", 2), "masked": ("psnr_masked", 2), "cc": ("psnr_cc", 2), "cc masked": ("psnr_cc_masked", 2),
    "ssim": ("ssim", 4), "ssim masked": ("ssim_masked", 4), "lpips": ("lpips", 4), "lpips masked": ("lpips_masked", 4),
}  # fmt: skip


def whole_view(
    system, scene: Scene, cfg: Config, device: torch.device, view: int, lpips: Lpips | None
) -> tuple[dict[str, float | None], np.ndarray]:
    """`view_picture` at full size, with lpips and lpips_masked where there are weights for it."""
    truth, mask, background = truth_of(scene, view, cfg)
    h, w = truth.shape[:2]
    rays = view_rays(scene.cameras[view : view + 1].resized(w, h), 0, cfg.model.radius).to(device)
    render = system.render_view(rays, background.to(device), 1.0, cfg.trainer.chunk)
    pred = render.rgb.view(h, w, 3).float().cpu()
    metrics = view_metrics(pred, truth, mask, cut_out(cfg, scene))
    metrics["lpips"] = lpips(pred, truth) if lpips else None
    metrics["lpips_masked"] = lpips(pred, truth, mask) if lpips and mask is not None else None
    pictures = [(truth * 255).round().to(torch.uint8), *view_images(render, scene.cameras.c2w[view], h, w)]
    return metrics, rows_of(pictures, system.maps(rays, render, 1.0, cfg.trainer.chunk), h, w)


def evaluate_whole(
    system, scene: Scene, cfg: Config, run: RunFolder, device: torch.device, allowed: float = math.inf,
    fitted: dict[int, tuple[float, float]] | None = None,
) -> dict:  # fmt: skip
    """`evaluate` at full size, with LPIPS where its weights are on this machine; says how long it will take, and ends in a table."""
    views = scene.test or scene.train
    try:
        lpips = load_lpips(device)
    except Unavailable as why:
        lpips = None
        log.warning("LPIPS left out: %s", why)
    pixels = int(scene.sizes[list(views)].prod(1).sum())
    each = seconds_per_pixel(scene.cameras.size(views[0]), lambda scale: view_picture(system, scene, cfg, device, views[0], scale))
    log.info("eval: %d views at full size, %.2f megapixels: about %.0f s", len(views), pixels / 1e6, pixels * each)
    result = evaluate(
        system, scene, cfg, run, device, math.inf, fitted, lambda view, _: whole_view(system, scene, cfg, device, view, lpips)
    )
    log.info("%s", table(result))
    return result


def table(result: dict[str, Any]) -> str:
    """The figures of `evaluate` by view, and their means, as lines of text; a figure that is not known is left out with its column."""
    columns = {head: column for head, column in COLUMNS.items() if result.get(column[0]) is not None}
    width = max(len("view"), *(len(row["name"]) for row in result["views"]))

    def line(name: str, values: dict[str, Any]) -> str:
        cells = [
            f"{'-' if values.get(key) is None else f'{values[key]:.{digits}f}':>{max(len(head), 6)}}"
            for head, (key, digits) in columns.items()
        ]
        return "  ".join([f"{name:{width}}", *cells])

    head = "  ".join([f"{'view':{width}}", *(f"{head:>{max(len(head), 6)}}" for head in columns)])
    kind = "held-out views" if result["held_out"] else "training views"
    return "\n".join(
        [f"{len(result['views'])} {kind}, at full size", head, *(line(row["name"], row) for row in result["views"]), line("mean", result)]
    )
