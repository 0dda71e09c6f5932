"""What each layout says besides its cameras: splits, paths, reduced photographs, several models, regions, coefficients."""

import json
import logging
import shutil

import cv2
import numpy as np
import pytest
import torch

from confs.schema import DatasetConfig
from process_data.colmap import image_folders, model_folder
from process_data.files import find_image
from process_data.lens import Lens, distort
from process_data.load import load_scene, recognise
from process_data.metashape import metashape_capture, read_sensor, read_xml
from tests import formats
from utils.errors import UserError
from utils.image import write_png

LOG = logging.getLogger("test")
REGION = {"center": [10, -20, 30], "radius": 3.0}
SMALL = {"n_views": 4, "hw": (24, 32), "fx": 35.0, "fy": 35.0, "cx": 15.5, "cy": 11.5}


def config(folder, **options) -> DatasetConfig:
    return DatasetConfig(root_dir=str(folder), **options)


def world_centres(scene) -> np.ndarray:
    to_world = scene.to_world.numpy()
    return scene.cameras.c2w[:, :, 3].double().numpy() @ to_world[:3, :3].T + to_world[:3, 3]


# ---- transforms.json ----


def lists(folder, **named) -> None:
    path = folder / "transforms.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {key: [f"images/{i:03d}.png" for i in value] for key, value in named.items()})
    )


@pytest.mark.parametrize(
    "named, train, test",
    [
        ({"train_filenames": [0, 1, 2, 3], "test_filenames": [4], "val_filenames": [5]}, [0, 1, 2, 3], [4, 5]),
        ({"test_filenames": [1]}, [0, 2, 3, 4, 5, 6, 7], [1]),
        ({"train_filenames": [0, 1, 2, 3, 4]}, [0, 1, 2, 3, 4], [5, 6, 7]),
        ({"train_filenames": [0, 1, 2], "val_filenames": [2, 3]}, [0, 1, 2], [3]),
    ],
)
def test_lists_of_names_are_the_split(tmp_path, named, train, test):
    folder = formats.write_transforms(tmp_path, formats.make(hw=(24, 32), fx=35.0, fy=35.0, cx=16.0, cy=12.0))
    lists(folder, **named)
    scene = load_scene(config(folder), log=LOG)
    numbers = [int(name[7:10]) for name in scene.names]
    assert [numbers[i] for i in scene.train] == train and [numbers[i] for i in scene.test] == test


def test_a_list_that_is_none(tmp_path):
    folder = formats.write_transforms(tmp_path, formats.make(**SMALL), more={"test_filenames": "images/000.png"})
    with pytest.raises(UserError, match="test_filenames: expected a list of file names"):
        load_scene(config(folder), log=LOG)


def test_windows_paths_and_paths_of_another_machine(tmp_path):
    folder = formats.write_transforms(tmp_path, formats.make(**SMALL))
    want = load_scene(config(folder), log=LOG)
    path = folder / "transforms.json"
    data = json.loads(path.read_text())
    names = [f"images\\{0:03d}.png", ".\\images\\001", "D:\\work\\scene\\images\\002.png", "/nowhere/scene/images/003.png"]
    for frame, name in zip(data["frames"], names):
        frame["file_path"] = name
    path.write_text(json.dumps(data))
    got = load_scene(config(folder), log=LOG)
    assert got.names == want.names and torch.equal(got.images, want.images)
    write_png(tmp_path / "images/IMG_1.png", np.ones((2, 2)))
    (tmp_path / "images/IMG_1.png").rename(tmp_path / "images/IMG_1.PNG")
    assert find_image(tmp_path / "images", "IMG_1") == tmp_path / "images/IMG_1.PNG"


def test_mask_path_with_backslashes(tmp_path):
    written = formats.make(**SMALL)
    folder = formats.write_transforms(tmp_path, written)
    path = folder / "transforms.json"
    data = json.loads(path.read_text())
    for i, frame in enumerate(data["frames"]):
        write_png(folder / f"seg/{i}.png", written.images[i][..., 3])
        frame["mask_path"] = f"seg\\{i}.png"
    path.write_text(json.dumps(data))
    assert load_scene(config(folder), log=LOG).test_background == "black"  # of mask files; white for alpha


# ---- COLMAP ----


def reduce(folder, n: int) -> None:
    for path in (folder / "images").rglob("*.png"):
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        target = folder / f"images_{n}" / path.relative_to(folder / "images")
        target.parent.mkdir(parents=True, exist_ok=True)
        image[..., 0] = 255  # to tell it from the photograph
        cv2.imwrite(str(target), cv2.resize(image, None, fx=1 / n, fy=1 / n, interpolation=cv2.INTER_AREA))


def is_reduced(scene) -> bool:
    return bool((scene.images[0][scene.masks[0] > 254][:, 2] == 255).all())


@pytest.mark.parametrize("write", [formats.write_colmap, formats.write_llff])
def test_photographs_that_were_reduced_beforehand(tmp_path, write):
    folder = write(tmp_path, formats.make(**SMALL))
    want = load_scene(config(folder, img_downscale=2, **REGION), log=LOG)
    reduce(folder, 2)
    got = load_scene(config(folder, img_downscale=2, **REGION), log=LOG)
    assert is_reduced(got) and not is_reduced(want) and got.images.shape[1:3] == (12, 16)
    torch.testing.assert_close(got.cameras.K, want.cameras.K)
    assert not is_reduced(load_scene(config(folder, img_downscale=1.5, **REGION), log=LOG))
    assert not is_reduced(load_scene(config(folder, img_wh=[16, 12], **REGION), log=LOG))
    shutil.rmtree(folder / "images")
    for options, size in (({}, (12, 16)), ({"img_downscale": 4}, (6, 8)), ({"img_wh": [20, 15]}, (15, 20))):
        scene = load_scene(config(folder, **options, **REGION), log=LOG)
        assert is_reduced(scene) and scene.images.shape[1:3] == size
        assert scene.cameras.K[0, 0, 0] == pytest.approx(35 * size[1] / 32)


PLACES = ["sparse", "sparse/1", "colmap/sparse", "dense/sparse", "dense/0/sparse", "sparse/geo", "distorted/sparse/0"]


@pytest.mark.parametrize("place", PLACES)
def test_places_of_the_model(tmp_path, place):
    folder = formats.write_colmap(tmp_path / "s", formats.make(**SMALL))
    (folder / "sparse/0").rename(folder / "model")
    shutil.rmtree(folder / "sparse")
    (folder / place).parent.mkdir(parents=True, exist_ok=True)
    (folder / "model").rename(folder / place)
    assert recognise(config(folder), LOG) == "colmap"
    assert len(load_scene(config(folder), log=LOG).names) == 4


def test_photographs_beside_the_model_come_first(tmp_path):
    for name in ("images", "dense/0/images", "input"):
        (tmp_path / name).mkdir(parents=True)
    assert image_folders(tmp_path, tmp_path / "dense/0/sparse")[0] == tmp_path / "dense/0/images"
    assert image_folders(tmp_path, tmp_path / "distorted/sparse/0")[0] == tmp_path / "input"
    assert image_folders(tmp_path, tmp_path / "sparse/0")[0] == tmp_path / "images"


def test_of_several_models_the_largest(tmp_path, caplog):
    folder = formats.write_colmap(tmp_path / "s", formats.make(**SMALL))
    other = formats.write_colmap(tmp_path / "t", formats.make(**{**SMALL, "n_views": 6}), text=True)
    (other / "sparse/0").rename(folder / "sparse/1")
    with caplog.at_level(logging.INFO):
        assert model_folder(folder, LOG) == folder / "sparse/1"
    assert "2 models; 1 with 6 images has the most" in caplog.text
    (folder / "sparse/1/images.txt").write_text("1 2 3\n")
    assert model_folder(folder, LOG) == folder / "sparse/0"


# ---- sdfstudio, LLFF, Middlebury ----


def test_sdfstudio_is_in_the_world_of_the_ground_truth(tmp_path):
    written = formats.make(**SMALL)
    folder = formats.write_sdfstudio(tmp_path, written)
    scene = load_scene(config(folder), log=LOG)
    np.testing.assert_allclose(world_centres(scene), written.c2w[:, :, 3], atol=1e-5 * 30)
    np.testing.assert_allclose(scene.to_world.numpy(), [[3, 0, 0, 10], [0, 3, 0, -20], [0, 0, 3, 30], [0, 0, 0, 1]], atol=1e-9)
    path = folder / "meta_data.json"
    data = json.loads(path.read_text())
    for i, frame in enumerate(data["frames"]):
        write_png(folder / f"{i}_mask.png", written.images[i][..., 3])
        frame["foreground_mask"] = f"{i}_mask.png"
    data["scene_box"] = {"aabb": [[-1, -1, 0], [1, 1, 4]]}
    path.write_text(json.dumps(data))
    scene = load_scene(config(folder), log=LOG)
    assert scene.test_background == "black"
    np.testing.assert_allclose(scene.to_world.numpy()[[0, 2], [0, 3]], [2 * 3, 30 + 2 * 3])


SDFSTUDIO = [
    ({"camera_model": "FISHEYE"}, "camera_model 'FISHEYE' is not supported"),
    ({"worldtogt": [[1, 0, 0, 0], [0, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]}, "worldtogt: .*stretches"),
    ({"worldtogt": "x"}, "worldtogt: expected 4x4 finite numbers"),
    ({"scene_box": {"aabb": [[1, 1, 1], [0, 0, 0]]}}, "scene_box: radius"),
    ({"height": 48}, "cropped or rotated"),
]


@pytest.mark.parametrize("more, text", SDFSTUDIO)
def test_errors_of_sdfstudio(tmp_path, more, text):
    folder = formats.write_sdfstudio(tmp_path, formats.make(**SMALL), more)
    with pytest.raises(UserError, match=text):
        load_scene(config(folder), log=LOG)


def test_llff_counts_its_photographs_and_refuses_pickles(tmp_path):
    folder = formats.write_llff(tmp_path, formats.make(**SMALL))
    assert load_scene(config(folder), log=LOG).test == (0,)
    write_png(folder / "images/more.png", np.ones((24, 32)))
    with pytest.raises(UserError, match="5 photographs, expected 4"):
        load_scene(config(folder), log=LOG)
    np.save(folder / "poses_bounds.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(UserError, match="not a readable array"):
        load_scene(config(folder), log=LOG)
    np.save(folder / "poses_bounds.npy", np.ones((4, 15)))
    with pytest.raises(UserError, match=r"shape \[4, 15\], expected numbers of shape \[N, 17\]"):
        load_scene(config(folder), log=LOG)


@pytest.mark.parametrize(
    "change, text",
    [
        (lambda t: t.replace("4\n", "5\n", 1), "4 lines after the first, '5'"),
        (lambda t: t.replace(" 0.0 0.0 1.0 ", " 0.0 0.0 ", 1), "line 2: expected a name and 21 numbers"),
        (lambda t: t.replace(" 0.0 0.0 1.0 ", " 3.0 0.0 1.0 ", 1), "line 2: K is not upper triangular"),
        (lambda t: t.replace("ellipsoid", "other"), "none of its 4 images exists"),
        (lambda t: "", "0 lines|-1 lines"),
    ],
)
def test_errors_of_middlebury(tmp_path, change, text):
    folder = formats.write_middlebury(tmp_path, formats.make(**SMALL))
    path = folder / "ellipsoid_par.txt"
    path.write_text(change(path.read_text()))
    with pytest.raises(UserError, match=text):
        load_scene(config(folder, name="middlebury"), log=LOG)


# ---- Metashape ----


def test_cameras_that_are_disabled_or_not_aligned_are_left_out(tmp_path):
    written = formats.make(**SMALL)
    folder = formats.write_metashape(tmp_path, written, cameras='<camera id="8" sensor_id="0" label="IMG_0001"/>')
    path = folder / "cameras.xml"
    path.write_text(path.read_text().replace('<camera id="2"', '<camera id="2" enabled="false"'))
    assert [v.name for v in metashape_capture(config(folder), LOG).views] == ["IMG_0000.png", "IMG_0001.png", "IMG_0003.png"]


def test_a_component_has_its_own_transform(tmp_path):
    folder = formats.write_metashape(tmp_path, formats.make(**SMALL))
    path = folder / "cameras.xml"
    want = metashape_capture(config(folder), LOG).views
    text = path.read_text()
    transform = text[text.rindex("<transform>") : text.rindex("</chunk>")]
    moved = text.replace(transform, "").replace("<cameras ", f'<components><component id="0">{transform}</component></components><cameras ')
    path.write_text(moved)
    for a, b in zip(want, metashape_capture(config(folder), LOG).views):
        np.testing.assert_array_equal(a.c2w, b.c2w)


def sensor(tmp_path, text: str, kind: str = "frame"):
    size = '<resolution width="600" height="400"/>'
    (tmp_path / "s.xml").write_text(f'<sensor><calibration type="{kind}" class="adjusted">{size}{text}</calibration></sensor>')
    return read_sensor(read_xml(tmp_path / "s.xml"), "here")


def test_the_formula_of_the_frame_camera(tmp_path):
    """Written out from Metashape's manual."""
    values = {
        "f": 500.0,
        "cx": 3.0,
        "cy": -2.0,
        "b1": 1.5,
        "b2": -0.7,
        "k1": 0.1,
        "k2": -0.05,
        "k3": 0.02,
        "k4": 0.03,
        "p1": 2e-3,
        "p2": -1e-3,
    }
    K, size, lens = sensor(tmp_path, "".join(f"<{k}>{v}</{k}>" for k, v in values.items()))
    f, cx, cy, b1, b2, k1, k2, k3, k4, p1, p2 = values.values()
    xy = np.random.default_rng(0).uniform(-0.5, 0.5, (50, 2))
    x, y = xy.T
    r2 = x * x + y * y
    radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3 + k4 * r2**4
    xd, yd = x * radial + p1 * (r2 + 2 * x * x) + 2 * p2 * x * y, y * radial + p2 * (r2 + 2 * y * y) + 2 * p1 * x * y
    u, v = 300 + cx + xd * f + xd * b1 + yd * b2 - 0.5, 200 + cy + yd * f - 0.5
    np.testing.assert_allclose(distort(lens, xy) @ K[:2, :2].T + K[:2, 2], np.stack([u, v], 1), atol=1e-9)
    assert size == (600, 400)


def test_metashapes_fisheye_is_kannalas(tmp_path):
    _, _, lens = sensor(tmp_path, "<f>300</f><k1>0.05</k1><k4>-0.001</k4>", "fisheye")
    assert lens == Lens("fisheye", (0.05, 0.0, 0.0, -0.001))
    for text, kind in (("<f>300</f><p1>0.1</p1>", "fisheye"), ("<f>300</f>", "spherical"), ("<f>300</f><p3>0.1</p3>", "frame")):
        with pytest.raises(UserError, match="not supported"):
            sensor(tmp_path, text, kind)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_xml_with_entities_is_refused(tmp_path, encoding):
    bomb = '<!DOCTYPE d [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]><document>&b;</document>'
    (tmp_path / "cameras.xml").write_bytes(f'<?xml version="1.0" encoding="{encoding}"?>{bomb}'.encode(encoding))
    with pytest.raises(UserError, match="cameras.xml: has a document type declaration"):
        load_scene(config(tmp_path), log=LOG)


def edit(old: str, new: str):
    return lambda text: text.replace(old, new)


@pytest.mark.parametrize(
    "change, text",
    [
        (edit("<f>35.0", "<f>-3"), "focal length"),
        (edit("<k1>0.0", "<k1>x"), "k1: expected 1 finite numbers"),
        (edit('sensor_id="0"', 'sensor_id="7"'), "no sensor 7"),
        (edit('label="IMG_', 'label="no_'), "none of its 4 images exists"),
        (edit("<scale locked", "<scale>-1</scale><x locked"), "not readable XML"),
        (edit(">3.0</scale>", ">-3.0</scale>"), "chunk: transform"),
        (edit("<camera ", "<camera enabled='0' "), "no aligned cameras"),
        (edit("<chunk", "<piece"), "not readable XML|no aligned cameras"),
    ],
)
def test_errors_of_metashape(tmp_path, change, text):
    folder = formats.write_metashape(tmp_path, formats.make(**SMALL))
    path = folder / "cameras.xml"
    path.write_text(change(path.read_text()))
    with pytest.raises(UserError, match=text):
        load_scene(config(folder), log=LOG)
