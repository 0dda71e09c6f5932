"""Points from known cameras: the linear method (DLT), and its robust form, in which wrong observations are left out.

Observations lie on the plane z = 1 of their camera. Letters: V observing cameras, P points seen together (the corners of one marker).
"""

import itertools

import numpy as np

PAIRS = 200  # pairs of cameras that are tried at most


def triangulate(xy: np.ndarray, c2w: np.ndarray) -> np.ndarray:
    """Points [P, 3] in the world from xy [V, P, 2] in cameras [V, 3, 4], V >= 2 (Hartley and Zisserman, 12.2).

    Two rounds: the second divides each equation by the depth, so that errors count in the image.
    """
    middle = c2w[:, :, 3].mean(0)
    size = max(float(np.linalg.norm(c2w[:, :, 3] - middle, axis=1).max()), 1e-12)
    R = c2w[:, :, :3].transpose(0, 2, 1)
    P = np.concatenate([R, -R @ ((c2w[:, :, 3] - middle) / size)[:, :, None]], 2)  # [V, 3, 4]
    rows = xy[..., None] * P[:, None, 2:3] - P[:, None, :2]  # [V, P, 2, 4]
    weight = np.ones(xy.shape[:2])
    for _ in range(2):
        A = (rows * weight[..., None, None]).transpose(1, 0, 2, 3).reshape(xy.shape[1], -1, 4)
        h = np.linalg.svd(A)[2][:, -1]  # [P, 4]
        x = h[:, :3] / np.where(np.abs(h[:, 3:]) < 1e-12, 1e-12, h[:, 3:])
        depth = np.einsum("vk,pk->vp", P[:, 2, :3], x) + P[:, 2, 3:]
        weight = 1 / np.maximum(np.abs(depth), 1e-6)
    return size * x + middle


def errors(x: np.ndarray, xy: np.ndarray, c2w: np.ndarray) -> np.ndarray:
    """The largest distance [V], on the planes z = 1, of the points [P, 3] from xy [V, P, 2]; inf behind the camera."""
    local = (x[None] - c2w[:, None, :, 3]) @ c2w[:, :, :3]  # [V, P, 3]
    depth = local[..., 2]
    off = np.linalg.norm(local[..., :2] / np.where(depth > 1e-9, depth, 1)[..., None] - xy, axis=-1)
    return np.where(depth > 1e-9, off, np.inf).max(1)


def robust(xy: np.ndarray, c2w: np.ndarray, tolerance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(points [P, 3], which cameras agree [V] bool): from the pair of cameras that most others agree with, then from all that agree.

    tolerance [V]: the error of an observation that agrees, at most. V >= 2; fewer than two may agree.
    """
    pairs = list(itertools.combinations(range(len(xy)), 2))
    if len(pairs) > PAIRS:
        pairs = [pairs[i] for i in np.random.default_rng(0).choice(len(pairs), PAIRS, replace=False)]
    best, most = None, (-1, -np.inf)
    for pair in pairs:
        found = triangulate(xy[list(pair)], c2w[list(pair)])
        off = errors(found, xy, c2w) / tolerance
        score = (int((off < 1).sum()), -float(np.minimum(off, 1).sum()))
        if score > most:
            best, most = off < 1, score
    assert best is not None
    agree, x = best, np.zeros((xy.shape[1], 3))
    for _ in range(3):
        if agree.sum() < 2:
            break
        x = triangulate(xy[agree], c2w[agree])
        agree = errors(x, xy, c2w) < tolerance
    return x, agree
