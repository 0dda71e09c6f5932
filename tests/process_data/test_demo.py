"""The demo scene: its files, its repeatability, its mesh, and the agreement of mesh, cameras and masks."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import trimesh

from process_data import demo
from process_data.demo import make_demo
from utils.errors import UserError

pytestmark = pytest.mark.slow

TINY = dict(n_views=6, width=40, height=30, seed=0, mesh_resolution=72)
UP = 8  # subdivisions of a pixel in the reference rasteriser


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Path:
    return make_demo(tmp_path_factory.mktemp("demo") / "a", **TINY)


@pytest.fixture(scope="module")
def mesh(scene) -> trimesh.Trimesh:
    return trimesh.load(scene / "gt_mesh.ply", process=False)


def _files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix != ".npz"}


def _coverage(mesh: trimesh.Trimesh, world_mat: np.ndarray, width: int, height: int) -> np.ndarray:
    """Share of each pixel covered by the mesh, [H, W]; pixel i spans i - 1/2 to i + 1/2, for its centre is at i."""
    q = np.asarray(mesh.vertices, np.float64) @ world_mat[:3, :3].T + world_mat[:3, 3]
    fine = (q[:, :2] / q[:, 2:] + 0.5) * UP - 0.5
    canvas = np.zeros((height * UP, width * UP), np.uint8)
    for triangle in np.round(fine[mesh.faces] * 16).astype(np.int32):
        cv2.fillConvexPoly(canvas, triangle, 1, lineType=cv2.LINE_8, shift=4)
    return canvas.reshape(height, UP, width, UP).mean(axis=(1, 3))


def _centroid(cover: np.ndarray) -> np.ndarray:
    v, u = np.indices(cover.shape)
    return np.array([(u * cover).sum(), (v * cover).sum()]) / cover.sum()


def _extent(cover: np.ndarray, axis: int) -> tuple[int, int]:
    used = np.flatnonzero(cover.any(axis=axis))
    return int(used[0]), int(used[-1])


def test_layout(scene):
    assert sorted(p.name for p in (scene / "image").iterdir()) == [f"{i:06d}.png" for i in range(6)]
    assert sorted(p.name for p in (scene / "mask").iterdir()) == [f"{i:03d}.png" for i in range(6)]
    assert sorted(p.name for p in scene.iterdir()) == sorted([*demo.LAYOUT, "scene.json"])
    cameras = np.load(scene / "cameras_sphere.npz")
    assert set(cameras) == {f"{kind}_mat_{i}" for kind in ("world", "scale") for i in range(6)}
    assert all(cameras[k].shape == (4, 4) and cameras[k].dtype == np.float64 for k in cameras)
    image, mask = cv2.imread(str(scene / "image/000000.png")), cv2.imread(str(scene / "mask/000.png"), cv2.IMREAD_UNCHANGED)
    assert image.shape == (30, 40, 3) and mask.shape == (30, 40)
    assert image[mask == 0].max() == 0 and image[mask == 255].mean() > 30
    assert ((mask > 0) & (mask < 255)).any()  # soft edges


def test_same_seed_same_bytes(scene, tmp_path):
    again = make_demo(tmp_path / "b", **TINY)
    assert _files(scene) == _files(again)
    one, two = np.load(scene / "cameras_sphere.npz"), np.load(again / "cameras_sphere.npz")
    assert all(np.array_equal(one[k], two[k]) for k in one)
    other = make_demo(tmp_path / "c", **TINY | {"seed": 1, "n_views": 1})
    assert (other / "image/000000.png").read_bytes() != (scene / "image/000000.png").read_bytes()


def test_mesh_is_a_closed_surface_with_one_handle(mesh):
    assert mesh.is_watertight and mesh.is_winding_consistent and mesh.body_count == 1
    assert mesh.volume > 0  # outward normals
    assert mesh.euler_number == 0  # genus 1


def test_mesh_lies_on_the_sdf_inside_the_unit_sphere(scene, mesh):
    scale = np.load(scene / "cameras_sphere.npz")["scale_mat_0"]
    p = (np.asarray(mesh.vertices, np.float64) - scale[:3, 3]) / scale[0, 0]
    assert 0.7 < np.linalg.norm(p, axis=1).max() < demo.BOUND
    assert np.abs((p.max(0) + p.min(0)) / 2).max() < 0.05  # centred
    assert demo.sdf(torch.from_numpy(p)).abs().quantile(0.99) < 1e-5


def test_sdf_never_steps_through_the_surface(mesh):
    """What the tracer relies on: STEP * sdf is no more than the true distance (here: to the nearest vertex, which is farther)."""
    rng = np.random.default_rng(0)
    dense = torch.from_numpy(np.asarray(demo.ground_truth(160).vertices) - demo.CENTRE) / demo.SCALE
    p = torch.from_numpy(rng.uniform(-demo.BOUND, demo.BOUND, (400, 3)))
    value = demo.sdf(p)
    outside = value > 0.02
    assert (demo.STEP * value[outside] <= torch.cdist(p[outside], dense).amin(1)).all()


@pytest.mark.parametrize("i", range(6))
def test_mesh_projects_onto_the_mask(scene, mesh, i):
    mask = cv2.imread(str(scene / f"mask/{i:03d}.png"), cv2.IMREAD_UNCHANGED) / 255.0
    cover = _coverage(mesh, np.load(scene / "cameras_sphere.npz")[f"world_mat_{i}"], 40, 30)
    assert np.abs(_centroid(cover) - _centroid(mask)).max() < 0.12  # a half-pixel slip of either would show here as 0.5
    assert abs(cover.sum() / mask.sum() - 1) < 0.03
    assert np.abs(cover - mask).max() < 0.75 and np.abs(cover - mask).mean() < 0.01
    for axis in (0, 1):
        assert np.abs(np.subtract(_extent(cover > 0.3, axis), _extent(mask > 0.3, axis))).max() <= 1


def test_the_middle_of_a_pixel_is_an_integer(mesh):
    """The ray of the four samples of a pixel, averaged, goes through its integer coordinates."""
    view = demo._views(4, 40, 30, 0)[1]
    uv = demo._grid(40, 30, 0.5, -0.25).reshape(30, 2, 40, 2, 2).mean(axis=(1, 3))
    assert np.array_equal(uv[7, 11], [11, 7])
    world_mat = demo._cameras([view])["world_mat_0"]
    point = view.eye + 2.5 * demo._directions(view, uv[7, 11][None]).numpy()[0]
    q = world_mat @ np.append(demo.SCALE * point + demo.CENTRE, 1.0)
    assert q[2] > 0 and np.allclose(q[:2] / q[2], [11, 7], atol=1e-4)


def test_cameras_surround_the_object():
    views = demo._views(48, 320, 240, 0)
    eyes = np.stack([v.eye for v in views]) / demo.DISTANCE
    assert sum(eyes[:, 2] < 0) == 8 and eyes[:, 2].max() > 0.9
    assert np.linalg.norm(eyes[:, :2].mean(0)) < 0.1
    for view in views:
        assert np.allclose(view.R @ view.R.T, np.eye(3), atol=1e-12) and np.linalg.det(view.R) > 0
        assert (view.R @ np.array([0, 0, 1.0]))[1] < 0  # the world's up is up in the picture


def test_a_finished_scene_is_kept_and_others_are_remade(tmp_path):
    small = TINY | {"n_views": 2, "mesh_resolution": 40}
    folder = make_demo(tmp_path / "d", **small)
    image = folder / "image/000000.png"
    stamp = image.stat().st_mtime_ns
    make_demo(folder, **small)
    assert image.stat().st_mtime_ns == stamp
    (folder / "scene.json").rename(folder / "scene.json.part")  # as an interrupted run leaves it
    (folder / "mask/001.png").unlink()
    make_demo(folder, **small)
    assert image.stat().st_mtime_ns != stamp and (folder / "mask/001.png").exists() and not (folder / "scene.json.part").exists()
    make_demo(folder, **small | {"n_views": 1})
    assert len(list((folder / "image").iterdir())) == 1 and json.loads((folder / "scene.json").read_text())["views"] == 1


def test_foreign_folders_are_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="something other than a demo scene"):
        make_demo(tmp_path, **TINY)
    with pytest.raises(UserError, match="notes.txt"):
        make_demo(tmp_path / "notes.txt", **TINY)
    with pytest.raises(UserError, match="cannot write"):
        make_demo(tmp_path / "notes.txt" / "demo", **TINY)
    (tmp_path / "scene.json").write_text('{"generator": "another"}')
    with pytest.raises(UserError, match="something other"):
        make_demo(tmp_path, **TINY)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert demo.main([str(tmp_path)]) == 2


def test_bad_numbers_are_refused(tmp_path):
    with pytest.raises(UserError, match="0 views"):
        make_demo(tmp_path / "e", n_views=0)
