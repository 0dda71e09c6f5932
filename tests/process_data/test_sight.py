"""The sphere for scenes without masks: neighbours, few features, walls and trunks; made from points alone, seeded."""

import numpy as np
import pytest

from confs.schema import DatasetConfig
from process_data.normalize import similarity_parts
from process_data.region import Views, choose_region, smallest_ball
from process_data.sight import clearance, in_front, middle_weight, one_sided, points_in_sight
from utils.projection import project

SIZE = (640, 480)
K = np.array([[600.0, 0, 319.5], [0, 600, 239.5], [0, 0, 1]])


def looking(centres: np.ndarray, target) -> np.ndarray:
    """Upright cameras [N, 3, 4] at centres [N, 3] that look at the target."""
    forward = np.asarray(target) - centres
    forward = forward / np.linalg.norm(forward, axis=1, keepdims=True)
    right = np.cross(forward, [0, 0, 1.0])
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    return np.stack([right, np.cross(forward, right), forward, centres], 2)


def ring(n: int, distance: float, elevation: float, target) -> np.ndarray:
    turn, up = 2 * np.pi * np.arange(n) / n, np.radians(elevation)
    away = np.stack([np.cos(turn) * np.cos(up), np.sin(turn) * np.cos(up), np.full(n, np.sin(up))], 1)
    return looking(np.asarray(target) + distance * away, target)


def fan(n: int, distance: float, half: float, target, rng) -> np.ndarray:
    """Cameras on the side of -y, within `half` degrees, at somewhat different distances and heights."""
    turn = np.radians(np.linspace(-half, half, n))
    away = np.stack([np.sin(turn), -np.cos(turn), rng.uniform(-0.3, 0.3, n)], 1) * rng.uniform(0.8, 1.2, (n, 1))
    return looking(np.asarray(target) + distance * away, target + rng.normal(0, 0.1, 3))


def observed(points: np.ndarray, normals: np.ndarray, c2w: np.ndarray, rng, share: float = 0.5) -> np.ndarray:
    """[M, 2] tracks: a random share of the views that have a point in frame and on the side of its normal."""
    pairs = []
    for i, pose in enumerate(c2w):
        uv, depth = project(points, K, pose)
        faces = ((pose[:, 3] - points) * normals).sum(1) > 0.2 * np.linalg.norm(pose[:, 3] - points, axis=1)
        found = np.flatnonzero((depth > 0) & (middle_weight(uv, np.array(SIZE)) > 0) & faces & (rng.random(len(points)) < share))
        pairs.append(np.stack([found, np.full(len(found), i)], 1))
    return np.concatenate(pairs)


def views(parts: list[tuple[np.ndarray, np.ndarray]], c2w: np.ndarray, rng, tracks: bool) -> Views:
    """Parts: (points, normals). Points with fewer than three observations are left out, as by structure from motion."""
    points, normals = (np.concatenate(x) for x in zip(*parts))
    seen = observed(points, normals, c2w, rng)
    kept = np.bincount(seen[:, 0], minlength=len(points)) >= 3
    seen = seen[kept[seen[:, 0]]]
    seen[:, 0] = (np.cumsum(kept) - 1)[seen[:, 0]]
    points = points[kept] + rng.normal(0, 0.003, (kept.sum(), 3))
    return Views(np.repeat(K[None], len(c2w), 0), c2w, SIZE, points, None, tuple(range(len(c2w))), seen if tracks else None)


def ellipsoid(n: int, axes, centre, rng) -> tuple[np.ndarray, np.ndarray]:
    x = rng.standard_normal((n, 3))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    normals = x / axes
    return x * axes + centre, normals / np.linalg.norm(normals, axis=1, keepdims=True)


def table(n: int, half: float, rng) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([rng.uniform(-half, half, (n, 2)), np.zeros((n, 1))], 1), np.tile([0, 0, 1.0], (n, 1))


def check(v: Views, truth: np.ndarray, words: str, largest: float = 1.6) -> None:
    """The sphere contains the object, is not much larger than its ball, and nearly all cameras are outside."""
    to_world, line = choose_region(v, DatasetConfig())
    radius, _, centre = similarity_parts(to_world)
    assert words in line
    inside = (np.linalg.norm(truth - centre, axis=1) < radius).mean()
    outside = (np.linalg.norm(v.centres - centre, axis=1) > radius).mean()
    ratio = radius / smallest_ball(truth)[1]
    assert inside >= 0.98 and outside >= 0.95 and ratio <= largest, f"inside {inside:.3f}, outside {outside:.3f}, ratio {ratio:.2f}: {line}"


SEEDS = pytest.mark.parametrize("seed", range(2))
TRACKS = pytest.mark.parametrize("tracks", [True, False])


@TRACKS
@SEEDS
def test_a_larger_neighbour_is_left_out(seed, tracks):
    rng = np.random.default_rng(seed)
    thing = ellipsoid(600, [0.35, 0.3, 0.5], [0, 0, 0.5], rng)
    mug = ellipsoid(2500, [0.45, 0.45, 0.7], [1.2, 0.3, 0.7], rng)
    v = views([thing, mug, table(2500, 2.5, rng)], ring(24, 3.0, 35, [0, 0, 0.4]), rng, tracks)
    check(v, thing[0], "points above the supporting plane")


@TRACKS
@pytest.mark.parametrize("n", [0, 40])
@SEEDS
def test_an_object_with_few_features_is_not_cut_off(seed, n, tracks):
    rng = np.random.default_rng(seed)
    full = ellipsoid(2000, [0.8, 0.8, 0.95], [0, 0, 0.95], rng)
    low = full[0][:, 2] < 0.6  # features in the lower half alone
    few = (full[0][low][:n], full[1][low][:n])
    v = views([few, table(3000, 3, rng)], ring(24, 3.0, 30, [0, 0, 0.9]), rng, tracks)
    check(v, full[0], "what the cameras frame above the supporting plane")


@TRACKS
@pytest.mark.parametrize("relief", [0.02, 0.25])
@SEEDS
def test_a_relief_on_a_wall(seed, relief, tracks):
    rng = np.random.default_rng(seed)

    def height(x, z):
        return relief * (np.exp(-((x**2 + z**2) / 0.4)) + 0.5 * np.exp(-(((x - 0.6) ** 2 + (z + 0.5) ** 2) / 0.05)))

    x, z = rng.uniform(-4, 4, (2, 12000))
    step = 1e-3
    slope = np.stack([(height(x + step, z) - height(x, z)) / step, np.ones(len(x)), (height(x, z + step) - height(x, z)) / step], 1)
    normals = -slope / np.linalg.norm(slope, axis=1, keepdims=True)
    wall = np.stack([x, -height(x, z), z], 1), normals
    v = views([wall], fan(25, 3.0, 50, [0, 0, 0], rng), rng, tracks)
    check(v, wall[0][(np.abs(x) < 1.2) & (np.abs(z) < 1.0)], "")


@TRACKS
@SEEDS
def test_a_trunk_larger_than_the_view(seed, tracks):
    rng = np.random.default_rng(seed)
    turn, z = rng.uniform(-np.pi, np.pi, 9000), rng.uniform(-4, 4, 9000)
    normals = np.stack([np.sin(turn), -np.cos(turn), 0 * turn], 1)
    trunk = normals * (1 + 0.1 * np.sin(3 * turn + z))[:, None] * [1, 1, 0] + np.stack([0 * z, 0 * z, z], 1), normals
    trees = rng.uniform([-20, 8, -4], [20, 20, 6], (1200, 3))
    c2w = fan(23, 3.6, 70, [0, 0, 0.3], rng)
    v = views([trunk, (trees, np.tile([0, -1.0, 0], (1200, 1)))], c2w, rng, tracks)
    share = np.zeros(9000)
    for pose in c2w:
        share += (middle_weight(project(trunk[0], K, pose)[0], np.array(SIZE)) > 0) / len(c2w)
    check(v, trunk[0][(share > 0.6) & (np.abs(turn) < np.radians(75))], "points in sight")


def test_cameras_amid_the_points_have_no_sphere_in_sight():
    rng = np.random.default_rng(0)
    room = rng.uniform(-3, 3, (3000, 3))
    room[np.arange(3000), rng.integers(0, 3, 3000)] = rng.choice([-3, 3], 3000)
    turn = np.linspace(0, 6, 20)
    inside = looking(0.5 * np.stack([np.cos(turn), np.sin(turn), 0 * turn], 1), [0, 0, 0])
    inside[:, :, :3] = inside[:, :, :3] * [-1, 1, -1]  # outwards
    v = Views(np.repeat(K[None], 20, 0), inside, SIZE, room, None, tuple(range(20)))
    _, line = choose_region(v, DatasetConfig())
    assert "in sight" not in line


def test_weights_by_hand():
    size = np.array([100, 50])
    uv = np.array([[49.5, 24.5], [99.5, 24.5], [49.5, 37.0], [200, 20]])
    np.testing.assert_allclose(middle_weight(uv, size), [1, 0, 0.75, 0])
    depth = np.array([2.0, 2.0, 2.0, 2.0])
    np.testing.assert_array_equal(in_front(uv[:3], depth[:3], size), [True, False, True])
    pair = np.array([[48.0, 24.0], [49.0, 24.2]])
    np.testing.assert_array_equal(in_front(pair, np.array([2.0, 3.0]), size), [True, False])  # hidden by the nearer
    np.testing.assert_array_equal(in_front(pair, np.array([2.0, 2.3]), size), [True, True])
    assert clearance(np.array([[0, 0, 2.0], [0, 3, 0]]), np.zeros(3)) == pytest.approx(1.8)
    assert one_sided(np.array([[0, 0, 2.0], [0, 1, 2]]), np.zeros(3)) and not one_sided(np.array([[0, 0, 2.0], [0, 0, -2]]), np.zeros(3))


def test_tracks_decide_which_views_see_a_point():
    c2w = ring(4, 3.0, 20, [0, 0, 0])
    points = np.random.default_rng(0).normal(0, 0.1, (60, 3))
    seen = np.stack([np.arange(50), np.zeros(50, int)], 1)  # the last ten are seen by no view
    sight = points_in_sight(points, np.repeat(K[None], 4, 0), c2w, np.tile(SIZE, (4, 1)), seen)
    assert len(sight.points) == 50 and (sight.weight <= 1).all()
