"""The edge of a mask at the photograph's resolution."""

import cv2
import numpy as np

from process_data.agreement import overlap
from process_data.refine import guided, refine


def star(size: int = 320) -> np.ndarray:
    """bool [H, W]: a star with twelve points."""
    v, u = np.mgrid[:size, :size] - size / 2
    return np.hypot(u, v) < size * (0.3 + 0.08 * np.cos(12 * np.arctan2(v, u)))


def picture(mask: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 6, (*mask.shape, 3))
    rgb = np.where(mask[..., None], (190, 120, 70), (60, 90, 110)) + noise
    return cv2.GaussianBlur(np.clip(rgb, 0, 255).astype(np.uint8), (0, 0), 0.7)


def test_an_enlarged_mask_gets_the_photographs_edge():
    truth = star()
    small = cv2.resize(truth.astype(np.float32), (40, 40), interpolation=cv2.INTER_AREA) > 0.5
    enlarged = cv2.resize(small.astype(np.float32), truth.shape[::-1], interpolation=cv2.INTER_LINEAR) > 0.5
    found = refine(small, picture(truth)) > 0
    assert overlap(enlarged, truth) < 0.97 and overlap(found, truth) > 0.985


def test_away_from_the_edge_and_on_a_plain_photograph_the_mask_stays():
    truth = star()
    image = picture(truth)
    image[150:170, 150:170] = (60, 90, 110)  # background colour inside
    found = refine(truth, image) > 0
    assert found[150:170, 150:170].all() and overlap(found, truth) > 0.99
    assert overlap(refine(truth, np.full((320, 320, 3), 128, np.uint8)) > 0, truth) > 0.95
    for empty in (np.zeros((40, 40), bool), np.ones((40, 40), bool)):
        assert (refine(empty, image) == empty[0, 0]).all()


def test_another_aspect_ratio_and_odd_sizes():
    assert refine(np.ones((30, 40), bool), np.zeros((101, 77, 3), np.uint8)).shape == (101, 77)


def test_the_guided_filter_is_exact_for_an_affine_mask():
    guide = np.random.default_rng(0).uniform(0, 1, (30, 40, 3)).astype(np.float32)
    p = guide @ np.float32([0.3, -0.2, 0.5]) + 0.1
    assert np.abs(guided(guide, p) - p).max() < 0.02
