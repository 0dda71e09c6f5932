"""Landscape and portrait photographs in one scene: nothing is stretched, and every user of a view takes its own size."""

import functools
import json
import logging
import pickle
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
import trimesh

from confs.schema import DatasetConfig
from process_data import normalize
from process_data.capture import _reduction
from process_data.edges import scene_edges
from process_data.hull import silhouettes
from process_data.lens import Lens, source_pixels
from process_data.load import load_scene
from process_data.normalize import new_sizes
from process_data.path import orbit
from process_data.preview import scene_picture
from process_data.rays import RayDataset, make_rays, view_rays
from process_data.region import Views, framed_radius
from tests import formats
from utils import mesh as M
from utils.errors import UserError
from utils.image import write_png
from utils.rays import Cameras, Scene

LOG = logging.getLogger("test")
LENS = (0.05, -0.02, 0.002, -0.001)
TALL = np.array([[73.0, 0, 22.3], [0, 70.0, 30.9], [0, 0, 1]])  # of the portrait photographs, 48x64 pixels


def camera(i: int, w: formats.Written) -> tuple[np.ndarray, tuple[int, int]]:
    """(K, (height, width)) of view i: every third view is a portrait."""
    return (TALL, (64, 48)) if i % 3 == 2 else (w.K, (48, 64))


@functools.cache
def make(lens: tuple = ()) -> formats.Written:
    w, images = formats.make(lens=lens), []
    for i, c2w in enumerate(w.c2w):
        K, hw = camera(i, w)
        local = np.concatenate([c2w[:, :3], (c2w[:, 3:] - formats.CENTRE[:, None]) / formats.SCALE], 1)
        images.append(np.dstack(formats.trace_lens(K, local, hw, lens)).astype(np.float32))
    return replace(w, images=images)


def write_transforms(folder, w):
    path = formats.write_transforms(folder, w, per_frame=True) / "transforms.json"
    data = json.loads(path.read_text())
    for i, frame in enumerate(data["frames"]):
        K, (h, width) = camera(i, w)
        frame |= {"fl_x": K[0, 0], "fl_y": K[1, 1], "cx": K[0, 2] + 0.5, "cy": K[1, 2] + 0.5, "w": width, "h": h}
    path.write_text(json.dumps(data))
    return folder


def write_blender(folder, w):
    """The first six views are trained on."""
    lens = dict(zip(("k1", "k2", "p1", "p2"), w.lens))
    for split, views in (("train", range(6)), ("test", (6, 7))):
        frames = []
        for i in views:
            K, (h, width) = camera(i, w)
            write_png(folder / f"{split}/{i}.png", w.images[i])
            known = {"fl_x": K[0, 0], "fl_y": K[1, 1], "cx": K[0, 2] + 0.5, "cy": K[1, 2] + 0.5, "w": width, "h": h, **lens}
            frames.append({"file_path": f"{split}/{i}", "transform_matrix": formats.opengl(w.c2w[i]), **known})
        (folder / f"transforms_{split}.json").write_text(json.dumps({"camera_angle_x": 0.7, "frames": frames}))
    return folder


def write_colmap(folder, w):
    formats.write_colmap(folder, w, text=True, points=formats.surface_points())
    p = [TALL[0, 0], TALL[1, 1], TALL[0, 2] + 0.5, TALL[1, 2] + 0.5, *w.lens]
    with open(folder / "sparse/0/cameras.txt", "a") as file:
        file.write(f"8 {'OPENCV' if w.lens else 'PINHOLE'} 48 64 {' '.join(map(str, p))}\n")
    path = folder / "sparse/0/images.txt"
    lines = path.read_text().splitlines()
    for i in range(2, 8, 3):
        words = lines[1 + 2 * i].split()
        lines[1 + 2 * i] = " ".join([*words[:8], "8", words[9]])
    path.write_text("\n".join(lines) + "\n")
    return folder


def write_glossy(folder, w):
    folder.mkdir(parents=True, exist_ok=True)
    for k, c2w in enumerate(w.c2w):
        K = camera(k, w)[0].copy()
        K[:2, 2] += 0.5
        (folder / f"{k}-camera.pkl").write_bytes(pickle.dumps([np.concatenate([c2w[:, :3].T, -c2w[:, :3].T @ c2w[:, 3:]], 1), K]))
        write_png(folder / f"{k}.png", w.images[k])
    return folder


WRITERS = {"transforms": write_transforms, "blender": write_blender, "colmap": write_colmap, "glossy": write_glossy}


def config(folder, **options) -> DatasetConfig:
    return DatasetConfig(root_dir=str(folder), center=list(formats.CENTRE), radius=formats.SCALE, **options)  # as estimated, but at once


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Scene:
    return load_scene(config(write_transforms(tmp_path_factory.mktemp("mixed") / "s", make())), log=LOG)


@pytest.mark.parametrize("lens", [(), LENS], ids=["pinhole", "lens"])
@pytest.mark.parametrize("layout", WRITERS)
@pytest.mark.parametrize("downscale", [1.0, 1.6])
def test_a_ray_through_a_pixel_meets_what_the_pixel_shows(layout, lens, downscale, tmp_path):
    """World points are projected by cv2.projectPoints into the photograph as it was taken, landscape or portrait."""
    if layout == "glossy" and lens:
        pytest.skip("the glossy layout has no distortion")
    w = make(lens)
    scene = load_scene(config(WRITERS[layout](tmp_path / "s", w), img_downscale=downscale), log=LOG)
    to_world = scene.to_world.numpy()
    linear = to_world[:3, :3] / np.cbrt(np.linalg.det(to_world[:3, :3]))
    x = np.random.default_rng(0).uniform(-0.5, 0.5, (30, 3)) * formats.SCALE + formats.CENTRE
    for i in range(8):
        K, (h, width) = camera(i, w)
        assert scene.cameras.size(i) == (
            (round(48 / downscale), round(64 / downscale)) if i % 3 == 2 else (round(64 / downscale), round(48 / downscale))
        )
        f = np.array(scene.cameras.size(i)) / [width, h]
        R, centre = w.c2w[i, :, :3].T, w.c2w[i, :, 3]
        photo, _ = cv2.projectPoints(x[:, None], cv2.Rodrigues(R)[0], -R @ centre, K, np.array((*lens, 0.0, 0, 0, 0, 0)[:5]))
        want = f * photo[:, 0] + (f - 1) / 2  # in the photograph, resized
        K_new = scene.cameras.K[i].double().numpy()
        q = (x - centre) @ R.T @ K_new.T
        uv = q[:, :2] / q[:, 2:]
        shrunk = np.diag([*f, 1.0]) @ K
        shrunk[:2, 2] += (f - 1) / 2
        np.testing.assert_allclose(source_pixels(Lens("brown", lens), shrunk, K_new, uv), want, atol=1e-3)
        rays = make_rays(scene.cameras, torch.full((30,), i), torch.tensor(uv, dtype=torch.float32), 1.0)
        toward = (x - centre) / np.linalg.norm(x - centre, axis=1, keepdims=True)
        assert np.abs(rays.dirs.double().numpy() @ linear.T - toward).max() < 1e-5
        if not lens:
            assert K_new[0, 0] / K_new[1, 1] == pytest.approx(K[0, 0] / K[1, 1], rel=0.02), "pixels keep their aspect"


def test_pixels_are_the_photographs_own(mixed, caplog):
    w = make()
    assert mixed.images.shape == (8, 64, 64, 3) and mixed.sizes[1:3].tolist() == [[64, 48], [48, 64]]
    for i in range(8):
        want = np.rint(w.images[i] * 255).astype(np.uint8)
        np.testing.assert_array_equal(mixed.image(i), want[..., :3])
        np.testing.assert_array_equal(mixed.mask(i), want[..., 3])
        width, height = mixed.cameras.size(i)
        assert not mixed.images[i, height:].any() and not mixed.images[i, :, width:].any() and not mixed.masks[i, height:].any()


def test_sizes_of_training():
    landscape, portrait = (4032, 3024), (3024, 4032)
    assert new_sizes([landscape, portrait], None, 4.032) == [(1000, 750), (750, 1000)]
    assert new_sizes([landscape, landscape, (2016, 1512), (8064, 6048)], None, 4.032) == [(1000, 750)] * 4  # by its own factor each
    assert new_sizes([landscape, landscape, (320, 240)], None, 4.0)[2] == (320, 240)  # nothing is enlarged
    assert new_sizes([landscape, landscape, (320, 240)], None, 0.5)[2] == (640, 480)  # unless that is asked for
    assert new_sizes([(1957, 1093), (1960, 1090)], None, 1.0) == [(1957, 1093), (1960, 1090)]  # and no pixel is changed without need
    assert new_sizes([(64, 48), (64, 48), (48, 64), (128, 96)], [50, 60], 1.0) == [(50, 60), (50, 60), (47, 63), (50, 60)]


def test_large_photographs_are_reduced_by_default():
    assert new_sizes([(4032, 3024), (3024, 4032)], None, None) == [(806, 605), (605, 806)]
    assert new_sizes([(1613, 1210)], None, None) == [(806, 605)] and new_sizes([(6000, 4000)], None, None) == [(857, 571)]
    assert new_sizes([(800, 600), (1000, 1000)], None, None)[0] == (800, 600) and new_sizes([(1000, 1000)], None, None) == [(1000, 1000)]
    assert new_sizes([(4032, 3024)], [64, 48], None) == [(64, 48)] and new_sizes([(4032, 3024)], None, 1.0) == [(4032, 3024)]


def test_the_default_size_is_said(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(normalize, "KEPT", 3000)
    monkeypatch.setattr(normalize, "REDUCED", 768)
    folder = formats.write_transforms(tmp_path, formats.make())
    with caplog.at_level(logging.INFO):
        assert load_scene(config(folder), log=LOG).cameras.size(0) == (32, 24)
        assert "photographs 64x48 are trained at 32x24; dataset.img_downscale=1 keeps them" in caplog.text
        caplog.clear()
        assert load_scene(config(folder, img_downscale=1), log=LOG).cameras.size(0) == (64, 48) and "are trained at" not in caplog.text


def test_decoders_reduce_by_what_divides_both_sides():
    assert [_reduction((4032, 3024), to) for to in ((1000, 750), (500, 375), (252, 189), (2016, 1512))] == [2, 4, 8, 1]
    assert _reduction((4031, 3024), (500, 375)) == 1 and _reduction((4030, 3022), (200, 150)) == 2


def test_batches_are_uniform_over_the_pixels_of_the_photographs(mixed):
    batch = RayDataset(mixed, 1.0, seed=0, clean_edges=False)[0, 60_000]
    for i in mixed.train:
        rays, mine = view_rays(mixed.cameras, i, 1.0), batch.view == i
        w, h = mixed.cameras.size(i)
        assert len(rays) == w * h and abs(float(mine.float().mean()) - 1 / 7) < 0.01
        some = torch.nonzero(mine)[:200, 0]
        pixel = (batch.rays.dirs[some] @ rays.dirs.T).argmax(-1)
        torch.testing.assert_close(rays.dirs[pixel], batch.rays.dirs[some])
        torch.testing.assert_close(batch.rgb[some], mixed.image(i).reshape(-1, 3)[pixel] / 255)
        torch.testing.assert_close(batch.mask[some], mixed.mask(i).reshape(-1)[pixel] / 255)
        assert pixel.float().mean() / (w * h) == pytest.approx(0.5, abs=0.08)
    small = replace(mixed, cameras=replace(mixed.cameras, sizes=mixed.sizes.clone().index_fill_(0, torch.tensor(1), 8)))
    share = (RayDataset(small, 1.0, seed=0)[0, 60_000].view == 1).float().mean()
    assert share == pytest.approx(64 / (64 + 6 * 3072), rel=0.3), "each pixel counts the same"


def test_equal_sizes_are_drawn_as_ever(tiny_scene):
    """The pixels of a (seed, step, n_rays) are those of earlier versions: checkpoints and seeds stay comparable."""
    scene = load_scene(config(tiny_scene, hold_every=4), log=LOG)
    data = RayDataset(scene, 1.0, seed=3, clean_edges=False)
    drawn = torch.randint(6 * 24 * 32, (500,), generator=torch.Generator().manual_seed(1279355034))
    assert torch.equal(data.draw(5, 500), drawn)
    view, pixel = torch.tensor(scene.train)[drawn // (24 * 32)], drawn % (24 * 32)
    batch = data[5, 500]
    uv = torch.stack([pixel % 32, pixel // 32], -1).float()
    assert torch.equal(batch.rays.dirs, make_rays(scene.cameras, view, uv, 1.0).dirs) and torch.equal(batch.view, view)
    assert torch.equal(batch.rgb, scene.images[view, pixel // 32, pixel % 32] / 255)


def test_mask_edges_lie_inside_the_photographs(mixed):
    scene = replace(mixed, test_background="black")
    index, _ = scene_edges(scene)
    view, v, u = index // 64**2, index % 64**2 // 64, index % 64
    assert len(index) > 100 and (index.diff() > 0).all()
    assert (u < scene.sizes[view, 0]).all() and (v < scene.sizes[view, 1]).all() and (scene.masks[view, v, u] > 127).all()


def test_regions_of_each_orientation():
    """A camera turned by 90 degrees frames the same ball."""
    K = np.array([[60.0, 0, 31.5], [0, 60, 23.5], [0, 0, 1]])
    turned = np.array([[60.0, 0, 23.5], [0, 60, 31.5], [0, 0, 1]])
    w = formats.make()
    tall = w.c2w.copy()
    tall[::2, :, :3] = tall[::2, :, :3] @ np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    Ks = np.stack([turned if i % 2 == 0 else K for i in range(8)])
    sizes = np.array([[48, 64] if i % 2 == 0 else [64, 48] for i in range(8)])
    want = framed_radius(Views(np.repeat(K[None], 8, 0), w.c2w, (64, 48)), formats.CENTRE)
    assert framed_radius(Views(Ks, tall, sizes), formats.CENTRE) == pytest.approx(want)


def test_silhouettes_are_cropped(mixed):
    sil = silhouettes(mixed.masks.numpy(), mixed.cameras.K.numpy(), mixed.cameras.c2w.numpy(), list(range(8)), mixed.sizes.numpy())
    assert [m.shape for m in sil.masks[1:3]] == [(48, 64), (64, 48)]
    np.testing.assert_allclose(sil.K, mixed.cameras.K.numpy())


def test_culling_takes_the_frame_of_each_view():
    mesh = trimesh.creation.icosphere(3, 0.9)
    K = torch.tensor([[100.0, 0, 49.5], [0, 100, 49.5], [0, 0, 1]]).repeat(2, 1, 1)
    c2w = torch.eye(4)[:3].repeat(2, 1, 1)
    c2w[:, 2, 3] = -2.0
    cameras = Cameras(K, c2w, 100, 100, torch.tensor([[100, 100], [50, 100]]))
    seen = M.cull_unseen(mesh, cameras, 2)
    assert seen.vertices[:, 0].max() < 0.01 and len(M.cull_unseen(mesh, cameras, 1).faces) == len(M.cull_unseen(mesh, cameras[:1], 1).faces)
    masks = torch.full((2, 100, 100), 255, dtype=torch.uint8)
    masks[1, :, 50:] = 0  # padding, no evidence against the right half
    assert len(M.cull_by_masks(mesh, cameras, masks, 0.0).faces) == len(mesh.faces)


def test_the_video_has_the_most_frequent_size(mixed):
    path = orbit(mixed.cameras, 5)
    assert path.size(0) == (64, 48) and path.K[0, 0, 0] == pytest.approx(70, abs=0.1) and 31 < path.K[0, 0, 2] < 34
    tall = orbit(mixed.cameras[torch.tensor([2, 5, 1])], 5)
    assert tall.size(0) == (48, 64)


def test_the_preview_shows_every_size(mixed):
    assert scene_picture(mixed).shape[0] == scene_picture(replace(mixed, train=(2, 5), test=())).shape[0]


def test_sizes_are_checked():
    K, c2w = torch.eye(3).repeat(2, 1, 1), torch.eye(4)[:3].repeat(2, 1, 1)
    assert Cameras(K, c2w, 30, 40).sizes.tolist() == [[40, 30]] * 2 and Cameras(K, c2w, 30, 40)[:1].size(0) == (40, 30)
    for sizes in (torch.tensor([[40, 30]]), torch.tensor([[40, 30], [41, 30]]), torch.tensor([[40, 30], [0, 30]]), torch.full((2, 2), 9.0)):
        with pytest.raises(ValueError, match="Cameras.sizes"):
            Cameras(K, c2w, 30, 40, sizes)


def test_a_photograph_of_one_pixel_is_refused(tmp_path):
    """Regression: its shape is that of any camera, within a pixel."""
    formats.write_blender(tmp_path, formats.make(n_views=5))
    write_png(tmp_path / "train/r_1.png", np.ones((1, 1, 4)))
    with pytest.raises(UserError, match=r"r_1\.png: 1x1 pixels, expected at least 4 along a side"):
        load_scene(DatasetConfig(root_dir=str(tmp_path)))
