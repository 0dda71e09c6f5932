"""The region of interest by every choice, its up direction, the hull, and the picture of it."""

import logging

import numpy as np
import pytest

from confs.load import load_config
from confs.schema import DatasetConfig
from process_data.axes import convergence_point
from process_data.ground import ground_normal
from process_data.hull import silhouettes, visual_hull
from process_data.load import load_scene
from process_data.normalize import similarity_parts
from process_data.preview import INSIDE, scene_picture, spread_views
from process_data.region import Views, choose_region, framed_radius, smallest_ball
from tests import formats
from tests.scenes import ring_cameras
from utils.errors import UserError

LOG = logging.getLogger("quiet")
K = np.array([[60.0, 0, 31.5], [0, 60, 23.5], [0, 0, 1]])


def views(n: int = 12, points=None, scale: float = 2.0, shift=(5.0, 6.0, 7.0)) -> Views:
    """Cameras at distance 3 scale that look at `shift`."""
    c2w = ring_cameras(n)
    c2w[:, :, 3] = scale * c2w[:, :, 3] + shift
    return Views(np.repeat(K[None], n, 0), c2w, (64, 48), points, None, tuple(range(n)))


def cloud(rng, n: int = 400, size: float = 0.8, far: int = 60) -> np.ndarray:
    """Points of an object around (5, 6, 7), and surroundings far off."""
    near = rng.uniform(-size, size, (n, 3)) * [1, 1, 0.5] + [5, 6, 7]
    return np.concatenate([near, rng.standard_normal((far, 3)) * 60])


def test_convergence_point_is_robust():
    v = views()
    v.c2w[3, :, :3] = v.c2w[3, :, :3] @ np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])  # one camera looks aside
    point, share = convergence_point(v.c2w)
    np.testing.assert_allclose(point, [5, 6, 7], atol=0.02)
    assert share == pytest.approx(11 / 12)


def test_parallel_axes_do_not_converge():
    c2w = np.repeat(np.eye(3, 4)[None], 5, 0)
    c2w[:, 0, 3] = range(5)
    assert convergence_point(c2w)[1] == 0


def test_framed_radius_by_hand():
    # half the width of the frustum at distance 6 is 6 * 32 / 60 = 3.2, its slanted side is cos(atan(32 / 60)) of that away
    assert framed_radius(views(), np.array([5.0, 6, 7])) == pytest.approx(3.2 * np.cos(np.arctan(32 / 60)), rel=1e-6)
    assert framed_radius(views(), np.array([500.0, 6, 7])) is None


def test_smallest_ball():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, 3))
    x = 3 * x / np.linalg.norm(x, axis=1, keepdims=True) + [1, 2, 3]
    centre, radius = smallest_ball(x)
    np.testing.assert_allclose(centre, [1, 2, 3], atol=0.05)
    assert radius == pytest.approx(3, rel=0.02)


@pytest.mark.parametrize("choice", ["auto", "lookat", "points", "bbox", "cameras", "given", [5.0, 6.0, 7.0]])
def test_every_centre(choice):
    v = views(points=cloud(np.random.default_rng(0)))
    to_world, line = choose_region(v, DatasetConfig(center=choice, radius=1.5 if choice == "given" else None))
    scale, _, centre = similarity_parts(to_world)
    want = {"given": [0, 0, 0], "cameras": v.centres.mean(0)}.get(choice if isinstance(choice, str) else "", [5, 6, 7])
    np.testing.assert_allclose(centre, want, atol=0.25)
    assert abs(scale - 1.5) < 1e-9 if choice == "given" else 0.5 < scale < 6, line
    inside = np.linalg.norm(v.points[:400] - centre, axis=1) < scale
    assert choice in ("given", "cameras") or inside.mean() > 0.85


def test_radius_and_centre_are_overridden():
    to_world, line = choose_region(views(), DatasetConfig(radius=0.25))
    assert similarity_parts(to_world)[0] == pytest.approx(0.25) and "radius as set" in line


def test_points_are_asked_for():
    for key in ({"center": "points"}, {"center": "bbox"}, {"up": "ground"}):
        with pytest.raises(UserError, match="needs the points"):
            choose_region(views(), DatasetConfig(**key))


def test_up_by_cameras_ground_and_hand():
    rng = np.random.default_rng(0)
    normal = np.array([0.1, 0.05, 1.0]) / np.linalg.norm([0.1, 0.05, 1.0])
    plane = rng.uniform(-1, 1, (500, 3))
    plane -= np.outer(plane @ normal, normal) - np.outer(rng.normal(0, 1e-3, 500), normal)
    v = views(points=np.concatenate([plane, rng.uniform(-1, 1, (100, 3))]) + [5, 6, 7])
    for choice, want, accuracy in (("cameras", [0, 0, 1], 1e-3), ("ground", normal, 1e-2), ([0.0, 2.0, 0.0], [0, 1, 0], 1e-9)):
        to_world, _ = choose_region(v, DatasetConfig(up=choice))
        _, R, _ = similarity_parts(to_world)
        np.testing.assert_allclose(R[:, 2], want, atol=accuracy)
        np.testing.assert_allclose(R.T @ R, np.eye(3), atol=1e-12)
        assert np.linalg.det(R) == pytest.approx(1)
    assert ground_normal(rng.uniform(-1, 1, (10, 3)), normal) is None


def scattered(rng, normal, n):
    """Points of a ball on a floor of n points with the given normal, around (5, 6, 7)."""
    floor = rng.uniform(-3, 3, (n, 3))
    floor -= np.outer(floor @ normal + 1 - rng.normal(0, 5e-3, n), normal)
    ball = rng.standard_normal((600, 3))
    return np.concatenate([floor, ball / np.linalg.norm(ball, axis=1, keepdims=True)]) + [5, 6, 7]


@pytest.mark.parametrize(("tilt", "n", "words"), [(10, 500, "ground plane"), (0, 0, "cameras"), (90, 500, "cameras")])
def test_up_is_estimated_from_a_clear_ground_or_else_from_the_cameras(tilt, n, words):
    """A ball has no ground, and a wall is none: ground_normal finds a plane in both."""
    normal = np.array([np.sin(np.radians(tilt)), 0, np.cos(np.radians(tilt))])
    v = views(points=scattered(np.random.default_rng(0), normal, n))
    to_world, line = choose_region(v, DatasetConfig(), auto_up="estimated")
    want = normal if words == "ground plane" else np.array([0, 0, 1.0])
    assert f"up from the {words}" in line and similarity_parts(to_world)[1][:, 2] @ want > np.cos(np.radians(0.5)), line
    marked, line = choose_region(v, DatasetConfig(), auto_up="estimated", measured_up=np.array([0.6, 0, 0.8]))
    assert "up from the markers" in line
    np.testing.assert_allclose(similarity_parts(marked)[1][:, 2], [0.6, 0, 0.8], atol=1e-12)


def test_masks_bound_the_object_tightly(tmp_path):
    scene = load_scene(DatasetConfig(root_dir=str(formats.write_transforms(tmp_path, formats.make()))), log=LOG)
    scale, _, centre = similarity_parts(scene.to_world.numpy())
    np.testing.assert_allclose(centre, formats.CENTRE, atol=0.15)
    assert 0.6 * formats.SCALE < scale < 0.85 * formats.SCALE  # the longest half axis is 0.6


def test_hull_forgives_one_mask_and_gives_up_on_nonsense():
    v, n = views(30), 30
    masks = np.zeros((n, 48, 64), np.uint8)
    masks[:, 16:32, 24:40] = 255
    masks[7] = 0
    cells, _ = visual_hull(silhouettes(masks, v.K, v.c2w, list(range(n))), np.array([5.0, 6, 7]), 4.0)
    assert np.linalg.norm(cells.mean(0) - [5, 6, 7]) < 0.1
    masks[::2] = 0
    assert visual_hull(silhouettes(masks, v.K, v.c2w, list(range(n))), np.array([5.0, 6, 7]), 4.0) is None


def test_dtu_keeps_its_sphere_unless_told(tmp_path):
    folder = str(formats.write_dtu(tmp_path, formats.make()))
    assert similarity_parts(load_scene(DatasetConfig(root_dir=folder), log=LOG).to_world.numpy())[0] == pytest.approx(3)
    given = load_scene(DatasetConfig(root_dir=folder, radius=2.5, center=[10.5, -20, 30]), log=LOG).to_world.numpy()
    assert similarity_parts(given)[0] == pytest.approx(2.5) and given[0, 3] == pytest.approx(10.5)


def test_picture(tmp_path):
    scene = load_scene(DatasetConfig(root_dir=str(formats.write_colmap(tmp_path, formats.make()))), log=LOG)
    picture = scene_picture(scene)
    assert picture.shape[0] == 640 and picture.dtype == np.uint8
    for colour in ((40, 90, 220), (230, 120, 20), (20, 150, 60), INSIDE):  # cameras, held out, sphere, points in it
        assert (picture[:, :1280] == colour).all(-1).sum() > 10
    photographs = picture[:, 1280:].reshape(640, 3, -1, 3)
    for colour in ((20, 150, 60), (90, 220, 60)):  # the outline and the points on each of the three
        assert ((photographs == colour).all(-1).sum((0, 2)) > 10).all()
    first, *others = spread_views(scene, 3)
    centres = scene.cameras.c2w[:, :, 3]
    assert len({first, *others}) == 3 and all((centres[first] - centres[i]).norm() > 0.5 for i in others)
    smaller = scene_picture(scene, 0.3)
    assert (smaller[:, 1280:] == (150, 150, 150)).all(-1).sum() > 10  # points outside


@pytest.mark.parametrize(
    "word, text",
    [
        ("center=middle", "dataset.center: must be auto"),
        ("up=[0,0,0]", "dataset.up"),
        ("radius=-1", "dataset.radius"),
        ("center=[1,2]", "dataset.center"),
    ],
)
def test_keys_are_checked(word, text):
    with pytest.raises(UserError, match=text):
        load_config(None, [f"dataset.{word}"])
