"""NeRO's layouts: GlossySynthetic (pickled cameras, depth), GlossyReal (COLMAP and the object's points), its Chamfer from depth."""

import os
import pickle
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
import trimesh

from confs.schema import DatasetConfig
from process_data.glossy import read_pickle
from process_data.load import load_scene, recognise
from process_data.rays import make_rays
from tests import formats
from tests.benchmarks.glossy import compare, thinned
from utils.errors import UserError
from utils.image import write_png

RADII = np.array([0.5, 0.4, 0.3])  # of a ball's axes, for depth


def world() -> formats.Written:
    """Eight views in a world as small as that of GlossySynthetic."""
    w = formats.make()
    c2w = w.c2w.copy()
    c2w[:, :, 3] = (c2w[:, :, 3] - formats.CENTRE) / formats.SCALE
    return replace(w, c2w=c2w)


def depth_of(K, c2w, hw) -> np.ndarray:
    """Depth [H, W] along the axis to the ellipsoid of RADII, inf beside it."""
    v, u = np.mgrid[: hw[0], : hw[1]].astype(float)
    d = np.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], np.ones_like(u)], -1) @ c2w[:, :3].T / RADII
    o = c2w[:, 3] / RADII
    a, b, c = (d * d).sum(-1), (d * o).sum(-1), o @ o - 1
    root = b * b - a * c
    return np.where(root > 0, (-b - np.sqrt(np.maximum(root, 0))) / a, np.inf)


def write_glossy(folder, w, alpha=True):
    folder.mkdir(parents=True, exist_ok=True)
    K = w.K.copy()
    K[:2, 2] += 0.5
    for k, c2w in enumerate(w.c2w):
        pose = np.concatenate([c2w[:, :3].T, -c2w[:, :3].T @ c2w[:, 3:]], 1)
        (folder / f"{k}-camera.pkl").write_bytes(pickle.dumps([pose.astype(np.float64), K.astype(np.float32)]))
        write_png(folder / f"{k}.png", w.images[k] if alpha else w.images[k][..., :3])
        depth = np.minimum(depth_of(w.K, c2w, formats.HW), 15.0)
        cv2.imwrite(str(folder / f"{k}-depth.png"), np.rint(depth / 15 * 65535).astype(np.uint16))
    return folder


def test_it_is_recognised_and_its_rays_are_those_of_the_cameras(tmp_path):
    w = world()
    folder = write_glossy(tmp_path / "angel", w)
    cfg = DatasetConfig(root_dir=str(folder))
    assert recognise(cfg) == "glossy"
    scene = load_scene(cfg)
    assert len(scene.names) == 8 and scene.test == (0,) and scene.masks is not None
    uv = np.array([[3.0, 5.0], [40.0, 20.0]])
    to_world = scene.to_world.numpy()
    scale = np.cbrt(np.linalg.det(to_world[:3, :3]))
    for i in range(8):
        rays = make_rays(scene.cameras, torch.full((2,), i), torch.tensor(uv, dtype=torch.float32), 1.0)
        dirs = rays.dirs.double().numpy() @ (to_world[:3, :3] / scale).T
        want = (np.concatenate([uv, np.ones((2, 1))], 1) @ np.linalg.inv(w.K).T) @ w.c2w[i, :, :3].T
        assert np.allclose(dirs, want / np.linalg.norm(want, axis=1, keepdims=True), atol=1e-5)
        assert np.allclose(rays.origins.double().numpy() @ to_world[:3, :3].T + to_world[:3, 3], w.c2w[i, :, 3], atol=1e-5)


def test_masks_come_from_depth_where_the_pictures_have_no_alpha(tmp_path):
    w = world()
    scene = load_scene(DatasetConfig(root_dir=str(write_glossy(tmp_path / "s", w, alpha=False))))
    for i in range(8):
        assert np.array_equal(scene.masks[i].numpy() > 0, np.isfinite(depth_of(w.K, w.c2w[i], formats.HW)))


def test_the_splits(tmp_path):
    folder = write_glossy(tmp_path / "s", world())
    assert load_scene(DatasetConfig(root_dir=str(folder), hold_every=1000)).test == (0,)
    (tmp_path / "synthetic_split_128.pkl").write_bytes(pickle.dumps((np.array([2, 5, 6]), np.array([0, 1, 3, 4, 7]))))
    scene = load_scene(DatasetConfig(root_dir=str(folder)))
    assert scene.test == (2, 5, 6) and scene.train == (0, 1, 3, 4, 7)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("it-ran",)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "3-camera.pkl").write_bytes(pickle.dumps(Evil())), "not a pickle of arrays and numbers .*mkdir"),
        (lambda f: (f / "3-camera.pkl").write_bytes((f / "3-camera.pkl").read_bytes()[:60]), "not a pickle"),
        (lambda f: (f / "3-camera.pkl").write_bytes(pickle.dumps([np.eye(3)])), r"expected a pose \[3, 4\]"),
        (lambda f: (f / "3-camera.pkl").write_bytes(pickle.dumps([np.full((3, 4), np.nan), np.eye(3)])), "3-camera.pkl: pose|focal"),
        (lambda f: (f / "3-camera.pkl").write_bytes(pickle.dumps([[[[1.0] * 9] * 9] * 9] * 9)), "lists within lists"),
        (lambda f: (f / "3-camera.pkl").write_bytes(b"0" * (2 << 20)), "expected a few hundred"),
        (lambda f: (f / "3.png").unlink(), "3.png is missing"),
        (lambda f: (f / "synthetic_split_128.pkl").write_bytes(pickle.dumps(7)), "held-out and training views"),
    ],
)
def test_damaged_files_are_named_and_run_nothing(spoil, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write_glossy(tmp_path / "s", world())
    spoil(folder)
    with pytest.raises(UserError, match=message):
        load_scene(DatasetConfig(root_dir=str(folder)))
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize("protocol", [2, 3, 5])
def test_arrays_and_numbers_of_a_pickle(protocol, tmp_path):
    value = [np.arange(6.0).reshape(2, 3), np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)), np.float32(2.5), (1, 2.0)]
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    if protocol < 5:
        path.write_bytes(path.read_bytes().replace(b"numpy._core", b"numpy.core"))  # as older numpy names it
    found = read_pickle(path)
    assert all(np.array_equal(a, b) and np.asarray(a).dtype == np.asarray(b).dtype for a, b in zip(found[:3], value))
    assert found[3] == [1, 2.0]


@pytest.mark.slow
def test_seeded_bit_flips_are_errors_or_scenes(tmp_path):
    folder = write_glossy(tmp_path / "s", world())
    path, rng = folder / "1-camera.pkl", np.random.default_rng(0)
    whole = path.read_bytes()
    for _ in range(40):
        data = bytearray(whole)
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        try:
            load_scene(DatasetConfig(root_dir=str(folder)))
        except UserError as error:
            assert "1-camera.pkl" in str(error) or "infinity" in str(error) or "sphere" in str(error)


def test_the_objects_points_are_the_region_of_glossy_real(tmp_path):
    w = formats.make()
    rng = np.random.default_rng(0)
    room = formats.CENTRE + 12 * rng.uniform(-1, 1, (400, 3))
    folder = formats.write_colmap(tmp_path / "bear", w, points=room)
    (folder / "colmap").mkdir()
    (folder / "sparse").rename(folder / "colmap/sparse")
    thing = formats.CENTRE + [2.0, 0, 0] + rng.uniform(-0.5, 0.5, (3000, 3))
    trimesh.PointCloud(thing).export(folder / "object_point_cloud.ply")
    scene = load_scene(DatasetConfig(root_dir=str(folder), masks=False))
    to_world = scene.to_world.numpy()
    assert np.abs(to_world[:3, 3] - formats.CENTRE - [2.0, 0, 0]).max() < 0.05
    radius = np.cbrt(np.linalg.det(to_world[:3, :3]))
    assert 0.8 < radius < 1.3 and float(scene.points.norm(dim=1).max()) <= 1
    (folder / "object_point_cloud.ply").write_bytes(b"ply\nnothing")
    with pytest.raises(UserError, match="object_point_cloud"):
        load_scene(DatasetConfig(root_dir=str(folder), masks=False))


def test_chamfer_from_depth(tmp_path):
    folder = write_glossy(tmp_path / "s", world())
    ball = trimesh.creation.icosphere(5)
    for grow, low, high in ((1.0, 0.0, 0.008), (1.1, 0.02, 0.06)):
        path = tmp_path / f"{grow}.ply"
        trimesh.Trimesh(ball.vertices * RADII * grow, ball.faces, process=False).export(path)
        found = compare(path, folder, voxel=0.02)
        assert low <= found["chamfer"] < high and found["views"] == 8
    away = tmp_path / "away.ply"
    trimesh.Trimesh(ball.vertices + 100.0, ball.faces, process=False).export(away)
    with pytest.raises(UserError, match="world units"):
        compare(away, folder)
    assert len(thinned(np.array([[0.1, 0.1, 0.1], [0.2, 0.2, 0.2], [1.5, 0, 0]]), 1.0)) == 2
