"""A box on one photograph decides the sphere: by points, by tracks, without points, and what is refused."""

import logging

import numpy as np
import pytest

from confs.load import load_config
from confs.schema import DatasetConfig
from process_data.box import box_sphere, find_view, make_box, nearest_cluster
from process_data.lens import Lens
from process_data.load import load_scene
from process_data.normalize import similarity_parts
from systems.cli import parse
from tests import formats
from tests.process_data.test_sight import SIZE, K, ellipsoid, fan, ring
from utils.errors import UserError

NAMES = [f"images/IMG_{i}.jpg" for i in range(24)]
CAMERAS = [(K, SIZE, Lens())] * 24


def drawn(points: np.ndarray, c2w: np.ndarray, view: int, margin: float = 5) -> str:
    """The box around points [P, 3] in a view."""
    camera = (points - c2w[view, :, 3]) @ c2w[view, :, :3]
    uv = (camera @ K.T)[:, :2] / camera[:, 2:] + 0.5
    (x0, y0), (x1, y1) = np.maximum(uv.min(0) - margin, 0), np.minimum(uv.max(0) + margin, SIZE)
    return f"{x0},{y0},{x1},{y1}@IMG_{view}"


@pytest.mark.parametrize("seed", range(3))
def test_the_points_in_the_box_decide(seed):
    rng = np.random.default_rng(seed)
    c2w = ring(24, 4.0, 30, [0, 0, 0])
    thing, other = ellipsoid(400, [0.3, 0.3, 0.4], [-0.7, 0.2, 0], rng)[0], ellipsoid(2000, [0.5, 0.5, 0.5], [0.6, 0, 0], rng)[0]
    wall = rng.uniform([-9, -9, -2], [9, 9, -1.9], (2000, 3)) * [1, 1, 3]
    points = np.concatenate([thing, other, wall])
    box = make_box(drawn(thing, c2w, 6), NAMES, CAMERAS)
    centre, radius, words = box_sphere(box, c2w, points, None, np.zeros(3))
    assert (np.linalg.norm(thing - centre, axis=1) < radius).mean() >= 0.98 and radius < 1.6 * 0.4, (centre, radius)
    assert "points in the box on images/IMG_6.jpg" in words


def test_tracks_drop_the_points_that_the_view_does_not_see():
    c2w = fan(24, 4.0, 40, np.zeros(3), np.random.default_rng(0))
    rng = np.random.default_rng(1)
    seen_part, hidden = rng.normal(0, 0.1, (50, 3)), rng.normal(0, 0.1, (50, 3)) - 0.5 * (c2w[3, :, 3] / np.linalg.norm(c2w[3, :, 3]))
    box = make_box(drawn(np.concatenate([seen_part, hidden]), c2w, 3), NAMES, CAMERAS)
    seen = np.stack([np.arange(50), np.full(50, 3)], 1)
    assert "the 50 points" in box_sphere(box, c2w, np.concatenate([seen_part, hidden]), seen, np.zeros(3))[2]


def test_without_points_the_look_at_point_gives_the_depth():
    c2w = ring(24, 4.0, 30, [0, 0, 0])
    centre, radius, _ = box_sphere(make_box("270,190,370,290@IMG_2", NAMES, CAMERAS), c2w, None, None, np.zeros(3))
    np.testing.assert_allclose(centre, 0, atol=1e-9)
    assert radius == pytest.approx(1.15 * 50 / 600 * 4)


def test_a_distorted_photograph():
    lens = Lens("brown", (-0.25, 0.05))
    box = make_box("0,0,320,480@IMG_0", NAMES, [(K, SIZE, lens)] * 24)  # the left half
    camera = np.array([[-0.2, 0.1, 1], [0.2, 0.1, 1], [-0.2, 0.1, -1], [-30, 0.1, 1]])  # left, right, behind, far off where the model folds
    np.testing.assert_array_equal(box.contains(camera), [True, False, False, False])
    edge = box.to_plane(np.array([[-0.5, 239.5]]))[0]
    assert edge[0] < -320 / 600  # barrel distortion: the photograph shows more than a pinhole would


def test_the_nearest_cluster_holds_a_share():
    depth = np.concatenate([np.full(2, 1.0), np.linspace(3, 3.5, 60), np.full(80, 9.0)])
    np.testing.assert_array_equal(nearest_cluster(depth), (depth > 2) & (depth < 4))
    assert nearest_cluster(np.array([1.0, 2.0, 4.0])).sum() == 1


@pytest.mark.parametrize(
    "text, message",
    [
        ("1,2,3@IMG_1", "expected x0,y0,x1,y1@IMAGE"),
        ("a,b,c,d@IMG_1", "expected x0,y0,x1,y1@IMAGE"),
        ("1,2,3,4", "expected x0,y0,x1,y1@IMAGE"),
        ("nan,0,3,4@IMG_1", "expected x0,y0,x1,y1@IMAGE"),
        ("30,2,3,4@IMG_1", "is empty"),
        ("1,2,900,4@IMG_1", "leaves images/IMG_1.jpg, which has 640x480 pixels"),
        ("1,2,3,4@images/IMG_1.jpeg", "did you mean 'images/IMG_1"),
        ("1,2,3,4@tree", "the first of 24 is images/IMG_0.jpg"),
    ],
)
def test_boxes_are_checked(text, message):
    with pytest.raises(UserError, match=message):
        make_box(text, NAMES, CAMERAS)


def test_a_box_without_points_and_names():
    c2w = ring(24, 4.0, 30, [0, 0, 0])
    with pytest.raises(UserError, match="0 points lie in the box on images/IMG_1.jpg"):
        box_sphere(make_box("0,0,20,20@IMG_1", NAMES, CAMERAS), c2w, np.zeros((50, 3)), None, np.zeros(3))
    assert find_view("IMG_3", NAMES) == find_view("IMG_3.jpg", NAMES) == find_view("images/IMG_3.jpg", NAMES) == 3


def test_the_option_overrides_masks_and_given_spheres(tmp_path):
    """Whole way: reader, box, sphere; and the flag."""
    for name, write in (("dtu", formats.write_dtu), ("colmap", formats.write_colmap)):
        folder = str(write(tmp_path / name, formats.make()))
        before = load_scene(DatasetConfig(root_dir=folder), log=logging.getLogger("quiet"))
        width, height = before.cameras.width, before.cameras.height
        cfg = DatasetConfig(root_dir=folder, region=f"{width // 4},{height // 4},{width // 2},{height // 2}@{before.names[1]}")
        after = load_scene(cfg, log=logging.getLogger("quiet"))
        assert similarity_parts(after.to_world.numpy())[0] < 0.8 * similarity_parts(before.to_world.numpy())[0]
    words = parse(["--train", "dataset.root_dir=x", "--region", "1,2,3,4@a b: #1.jpg"]).overrides
    assert load_config(None, words).dataset.region == "1,2,3,4@a b: #1.jpg"
    with pytest.raises(UserError, match="--region goes with --train"):
        parse(["--mesh", "--resume", "x", "--region", "1,2,3,4@a"])
    with pytest.raises(UserError, match="decides the centre too"):
        load_config(None, ["dataset.region='1,2,3,4@a'", "dataset.center=lookat"])
