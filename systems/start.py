"""A start of the surface from the points of structure from motion, in place of a sphere.

A sphere fills the picture with fog: every ray has dozens of samples until the surface has found its place. The points lie on the
surface already, and what lies between a point and a camera that sees it is free. A signed distance is interpolated from the points and
their normals (implicit moving least squares, Kolluri, 2008), and the SDF network is fitted to it before the first step.
"""

import logging
import time
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from models.neus import NeuS
from systems.free_space import free_cells, numbers
from utils.rays import Scene

log = logging.getLogger("neus")
LEAST = 200  # points inside the sphere below which they do not describe a surface
COARSE = 2000  # points of a thinned cloud
NEIGHBOURS = 12  # points whose planes are averaged, and from which a normal is estimated
STEPS, BATCH, LR = 200, 4096, 0.005  # of the fit
FAR = 0.25  # radii: distances are not fitted beyond it, their sign alone is
SHARPNESS = 150.0  # inv_s after the fit: the surface is smeared over 1/150 radius, about the gap between points


@dataclass(frozen=True)
class Oriented:
    """Points on the surface with outward normals, and lines of sight."""

    points: np.ndarray  # [P, 3]
    normals: np.ndarray  # [P, 3] unit
    spacing: np.ndarray  # [P] distance to the sixth neighbour
    eyes: np.ndarray  # [M, 3] cameras that see ...
    seen: np.ndarray  # [M, 3] ... these points, inside the sphere or beyond it
    dense: bool = False  # of a plane sweep: lines of sight tell what is free


def oriented_points(scene: Scene, radius: float) -> Oriented | None:
    """The points of the scene inside the sphere without outliers; None when there are too few or it is unknown which views see them."""
    if scene.points is None or scene.tracks is None or not len(scene.tracks):
        return None
    x, centres = scene.points.double().numpy(), scene.cameras.c2w[:, :, 3].double().numpy()
    point, view = scene.tracks.T.numpy()
    toward = np.zeros_like(x)
    away = centres[view] - x[point]
    np.add.at(toward, point, away / np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-9))
    inside = (np.linalg.norm(x, axis=1) < radius) & (np.linalg.norm(toward, axis=1) > 1e-6)
    if inside.sum() < LEAST:
        return None
    p, toward = x[inside], toward[inside] / np.linalg.norm(toward[inside], axis=1, keepdims=True)
    gap = cKDTree(p).query(p, 7)[0][:, 1:]
    keep = gap.mean(1) < 4 * np.median(gap.mean(1))
    p, toward = p[keep], toward[keep]
    distance, near = cKDTree(p).query(p, NEIGHBOURS)
    spread = p[near] - p[near].mean(1, keepdims=True)
    normals = np.linalg.eigh(spread.transpose(0, 2, 1) @ spread)[1][:, :, 0]
    normals *= np.sign((normals * toward).sum(1, keepdims=True) + 1e-12)
    normals = normals + 0.3 * toward  # steadies normals of few points; a surface is never seen from behind
    return Oriented(
        p, normals / np.linalg.norm(normals, axis=1, keepdims=True), distance[:, 6], centres[view], x[point], scene.free is not None
    )


def signed_distance(o: Oriented, tree: cKDTree, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(signed distance [N] of the averaged planes of nearby points, distance [N] to the nearest point) at x [N, 3]."""
    distance, near = tree.query(x, NEIGHBOURS)
    width = np.maximum(1.5 * o.spacing[near], distance[:, 5:6])
    weight = np.exp(-((distance / width) ** 2))
    plane = ((x[:, None] - o.points[near]) * o.normals[near]).sum(2)
    return (weight * plane).sum(1) / weight.sum(1), distance[:, 0]


def _queries(o: Oriented, radius: float, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(x [3 n, 3], target [3 n], whether it is a lower bound alone [3 n]): near points, anywhere in the sphere, on lines of sight."""
    tree = cKDTree(o.points)
    pick = rng.integers(len(o.points), size=n)
    near = o.points[pick] + rng.normal(size=(n, 3)) * (2 * o.spacing[pick] + 0.02 * radius)[:, None]
    anywhere = rng.normal(size=(n, 3))
    anywhere *= radius * rng.random((n, 1)) ** (1 / 3) / np.linalg.norm(anywhere, axis=1, keepdims=True)
    sight = rng.integers(len(o.seen), size=6 * n)
    free = o.seen[sight] + (o.eyes[sight] - o.seen[sight]) * rng.random((6 * n, 1))
    free = free[np.linalg.norm(free, axis=1) < radius][:n]
    x = np.concatenate([near, anywhere, free])
    target, distance = signed_distance(o, tree, x)
    if o.dense and len(o.points) > COARSE:  # far from a dense cloud, the planes of a few near points say nothing about the side
        some = rng.choice(len(o.points), COARSE, replace=False)
        gap = cKDTree(o.points[some]).query(o.points[some], 7)[0][:, 6]
        coarse = Oriented(o.points[some], o.normals[some], gap, o.eyes, o.seen)
        off = distance > np.median(gap)
        target[off] = signed_distance(coarse, cKDTree(coarse.points), x[off])[0]
    if o.dense:
        free = free_cells(o.eyes, o.seen, float(np.median(o.spacing)), radius)[numbers(x, radius)]
        target = np.where(free, np.maximum(target, 0.7 * distance), target)
    target = np.sign(target) * np.minimum(np.abs(target), np.minimum(distance, FAR * radius))
    bound = np.zeros(len(x), bool)
    bound[2 * n :] = True
    target[2 * n :] = np.maximum(np.minimum(target[2 * n :], FAR * radius), 0.0)
    return x, target, bound


def start_from_points(model: NeuS, scene: Scene, seed: int, device: torch.device) -> bool:
    """Fit the SDF of the model to the scene's points and set its sharpness; False when there are too few points."""
    radius = model.radius
    oriented = oriented_points(scene, radius)
    if oriented is None:
        return False
    began = time.perf_counter()
    x, target, bound = _queries(oriented, radius, 100_000, np.random.default_rng(seed))
    points, distances = (torch.from_numpy(part.astype(np.float32)).to(device) for part in (x, target))
    error = _fit(model, points, distances, torch.from_numpy(bound).to(device), seed)
    with torch.no_grad():
        model.variance.v.fill_(float(np.log(SHARPNESS / radius) / 10))
    log.info(
        "start from %d points on the surface: the SDF is fitted to %.4f radii (mean), inv_s %.0f, %.0f s",
        *(len(oriented.points), error / radius, SHARPNESS / radius, time.perf_counter() - began),
    )
    return True


def _fit(model: NeuS, x: Tensor, target: Tensor, bound: Tensor, seed: int) -> float:
    """Adam on the SDF network; returns the mean error near the surface."""
    parameters = list(model.sdf.parameters())
    optimizer = torch.optim.Adam(parameters, lr=LR, betas=(0.9, 0.99), eps=1e-15)
    generator = torch.Generator().manual_seed(seed)
    levels = model.levels_at(0.0)
    error = torch.zeros(())
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = LR * 0.1 ** (step / STEPS)
        index = torch.randint(len(x), (BATCH,), generator=generator).to(x.device)
        t = target[index]
        off = model.sdf.sdf(x[index], levels) - t
        off = torch.where(bound[index], off.clamp(max=0), off).abs()
        weight = 1 / (0.05 * model.radius + t.abs())  # near the surface an error counts most
        loss = (weight * off).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        error = off[t.abs() < 0.05 * model.radius].mean().detach()
    return float(error)
