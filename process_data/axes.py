"""Statistics of camera axes: the point the optical axes converge on, and the up direction."""

import numpy as np


def unit(x: np.ndarray) -> np.ndarray:
    """Vectors [..., 3] scaled to length 1; zero stays zero."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def _across(c2w: np.ndarray) -> np.ndarray:
    """[N, 3, 3], projections onto the planes normal to the optical axes."""
    forward = unit(c2w[:, :, 2])
    return np.eye(3) - forward[:, :, None] * forward[:, None, :]


def axes_system(c2w: np.ndarray, weight: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(A [3, 3], b [3]) with A x = b for the weighted least-squares nearest point x to the optical axes of cameras [N, 3, 4].

    A is singular when the axes are parallel.
    """
    weight = np.ones(len(c2w)) if weight is None else weight
    across = _across(c2w) * (weight / weight.sum())[:, None, None]
    return across.sum(0), (across @ c2w[:, :, 3:]).sum(0)[:, 0]


def convergence_point(c2w: np.ndarray) -> tuple[np.ndarray, float]:
    """(point [3], share): a robust nearest point to the optical axes, and the share of cameras whose axis passes within 30 degrees of it.

    Least squares reweighted by 1 / distance: cameras that are turned away have little influence. For parallel axes the mean of the
    camera centres is returned, with share 0.
    """
    centres, across = c2w[:, :, 3], _across(c2w)
    weight, point = np.ones(len(c2w)), centres.mean(0)
    for _ in range(20):
        A, b = axes_system(c2w, weight)
        if np.linalg.eigvalsh(A)[0] < 1e-5:
            return centres.mean(0), 0.0
        point = np.linalg.solve(A, b)
        off = np.linalg.norm((across @ (point - centres)[:, :, None])[:, :, 0], axis=1)
        weight = 1 / np.maximum(off, 1e-3 * max(float(np.median(np.linalg.norm(point - centres, axis=1))), 1e-12))
    cosine = (unit(point - centres) * c2w[:, :, 2]).sum(1)
    return point, float((cosine > np.cos(np.radians(30))).mean())


def up_axis(c2w: np.ndarray) -> np.ndarray:
    """[3] unit: the direction most orthogonal to the image x axes, which are level for upright cameras.

    The mean of the image up directions decides its sign, and the direction itself where the x axes leave it undetermined.
    """
    right, up = c2w[:, :, 0], unit(-c2w[:, :, 1].mean(0))
    spread = right.T @ right / len(right) - 0.005 * np.outer(up, up)
    axis = np.linalg.eigh(spread)[1][:, 0]
    return axis * (1.0 if axis @ up >= 0 else -1.0)
