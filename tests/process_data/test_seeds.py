"""What the geometry says of the object: points triangulated for known cameras, the thing at the look-at point, pixels of the plane."""

import cv2
import numpy as np

from process_data.seeds import PlanePixels, Seeds, correlation, part_at
from process_data.sift_points import neighbours, sift_points
from tests.scenes import ring_cameras
from utils.projection import project

K = np.array([[300.0, 0, 159.5], [0, 300.0, 119.5], [0, 0, 1]])


def table_views(n: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """(images uint8 [N, 240, 320, 3] of a patterned table at z = -0.4 with a grey box region at its middle, c2w)."""
    rng = np.random.default_rng(0)
    pattern = cv2.GaussianBlur(cv2.resize(rng.uniform(0, 255, (160, 160)), (800, 800)), (0, 0), 1.5)
    images, c2w = [], ring_cameras(n)
    corners = np.array([[-2, -2, -0.4], [2, -2, -0.4], [2, 2, -0.4], [-2, 2, -0.4]])
    for pose in c2w:
        uv = project(corners, K, pose)[0].astype(np.float32)
        H = cv2.getPerspectiveTransform(np.float32([[0, 0], [799, 0], [799, 799], [0, 799]]), uv)
        images.append(cv2.warpPerspective(pattern, H, (320, 240)).clip(0, 255).astype(np.uint8))
    return np.repeat(np.stack(images)[..., None], 3, -1), c2w


def test_triangulated_points_lie_on_the_table():
    images, c2w = table_views()
    x = sift_points(list(images), np.repeat(K[None], len(c2w), 0), c2w, np.zeros(3))
    assert len(x) > 300 and np.median(np.abs(x[:, 2] + 0.4)) < 0.01
    assert len(sift_points(list(images * 0), np.repeat(K[None], len(c2w), 0), c2w, np.zeros(3))) == 0


def test_neighbours_differ_by_the_angles():
    c2w = ring_cameras(12)
    for i, row in enumerate(neighbours(c2w, np.zeros(3), 3, (5.0, 50.0))):
        angle = np.degrees(np.arccos(c2w[row, :, 3] @ c2w[i, :, 3] / 9))
        assert len(row) <= 3 and i not in row and (angle > 5).all() and (angle < 50).all()


def test_pixels_of_the_plane_and_not_of_a_patch_before_it():
    images, c2w = table_views(16)
    rng = np.random.default_rng(1)
    for image in images:  # a pattern of its own in every view, as of a thing above the table
        image[90:150, 130:190] = cv2.resize(rng.integers(0, 255, (20, 20, 1), np.uint8), (60, 60))[..., None]
    seeds = Seeds(np.zeros(3), np.zeros((0, 3)), np.zeros((0, 3)), (np.array([0, 0, 1.0]), -0.4))
    at = PlanePixels(list(images), np.repeat(K[None], len(c2w), 0), c2w, seeds)
    found = np.stack([at(i) for i in range(len(c2w))])
    assert found[:, 96:144, 136:184].mean() < 0.03
    table = found.copy()
    table[:, 80:160, 120:200] = False
    assert table[:, 170:, :].mean() > 0.6
    assert not PlanePixels(list(images), np.repeat(K[None], len(c2w), 0), c2w, Seeds(np.zeros(3), *[np.zeros((0, 3))] * 2, None))(0).any()


def test_correlation():
    a = np.random.default_rng(0).uniform(0, 255, (30, 30)).astype(np.float32)
    assert correlation(a, 0.5 * a + 20).min() > 0.99 and np.abs(correlation(np.full_like(a, 9), a)).max() == 0


def test_the_thing_at_the_look_at_point_not_the_largest():
    rng = np.random.default_rng(0)
    small, large = rng.uniform(-0.1, 0.1, (200, 3)), rng.uniform(-0.3, 0.3, (2000, 3)) + [0.7, 0, 0]
    stray = rng.uniform(-0.02, 0.02, (4, 3)) + [0, 0, 0.3]
    chosen = part_at(np.concatenate([large, small, stray]), 0.12, np.zeros(3))
    assert not chosen[:2000].any() and chosen[2000:2200].all()
    assert part_at(np.zeros((0, 3)), 0.1, np.zeros(3)).shape == (0,)
