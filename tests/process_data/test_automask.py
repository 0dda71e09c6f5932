"""Automatic masks against the true ones of a synthetic object on a patterned table, through a distorting lens."""

import json
import logging
import shutil

import cv2
import numpy as np
import pytest

from confs.schema import DatasetConfig
from process_data import automask, capture
from process_data.agreement import overlap
from process_data.automask import Checked, contact_sheet, mask_names, verdict, write_masks
from process_data.files import inside
from process_data.ground import standing_object, support_plane
from process_data.load import load_scene
from process_data.transforms import transforms_capture
from tests import formats
from tests.process_data import test_sizes
from tests.process_data.onnx_file import write_onnx
from utils.errors import UserError
from utils.image import write_png

pytestmark = pytest.mark.slow

LOG = logging.getLogger("quiet")


def test_support_plane():
    rng = np.random.default_rng(0)
    table = np.column_stack([rng.uniform(-1.5, 1.5, (400, 2)), np.full(400, -0.5)])
    thing = rng.uniform(-0.4, 0.4, (300, 3))
    normal, offset = support_plane(np.concatenate([table, thing]), rng.uniform(1, 2, (20, 3)))
    assert normal @ [0, 0, 1] > 0.999 and offset == pytest.approx(-0.5, abs=0.02)
    assert support_plane(rng.uniform(-1, 1, (500, 3)), np.array([[0, 0, 5.0]])) is None
    assert support_plane(table[:10], np.array([[0, 0, 5.0]])) is None


def test_what_stands_on_the_table_and_is_looked_at_is_the_object():
    rng = np.random.default_rng(0)
    table = np.column_stack([rng.uniform(-4, 4, (2000, 2)), np.full(2000, -1.0)])
    thing = rng.uniform(-0.8, 0.8, (800, 3)) * [1, 1, 0.9] + [0.5, 0, 0]
    cup = rng.uniform(-0.1, 0.1, (60, 3)) + [-2.2, 2, -0.8]
    gaze = np.concatenate([np.full(2000, 0.4), np.full(800, 0.8), np.full(60, 0.1)])
    found = standing_object(np.concatenate([table, thing, cup]), rng.uniform(3, 6, (30, 3)), np.array([0.3, 0, -0.5]), 3.0, gaze)
    assert found is not None and found.points is not None and len(found.points) > 600
    assert np.abs(found.points.mean(0)[:2] - [0.5, 0]).max() < 0.1 and np.abs(found.points[:, :2]).max() < 1.5  # without the cup
    bare = standing_object(table, rng.uniform(3, 6, (30, 3)), np.zeros(3), 3.0, gaze[:2000])
    assert bare is not None and bare.points is None and bare.normal @ [0, 0, 1] > 0.999


def on_a_table(written: formats.Written) -> list[np.ndarray]:
    """The views' images with a green-grey patterned background for their black."""
    rng, images = np.random.default_rng(0), []
    for image in written.images:
        noise = cv2.resize(rng.uniform(0, 1, (12, 16)).astype(np.float32), image.shape[1::-1])
        surroundings = np.stack([0.15 + 0.1 * noise, 0.3 + 0.2 * noise, 0.2 + 0.1 * noise], -1)
        mask = image[..., 3:]
        rgb = np.clip(image[..., :3] * [1.0, 0.6, 0.5] + [0.15, 0, 0], 0, 1)
        images.append((rgb * mask + surroundings * (1 - mask)).astype(np.float32))
    return images


@pytest.mark.parametrize("layout", ["transforms", "colmap", "metashape"])
def test_masks_are_found(layout, tmp_path):
    lens = (0.05, -0.02)
    written = formats.make(n_views=10, hw=(96, 128), fx=140.0, fy=140.0, cx=63.5, cy=47.5, lens=lens)
    truth = [image[..., 3] > 0.5 for image in written.images]
    folder = getattr(formats, f"write_{layout}")(tmp_path, written)
    paths = sorted((folder / "images").rglob("*.png"))
    for path, image in zip(paths, on_a_table(written)):
        write_png(path, image)
    cfg = DatasetConfig(root_dir=str(folder))
    masks = write_masks(cfg, LOG)
    found = [cv2.imread(str(p), cv2.IMREAD_GRAYSCALE) > 127 for p in sorted(masks.rglob("*.png"))]
    assert len(found) == 10 and np.mean([overlap(a, b) for a, b in zip(found, truth)]) > 0.9
    assert (folder / "masks.png").is_file()
    scene = load_scene(cfg, log=LOG)
    assert scene.masks is not None and scene.test_background == "black"
    first = next(masks.rglob("*.png"))
    first.write_bytes(b"mine")
    assert write_masks(cfg, LOG) == masks and first.read_bytes() == b"mine"  # the user's own stay


@pytest.mark.parametrize("work_size", [64, 400])
def test_dtu_masks_have_the_size_of_the_photographs(work_size, tmp_path, monkeypatch):
    monkeypatch.setattr(automask, "WORK_SIZE", work_size)
    written = formats.make(n_views=10, hw=(96, 128), fx=140.0, fy=140.0, cx=63.5, cy=47.5)
    folder = formats.write_dtu(tmp_path, written)
    shutil.rmtree(folder / "mask")
    for path, image in zip(sorted((folder / "image").iterdir()), on_a_table(written)):
        write_png(path, image)
    masks = write_masks(DatasetConfig(root_dir=str(folder)), LOG)
    found = [cv2.imread(str(p), cv2.IMREAD_GRAYSCALE) > 127 for p in sorted(masks.iterdir())]
    assert masks == folder / "mask" and found[0].shape == (96, 128)
    assert np.mean([overlap(a, image[..., 3] > 0.5) for a, image in zip(found, written.images)]) > 0.93
    assert load_scene(DatasetConfig(root_dir=str(folder)), log=LOG).masks is not None


def test_photographs_of_several_sizes(tmp_path, monkeypatch):
    """Landscapes and portraits: each mask has the size of its photograph, and points are not triangulated by pycolmap."""
    monkeypatch.setattr(capture, "scene_points", lambda *_: pytest.fail("triangulated"))
    written = test_sizes.make()
    folder = test_sizes.write_transforms(tmp_path, written)
    for path, image in zip(sorted((folder / "images").iterdir()), on_a_table(written)):
        write_png(path, image)
    masks = write_masks(DatasetConfig(root_dir=str(folder)), LOG)
    found = [cv2.imread(str(p), cv2.IMREAD_GRAYSCALE) > 127 for p in sorted(masks.iterdir())]
    assert {mask.shape for mask in found} == {(48, 64), (64, 48)}
    assert min(overlap(a, image[..., 3] > 0.5) for a, image in zip(found, written.images)) > 0.8
    assert load_scene(DatasetConfig(root_dir=str(folder)), log=LOG).masks is not None


def test_a_network_helps(tmp_path):
    """Object and surroundings differ in nothing but red; colour alone takes the brighter half of the object."""
    written = formats.make(n_views=8)
    folder = formats.write_transforms(tmp_path / "s", written)
    for path, image in zip(sorted((folder / "images").iterdir()), written.images):
        write_png(path, np.where(image[..., 3:] > 0.5, (0.8, 0.4, 0.4), (0.2, 0.4, 0.4)))
    model = write_onnx(tmp_path / "red.onnx", [40, 0, 0], -20)
    masks = write_masks(DatasetConfig(root_dir=str(folder)), LOG, str(model), "unit")
    found = [cv2.imread(str(p), cv2.IMREAD_GRAYSCALE) > 127 for p in sorted(masks.iterdir())]
    assert min(overlap(a, image[..., 3] > 0.5) for a, image in zip(found, written.images)) > 0.9
    with pytest.raises(UserError, match="no such file"):
        write_masks(DatasetConfig(root_dir=str(folder)), LOG, str(tmp_path / "none.onnx"))


def test_masks_that_disagree_are_not_written(tmp_path):
    """The photographs are shifted by a tenth of their width, each in its own direction, as by wrong cameras."""
    written = formats.make(n_views=10, hw=(96, 128), fx=140.0, fy=140.0, cx=63.5, cy=47.5)
    folder = formats.write_transforms(tmp_path, written)
    images = on_a_table(written)
    for i, path in enumerate(sorted((folder / "images").iterdir())):
        write_png(path, np.roll(images[i], 13 * (-1) ** (i // 2), i % 2))
    with pytest.raises(UserError, match="cannot be trusted and were not written.*dataset.masks=false") as error:
        write_masks(DatasetConfig(root_dir=str(folder)), LOG)
    assert "--mask-model" in str(error.value)
    assert sorted(p.name for p in folder.iterdir()) == ["images", "masks.png", "transforms.json"]


def test_the_verdict():
    def checked(iou: list[float], replaced: list[int]) -> Checked:
        return Checked(np.zeros((len(iou), 4, 4), bool), np.array(iou), replaced)

    assert verdict(checked([0.9] * 9 + [0.3], [9]), 0.0, False) is None
    assert "median IoU with the hull of the others 0.70" in str(verdict(checked([0.7] * 10, []), 0.0, False))
    assert "3 of 10 disagree" in str(verdict(checked([0.9] * 7 + [0.5] * 3, [7, 8, 9]), 0.0, False))
    assert "21% of the surface at the look-at point goes on beyond" in str(verdict(checked([0.9] * 10, []), 0.21, False))
    assert verdict(checked([0.9] * 10, []), 0.4, True) is None


def test_the_overview_shows_replaced_views(tmp_path):
    folder = formats.write_transforms(tmp_path, formats.make(n_views=4))
    scene = load_scene(DatasetConfig(root_dir=str(folder), masks=False), log=LOG)
    masks = np.zeros((4, 48, 64), bool)
    masks[:, 10:30, 10:30] = True
    picture = contact_sheet(scene, Checked(masks, np.full(4, 0.9), [3]), most=1)
    assert picture.shape == (48, 128, 3) and (picture[10, 64 + 20] == (255, 60, 40)).all() and (picture[20, 10] == (40, 255, 80)).all()


@pytest.mark.parametrize("layout", ["transforms", "colmap", "dtu"])
def test_masks_in_another_folder_are_kept(layout, tmp_path):
    """Regression: masks/ was written beside the user's mask/, which the reader prefers it to."""
    folder = getattr(formats, f"write_{layout}")(tmp_path, formats.make(n_views=4))
    (folder / "mask").mkdir(exist_ok=True)
    for i in range(4):
        write_png(folder / f"mask/{i:03d}.png", np.ones((48, 64)))
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert write_masks(DatasetConfig(root_dir=str(folder)), LOG) == folder / "mask"
    assert write_masks(DatasetConfig(root_dir=str(folder), masks=False), LOG) == folder / "mask"
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_masks_named_in_the_file_are_kept(tmp_path):
    folder = formats.write_transforms(tmp_path, formats.make(n_views=4))
    data = json.loads((folder / "transforms.json").read_text())
    for i, frame in enumerate(data["frames"]):
        frame["mask_path"] = f"mine/{i}.png"
        write_png(folder / frame["mask_path"], np.ones((48, 64)))
    (folder / "transforms.json").write_text(json.dumps(data))
    assert write_masks(DatasetConfig(root_dir=str(folder)), LOG) == folder / "mine"
    assert not (folder / "masks").exists()


def test_what_cannot_be_masked(tmp_path):
    with pytest.raises(UserError, match="has the layout blender"):
        write_masks(DatasetConfig(root_dir=str(formats.write_blender(tmp_path / "d", formats.make(n_views=4)))), LOG)
    folder = formats.write_transforms(tmp_path / "t", formats.make(n_views=4))
    for path in (folder / "images").iterdir():
        write_png(path, np.full((48, 64, 3), 0.5))
    data = json.loads((folder / "transforms.json").read_text())
    assert len(data["frames"]) == 4
    with pytest.raises(UserError, match="no object is consistent with all views"):
        write_masks(DatasetConfig(root_dir=str(folder), center=[1e3, 0, 0], radius=1e-3), LOG)


@pytest.mark.parametrize("name", ["../outside.png", "/tmp/outside.png", "a/../../outside.png", "..\\outside.png", "C:/outside.png"])
def test_masks_are_not_written_outside_the_scene(tmp_path, name):
    with pytest.raises(UserError, match="expected a relative name"):
        inside(tmp_path / "masks", name)
    assert inside(tmp_path / "masks", "left/0.png") == tmp_path / "masks/left/0.png"


@pytest.mark.parametrize("layout", ["transforms", "colmap"])
@pytest.mark.parametrize("absolute", [True, False])
def test_images_outside_the_scene_get_no_masks(layout, absolute, tmp_path):
    written = formats.make(n_views=4)
    folder = getattr(formats, f"write_{layout}")(tmp_path / "sub/scene", written, **({"text": True} if layout == "colmap" else {}))
    (tmp_path / "away").mkdir()
    (folder / "images").rename(tmp_path / "away/images")
    if layout == "transforms":
        path, old = folder / "transforms.json", "images/"
        new = f"{tmp_path}/away/images/" if absolute else "../../away/images/"
    else:
        (folder / "images").mkdir()
        path, old = folder / "sparse/0/images.txt", "left/"
        new = f"{tmp_path}/away/images/left/" if absolute else "../../../away/images/left/"
    path.write_text(path.read_text().replace(old, new))
    before = sorted(p for p in tmp_path.rglob("*") if p.is_file())
    if layout == "transforms" and absolute:  # named by the file name alone: inside masks/
        assert mask_names(transforms_capture(DatasetConfig(root_dir=str(folder)), LOG), layout, folder / "masks")[0] == "000.png"
        return
    with pytest.raises(UserError, match="expected a relative name"):
        write_masks(DatasetConfig(root_dir=str(folder)), LOG)
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == before


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks/left").symlink_to(tmp_path)
    with pytest.raises(UserError, match="symbolic link"):
        inside(tmp_path / "masks", "left/0.png")


def test_masks_of_equal_names_are_refused(tmp_path):
    folder = formats.write_transforms(tmp_path, formats.make(n_views=4))
    path = folder / "images/001.png"
    path.rename(path.with_name("000.jpg"))
    (folder / "transforms.json").write_text((folder / "transforms.json").read_text().replace("images/001.png", "images/000.jpg"))
    with pytest.raises(UserError, match=r"000.png would be the mask of several images"):
        write_masks(DatasetConfig(root_dir=str(folder)), LOG)
    assert not (folder / "masks").exists()
