"""The same camera written in every layout yields the same rays; lenses against OpenCV; what a layout says of splits and masks."""

import json
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import trimesh

from confs.schema import DatasetConfig
from process_data import capture
from process_data.lens import Lens, distort, pinhole_intrinsics, source_pixels, undistort
from process_data.load import load_scene, recognise
from process_data.rays import make_rays
from tests import formats
from utils.errors import UserError
from utils.image import write_png

LENS = (0.12, -0.08, 0.004, -0.003, 0.02)
CAMERAS = {
    "plain": {"fx": 70.0, "fy": 70.0, "cx": 31.5, "cy": 23.5},
    "non-square, off-centre": {},
    "distorted": {"lens": LENS},
    "barrel": {"lens": (-0.2, 0.03)},
}
LAYOUTS = ("dtu", "blender", "transforms", "colmap", "sdfstudio", "llff", "middlebury", "metashape")
WRITERS = {name: getattr(formats, f"write_{name}") for name in LAYOUTS}
PINHOLES = ("dtu", "sdfstudio", "llff", "middlebury")  # layouts without distortion
LOG = logging.getLogger("test")


def config(folder, **options) -> DatasetConfig:
    return DatasetConfig(root_dir=str(folder), **options)


def view_of(scene, layout: str, i: int, n: int = 8) -> int:
    """Index of the i-th written view in a scene that was read."""
    order = [k for k in range(n) if k not in (0, 4)] + [0, 4] if layout == "blender" else list(range(n))
    return order.index(i)


def world_rays(scene, view: int, uv: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(origins, unit directions) [R, 3] in the world through pixels uv [R, 2]."""
    rays = make_rays(scene.cameras, torch.full((len(uv),), view), torch.tensor(uv, dtype=torch.float32), 1.0)
    to_world = scene.to_world.numpy()
    linear = to_world[:3, :3] / np.cbrt(np.linalg.det(to_world[:3, :3]))
    return rays.origins.double().numpy() @ to_world[:3, :3].T + to_world[:3, 3], rays.dirs.double().numpy() @ linear.T


@pytest.mark.parametrize("camera", CAMERAS)
@pytest.mark.parametrize("layout", WRITERS)
@pytest.mark.parametrize("options", [{}, {"img_downscale": 1.6}, {"img_wh": [50, 60]}], ids=["", "smaller", "stretched"])
def test_the_same_camera_yields_the_same_rays(layout, camera, options, tmp_path):
    """World points are projected by cv2.projectPoints; the pixel that shows them after undistortion has the ray that meets them."""
    if (layout in PINHOLES and "lens" in CAMERAS[camera]) or (layout == "llff" and camera != "plain"):
        pytest.skip(f"the layout {layout} cannot express this camera")
    written = formats.make(**CAMERAS[camera])
    scene = load_scene(config(WRITERS[layout](tmp_path / "s", written), **options), log=LOG)
    h, w = formats.HW
    f = np.array([scene.cameras.width / w, scene.cameras.height / h])
    lens = Lens("brown", CAMERAS[camera].get("lens", ()))
    rng = np.random.default_rng(0)
    x = rng.uniform(-0.6, 0.6, (30, 3)) * formats.SCALE + formats.CENTRE
    for i in range(8):
        R, centre = written.c2w[i, :, :3].T, written.c2w[i, :, 3]
        photo, _ = cv2.projectPoints(
            x[:, None], cv2.Rodrigues(R)[0], -R @ centre, written.K, np.array((*CAMERAS[camera].get("lens", ()), 0.0, 0, 0, 0)[:5])
        )
        photo = photo[:, 0]
        view = view_of(scene, layout, i)
        K = scene.cameras.K[view].double().numpy()
        q = (x - centre) @ R.T @ K.T
        uv = q[:, :2] / q[:, 2:]  # in the undistorted image
        shrunk = np.diag([*f, 1.0]) @ written.K
        shrunk[:2, 2] += (f - 1) / 2
        np.testing.assert_allclose(source_pixels(lens, shrunk, K, uv), f * photo + (f - 1) / 2, atol=1e-3)  # K is float32
        origins, dirs = world_rays(scene, view, uv)
        toward = (x - origins) / np.linalg.norm(x - origins, axis=1, keepdims=True)
        assert np.abs(toward - dirs).max() < 1e-5
        assert np.abs(origins - centre).max() < 1e-5 * 30


@pytest.mark.parametrize("layout", WRITERS)
def test_undistorted_pixels_show_what_a_pinhole_sees(layout, tmp_path):
    if layout in PINHOLES:
        pytest.skip(f"the layout {layout} has no distortion")
    from tests.scenes import trace

    scene = load_scene(config(WRITERS[layout](tmp_path / "s", formats.make(lens=LENS, n_views=5))), log=LOG)
    to_world = scene.to_world.numpy()
    scale = np.cbrt(np.linalg.det(to_world[:3, :3]))
    errors = []
    for view in range(3):
        c2w = scene.cameras.c2w[view].double().numpy()
        pose = np.concatenate([to_world[:3, :3] @ c2w[:, :3] / scale, (to_world @ [*c2w[:, 3], 1])[:3, None]], 1)
        pose[:, 3] = (pose[:, 3] - formats.CENTRE) / formats.SCALE
        want, mask = trace(scene.cameras.K[view].double().numpy(), pose, formats.HW)
        inside = cv2.erode(mask.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
        errors.append(np.abs(scene.images[view].numpy() / 255 - want)[inside].mean())
        if scene.masks is not None:
            assert ((scene.masks[view].numpy() > 127) != mask).mean() < 0.02
    assert np.mean(errors) < 0.02, errors


# ---- lenses ----


@pytest.mark.parametrize("params", [LENS, (-0.3, 0.1, 0.001, 0.002), (0.1, 0.02, 0, 0, 0.01, 0.12, 0.03, 0.02)])
def test_brown_is_opencvs(params):
    xy = np.random.default_rng(0).uniform(-0.6, 0.6, (200, 2))
    K = np.array([[500.0, 0, 320], [0, 510, 240], [0, 0, 1]])
    want, _ = cv2.projectPoints(np.column_stack([xy, np.ones(200)])[:, None], np.zeros(3), np.zeros(3), K, np.array(params, float))
    got = distort(Lens("brown", params), xy) @ K[:2, :2].T + K[:2, 2]
    np.testing.assert_allclose(got, want[:, 0], atol=1e-9)
    np.testing.assert_allclose(undistort(Lens("brown", params), distort(Lens("brown", params), xy)), xy, atol=1e-9)


def test_fisheye_is_opencvs():
    params = (0.05, -0.02, 0.004, -0.001)
    xy = np.random.default_rng(0).uniform(-1.5, 1.5, (200, 2))
    want = cv2.fisheye.distortPoints(xy[:, None], np.eye(3), np.array(params))
    got = distort(Lens("fisheye", params), xy)
    np.testing.assert_allclose(got, want[:, 0], atol=1e-9)
    np.testing.assert_allclose(undistort(Lens("fisheye", params), got), xy, atol=1e-7)


def test_fov_by_hand():
    lens = Lens("fov", (0.9,))
    xy = np.array([[0.5, 0.0], [0.0, 0.0], [0.3, -0.4]])
    got = distort(lens, xy)
    assert got[0, 0] == pytest.approx(np.arctan(2 * 0.5 * np.tan(0.45)) / 0.9)
    np.testing.assert_allclose(undistort(lens, got), xy, atol=1e-9)


@pytest.mark.parametrize("lens", [Lens("brown", (-3.0,)), Lens("brown", (1e9, -1e9)), Lens("fisheye", (-2.0,)), Lens("brown", (-0.9, 0.1))])
def test_a_lens_that_folds_the_image_is_refused(lens):
    with pytest.raises(UserError, match="folds the image|leaves no image"):
        pinhole_intrinsics(lens, np.array([[60.0, 0, 31.5], [0, 60, 23.5], [0, 0, 1]]), 64, 48)


def test_every_pixel_of_an_undistorted_image_was_photographed():
    K = np.array([[60.0, 0, 33], [0, 61, 20], [0, 0, 1]])
    for lens in (Lens("brown", LENS), Lens("brown", (-0.2, 0.03)), Lens("fisheye", (0.05, 0.01)), Lens("fov", (0.8,))):
        K_new = pinhole_intrinsics(lens, K, 64, 48)
        v, u = np.mgrid[:48, :64]
        at = source_pixels(lens, K, K_new, np.stack([u, v], -1).reshape(-1, 2))
        assert at.min() > -0.01 and (at <= np.array([63, 47]) + 0.01).all()


# ---- what layouts say ----


def test_blender_keeps_its_split_and_takes_alpha(tmp_path):
    written = formats.make(**CAMERAS["plain"])
    scene = load_scene(config(formats.write_blender(tmp_path, written), hold_every=3), log=LOG)
    assert scene.test == (6, 7) and scene.train == tuple(range(6)) and scene.names[6] == "test/r_0.png"
    assert scene.test_background == "white" and set(scene.masks.unique().tolist()) == {0, 255}
    plain = load_scene(config(tmp_path, masks=False), log=LOG)
    assert plain.masks is None and plain.test_background == "image"
    assert (plain.images[0][scene.masks[0] == 0] == 255).all()  # alpha over white


def test_blender_without_a_test_split_holds_views_out(tmp_path, caplog):
    formats.write_blender(tmp_path, formats.make(**CAMERAS["plain"]))
    (tmp_path / "transforms_test.json").rename(tmp_path / "transforms_val.json")
    assert len(load_scene(config(tmp_path), log=LOG).test) == 2
    (tmp_path / "transforms_val.json").unlink()
    scene = load_scene(config(tmp_path, hold_every=3), log=LOG)
    assert scene.test == (0, 3) and "every 3-th training view" in caplog.text


@pytest.mark.slow
def test_transforms_per_frame_and_applied_transform(tmp_path):
    written = formats.make(lens=LENS)
    want = load_scene(config(formats.write_transforms(tmp_path / "a", written)), log=LOG)
    got = load_scene(config(formats.write_transforms(tmp_path / "b", written, per_frame=True)), log=LOG)
    assert torch.equal(want.cameras.K, got.cameras.K) and torch.equal(want.images, got.images)
    # nerfstudio moved the cameras: undone, the world is as before
    move = np.array([[0.0, 1, 0, 0.5], [1, 0, 0, -2], [0, 0, -1, 4], [0, 0, 0, 1]])
    path = formats.write_transforms(tmp_path / "c", written, more={"applied_transform": move[:3].tolist()}) / "transforms.json"
    data = json.loads(path.read_text())
    for frame in data["frames"]:
        frame["transform_matrix"] = (move @ np.array(frame["transform_matrix"])).tolist()
    path.write_text(json.dumps(data))
    moved = load_scene(config(tmp_path / "c", up="given"), log=LOG)
    torch.testing.assert_close(moved.to_world, want.to_world, atol=1e-6, rtol=0)
    torch.testing.assert_close(moved.cameras.c2w, want.cameras.c2w, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_a_resized_copy_of_the_images_is_the_same_scene(tmp_path, caplog):
    folder = formats.write_transforms(tmp_path, formats.make())
    want = load_scene(config(folder, img_downscale=2), log=LOG)
    for path in (folder / "images").iterdir():
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(path), cv2.resize(image, (32, 24), interpolation=cv2.INTER_AREA))
    got = load_scene(config(folder), log=LOG)
    torch.testing.assert_close(got.cameras.K, want.cameras.K)


def test_recognition(tmp_path, caplog):
    written = formats.make(n_views=3)
    for layout, write in WRITERS.items():
        assert recognise(config(write(tmp_path / layout, written))) == layout
    assert recognise(config(tmp_path / "transforms" / "transforms.json")) == "transforms"
    with pytest.raises(UserError, match="--photos"):
        recognise(config(tmp_path / "transforms" / "images"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no layout is recognised"):
        recognise(config(tmp_path / "empty"))
    formats.write_dtu(tmp_path / "transforms", written)
    with caplog.at_level(logging.INFO):
        recognise(config(tmp_path / "transforms"), LOG)
    assert "recognised as dtu" in caplog.text and "also possible: transforms" in caplog.text


def edit(change):
    def spoil(folder: Path) -> None:
        path = folder / "transforms.json"
        data = json.loads(path.read_text())
        change(data)
        path.write_text(json.dumps(data))

    return spoil


ERRORS = [
    (lambda f: (f / "transforms.json").write_text("{"), "not readable JSON"),
    (lambda f: (f / "transforms.json").write_text("[" * 100000), "not readable JSON"),
    (lambda f: (f / "transforms.json").write_bytes(b"\xff\xfe{}"), "not readable JSON"),
    (edit(lambda d: d.pop("frames")), 'list "frames"'),
    (edit(lambda d: d.update(frames=[3])), 'list "frames"'),
    (edit(lambda d: d["frames"][1].pop("file_path")), "frame 1 has no file_path"),
    (edit(lambda d: d["frames"][1].pop("transform_matrix")), "frame 1: transform_matrix: expected a 4x4"),
    (edit(lambda d: d["frames"][1].update(transform_matrix=[[1, 2], [3]])), "frame 1: transform_matrix: expected a 4x4"),
    (edit(lambda d: d["frames"][1]["transform_matrix"].__setitem__(0, [float("nan")] * 4)), "frame 1: transform_matrix: expected a 4x4"),
    (edit(lambda d: d["frames"][1]["transform_matrix"].__setitem__(0, [0, 0, 0, 0])), "frame 1: transform_matrix: .*not a rotation"),
    (edit(lambda d: d.update(fl_x=-3.0)), "focal length"),
    (edit(lambda d: d.update(fl_x="long")), "fl_x is 'long'"),
    (edit(lambda d: [d.pop("fl_x"), d.pop("fl_y")]), "no focal length"),
    (edit(lambda d: d.update(w=1e9)), "image size"),
    (edit(lambda d: d.update(w=30)), "cropped or rotated"),
    (edit(lambda d: d.update(cx=1e6)), "principal point"),
    (edit(lambda d: d.update(k1=-5.0)), "folds the image"),
    (edit(lambda d: d.update(camera_model="EQUIRECTANGULAR")), "camera_model 'EQUIRECTANGULAR' is not supported"),
    (edit(lambda d: [f.update(file_path="x/" + f["file_path"]) for f in d["frames"]]), "none of its 8 images exists"),
    (edit(lambda d: [f.update(file_path="\0") for f in d["frames"]]), "none of its 8 images exists"),
    (lambda f: write_png(f / "masks/000.png", np.ones((48, 64))), r"8 images but 1 masks \(masks/images/001.png is missing\)"),
    (lambda f: [write_png(f / f"masks/{i:03d}.png", np.ones((48, 48))) for i in range(8)], "masks/000.png: 48x48 pixels, expected 64x48"),
]


@pytest.mark.parametrize("spoil, text", ERRORS, ids=[f"{i}-{text[:30]}" for i, (_, text) in enumerate(ERRORS)])
def test_errors(tmp_path, spoil, text):
    folder = formats.write_transforms(tmp_path, formats.make())
    spoil(folder)
    with pytest.raises(UserError, match=text) as caught:
        load_scene(config(folder), log=LOG)
    assert "\n" not in str(caught.value)


def test_a_missing_image_is_left_out(tmp_path, caplog):
    folder = formats.write_transforms(tmp_path, formats.make())
    (folder / "images/003.png").unlink()
    assert len(load_scene(config(folder), log=LOG).names) == 7
    assert "1 of 8 images are missing (first: images/003.png)" in caplog.text


def test_memory_is_counted_beforehand(tmp_path, monkeypatch):
    from utils import memory

    for layout, write in WRITERS.items():
        folder = write(tmp_path / layout, formats.make(n_views=4))
        with monkeypatch.context() as patch:
            patch.setattr(memory, "available", lambda: 100_000)
            with pytest.raises(UserError, match=r"are free; (set dataset.img_downscale|use a machine)"):
                load_scene(config(folder), log=LOG)


def write_points(path: Path, points: np.ndarray) -> None:
    path.write_bytes(trimesh.PointCloud(points).export(file_type="ply"))


def test_points_of_transforms(tmp_path, caplog):
    folder = formats.write_transforms(tmp_path, formats.make(), more={"ply_file_path": "points.ply"})
    points = formats.surface_points()
    points[3] = np.nan
    write_points(folder / "points.ply", points)
    assert load_scene(config(folder), log=LOG).points.shape == (59, 3)  # one vertex that is not finite is dropped


@pytest.mark.parametrize("name", ["points.zip", "points.glb", "points.ply"])
@pytest.mark.slow
def test_files_that_are_no_point_cloud(tmp_path, name, caplog, monkeypatch):
    folder = formats.write_transforms(tmp_path, formats.make(), more={"ply_file_path": name})
    (folder / name).write_bytes(b"PK\x03\x04" + bytes(100))
    if not name.endswith(".ply"):
        monkeypatch.setattr(trimesh, "load", lambda *_, **__: pytest.fail("read"))
    assert load_scene(config(folder), log=LOG).points is None
    assert "continuing without points" in caplog.text


@pytest.mark.slow
def test_names_of_points_that_no_file_has(tmp_path):
    for name in ("\0", "a" * 5000, 3, "none.ply"):
        folder = formats.write_transforms(tmp_path, formats.make(n_views=4), more={"ply_file_path": name})
        assert load_scene(config(folder), log=LOG).points is None


def test_a_mask_of_another_shape_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    folder = formats.write_transforms(tmp_path, formats.make(n_views=4))
    for i in range(4):
        write_png(folder / f"masks/{i:03d}.png", np.ones((48, 64)))
    write_png(folder / "masks/002.png", np.ones((1, 4000)))
    decode = capture.read_raster
    monkeypatch.setattr(
        capture, "read_raster", lambda path, *more: pytest.fail("decoded") if "masks/002" in str(path) else decode(path, *more)
    )
    with pytest.raises(UserError, match="002.png: 4000x1 pixels, expected 64x48"):
        load_scene(config(folder), log=LOG)


# ---- real data ----

DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.parametrize("name, views, held", [("spot_glossy", 72, 8), ("lego_400", 120, 20), ("fox", 50, 7)])
@pytest.mark.slow
def test_real_scenes_by_recognition(name, views, held):
    if not (DATA / name).is_dir():
        pytest.skip(f"../shared/data/{name} is absent")
    scene = load_scene(config(DATA / name, img_downscale=4, triangulate=False), log=LOG)
    assert len(scene.names) == views and len(scene.test) == held
    assert scene.cameras.c2w[:, :, 3].norm(dim=1).min() > 1
