"""The edge of a mask at the resolution of the photograph: a guided filter (He, Sun and Tang 2010) in a band along it, coarse to fine.

At each doubling of the resolution the mask of the last one is enlarged, and the band around its edge is filtered with the photograph as
the guide, so that the edge moves to the edge in colour. The band is worked on in tiles; the rest of the photograph is left alone.
"""

import cv2
import numpy as np

TILE = 192  # pixels along a side
REACH = 4  # pixels by which the edge may move at each resolution: the radius of the filter
SMOOTH = (8 / 255) ** 2  # variance of colour below which the guide is plain


def _box(a: np.ndarray) -> np.ndarray:
    return cv2.blur(a, (2 * REACH + 1,) * 2)


def guided(guide: np.ndarray, p: np.ndarray) -> np.ndarray:
    """p [H, W] filtered so that it is locally an affine function of the colours guide [H, W, 3]; float32, in [0, 1]."""
    mean, mean_p = _box(guide), _box(p)
    joint = _box(guide * p[..., None]) - mean * mean_p[..., None]
    pairs = [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]
    product = (
        _box(np.stack([guide[..., i] * guide[..., j] for i, j in pairs[:3]], -1)),
        _box(np.stack([guide[..., i] * guide[..., j] for i, j in pairs[3:]], -1)),
    )
    second = np.concatenate(product, -1)
    a, b, c, d, e, f = (second[..., k] - mean[..., i] * mean[..., j] + (SMOOTH if i == j else 0) for k, (i, j) in enumerate(pairs))
    minors = d * f - e * e, c * e - b * f, b * e - c * d, a * f - c * c, b * c - a * e, a * d - b * b  # of the symmetric 3 x 3 matrix
    x, y, z = (joint[..., k] for k in range(3))
    m0, m1, m2, m3, m4, m5 = minors
    slope = np.stack([m0 * x + m1 * y + m2 * z, m1 * x + m3 * y + m4 * z, m2 * x + m4 * y + m5 * z], -1)
    slope /= np.maximum(a * m0 + b * m1 + c * m2, 1e-12)[..., None]
    constant = mean_p - (slope * mean).sum(-1)
    return (_box(slope) * guide).sum(-1) + _box(constant)


def _edges(mask: np.ndarray) -> np.ndarray:
    """uint8 [H, W]: the pixels within REACH of the edge."""
    kernel = np.ones((2 * REACH + 1,) * 2, np.uint8)
    return cv2.dilate(mask, kernel) - cv2.erode(mask, kernel)


def _snap(mask: np.ndarray, photo: np.ndarray) -> np.ndarray:
    """The mask uint8 [H, W] of 0 and 1 with its edge moved by at most REACH pixels to that of photo uint8 [H, W, 3]."""
    band, result, pad = _edges(mask), mask.copy(), 3 * REACH
    h, w = mask.shape
    for top in range(0, h, TILE):
        for left in range(0, w, TILE):
            here = band[top : top + TILE, left : left + TILE]
            rows, columns = np.nonzero(here.any(1))[0], np.nonzero(here.any(0))[0]
            if not len(rows):
                continue
            y0, y1, x0, x1 = top + rows[0], top + rows[-1] + 1, left + columns[0], left + columns[-1] + 1
            a, b, c, d = max(0, y0 - pad), min(h, y1 + pad), max(0, x0 - pad), min(w, x1 + pad)
            q = guided(photo[a:b, c:d].astype(np.float32) / 255, mask[a:b, c:d].astype(np.float32)) > 0.5
            inner = np.s_[y0 - a : y1 - a, x0 - c : x1 - c]
            result[y0:y1, x0:x1] = np.where(band[y0:y1, x0:x1] > 0, q[inner], mask[y0:y1, x0:x1])
    return result


def refine(mask: np.ndarray, photo: np.ndarray) -> np.ndarray:
    """uint8 [H, W] of 0 and 1: a smaller mask, bool or 0 and 1, enlarged to photo uint8 [H, W, 3] with its edge at the photograph's."""
    h, w = photo.shape[:2]
    mask = np.asarray(mask, np.uint8)
    while True:
        factor = min(2.0, w / mask.shape[1], h / mask.shape[0])
        last = factor * mask.shape[1] >= w - 1 or factor * mask.shape[0] >= h - 1
        size = (w, h) if last else (round(factor * mask.shape[1]), round(factor * mask.shape[0]))
        level = photo if last else cv2.resize(photo, size, interpolation=cv2.INTER_AREA)
        soft = cv2.resize(cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 0.7), size, interpolation=cv2.INTER_LINEAR)
        mask = _snap((soft > 0.5).astype(np.uint8), level)
        if last:
            return mask
