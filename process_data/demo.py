"""A scene the project makes by itself: photographs of a procedural teapot, its cameras and its exact mesh, in DTU layout.

A signed distance function in the unit sphere's frame (z up) is sphere-traced from cameras around it; marching cubes of the very
same function gives the ground truth. World units are millimetres: world = SCALE * x + CENTRE.

    python -m process_data.demo inputs/demo [--views 48] [--size 320 240] [--seed 0]
"""

import argparse
import json
import logging
import math
import os
import sys
from pathlib import Path
from typing import NamedTuple

import cv2
import mcubes
import numpy as np
import torch
import torch.nn.functional as F
import trimesh
from torch import Tensor
from tqdm import tqdm

from process_data.teapot import BOUND, STEP, noise_volume, normals, sdf, shade
from utils.errors import UserError

log = logging.getLogger("neus")

VERSION = 1  # raise it when the picture changes: finished scenes are then made anew
SCALE = 80.0  # mm per unit
CENTRE = (120.0, -45.0, 310.0)  # mm, of the unit sphere in the world
DISTANCE = 3.0  # of the cameras, in units of the sphere's radius
FOCAL = 1.72  # in image heights
HIT = 1e-4  # sdf below which a ray has arrived (0.015 pixel)
LEAST = 1e-3  # least step of a ray (0.14 pixel), so that grazing rays end; secant steps undo the overshoot
CHUNK = 1 << 16  # points evaluated at once; temporaries stay in the cache
GOLDEN = math.pi * (3 - math.sqrt(5))
LAYOUT = ("image", "mask", "cameras_sphere.npz", "gt_mesh.ply", "README.txt")
README = """A procedural teapot, made by `python -m process_data.demo`.
DTU layout: world_mat_i maps world (mm) to pixels with centres at integers, scale_mat_i maps the unit sphere to the world.
image/ is sRGB over black, mask/ has soft edges (2x2 samples a pixel), gt_mesh.ply is the exact surface in mm (genus 1).
scene.json holds the parameters; it is written last.
"""


# ---- cameras and rays -------------------------------------------------------------------------------------------------------


class _View(NamedTuple):
    K: np.ndarray  # [3, 3] pixels
    R: np.ndarray  # [3, 3] unit frame to camera, OpenCV axes
    eye: np.ndarray  # [3] unit frame


def _views(n: int, width: int, height: int, seed: int) -> list[_View]:
    """A golden spiral over the upper hemisphere and, every sixth view, one from a little below the horizon."""
    rng = np.random.default_rng(seed + 1)
    low = [i for i in range(n) if i % 6 == 3]
    high = [i for i in range(n) if i % 6 != 3]
    views = []
    for i in range(n):
        if i in low:
            azimuth, elevation = 2 * math.pi * low.index(i) / len(low), math.radians(-13 if low.index(i) % 2 else -26)
        else:
            k = high.index(i)
            azimuth, elevation = GOLDEN * k, math.asin(0.05 + 0.90 * (k + 0.5) / len(high))
        azimuth, elevation = azimuth + rng.uniform(-0.08, 0.08), elevation + rng.uniform(-0.04, 0.04)
        eye = np.array([math.cos(azimuth) * math.cos(elevation), math.sin(azimuth) * math.cos(elevation), math.sin(elevation)])
        eye *= DISTANCE * rng.uniform(0.97, 1.04)
        views.append(_look_at(eye, rng.uniform(-0.02, 0.02, 3), rng.uniform(-0.05, 0.05), width, height))
    return views


def _look_at(eye: np.ndarray, target: np.ndarray, roll: float, width: int, height: int) -> _View:
    """A camera at `eye` that sees `target` in the middle, rolled by `roll` radians."""
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, (0.0, 0.0, 1.0))
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    c, s = math.cos(roll), math.sin(roll)
    focal = FOCAL * min(height, 0.75 * width)
    K = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
    return _View(K, np.stack([c * right + s * down, c * down - s * right, forward]), eye)


def _directions(view: _View, uv: np.ndarray) -> Tensor:
    """Unit directions [P, 3] of the rays through pixel coordinates uv [P, 2]."""
    cam = (np.concatenate([uv, np.ones_like(uv[:, :1])], axis=1) @ np.linalg.inv(view.K).T) @ view.R
    return torch.from_numpy(cam / np.linalg.norm(cam, axis=1, keepdims=True)).float()


def _grid(width: int, height: int, pitch: float, first: float) -> np.ndarray:
    """Points [n, 2] (u, v), row by row, `pitch` pixels apart, the first at (first, first)."""
    u, v = (first + pitch * np.arange(math.ceil(size / pitch)) for size in (width, height))
    return np.stack(np.meshgrid(u, v), axis=-1).reshape(-1, 2)


def _sphere(eye: Tensor, dirs: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """Entry and exit distance of each ray, [P]; entry > exit when it misses."""
    b = dirs @ eye
    disc = b * b - (eye @ eye - radius * radius)
    root = disc.clamp_min(0).sqrt()
    return -b - root, torch.where(disc > 0, -b + root, -torch.ones_like(b))


def _cone_march(eye: Tensor, dirs: Tensor, spread: float) -> tuple[Tensor, Tensor]:
    """How far a bundle of rays within `spread` radians of each direction may go unseen: start [P] and whether it can hit [P]."""
    t, end = _sphere(eye, dirs, BOUND + spread * (DISTANCE + 1.5))
    active = (t < end).nonzero()[:, 0]
    alive = torch.zeros_like(t, dtype=torch.bool)
    for _ in range(200):
        # the free ball round the axis must hold the bundle's whole width at the next stop
        step = (STEP * sdf(eye + t[active, None] * dirs[active]) - spread * t[active]) / (1 + spread)
        alive[active[step < 0.003]] = True
        t[active] += step.clamp_min(0)
        active = active[(step >= 0.003) & (t[active] < end[active])]
        if not len(active):
            break
    alive[active] = True
    return t, alive


def _trace(eye: Tensor, dirs: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Distance to the surface [P] from starts t [P], and whether there is one [P]."""
    _, end = _sphere(eye, dirs, BOUND)
    t, before = t.clone(), t.clone()
    hit = torch.zeros_like(t, dtype=torch.bool)
    active = (t < end).nonzero()[:, 0]
    for i in range(300):
        here = t[active]
        d = sdf(eye + here[:, None] * dirs[active])
        arrived = d < HIT
        hit[active[arrived]] = True
        go = ~arrived & (here < end[active])
        active, here, d = active[go], here[go], d[go]
        if not len(active):
            break
        before[active], t[active] = here, here + (STEP * d).clamp_min(LEAST * (1 + i / 16))
    found = hit.nonzero()[:, 0]
    t[found] = _secant(eye, dirs[found], before[found], t[found])
    return t, hit


def _secant(eye: Tensor, dirs: Tensor, t0: Tensor, t1: Tensor) -> Tensor:
    """Three secant steps to the zero between t0 < t1 or just beyond, [P]."""
    d0, d1 = (sdf(eye + t[:, None] * dirs) for t in (t0, t1))
    start, reach = t1, (t1 - t0).clamp_min(20 * HIT)
    for _ in range(3):
        step = -d1 * (t1 - t0) / torch.where((d1 - d0).abs() < 1e-9, torch.full_like(d0, -1e-9), d1 - d0)
        t0, d0 = t1, d1
        t1 = torch.minimum(torch.maximum(t1 + step.nan_to_num(0.0), start - reach), start + reach)
        d1 = sdf(eye + t1[:, None] * dirs)
    return t1


@torch.no_grad()
def render(view: _View, width: int, height: int, volume: Tensor, block: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Image [H, W, 3] and mask [H, W], uint8: the mean of 2x2 samples at +-1/4 pixel."""
    eye = torch.from_numpy(view.eye).float()
    spread = 1.02 * block / math.sqrt(2) / float(view.K[0, 0])
    start, alive = _cone_march(eye, _directions(view, _grid(width, height, block, block / 2 - 0.5)), spread)
    uv = _grid(width, height, 0.5, -0.25)
    cell = ((uv + 0.5) // block).astype(np.int64) @ np.array([1, math.ceil(width / block)])
    live = np.flatnonzero(alive.numpy()[cell])
    rgb, mask = torch.zeros(len(uv), 3), torch.zeros(len(uv))
    for ids in np.array_split(live, max(1, math.ceil(len(live) / (4 * CHUNK)))):  # the last, long rays are few: share their iterations
        dirs = _directions(view, uv[ids])
        t, hit = _trace(eye, dirs, start[cell[ids]])
        found = torch.from_numpy(ids)[hit]
        rgb[found] = shade(eye + t[hit, None] * dirs[hit], dirs[hit], volume)
        mask[found] = 1.0

    # averaged after the sRGB curve: methods that composite sRGB values as they are then see edges that agree with the mask
    def pool(x: Tensor) -> np.ndarray:
        small = x.reshape(height, 2, width, 2, -1).mean(dim=(1, 3))
        return (small * 255 + 0.5).to(torch.uint8).numpy()

    return pool(rgb), pool(mask)[..., 0]


# ---- mesh -------------------------------------------------------------------------------------------------------------------


def _coarse_grid(nodes: int = 81) -> Tensor:
    """The sdf at the nodes of a grid over [-BOUND, BOUND]^3, [1, 1, Z, Y, X] in the layout of `grid_sample`."""
    axis = torch.linspace(-BOUND, BOUND, nodes)
    p = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")[::-1], dim=-1).reshape(-1, 3)
    return torch.cat([sdf(q) for q in p.split(CHUNK)]).reshape(1, 1, nodes, nodes, nodes)


def _fine_grid(axes: list[Tensor], coarse: Tensor) -> np.ndarray:
    """The sdf at the nodes of a grid, [X, Y, Z] float32; away from the surface the interpolated coarse grid has the same sign."""
    band = 2.5 * 2 * BOUND / (coarse.shape[-1] - 1)
    rows = torch.stack(torch.meshgrid(axes[1], axes[2], indexing="ij"), dim=-1).reshape(-1, 2)
    slabs = []
    for x in axes[0]:
        p = torch.cat([x.expand(len(rows), 1), rows], dim=1)
        slab = F.grid_sample(coarse, (p / BOUND)[None, None, None], align_corners=True, padding_mode="border").flatten()
        near = (slab.abs() < band).nonzero()[:, 0]
        slab[near] = sdf(p[near])
        slabs.append(slab)
    return torch.stack(slabs).reshape([len(a) for a in axes]).numpy()


@torch.no_grad()
def ground_truth(resolution: int) -> trimesh.Trimesh:
    """The surface in world units, `resolution` cells along the longest side; vertices are moved onto the true zero set."""
    coarse = _coarse_grid()
    inside = (coarse[0, 0] < 0.03).nonzero().flip(1).double() * (2 * BOUND / (coarse.shape[-1] - 1)) - BOUND
    low, high = inside.amin(0) - 0.03, inside.amax(0) + 0.03
    pitch = float((high - low).max()) / resolution
    axes = [torch.arange(math.ceil(float(h - l) / pitch) + 1) * pitch + l for l, h in zip(low, high)]
    vertices, faces = mcubes.marching_cubes(_fine_grid([a.float() for a in axes], coarse), 0.0)
    p = torch.from_numpy(vertices) * pitch + low
    for _ in range(4):
        n, slope = normals(p, 1e-4)
        p = p - n * (sdf(p) / slope.clamp_min(0.3)).clamp(-pitch / 2, pitch / 2)[:, None]
    mesh = trimesh.Trimesh((SCALE * p.numpy() + CENTRE).astype(np.float32), faces, process=False)
    if mesh.volume < 0:
        mesh.invert()
    return mesh


# ---- files ------------------------------------------------------------------------------------------------------------------


def _cameras(views: list[_View]) -> dict[str, np.ndarray]:
    """world_mat_i (world to pixel) and scale_mat_i (unit sphere to world), float64 4x4."""
    to_world = np.diag([SCALE, SCALE, SCALE, 1.0])
    to_world[:3, 3] = CENTRE
    arrays: dict[str, np.ndarray] = {}
    for i, view in enumerate(views):
        world_mat = np.eye(4)
        eye = SCALE * view.eye + CENTRE
        world_mat[:3] = view.K @ np.concatenate([view.R, -(view.R @ eye)[:, None]], axis=1)
        arrays |= {f"world_mat_{i}": world_mat, f"scale_mat_{i}": to_world}
    return arrays


def _state(folder: Path, wanted: dict) -> str:
    """done (this very scene is there), ours (another or a half-written demo scene), free; anything else is a `UserError`."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return "free"
    if folder.is_dir() and (folder / "scene.json.part").exists():
        return "ours"
    try:
        found = json.loads((folder / "scene.json").read_text())
        generator = found["generator"]
    except (OSError, ValueError, KeyError, TypeError):
        generator = None
    if generator != wanted["generator"]:
        raise UserError(f"{folder}: holds something other than a demo scene; expected a new or an empty folder; name another one")
    return "done" if found == wanted and all((folder / name).exists() for name in LAYOUT) else "ours"


def _write_image(path: Path, image: np.ndarray) -> None:
    if not cv2.imwrite(str(path), image):
        raise OSError(f"cannot write {path.name}")


def _write(folder: Path, scene: dict) -> None:
    """Make every file; `scene.json.part` marks the folder as unfinished and becomes `scene.json` at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / "scene.json.part"
    part.write_text(json.dumps(scene, indent=2) + "\n")
    (folder / "scene.json").unlink(missing_ok=True)
    for name in ("image", "mask"):
        (folder / name).mkdir(exist_ok=True)
        for old in (folder / name).glob("*.png"):
            old.unlink()
    width, height = scene["size"]
    views = _views(scene["views"], width, height, scene["seed"])
    volume = noise_volume(scene["seed"])
    for i, view in enumerate(tqdm(views, desc="demo scene", unit="view")):
        image, mask = render(view, width, height, volume)
        _write_image(folder / "image" / f"{i:06d}.png", image[..., ::-1])
        _write_image(folder / "mask" / f"{i:03d}.png", mask)
    np.savez(folder / "cameras_sphere.npz", **_cameras(views))  # type: ignore[arg-type]
    ground_truth(scene["mesh_resolution"]).export(folder / "gt_mesh.ply")
    (folder / "README.txt").write_text(README)
    os.replace(part, folder / "scene.json")


def make_demo(folder: Path, n_views: int = 48, width: int = 320, height: int = 240, seed: int = 0, mesh_resolution: int = 320) -> Path:
    """Make the demo scene in `folder` unless the same one is already there; returns the folder.

    width, height: pixels. mesh_resolution: cells along the ground truth's longest side.
    Raises `UserError` when the numbers make no scene, or when the folder cannot be written or holds something else.
    """
    folder = Path(folder)
    if n_views < 1 or min(width, height) < 8 or seed < 0 or mesh_resolution < 32:
        got = f"{n_views} views of {width}x{height}, seed {seed}, mesh resolution {mesh_resolution}"
        raise UserError(f"demo: got {got}; expected at least 1 view of 8x8, seed 0, mesh resolution 32")
    scene = {"generator": "process_data.demo", "version": VERSION, "views": n_views, "size": [width, height], "seed": seed}
    scene["mesh_resolution"] = mesh_resolution
    try:
        state = _state(folder, scene)
        if state == "done":
            log.info("%s: the demo scene is already there", folder)
            return folder
        _write(folder, scene)
    except OSError as error:
        raise UserError(f"{folder}: cannot write the demo scene ({error}); name a folder you may write to") from error
    log.info("%s: made %d views of %dx%d", folder, n_views, width, height)
    return folder


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m process_data.demo", description="Make the demo scene.")
    parser.add_argument("folder", type=Path, help="where to write it, e.g. inputs/demo")
    parser.add_argument("--views", type=int, default=48)
    parser.add_argument("--size", type=int, nargs=2, default=[320, 240], metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        make_demo(args.folder, args.views, args.size[0], args.size[1], seed=args.seed)
    except UserError as error:
        log.error("%s", error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
