"""The lights and the size of a turntable: a material under its own light, and under another."""

import math
from collections.abc import Collection
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from confs.schema import Config
from models.lights import EnvironmentMap
from models.material import MaterialModel
from process_data.poses import circle
from systems.budget import UNMEASURED, plan_video, seconds_per_pixel
from systems.embedded import render_relit
from systems.material_export import frame_directions, light_image
from utils.hdr import write_hdr
from utils.log import RunFolder

ROWS = 128  # of the map of the evening
FEWER = 64  # samples a pixel, before there are fewer or smaller pictures
SUN = (0.75, 0.55, 0.25)  # towards the sun, z up


def evening(dirs: Tensor) -> Tensor:
    """Radiance [..., 3] from unit directions [..., 3], z up: a low sun, a sky from orange to blue, dark ground. Its scale means nothing."""
    z = dirs[..., 2:]
    horizon, zenith, ground, sun = (
        torch.tensor(c).to(dirs) for c in ((1.0, 0.5, 0.22), (0.1, 0.2, 0.5), (0.1, 0.07, 0.05), (1.0, 0.7, 0.4))
    )
    low = torch.exp(-4 * z.clamp(min=0))
    sky = low * horizon + (1 - low) * zenith
    cosine = (dirs * F.normalize(torch.tensor(SUN).to(dirs), dim=-1)).sum(-1, keepdim=True)
    glow = sun * (40 * torch.exp(300 * (cosine - 1)) + torch.exp(8 * (cosine - 1)))
    above = torch.sigmoid(40 * z)
    return above * (sky + glow) + (1 - above) * ground


def mean_radiance(image: np.ndarray) -> float:
    """Mean of a map [H, W, 3] over the sphere."""
    sine = np.sin((np.arange(len(image)) + 0.5) / len(image) * math.pi)
    return float((image.mean((1, 2)) * sine).sum() / sine.sum())


def lights(model: MaterialModel, cfg: Config, run: RunFolder) -> list[str]:
    """The files of the recovered light and of another: `relight.hdr`, else an evening as bright as the recovered light, z up in the sphere."""
    recovered, other = run / "relight/recovered.hdr", run / "relight/evening.hdr"
    own = light_image(model)
    write_hdr(recovered, own)
    if cfg.relight.hdr:
        return [str(recovered), cfg.relight.hdr]
    image = evening(frame_directions(model, ROWS)).view(ROWS, 2 * ROWS, 3).cpu().numpy()
    write_hdr(other, image * np.float32(mean_radiance(own) / mean_radiance(image)))
    return [str(recovered), str(other)]


def fitted(model: MaterialModel, cfg: Config, seconds: float, given: Collection[str] = ()) -> Config:
    """The config with as many and as large pictures as the embedded renderer, which then renders them, makes in so many seconds.

    given: keys that the user has set, which stay.
    """
    r = cfg.relight
    size, rate = (r.width, r.height), 0.0

    def picture(scale: float) -> None:
        cameras = circle(1, _scaled(size, scale), r.elevation, r.distance * cfg.model.radius)
        cameras = replace(cameras, c2w=cameras.c2w.float())
        render_relit(model, light, cameras, 0, r.samples, r.transparent)

    if math.isfinite(seconds) and r.frames * r.width * r.height > UNMEASURED:
        light = EnvironmentMap(torch.from_numpy(light_image(model, 64)).to(model.local))
        rate = seconds_per_pixel(size, picture)
    sized = {"relight.width", "relight.height"} & set(given)
    steps, wanted, samples = r.frames if "relight.frames" in given else None, 1.0 if sized else None, r.samples
    if r.frames * r.width * r.height * rate > seconds and "relight.samples" not in given:
        samples = min(r.samples, FEWER)
    frames, scale = plan_video(rate * samples / r.samples, size, steps, wanted, seconds)
    frames = min(frames, r.frames)
    width, height = _scaled(size, scale) if scale < 1 else size
    fps = max(1, round(r.fps * frames / r.frames))
    engine = "embedded" if r.engine == "auto" else r.engine
    return replace(cfg, relight=replace(r, engine=engine, samples=samples, frames=frames, width=width, height=height, fps=fps))


def _scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    width, height = (max(2, round(n * scale / 2) * 2) for n in size)
    return width, height
