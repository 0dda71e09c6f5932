"""COLMAP: models, text and binary, masks, points; and files damaged in any way."""

import json
import logging
import shutil
import struct
import time
import tracemalloc

import numpy as np
import pytest
import torch

from confs.schema import DatasetConfig
from process_data.colmap import LENSES, camera_of
from process_data.colmap_files import MODELS, Camera, read_images
from process_data.load import load_scene
from tests import formats
from utils.errors import UserError
from utils.image import write_png

LOG = logging.getLogger("quiet")
LOG.setLevel(logging.ERROR)


def config(folder, **options) -> DatasetConfig:
    return DatasetConfig(root_dir=str(folder), **options)


@pytest.fixture(scope="module")
def written():
    return formats.make(lens=(0.1, -0.05, 0.002, 0.001))


@pytest.mark.slow
def test_text_and_binary_are_the_same(tmp_path, written):
    a = load_scene(config(formats.write_colmap(tmp_path / "a", written)), log=LOG)
    b = load_scene(config(formats.write_colmap(tmp_path / "b", written, text=True)), log=LOG)
    assert torch.equal(a.images, b.images) and torch.equal(a.cameras.K, b.cameras.K) and a.names == b.names
    torch.testing.assert_close(a.cameras.c2w, b.cameras.c2w)
    torch.testing.assert_close(a.points, b.points)


def test_points_lie_in_the_sphere_and_on_the_object(tmp_path, written):
    scene = load_scene(config(formats.write_colmap(tmp_path, written)), log=LOG)
    assert scene.points.shape == (60, 3) and scene.points.norm(dim=1).max() < 1
    world = scene.points.double() @ scene.to_world[:3, :3].T + scene.to_world[:3, 3]
    local = (world.numpy() - formats.CENTRE) / formats.SCALE / (0.6, 0.5, 0.4)
    np.testing.assert_allclose(np.linalg.norm(local, axis=1), 1, atol=1e-4)


@pytest.mark.parametrize("model", LENSES)
def test_every_model_finds_its_parameters(model):
    n = dict(MODELS.values())[model]
    kind, focals, places = LENSES[model]
    params = ([50.0] if focals == 1 else [50.0, 60.0]) + [31.0, 23.0] + [0.01 * (i + 1) for i in range(n - focals - 2)]
    K, lens = camera_of(Camera(model, 64, 48, tuple(params)), "here")
    np.testing.assert_allclose(K, [[50, 0, 30.5], [0, 50 if focals == 1 else 60, 22.5], [0, 0, 1]])
    assert lens.kind == kind and lens.params == tuple(params[focals + 2 :]) and len(places) == n - focals - 2


def test_masks_by_colmaps_name_or_by_stem(tmp_path, written):
    folder = formats.write_colmap(tmp_path, written)
    for i in range(8):
        name = f"left/{i:03d}.png.png" if i % 2 else f"left/{i:03d}.png"
        write_png(folder / "masks" / name, written.images[i][..., 3])
    scene = load_scene(config(folder), log=LOG)
    assert scene.masks is not None and scene.test_background == "black"
    (folder / "masks/left/003.png.png").unlink()
    with pytest.raises(UserError, match=r"8 images but 7 masks \(masks/left/003.png is missing\)"):
        load_scene(config(folder), log=LOG)


def test_several_cameras(tmp_path, written):
    folder = formats.write_colmap(tmp_path, written, text=True)
    path = folder / "sparse/0/cameras.txt"
    path.write_text(path.read_text() + "9 SIMPLE_RADIAL 64 48 80.0 32.0 24.0 0.01\n")
    path = folder / "sparse/0/images.txt"
    path.write_text(path.read_text().replace(" 7 left/002.png", " 9 left/002.png"))
    scene = load_scene(config(folder), log=LOG)
    assert abs(scene.cameras.K[2, 0, 0] - 80) < 2 and not torch.equal(scene.cameras.K[2], scene.cameras.K[1])


def test_names_with_spaces_and_no_features(tmp_path):
    (tmp_path / "images.txt").write_text("# x\n1 1 0 0 0 0 0 1 3 a folder/my photo.jpg\n\n2 1 0 0 0 0 0 1 3 b.jpg\n\n")
    assert [i.name for i in read_images(tmp_path / "images.txt")] == ["a folder/my photo.jpg", "b.jpg"]


def pack_camera(folder, **change):
    c = {"n": 1, "id": 7, "model": 1, "w": 64, "h": 48, "f": 70.0} | change
    data = struct.pack("<QiiQQ4d", c["n"], c["id"], c["model"], c["w"], c["h"], c["f"], c["f"], 32, 24)
    (folder / "sparse/0/cameras.bin").write_bytes(data)


ERRORS = [
    (lambda f: shutil.rmtree(f / "sparse"), "no sparse/0"),
    (lambda f: shutil.rmtree(f / "images"), "none of its 8 images exists"),
    (lambda f: (f / "sparse/0/images.bin").write_bytes(struct.pack("<Q", 0)), "no registered images"),
    (lambda f: (f / "sparse/0/images.bin").write_bytes(struct.pack("<Q", 2**60)), "truncated or damaged at byte 8 of 8"),
    (lambda f: (f / "sparse/0/cameras.bin").write_bytes(b""), "truncated or damaged"),
    (lambda f: pack_camera(f, n=2), "truncated or damaged"),
    (lambda f: pack_camera(f, id=3), "refers to camera 7"),
    (lambda f: pack_camera(f, model=99), "unknown model number 99"),
    (lambda f: pack_camera(f, f=float("nan")), "contains NaN or infinity"),
    (lambda f: pack_camera(f, w=2**50), "image size"),
    (lambda f: pack_camera(f, w=32), "cropped or rotated"),
    (lambda f: (f / "images/left/002.png").write_bytes(b"\x89PNG"), "002.png: truncated or unreadable"),
]


@pytest.mark.parametrize("spoil, text", ERRORS, ids=[text for _, text in ERRORS])
def test_errors(tmp_path, spoil, text):
    folder = formats.write_colmap(tmp_path, formats.make())
    spoil(folder)
    with pytest.raises(UserError, match=text) as caught:
        load_scene(config(folder, name="colmap"), log=LOG)
    assert "\n" not in str(caught.value)


# ---- damage ----

FILES = {
    "colmap": ["sparse/0/cameras.bin", "sparse/0/images.bin", "sparse/0/points3D.bin"],
    "text": ["sparse/0/cameras.txt", "sparse/0/images.txt", "sparse/0/points3D.txt"],
    "transforms": ["transforms.json"],
    "dtu": ["cameras_sphere.npz"],
    "sdfstudio": ["meta_data.json"],
    "llff": ["poses_bounds.npy"],
    "middlebury": ["ellipsoid_par.txt"],
    "metashape": ["cameras.xml"],
}
PINHOLES = ("dtu", "sdfstudio", "llff", "middlebury")


def damage(whole: bytes, rng) -> bytes:
    """Cut short, bits flipped, or a stretch overwritten by bytes that make huge numbers."""
    data = bytearray(whole)
    kind = rng.integers(4)
    if kind == 0:
        return bytes(data[: rng.integers(len(data))])
    if kind == 1:
        at = int(rng.integers(len(data)))
        data[at : at + 8] = b"\xff" * 8
        return bytes(data)
    for at in rng.integers(0, len(data), 1 if kind == 2 else 20):
        data[at] ^= 1 << int(rng.integers(8))
    return bytes(data)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layout", FILES)
@pytest.mark.slow
def test_damaged_files_never_end_in_a_traceback(layout, tmp_path):
    """50 seeded cases a layout: read as before or a UserError, within a second and some megabytes."""
    written = formats.make(n_views=4, hw=(24, 32), lens=() if layout in PINHOLES else (0.05, -0.02))
    write = {"text": lambda p, w: formats.write_colmap(p, w, text=True)}.get(layout) or getattr(formats, f"write_{layout}")
    folder = write(tmp_path / "s", written)
    rng, refused = np.random.default_rng(3), 0
    cfg = config(folder, name="colmap" if layout == "text" else layout, center=[10, -20, 30], radius=3.0)
    load_scene(cfg, log=LOG)
    tracemalloc.start()
    for case in range(50):
        path = folder / FILES[layout][case % len(FILES[layout])]
        whole = path.read_bytes()
        path.write_bytes(damage(whole, rng))
        began = time.perf_counter()
        try:
            load_scene(cfg, log=LOG)
        except UserError:
            refused += 1
        assert time.perf_counter() - began < 20, case
        path.write_bytes(whole)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused > 10 and peak < 200e6


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_numbers_of_any_kind_in_json(tmp_path):
    """Every number of a transforms.json replaced in turn by what numbers can be at their worst."""
    folder = formats.write_transforms(tmp_path, formats.make(n_views=4, hw=(24, 32), lens=(0.05, -0.02)))
    path = folder / "transforms.json"
    good = json.loads(path.read_text())
    for key in ("fl_x", "fl_y", "cx", "cy", "w", "h", "k1", "k2"):
        for value in (0, -1, 1e300, float("inf"), float("nan"), "x", [1], None, True, 10**400):
            path.write_text(json.dumps({**good, key: value}))
            try:
                load_scene(config(folder, center=[10, -20, 30], radius=3.0), log=LOG)
            except UserError as error:
                assert str(error)
