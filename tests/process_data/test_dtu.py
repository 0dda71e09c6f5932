"""The DTU reader: geometry round trips, pixels, and every bad input as one clear sentence."""

import logging
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from confs.schema import DatasetConfig
from process_data.dtu import decompose
from process_data.load import load_scene
from process_data.normalize import resize_intrinsics, similarity_parts, split_views, to_sphere
from process_data.rays import make_rays, view_rays
from tests.scenes import write_tiny_scene
from utils.errors import UserError
from utils.image import read_rgb, write_png


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return write_tiny_scene(tmp_path_factory.mktemp("tiny") / "scene")


@pytest.fixture
def broken(tiny, tmp_path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(tiny, tmp_path / "scene"))


def config(folder, **options) -> DatasetConfig:
    return DatasetConfig(root_dir=str(folder), **options)


def project(mat: np.ndarray, x: np.ndarray) -> np.ndarray:
    q = x @ mat[:3, :3].T + mat[:3, 3]
    return q[:, :2] / q[:, 2:]


def change_cameras(folder: Path, **changes) -> None:
    path = folder / "cameras_sphere.npz"
    with np.load(path) as archive:
        mats = dict(archive)
    for key, change in changes.items():
        mats[key] = change(mats[key])
    np.savez(path, **{k: v for k, v in mats.items() if v is not None})


# ---- geometry ----


@pytest.mark.parametrize("options", [{}, {"img_downscale": 1.7}, {"img_wh": [50, 12]}, {"img_wh": [64, 48]}])
def test_ray_through_the_projected_pixel_meets_the_point(tiny, options):
    scene = load_scene(config(tiny, **options))
    mats = np.load(tiny / "cameras_sphere.npz")
    rng = np.random.default_rng(0)
    world = rng.uniform(-0.5, 0.5, (20, 3)) * 3.0 + [10, -20, 30]
    sphere = torch.tensor((world - [10, -20, 30]) / 3.0, dtype=torch.float32)
    fx, fy = scene.cameras.width / 32, scene.cameras.height / 24
    for i in range(len(scene.names)):
        uv = project(mats[f"world_mat_{i}"], world) * [fx, fy] + [(fx - 1) / 2, (fy - 1) / 2]
        rays = make_rays(scene.cameras, torch.full((20,), i), torch.tensor(uv, dtype=torch.float32), 1.0)
        t = ((sphere - rays.origins) * rays.dirs).sum(-1, keepdim=True)
        assert (rays.origins + t * rays.dirs - sphere).norm(dim=-1).max() < 1e-4
        assert ((t[:, 0] > rays.near) & (t[:, 0] < rays.far)).all()


def test_pixel_centres_are_at_integers(tiny):
    scene = load_scene(config(tiny))
    rays = view_rays(scene.cameras, 3, 1.0)
    world = (rays.origins + 3 * rays.dirs).double().numpy() @ scene.to_world[:3, :3].numpy().T + scene.to_world[:3, 3].numpy()
    v, u = np.mgrid[:24, :32]
    uv = project(np.load(tiny / "cameras_sphere.npz")["world_mat_3"], world)
    np.testing.assert_allclose(uv, np.stack([u, v], -1).reshape(-1, 2), atol=1e-3)


def test_resizing_keeps_the_corners_of_the_image():
    K = resize_intrinsics(np.array([[30, 0.5, 7], [0, 31, 5], [0, 0, 1.0]]), 0.5, 2.0)
    corner = np.array([-0.5, -0.5])  # the outer corner of pixel (0, 0) stays where it is
    ray = np.array([(corner[0] - 7 - 0.5 * (corner[1] - 5) / 31) / 30, (corner[1] - 5) / 31, 1])
    np.testing.assert_allclose((K @ ray)[:2], corner, atol=1e-12)


@pytest.mark.parametrize("factor", [1.0, -1.0, 1e-3, -250.0])
def test_decompose_undoes_any_factor_and_keeps_skew(factor):
    K = np.array([[900, 3, 400], [0, 910, 300], [0, 0, 1.0]])
    R = cv2.Rodrigues(np.array([0.3, -2.0, 0.7]))[0]
    centre = np.array([1.0, 2, -3])
    got_K, c2w = decompose(factor * K @ np.concatenate([R, -R @ centre[:, None]], 1))
    np.testing.assert_allclose(got_K, K, atol=1e-8)
    np.testing.assert_allclose(c2w, np.concatenate([R.T, centre[:, None]], 1), atol=1e-9)


def test_to_sphere_of_a_turned_frame():
    R = cv2.Rodrigues(np.array([0.5, 1.0, -0.2]))[0]
    to_world = np.eye(4)
    to_world[:3, :3], to_world[:3, 3] = 7 * R, [1, 2, 3]
    scale, rotation, shift = similarity_parts(to_world)
    assert scale == pytest.approx(7)
    np.testing.assert_allclose(rotation, R, atol=1e-12)
    c2w = np.concatenate([np.eye(3), [[4], [5], [6]]], 1)[None]
    got = to_sphere(c2w, to_world)[0]
    np.testing.assert_allclose(7 * R @ got[:, 3] + shift, [4, 5, 6], atol=1e-12)
    np.testing.assert_allclose(R @ got[:, :3], np.eye(3), atol=1e-12)


def test_views_are_split_by_the_contract():
    assert split_views(9, 8) == ((1, 2, 3, 4, 5, 6, 7), (0, 8))
    assert split_views(3, 0) == ((0, 1, 2), ())


# ---- pixels ----


def test_what_is_read(tiny):
    scene = load_scene(config(tiny))
    assert scene.images.shape == (8, 24, 32, 3) and scene.images.dtype == torch.uint8 and scene.cameras.K.dtype == torch.float32
    assert set(scene.masks.unique().tolist()) == {0, 255} and scene.test_background == "black"
    np.testing.assert_array_equal(scene.images[2].numpy(), read_rgb(tiny / "image" / "000002.png"))
    half = load_scene(config(tiny, img_downscale=2))
    want = scene.images.reshape(8, 12, 2, 16, 2, 3).float().mean((2, 4))
    assert (half.images.float() - want).abs().max() <= 0.51
    assert len(half.masks.unique()) > 2  # soft edges


def test_rgba_grey_and_16_bits(broken):
    shutil.rmtree(broken / "mask")
    for i in range(8):
        write_png(broken / "image" / f"{i:06d}.png", np.dstack([np.full((24, 32, 3), 200, np.uint8), np.tri(24, 32, dtype=np.uint8) * 255]))
    scene = load_scene(config(broken, img_downscale=2))
    assert scene.masks is not None and (scene.images[scene.masks > 10] == 200).all()  # no hidden colour bleeds in
    cv2.imwrite(str(broken / "image" / "000000.png"), np.full((24, 32), 257 * 70, np.uint16))
    scene = load_scene(config(broken))
    assert (scene.images[0] == 70).all() and scene.masks is None and scene.test_background == "image"


def test_digits_that_are_no_numbers(broken):
    (broken / "image" / "000001.png").rename(broken / "image" / "1²2.png")  # "²".isdigit(), but int("²") fails
    shutil.rmtree(broken / "mask")
    assert load_scene(config(broken)).names[1] == "1²2.png"


def test_natural_order(broken):
    for i in range(8):
        (broken / "image" / f"{i:06d}.png").rename(broken / "image" / f"view_{i + 4}.png")
    assert load_scene(config(broken)).names[-3:] == ("view_9.png", "view_10.png", "view_11.png")


# ---- warnings ----


def write_black(path: Path) -> None:
    write_png(path, np.zeros((24, 32)))


WARNINGS = [
    (lambda f: shutil.rmtree(f / "mask"), "no masks found; continuing without them"),
    (lambda f: write_black(f / "mask" / "002.png"), "all black for 000002.png"),
    (lambda f: change_cameras(f, scale_mat_0=lambda m: m @ np.diag([9, 9, 9, 1.0])), "8 of 8 cameras lie inside the sphere"),
    (lambda f: change_cameras(f, scale_mat_3=lambda m: m @ np.diag([2, 2, 2, 1.0])), "scale_mat_3 differs"),
    (lambda f: [(f / d / n).unlink() for d, n in (("image", "000007.png"), ("mask", "007.png"))], "8 cameras for 7 images"),
    (lambda f: (f / "mask" / "007.png").rename(f / "mask" / "009.png"), "numbered differently"),
]


@pytest.mark.parametrize("spoil, text", WARNINGS, ids=[text for _, text in WARNINGS])
def test_warnings(broken, caplog, spoil, text):
    spoil(broken)
    with caplog.at_level(logging.WARNING):
        load_scene(config(broken), log=logging.getLogger("test"))
    assert text in caplog.text


# ---- errors ----


def cut(path: Path, share: float = 0.6) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def cut_jpeg(folder: Path) -> None:
    cv2.imwrite(str(folder / "image" / "000001.jpg"), np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8))
    (folder / "image" / "000001.png").unlink()
    cut(folder / "image" / "000001.jpg", 0.9)


def mirrored(mat):
    """x and image x swap sign: no turned camera sees that."""
    return np.diag([-1.0, 1, 1, 1]) @ mat


def keep_two(folder: Path) -> None:
    for path in [*sorted((folder / "image").iterdir())[2:], *sorted((folder / "mask").iterdir())[2:]]:
        path.unlink()


NPZ = "cameras_sphere.npz"
ERRORS = [
    (shutil.rmtree, {}, r"no such folder; set dataset.root_dir"),
    (lambda f: shutil.rmtree(f / "image"), {}, r"no folder image/"),
    (lambda f: [p.unlink() for p in (f / "image").iterdir()], {}, r"no images \(.png"),
    (lambda f: (f / "mask" / "005.png").unlink(), {}, r"8 images but 7 masks \(mask/005.png is missing\); add it, or set dataset.masks="),
    (lambda f: write_black(f / "mask" / "008.png"), {}, r"8 images but 9 masks \(more masks than images\); remove"),
    (lambda f: write_png(f / "mask" / "004.png", np.ones((20, 32))), {}, r"mask/004.png: 32x20 pixels, expected 32x24"),
    (lambda f: write_png(f / "image" / "000004.png", np.ones((24, 30))), {}, r"image/000004.png: 30x24 pixels, expected 32x24"),
    (lambda f: cut(f / "image" / "000001.png"), {}, r"000001.png: truncated or unreadable"),
    (lambda f: cut(f / "mask" / "001.png", 0), {}, r"mask/001.png: truncated or unreadable image \(0 bytes\)"),
    (cut_jpeg, {}, r"000001.jpg: truncated or unreadable"),
    (lambda f: (f / "image" / "000001.png").write_text("no image"), {}, r"000001.png: truncated or unreadable"),
    (lambda f: (f / NPZ).unlink(), {}, r"no cameras_sphere.npz or cameras.npz"),
    (lambda f: None, {"cameras": "mine.npz"}, r"no mine.npz; .*dataset.cameras"),
    (lambda f: None, {"object_cameras": "its.npz"}, r"no its.npz; .*dataset.object_cameras"),
    (lambda f: cut(f / NPZ), {}, r"not a readable npz file"),
    (lambda f: (f / NPZ).write_text("cameras"), {}, r"not a readable npz file"),
    (lambda f: (f / NPZ).write_bytes(b""), {}, r"not a readable npz file"),
    (lambda f: np.save((f / NPZ).open("wb"), np.eye(4)), {}, r"not an npz file but a single array"),
    (lambda f: change_cameras(f, world_mat_3=lambda m: None), {}, r"no world_mat_3, expected world_mat_0 to world_mat_7"),
    (lambda f: change_cameras(f, scale_mat_0=lambda m: None), {}, r"no scale_mat_0"),
    (lambda f: change_cameras(f, world_mat_2=lambda m: m * [[0], [1], [1], [1]]), {}, r"world_mat_2 is singular"),
    (lambda f: change_cameras(f, world_mat_2=lambda m: m * 0), {}, r"world_mat_2 is singular"),
    (lambda f: change_cameras(f, world_mat_2=mirrored), {}, r"world_mat_2 is mirrored"),
    (lambda f: change_cameras(f, world_mat_2=lambda m: -mirrored(m)), {}, r"world_mat_2 is mirrored"),
    (lambda f: change_cameras(f, world_mat_2=lambda m: m * np.nan), {}, r"world_mat_2 contains NaN or infinity"),
    (lambda f: change_cameras(f, world_mat_2=lambda m: m[:2]), {}, r"world_mat_2 has shape \[2, 4\]"),
    (lambda f: change_cameras(f, world_mat_2=lambda m: m.astype(object)), {}, r"world_mat_2 cannot be read \(Object arrays"),
    (lambda f: change_cameras(f, world_mat_2=lambda m: m.astype(str)), {}, r"world_mat_2 has shape"),
    (lambda f: change_cameras(f, scale_mat_0=lambda m: m @ np.diag([1, 2, 1, 1])), {}, r"scale_mat_0: expected one positive scale"),
    (lambda f: change_cameras(f, scale_mat_0=lambda m: m @ np.diag([-1, 1, 1, 1])), {}, r"scale_mat_0: expected one positive scale"),
    (lambda f: change_cameras(f, scale_mat_0=lambda m: m * 0), {}, r"scale_mat_0: expected one positive scale"),
    (lambda f: change_cameras(f, world_mat_2=lambda m: m + [0, 0, 0, 1e60]), {}, r"at infinity|mirrored"),
    (lambda f: change_cameras(f, scale_mat_0=lambda m: m * np.inf), {}, r"scale_mat_0 contains NaN or infinity"),
    (lambda f: [write_black(p) for p in (f / "mask").iterdir()], {}, r"all 8 masks are black"),
    (keep_two, {}, r"1 training view\(s\) of 2 images, expected at least 2"),
]


@pytest.mark.parametrize("spoil, options, text", ERRORS, ids=[f"{i}-{text[:40]}" for i, (_, _, text) in enumerate(ERRORS)])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_errors(broken, spoil, options, text):
    spoil(broken)
    with pytest.raises(UserError, match=text) as caught:
        load_scene(config(broken, **options))
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_never_end_in_a_traceback(broken):
    """Flip bytes anywhere in the camera file and an image: read as before, or a UserError."""
    rng = np.random.default_rng(0)
    for path in (broken / NPZ, broken / "image" / "000003.png"):
        whole = path.read_bytes()
        for _ in range(40):
            data = bytearray(whole)
            for at in rng.integers(0, len(data), 3):
                data[at] = rng.integers(256)
            path.write_bytes(data)
            try:
                load_scene(config(broken, img_downscale=4))
            except UserError:
                continue
        path.write_bytes(whole)


def test_all_problems_at_once(broken):
    (broken / "mask" / "005.png").unlink()
    cut(broken / "image" / "000001.png")
    change_cameras(broken, world_mat_2=lambda m: m * 0, world_mat_6=lambda m: None)
    with pytest.raises(UserError, match=r"005.png.*world_mat_6.*world_mat_2 is singular.*000001.png"):
        load_scene(config(broken))


def test_negative_and_other_factors_are_the_same_camera(broken):
    want = load_scene(config(broken)).cameras
    change_cameras(broken, world_mat_1=lambda m: -m, world_mat_2=lambda m: 40 * m[:3])
    got = load_scene(config(broken)).cameras
    assert torch.allclose(got.c2w, want.c2w, atol=1e-5) and torch.allclose(got.K, want.K, atol=1e-3)


def test_the_object_file_decides_the_sphere(broken):
    with np.load(broken / NPZ) as archive:
        np.savez(broken / "object.npz", scale_mat_0=archive["scale_mat_0"] @ np.diag([0.5, 0.5, 0.5, 1]))
    scene = load_scene(config(broken, object_cameras="object.npz"))
    assert scene.to_world[0, 0] == pytest.approx(1.5)
    assert scene.cameras.c2w[:, :, 3].norm(dim=1).numpy() == pytest.approx(6.0, rel=1e-5)


# ---- real data ----

BUNNY = Path(__file__).parents[3] / "shared" / "data" / "bunny"


@pytest.mark.skipif(not BUNNY.is_dir(), reason="../shared/data/bunny is absent")
@pytest.mark.parametrize("downscale", [1.0, 1.6])
def test_the_known_mesh_fills_its_masks(downscale):
    trimesh = pytest.importorskip("trimesh")
    scene = load_scene(config(BUNNY, img_downscale=downscale))
    to_world = scene.to_world.numpy()
    mesh = trimesh.load(BUNNY / "gt_mesh.ply", process=False)
    points = (mesh.vertices - to_world[:3, 3]) @ np.linalg.inv(to_world[:3, :3]).T
    offsets = []
    for i in range(0, len(scene.names), 5):
        c2w, K = scene.cameras.c2w[i].double().numpy(), scene.cameras.K[i].double().numpy()
        q = (points - c2w[:, 3]) @ c2w[:, :3] @ K.T
        uv = q[:, :2] / q[:, 2:]
        mask = scene.masks[i].numpy() > 127
        near = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        u, v = np.clip(np.rint(uv).astype(int), 0, [mask.shape[1] - 1, mask.shape[0] - 1]).T
        assert near[v, u].all()
        v, u = np.nonzero(mask)  # a pixel covers half a pixel to each side of its centre
        box = np.array([u.min() - 0.5, v.min() - 0.5, u.max() + 0.5, v.max() + 0.5])
        offsets.append(np.concatenate([uv.min(0), uv.max(0)]) - box)
    offsets = np.array(offsets)
    assert np.abs(offsets).max() < 1.0
    shift = (offsets[:, :2] + offsets[:, 2:]).mean(0) / 2
    assert np.abs(shift).max() < 0.2, f"the image is shifted by {shift} px"
