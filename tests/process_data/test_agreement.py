"""Masks against the visual hull of the others."""

import numpy as np
import pytest

from process_data import agreement
from process_data.agreement import outline_hull, overlap, reprojected
from tests.scenes import ring_cameras, trace

K = np.array([[140.0, 0, 63.5], [0, 140.0, 47.5], [0, 0, 1]])


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    monkeypatch.setattr(agreement, "CELLS", 56)


def setting(n: int = 14) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(masks [N, H, W], K [N, 3, 3], c2w [N, 3, 4], cells [M, 3])."""
    c2w = ring_cameras(n)
    axis = (np.arange(40) + 0.5) / 20 - 1
    x = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    return np.stack([trace(K, pose, (96, 128))[1] for pose in c2w]), np.repeat(K[None], n, 0), c2w, x


def test_true_masks_agree_and_a_wrong_one_is_found_and_replaced():
    truth, k, c2w, x = setting()
    masks = truth.copy()
    masks[3] = np.roll(masks[3], 25, 1)
    masks[3, :, 80:] = True
    hull = outline_hull(list(masks), k, c2w, x, np.zeros(3))
    others = reprojected(masks, k, c2w, hull)
    iou = np.array([overlap(a, b) for a, b in zip(masks, others)])
    assert iou[3] < 0.6 and np.delete(iou, 3).min() > 0.88
    assert overlap(others[3], truth[3]) > 0.9


def test_the_own_mask_does_not_count():
    masks, k, c2w, x = setting(8)
    hull = outline_hull(list(masks), k, c2w, x, np.zeros(3))
    before = reprojected(masks, k, c2w, hull)[2]
    masks[2] = False
    assert (reprojected(masks, k, c2w, hull)[2] == before).all()


def test_the_hull_is_the_part_at_the_look_at_point():
    masks, k, c2w, x = setting()
    twice = np.concatenate([x[np.linalg.norm(x - (0.7, 0, 0), axis=1) < 0.25], x[np.linalg.norm(x, axis=1) < 0.15]])
    found = outline_hull([np.ones_like(mask) for mask in masks], k, c2w, twice, np.zeros(3))
    assert 0 < len(found.cells) < 0.4 * len(twice) and np.linalg.norm(found.cells, axis=1).max() < 0.2


def test_overlap():
    a = np.array([1, 1, 0, 0], bool)
    assert overlap(a, np.array([0, 1, 1, 0], bool)) == 1 / 3 and overlap(a & False, a & False) == 1
