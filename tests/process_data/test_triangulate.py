"""Points from known cameras: epipolar geometry, the files in the scene folder, and a scene of two textured planes through a lens."""

import json
import logging
from contextlib import nullcontext
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from confs.schema import DatasetConfig
from process_data import triangulate as module
from process_data.capture import View
from process_data.colmap_files import Point
from process_data.lens import Lens, undistort
from process_data.load import load_scene
from process_data.path import look_at
from process_data.triangulate import POINTS, RECORD, essential, off_line, pairs
from tests import formats
from tests.scenes import ring_cameras
from utils.errors import UserError

LOG = logging.getLogger("test")
K = np.array([[300.0, 0, 158.0], [0, 305.0, 121.0], [0, 0, 1]])
LENS = (0.08, -0.05, 0.002, -0.001)
TRACKS = np.array([[0, 3], [0, 1], [2, 0]])
STEP = 0.3  # height of the upper plane, which covers |x|, |y| < 0.4


def local_rays() -> np.ndarray:
    """[240 * 320, 3] through the pixels, in the camera's frame."""
    v, u = np.mgrid[:240, :320].astype(np.float64)
    plane = undistort(Lens("brown", LENS), np.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1]], -1).reshape(-1, 2))
    return np.concatenate([plane, np.ones((len(plane), 1))], 1)


def picture(c2w: np.ndarray, rays: np.ndarray, texture: np.ndarray) -> np.ndarray:
    """[240, 320, 3] in [0, 1]: the planes z = 0 and z = STEP, painted with noise."""
    dirs = rays @ c2w[:, :3].T

    def at(height: float) -> np.ndarray:
        return (c2w[:, 3] + ((height - c2w[2, 3]) / dirs[:, 2:]) * dirs)[:, :2]

    upper, lower = at(STEP), at(0.0)
    on_top = (np.abs(upper) < 0.4).all(1)
    xy = np.where(on_top[:, None], upper + 0.9, lower)  # different parts of the texture
    pixel = ((xy + 4) * len(texture) / 8).astype(np.float32).reshape(240, 320, 2)
    grey = cv2.remap(texture, pixel[..., 0], pixel[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    return np.repeat(grey[..., None], 3, 2)


@pytest.fixture(scope="module")
def planes() -> formats.Written:
    """7 cameras that look down at the planes."""
    rng = np.random.default_rng(0)
    texture = cv2.GaussianBlur(rng.uniform(0, 1, (800, 800)).astype(np.float32), (0, 0), 1.0)
    texture = np.clip((texture - texture.mean()) * 2.5 + 0.5, 0, 1)
    turn, rays = np.linspace(0, 2, 7), local_rays()
    eyes = np.stack([0.9 * np.cos(turn), 0.9 * np.sin(turn), np.full(7, 2.0)], 1)
    c2w = look_at(eyes, np.zeros(3), np.array([0, 0, 1.0]))
    return formats.Written(K, LENS, c2w, [picture(pose, rays, texture) for pose in c2w])


def config(folder, **options) -> DatasetConfig:
    return DatasetConfig(root_dir=str(folder), **options)


def world(scene) -> np.ndarray:
    return scene.points.double().numpy() @ scene.to_world.numpy()[:3, :3].T + scene.to_world.numpy()[:3, 3]


def forbidden(*_):
    pytest.fail("triangulated again")


def test_points_lie_on_the_surface_and_are_kept(planes, tmp_path, monkeypatch):
    pytest.importorskip("pycolmap", reason="pycolmap is not installed")
    folder = formats.write_transforms(tmp_path / "s", planes)
    first = load_scene(config(folder), log=LOG)
    x = world(first)
    off = np.minimum(np.abs(x[:, 2]), np.abs(x[:, 2] - STEP))
    assert len(x) > 150 and (np.abs(x[:, 2] - STEP) < 0.05).sum() > 20
    assert np.median(off) < 0.005 and np.quantile(off, 0.95) < 0.03  # a pixel is 0.007 wide at the planes
    assert json.loads((folder / RECORD).read_text())["points"] == len(x)
    assert np.bincount(first.tracks[:, 0], minlength=len(x)).min() >= 3 and first.tracks[:, 1].unique().tolist() == list(range(7))
    monkeypatch.setattr(module, "triangulate", forbidden)
    again = load_scene(config(folder), log=LOG)
    np.testing.assert_array_equal(first.points, again.points)
    np.testing.assert_array_equal(first.tracks, again.tracks)
    np.testing.assert_array_equal(first.to_world, again.to_world)


@pytest.fixture
def few(tmp_path, monkeypatch):
    """A small scene without masks; triangulation yields its surface points and counts its calls."""
    written = formats.make(n_views=4, hw=(24, 32), fx=35.0, fy=35.0, cx=16.0, cy=12.0)
    for i, image in enumerate(written.images):
        written.images[i] = image[..., :3]
    calls = []

    def made(_, views, develop):
        calls.append(len(views))
        assert develop(views[0], 16)[0].shape == (12, 16, 3)
        return formats.surface_points(), TRACKS

    monkeypatch.setattr(module, "_pycolmap", lambda: object())
    monkeypatch.setattr(module, "triangulate", made)
    return formats.write_transforms(tmp_path / "s", written), calls


@pytest.mark.parametrize(
    "tracks", [None, 5, [], [[0, 4]], [[0, -1]], [[-1, 0]], [[10**6, 0]], [[0, 2**70]], [[0, 1], [2]], [[0, 1.0]], ["01"]]
)
def test_tracks_are_kept_and_checked(few, tracks):
    folder, calls = few
    for _ in range(2):
        np.testing.assert_array_equal(load_scene(config(folder), log=LOG).tracks, TRACKS)
    assert calls == [4]
    record = {k: v for k, v in json.loads((folder / RECORD).read_text()).items() if k != "tracks"}  # the former format
    (folder / RECORD).write_text(json.dumps(record if tracks is None else {**record, "tracks": tracks}))
    for _ in range(2):
        np.testing.assert_array_equal(load_scene(config(folder), log=LOG).tracks, TRACKS)
    assert calls == [4, 4]


def test_a_record_that_is_too_large_is_not_read(few, monkeypatch):
    folder, calls = few
    load_scene(config(folder), log=LOG)
    monkeypatch.setattr(module, "MOST_BYTES", 100)
    assert load_scene(config(folder), log=LOG).tracks is not None and calls == [4, 4]


def test_tracks_name_the_views_of_the_scene_when_most_take_part(monkeypatch, tmp_path):
    views = [View(str(i), tmp_path, K, (320, 240), pose) for i, pose in enumerate(ring_cameras(7))]
    points = [Point((i, 0.0, 0.0), 0.5, 3, (40, 11, 23)[: 3 - i % 2]) for i in range(10)]
    for name, value in {"_features": None, "_match": None, "_verify": None, "_model": (None, [11, 40, 5, 23]), "_points": points}.items():
        monkeypatch.setattr(module, name, lambda *_, value=value: value)
    monkeypatch.setattr(module, "MOST", 4)  # the views 0, 2, 4, 6
    pycolmap = SimpleNamespace(set_random_seed=int, Database=SimpleNamespace(open=nullcontext))
    x, tracks = module.triangulate(pycolmap, views, lambda *_: (np.zeros((4, 4, 3), np.uint8), K))
    assert x.shape == (10, 3) and tracks.dtype == np.int64
    assert tracks[:5].tolist() == [[0, 0], [0, 6], [0, 2], [1, 0], [1, 2]] and len(tracks) == 25


def test_points_of_other_cameras_are_made_again(few):
    folder, calls = few
    load_scene(config(folder), log=LOG)
    np.testing.assert_allclose(world(load_scene(config(folder), log=LOG)), formats.surface_points(), atol=1e-4)
    assert calls == [4]
    path = folder / "transforms.json"
    path.write_text(path.read_text().replace('"fl_x": 35.0', '"fl_x": 36.0'))
    load_scene(config(folder), log=LOG)
    assert calls == [4, 4]


@pytest.mark.parametrize("name, data", [(POINTS, b"ply\n"), (RECORD, b"{}"), (RECORD, b"["), (RECORD, b'{"made by": 3}')])
def test_files_of_others_are_left_alone(few, name, data, caplog):
    folder, calls = few
    (folder / name).write_bytes(data)
    with caplog.at_level(logging.INFO):
        assert load_scene(config(folder), log=LOG).points is not None
    assert (folder / name).read_bytes() == data and "left alone" in caplog.text and calls == [4]
    assert not (folder / (RECORD if name == POINTS else POINTS)).exists()


def test_points_that_were_changed_are_left_alone(few):
    folder, calls = few
    load_scene(config(folder), log=LOG)
    (folder / POINTS).write_bytes((folder / POINTS).read_bytes() + b"x")
    load_scene(config(folder), log=LOG)
    assert (folder / POINTS).read_bytes().endswith(b"x") and calls == [4, 4]


def test_a_scene_with_points_masks_or_a_region_is_not_triangulated(few, tmp_path, monkeypatch):
    folder, _ = few
    monkeypatch.setattr(module, "triangulate", forbidden)
    assert load_scene(config(folder, triangulate=False), log=LOG).points is None
    written = formats.make(n_views=4, hw=(24, 32))
    assert load_scene(config(formats.write_transforms(tmp_path / "alpha", written)), log=LOG).points is None
    load_scene(config(formats.write_colmap(tmp_path / "colmap", written), masks=False), log=LOG)
    load_scene(config(formats.write_dtu(tmp_path / "dtu", written), masks=False), log=LOG)


def test_without_pycolmap_and_on_failure_the_scene_is_read(few, monkeypatch, caplog):
    folder, _ = few

    def failed(*_):
        raise UserError("triangulation failed (x)")

    monkeypatch.setattr(module, "triangulate", failed)
    assert load_scene(config(folder), log=LOG).points is None and "triangulation failed (x); continuing" in caplog.text
    monkeypatch.setattr(module, "_pycolmap", lambda: None)
    with caplog.at_level(logging.INFO):
        assert load_scene(config(folder), log=LOG).points is None
    assert "pip install pycolmap" in caplog.text and not (folder / RECORD).exists()


def test_a_folder_that_cannot_be_written(few, monkeypatch, caplog):
    folder, _ = few

    def full(path, data):
        raise UserError(f"{path}: cannot be written")

    monkeypatch.setattr(module, "write_atomic", full)
    with caplog.at_level(logging.INFO):
        assert load_scene(config(folder), log=LOG).points is not None
    assert "made again in the next run" in caplog.text


def test_a_scene_without_enough_points_is_not_tried_again(few, monkeypatch):
    folder, _ = few
    monkeypatch.setattr(module, "triangulate", lambda *_: (np.zeros((0, 3)), np.zeros((0, 2), np.int64)))
    assert load_scene(config(folder), log=LOG).points is None
    monkeypatch.setattr(module, "triangulate", forbidden)
    assert load_scene(config(folder), log=LOG).points is None


def test_matches_lie_on_epipolar_lines():
    cameras = ring_cameras(3)
    x = np.random.default_rng(0).uniform(-0.5, 0.5, (20, 3))
    seen = []
    for c2w in cameras[:2]:
        q = (x - c2w[:, 3]) @ c2w[:, :3] @ K.T
        seen.append(q[:, :2] / q[:, 2:])
    F = np.linalg.inv(K).T @ essential(cameras[0], cameras[1]) @ np.linalg.inv(K)
    assert off_line(F, *seen).max() < 1e-9
    line = np.concatenate([seen[0], np.ones((20, 1))], 1) @ F.T
    away = seen[1] + 4 * line[:, :2] / np.linalg.norm(line[:, :2], axis=1, keepdims=True)
    assert (np.abs(off_line(F, seen[0], away) - 4 / np.sqrt(2)) < 1).all()


def test_pairs_are_neighbours():
    chosen = pairs(ring_cameras(24))
    assert {(0, 1), (0, 23), (3, 4)} <= set(chosen) and (0, 12) not in chosen
    assert all(i < j for i, j in chosen) and len(chosen) <= 24 * module.NEIGHBOURS
    assert pairs(np.repeat(ring_cameras(1), 2, 0)) == [(0, 1)]


@pytest.mark.parametrize("message", ["[x.cc:1] Check failed", ""])
def test_failures_of_colmap_are_sentences(few, monkeypatch, caplog, message):
    monkeypatch.undo()
    pycolmap = pytest.importorskip("pycolmap", reason="pycolmap is not installed")

    def broken(*_, **__):
        raise RuntimeError(message)

    monkeypatch.setattr(pycolmap, "extract_features", broken)
    assert load_scene(config(few[0]), log=LOG).points is None
    assert f"triangulation failed ({message}); continuing" in caplog.text
