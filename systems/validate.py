"""Pictures of one held-out view while training."""

from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from confs.schema import Config
from process_data.rays import view_rays
from systems.base import cut_out, picture_background
from systems.metrics import view_metrics
from utils.image import depth_to_rgb, normal_to_rgb, read_rgb, sheet, write_png
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


class Validator:
    """Renders the middle held-out view every `val_minutes`, into images/ (progress.png: all of them) and TensorBoard."""

    def __init__(self, system, scene: Scene, cfg: Config, run: RunFolder, device: torch.device):
        self.system, self.scene, self.cfg, self.run, self.device = system, scene, cfg, run, device
        views = scene.test or scene.train
        self.view = views[len(views) // 2]
        self.last = 0.0

    def maybe(self, step: int, seconds: float, progress: float) -> None:
        minutes = self.cfg.trainer.val_minutes
        if minutes and seconds - self.last >= 60 * minutes:
            self.last = seconds
            self(step, progress)

    def __call__(self, step: int, progress: float) -> dict:
        scene = self.scene
        w, h = scene.cameras.size(self.view)
        truth, mask, background = truth_of(scene, self.view, self.cfg)
        rays = view_rays(scene.cameras, self.view, self.cfg.model.radius).to(self.device)
        render = self.system.render_view(rays, background.to(self.device), progress, self.cfg.trainer.chunk, full_background=True)
        metrics = view_metrics(render.rgb.view(h, w, 3).cpu(), truth, mask)
        rgb, depth, normal = view_images(render, scene.cameras.c2w[self.view], h, w)
        maps = self.system.maps(rays, render, progress, self.cfg.trainer.chunk)
        picture = rows_of([(truth * 255).round().to(torch.uint8), rgb, *layers(render, h, w), depth, normal], maps, h, w)
        write_png(self.run / f"images/val_{step:06d}.png", picture)
        write_png(self.run / "images/progress.png", progress_sheet(self.run.root / "images"))
        self.run.image("val", picture, step)
        self.run.scalars(step, {f"val/{k}": round(v, 4) for k, v in metrics.items() if v is not None})
        return metrics
