"""Pictures of one held-out view while training."""

import time
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from confs.schema import Config
from process_data.rays import view_rays
from systems.base import cut_out, picture_background
from systems.budget import SMALL, VALIDATION, fitting_scale, probe_scale
from systems.metrics import view_metrics
from utils.image import depth_to_rgb, normal_to_rgb, read_rgb, resize, sheet, write_png
from utils.log import RunFolder
from utils.rays import Render, Scene


def truth_of(scene: Scene, view: int, cfg: Config) -> tuple[Tensor, Tensor | None, Tensor]:
    """(truth [h, w, 3] as a render of it is composited, mask [h, w] or None, background [3]), all in [0, 1]."""
    rgb, mask = scene.image(view).float() / 255, scene.mask(view)
    mask = None if mask is None else mask.float() / 255
    background = picture_background(cfg, scene)
    if mask is not None and cut_out(cfg, scene):
        rgb = rgb * mask[..., None] + background * (1 - mask[..., None])
    return rgb, mask, background


def view_images(render: Render, c2w: Tensor, h: int, w: int) -> tuple[Tensor, Tensor, Tensor]:
    """(rgb, depth, normal) of a rendered view as uint8 pictures [H, W, 3]; normals in the camera's frame."""
    rgb = (render.rgb.clamp(0, 1) * 255).round().to(torch.uint8).view(h, w, 3).cpu()
    depth = depth_to_rgb(render.depth.view(h, w).cpu(), render.opacity.view(h, w).cpu())
    in_camera = render.normal.cpu() @ c2w[:, :3].cpu()
    normal = normal_to_rgb(in_camera.view(h, w, 3), render.opacity.view(h, w).cpu())
    return rgb, torch.from_numpy(depth), torch.from_numpy(normal)


def layers(render: Render, h: int, w: int) -> list[Tensor]:
    """[foreground on black, learned background] of a rendered view as uint8 pictures [H, W, 3]; empty without a learned background."""
    parts = [] if render.foreground is None or render.background is None else [render.foreground, render.background]
    return [(p.clamp(0, 1) * 255).round().to(torch.uint8).view(h, w, 3).cpu() for p in parts]


def rows_of(first: list[Tensor], maps: dict[str, Tensor], h: int, w: int) -> np.ndarray:
    """The pictures [H, W, 3] of a view side by side, below them the method's own maps ([H * W, 3] each, labelled), as wide."""
    if not maps:
        return sheet(first)
    low = sheet([(m.clamp(0, 1) * 255).round().to(torch.uint8).view(h, w, 3).cpu() for m in maps.values()], list(maps))
    top = sheet(first)
    width = max(top.shape[1], low.shape[1])
    return np.concatenate([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in (top, low)])


def progress_sheet(folder: Path, rows: int = 12, width: int = 1200) -> np.ndarray:
    """The validation pictures of a run below each other, first to last, at most `rows` of them evenly chosen."""
    found = sorted(folder.glob("val_*.png"))
    chosen = [found[round(i * (len(found) - 1) / max(rows - 1, 1))] for i in range(rows)] if len(found) > rows else found
    strips = []
    for path in chosen:
        picture = read_rgb(path)
        h = round(picture.shape[0] * width / picture.shape[1])
        strip = cv2.resize(picture, (width, h), interpolation=cv2.INTER_AREA)
        strips.append(
            cv2.putText(strip, path.stem[4:].lstrip("0") or "0", (6, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
        )
    return np.concatenate(strips)


def view_picture(
    system, scene: Scene, cfg: Config, device: torch.device, view: int, scale: float = 1.0, progress: float = 1.0, split: bool = False
) -> tuple[dict[str, float | None], np.ndarray]:
    """(metrics, picture [H', W', 3] uint8: truth, render, depth, normals, the method's maps) of a view.

    scale: of its size; the truth is reduced alike, by area. split: also foreground and learned background, each as a picture.
    """
    truth, mask, background = truth_of(scene, view, cfg)
    w, h = (max(1, round(n * scale)) for n in scene.cameras.size(view))
    truth = torch.from_numpy(resize(truth.numpy(), w, h))
    mask = None if mask is None else torch.from_numpy(resize(mask[..., None].numpy(), w, h)[..., 0])
    rays = view_rays(scene.cameras[view : view + 1].resized(w, h), 0, cfg.model.radius).to(device)
    render = system.render_view(rays, background.to(device), progress, cfg.trainer.chunk, full_background=split)
    rgb, depth, normal = view_images(render, scene.cameras.c2w[view], h, w)
    maps = system.maps(rays, render, progress, cfg.trainer.chunk)
    first = [(truth * 255).round().to(torch.uint8), rgb, *(layers(render, h, w) if split else []), depth, normal]
    return view_metrics(render.rgb.view(h, w, 3).float().cpu(), truth, mask, cut_out(cfg, scene)), rows_of(first, maps, h, w)


class Validator:
    """Renders the middle held-out view every `val_minutes`, into images/ (progress.png: all of them) and TensorBoard.

    The first picture is small. Its time decides the size of the next; where pictures still take more than a tenth of the training
    time, they are rarer.
    """

    def __init__(self, system, scene: Scene, cfg: Config, run: RunFolder, device: torch.device):
        self.system, self.scene, self.cfg, self.run, self.device = system, scene, cfg, run, device
        views = scene.test or scene.train
        self.view = views[len(views) // 2]
        self.size = scene.cameras.size(self.view)
        self.last = self.spent = 0.0  # seconds of training at the last picture, seconds spent on pictures
        self.whole: float | None = None  # seconds of a picture at full size, as far as known

    def maybe(self, step: int, seconds: float, progress: float) -> None:
        """A picture when it is due after so many seconds of training."""
        minutes, since = self.cfg.trainer.val_minutes, seconds - self.last
        if not minutes or since < 60 * minutes or self.spent > VALIDATION * seconds:
            return
        scale = probe_scale(self.size) if self.whole is None else fitting_scale(self.whole, VALIDATION * since, self.size, SMALL)
        self.last, began = seconds, time.perf_counter()
        self(step, progress, scale)
        took = time.perf_counter() - began
        self.spent, self.whole = self.spent + took, took / scale**2

    def __call__(self, step: int, progress: float, scale: float = 1.0) -> dict:
        metrics, picture = view_picture(self.system, self.scene, self.cfg, self.device, self.view, scale, progress, split=True)
        write_png(self.run / f"images/val_{step:06d}.png", picture)
        write_png(self.run / "images/progress.png", progress_sheet(self.run.root / "images"))
        self.run.image("val", picture, step)
        self.run.scalars(step, {f"val/{k}": round(v, 4) for k, v in metrics.items() if v is not None})
        return metrics
