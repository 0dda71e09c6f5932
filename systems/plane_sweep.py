"""Points on the surface before any training: a depth map of each photograph by a plane sweep, and what the maps agree on.

For every photograph, planes across its line of sight are moved through the sphere. Each carries the neighbouring photographs into this
one, where windows around each pixel are compared by normalised cross-correlation (NCC; Collins 1996) and pixels by colour. The depths of
a photograph are chosen together (`systems/semi_global.py`), and one is kept when the map of another photograph agrees with it. Unlike
training, this searches all depths: a hollow is found as a hollow.
"""

import hashlib
import io
import logging
import os
import time
import zipfile
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor
from tqdm import tqdm

from systems.free_space import centres, free_cells, numbers
from systems.patches import source_views
from systems.semi_global import semi_global
from systems.start import oriented_points
from utils.decimate import cell_means
from utils.files import read_file, write_atomic
from utils.log import RunFolder
from utils.rays import Cameras, Scene

log = logging.getLogger("neus")
FILE, MOST_BYTES = "points.npz", 1 << 28  # in a run folder
FLOATS = np.float32, np.float64
THREADS = 4  # at most; each takes about 300 MB
VIEWS = 100  # photographs that are swept; of more, as many at even steps
PIXELS = 120_000  # of a depth map, at most
DEPTHS = 96  # planes, at even steps of inverse depth
BEYOND = 24  # planes behind the sphere: what lies there must not look like something within
SOURCES = 6  # photographs that are compared with each
WINDOW = 3  # pixels of the side of the windows that are compared
BEST = 2  # of them that agree best count; the others may be hidden
COLOUR = 13  # of 255: a difference in colour that counts as much as NCC 0 in place of 1; larger ones, as of another exposure, no more
SLANT = 0.02  # of the score: what a surface turned by 45 degrees pays for each pixel (`systems/semi_global.py`)
JUMP = 6  # times the price of a change by one plane: what a larger one costs
LEAST = 0.4  # the mean score of these, below which there is no depth
AROUND = 9  # pixels of the side of a window that must have texture for its middle to have a depth
TEXTURE = 2.0 / 255  # standard deviation of the grey levels of a window with texture
AGREE = 1, 3  # other maps that must have the same depth: of a pixel with texture in its own window, and of one without
WITHIN = 0.006  # radii by which these may differ
WARP = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
OUTSIDE = -1e3  # grey level beyond the edge of a photograph
CROWD, FEW = 4, 2  # points in a cell, and cells around it, that make it certain; fewer are noise unless nothing is seen behind them
MOST, MEAN = 150_000, 8  # cells at most, and points of one on average at least: these are averaged


@dataclass(frozen=True)
class Cloud:
    """Points on the surface in the unit sphere's frame."""

    points: np.ndarray  # [P, 3]
    tracks: np.ndarray  # [M, 2] pairs (point, view)
    free: np.ndarray  # [Q, 3] points in free space, evenly spaced


def _mean(x: np.ndarray, side: int = WINDOW) -> np.ndarray:
    return cv2.blur(x, (side, side), borderType=cv2.BORDER_REFLECT_101)


def _textured(grey: np.ndarray, side: int) -> np.ndarray:
    return _mean(grey * grey, side) - _mean(grey, side) ** 2 > TEXTURE**2


def _grey(photo: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(photo.astype(np.float32) / 255, cv2.COLOR_RGB2GRAY)


def depth_map(photos: Mapping[int, np.ndarray], K: np.ndarray, c2w: np.ndarray, i: int, sources: list[int], radius: float) -> np.ndarray:
    """Depth [h, w] along the optical axis of photograph i; 0 where nothing agrees.

    photos: it and the sources, {number: [h, w, 3] uint8}. K [N, 3, 3], c2w [N, 3, 4].
    """
    grey = {j: _grey(photos[j]) for j in (i, *sources)}
    mine = grey[i]
    h, w = mine.shape
    middle = -(c2w[i, :, 3] @ c2w[i, :, 2])
    low, high = max(middle - radius, 0.05), middle + radius
    if high <= low:
        return np.zeros_like(mine)
    inverse = np.append(np.linspace(1 / low, 1 / high, DEPTHS), np.linspace(1 / high, 0.02 / high, BEYOND + 1)[1:])
    a = _mean(mine)
    spread = (_mean(mine * mine) - a * a).clip(0) + 1e-6
    score, second = np.zeros((len(inverse), h, w), np.float32), np.zeros((len(inverse), h, w), np.float32)
    corners = np.array([[0, 0, 1], [w, 0, 1], [0, h, 1], [w, h, 1.0]])
    for j in sources:
        into = K[j] @ c2w[j, :, :3].T
        turn, base = into @ c2w[i, :, :3] @ np.linalg.inv(K[i]), into @ (c2w[i, :, 3] - c2w[j, :, 3])
        for k, z in enumerate(1 / inverse):
            plane = turn * z  # of the plane at depth z: pixels of i to pixels of j
            plane[:, 2] += base
            if (corners @ plane[2] <= 1e-3).any():
                continue
            b = cv2.warpPerspective(grey[j], plane, (w, h), flags=WARP, borderValue=OUTSIDE)
            mean = _mean(b)
            ncc = (_mean(mine * b) - a * mean) / np.sqrt(spread * ((_mean(b * b) - mean * mean).clip(0) + 1e-6))
            off = cv2.absdiff(photos[i], cv2.warpPerspective(photos[j], plane, (w, h), flags=WARP))
            off = cv2.transform(cv2.threshold(off, COLOUR, 255, cv2.THRESH_TRUNC)[1], np.ones((1, 3)))  # of all channels
            alike = np.where(mean >= 0, (0.5 + 0.5 * ncc - off / np.float32(6 * COLOUR)).clip(0), 0)
            np.maximum(second[k], np.minimum(alike, score[k]), out=second[k])
            np.maximum(score[k], alike, out=score[k])
    score += second
    del second
    score /= BEST
    turned = (low + high) / 2 / K[i, 0, 0] * DEPTHS / (high - low)  # planes from a pixel to the next on a surface turned by 45 degrees
    slant = min(SLANT / turned, 0.1)
    joint = semi_global(np.ascontiguousarray(score.transpose(1, 2, 0)), slant, JUMP * slant)
    index = joint.argmax(2)
    best = np.take_along_axis(score, index[None], 0)[0]
    inner = index.clip(1, DEPTHS - 2)  # what lies beyond the sphere is dropped
    left, here, right = (np.take_along_axis(joint, (inner + k)[..., None], 2)[..., 0] for k in (-1, 0, 1))
    shift = (0.5 * (left - right) / np.minimum(left - 2 * here + right, -1e-6)).clip(-0.5, 0.5)
    place = np.where(index == inner, inner + shift, index)
    good = (index < DEPTHS) & (best > LEAST) & _textured(mine, AROUND)
    return np.where(good, 1 / (1 / low + (1 / high - 1 / low) * place / (DEPTHS - 1)), 0).astype(np.float32)


def swept(scene: Scene, radius: float, run: RunFolder, writes: bool = True, anew: bool = True) -> Scene | None:
    """The scene with the points of `sweep`, None where they are too few; kept in the run folder's points.npz, for a resumed run.

    writes: the file. anew: sweep where there is none for this scene.
    """
    path, what = run.root / FILE, _signature(scene, radius)
    cloud = _read(path, what, len(scene.names))
    if cloud is None and anew:
        cloud = sweep(scene, radius)
        if cloud is not None and writes:
            data = io.BytesIO()
            np.savez(data, points=cloud.points, tracks=cloud.tracks, free=cloud.free, signature=what)
            write_atomic(path, data.getvalue())
    if cloud is None:
        return None
    points, free, tracks = torch.from_numpy(cloud.points).float(), torch.from_numpy(cloud.free).float(), torch.from_numpy(cloud.tracks)
    known = replace(scene, points=points, tracks=tracks, free=free)
    return known if oriented_points(known, radius) is not None else None


def _signature(scene: Scene, radius: float) -> str:
    """A checksum of what a sweep depends on."""
    digest = hashlib.sha256(
        f"{PIXELS} {DEPTHS} {SOURCES} {WINDOW} {COLOUR} {WITHIN} {MOST} {MEAN} {CROWD} {FEW} {radius} {scene.train}".encode()
    )
    for tensor in (scene.cameras.K, scene.cameras.c2w, scene.images):
        digest.update(tensor.contiguous().view(-1).numpy().data)
    return digest.hexdigest()


def _read(path: Path, what: str, n_views: int) -> Cloud | None:
    """The points in a file, where they are of this scene."""
    try:
        data = io.BytesIO(read_file(path))
        if sum(part.file_size for part in zipfile.ZipFile(data).infolist()) > MOST_BYTES:
            return None
        with np.load(data, allow_pickle=False) as file:
            cloud, of = Cloud(file["points"], file["tracks"], file["free"]), str(file["signature"])
        places = all(x.ndim == 2 and x.shape[1] == 3 and x.dtype in FLOATS and np.isfinite(x).all() for x in (cloud.points, cloud.free))
        pairs = cloud.tracks.ndim == 2 and cloud.tracks.shape[1:] == (2,) and cloud.tracks.dtype == np.int64
    except (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error, RuntimeError, AttributeError, TypeError):
        return None  # RuntimeError: flags of the archive that ask for what zipfile cannot do, or for a password
    inside = pairs and ((cloud.tracks >= 0) & (cloud.tracks < (len(cloud.points), n_views))).all()
    return cloud if of == what and places and inside else None


def sweep(scene: Scene, radius: float) -> Cloud | None:
    """The points that the depth maps of the training photographs agree on, inside the sphere; None where there are none."""
    began = time.perf_counter()
    cameras, train = (
        scene.cameras,
        [scene.train[k] for k in np.linspace(0, len(scene.train) - 1, min(VIEWS, len(scene.train))).round().astype(int)],
    )
    factor = min(1.0, (PIXELS / (cameras.width * cameras.height)) ** 0.5)
    w, h = max(8, round(cameras.width * factor)), max(8, round(cameras.height * factor))
    photos = {i: cv2.resize(scene.image(i).numpy(), (w, h), interpolation=cv2.INTER_AREA) for i in train}
    small = cameras.resized(w, h)
    chosen, serve = source_views(cameras.c2w, train)
    K, c2w = small.K.double().numpy(), small.c2w.double().numpy()

    def one(i: int) -> np.ndarray:
        sources = [int(j) for j, ok in zip(chosen[i, :SOURCES], serve[i]) if ok]
        return depth_map(photos, K, c2w, i, sources, radius) if len(sources) >= BEST else np.zeros((h, w), np.float32)

    maps = torch.zeros(len(train), h, w)  # in the order of `train`
    with ThreadPoolExecutor(max(1, min(THREADS, os.cpu_count() or 1))) as pool:
        for k, found in enumerate(tqdm(pool.map(one, train), desc="plane sweep", total=len(train), unit="view", leave=False)):
            maps[k] = torch.from_numpy(found)
    least = torch.full(maps.shape, AGREE[1], dtype=torch.uint8)
    for k, i in enumerate(train):
        least[k][torch.from_numpy(_textured(_grey(photos[i]), WINDOW))] = AGREE[0]
    points, tracks = _fused(maps, least, small, train, chosen.tolist(), radius)
    if not len(points):
        return None
    cloud = _cleaned(points.numpy().astype(np.float64), tracks.numpy(), c2w[:, :, 3], radius)
    log.info(
        "plane sweep: %d depth maps of %dx%d, %d points that agree, %d kept, %.0f s",
        len(train),
        w,
        h,
        len(points),
        len(cloud.points),
        time.perf_counter() - began,
    )
    return cloud if len(cloud.points) else None


def _fused(
    maps: Tensor, least: Tensor, cameras: Cameras, train: list[int], sources: list[list[int]], radius: float
) -> tuple[Tensor, Tensor]:
    """(points [P, 3], views [P]) of the depths of maps [T, h, w] of views `train` that at least `least` [T, h, w] other maps have too."""
    _, h, w = maps.shape
    found, views, number = [], [], {i: k for k, i in enumerate(train)}
    for i, depth, enough in zip(train, maps, least):
        v, u = torch.nonzero(depth > 0, as_tuple=True)
        z = depth[v, u]
        pixel = torch.stack([u, v, torch.ones_like(u)]).float()
        x = (cameras.c2w[i, :, :3] @ torch.linalg.inv(cameras.K[i]) @ pixel * z).T + cameras.c2w[i, :, 3]
        votes = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        total, weight = x.clone(), torch.ones(len(x), 1, device=x.device)
        for j in sources[i]:
            if j == i or j not in number:
                continue
            local = (x - cameras.c2w[j, :, 3]) @ cameras.c2w[j, :, :3]
            p = local @ cameras.K[j].T
            uv = (p[:, :2] / p[:, 2:].clamp(min=1e-6)).round().long()
            inside = (p[:, 2] > 1e-3) & (uv[:, 0] >= 0) & (uv[:, 0] < w) & (uv[:, 1] >= 0) & (uv[:, 1] < h)
            at = torch.where(inside[:, None], uv, 0)
            other = maps[number[j]][at[:, 1], at[:, 0]]
            same = inside & (other > 0) & ((other - local[:, 2]).abs() < WITHIN * radius)
            votes += same
            moved = torch.cat([local[:, :2] * (other / local[:, 2].clamp(min=1e-6))[:, None], other[:, None]], 1)
            there = moved @ cameras.c2w[j, :, :3].T + cameras.c2w[j, :, 3]
            total += torch.where(same[:, None], there, 0)
            weight += same[:, None]
        mean = total / weight
        keep = (votes >= enough[v, u]) & (mean.norm(dim=1) < radius)
        found.append(mean[keep])
        views.append(torch.full((int(keep.sum()),), i, device=x.device))
    return torch.cat(found), torch.cat(views)


def _cells(x: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray, float]:
    """(cell [P] of points [P, 3], the mean of the points of each cell [C, 3], side of a cell) of cubes that are at most MOST."""
    side = 0.005 * radius
    while True:
        key = np.floor((x + radius) / side).astype(np.int64)
        _, cell = np.unique((key[:, 0] << 40) + (key[:, 1] << 20) + key[:, 2], return_inverse=True)
        if cell.max() < min(MOST, max(len(x) / MEAN, 1)):
            return cell, cell_means(x, cell), side
        side *= 1.2


def _cleaned(x: np.ndarray, view: np.ndarray, eyes: np.ndarray, radius: float) -> Cloud:
    """The points [P, 3] of views [P], those in a small cube averaged; without those that few others lie near and that stand where
    others are looked at through. eyes [N, 3] of the views."""
    cell, mean, side = _cells(x, radius)
    count = np.bincount(cell)
    near = cKDTree(mean).query_ball_point(mean, 2 * side, return_length=True)
    pair = np.unique(np.stack([cell, view], 1), axis=0)
    sure = (count >= CROWD) & (near >= CROWD)
    seen = pair[sure[pair[:, 0]]]
    free = free_cells(eyes[seen[:, 1]], mean[seen[:, 0]], side, radius)
    keep = sure | ((count >= FEW) & (near >= FEW) & ~free[numbers(mean, radius)])
    pair = pair[keep[pair[:, 0]]]
    pair[:, 0] = (np.cumsum(keep) - 1)[pair[:, 0]]
    return Cloud(mean[keep], pair.astype(np.int64), centres(free, radius))
