"""Automatic masks against the true ones of a synthetic object on a patterned table, through a distorting lens."""

import json
import logging

import cv2
import numpy as np
import pytest

from confs.schema import DatasetConfig
from process_data.automask import mask_names, write_masks
from process_data.files import inside
from process_data.ground import standing_object, support_plane
from process_data.load import load_scene
from process_data.transforms import transforms_capture
from tests import formats
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


def test_what_stands_on_the_table_is_the_object():
    rng = np.random.default_rng(0)
    table = np.column_stack([rng.uniform(-4, 4, (2000, 2)), np.full(2000, -1.0)])
    thing = rng.uniform(-0.8, 0.8, (800, 3)) * [1, 1, 0.9] + [0.5, 0, 0]
    cup = rng.uniform(-0.1, 0.1, (60, 3)) + [-2.2, 2, -0.8]
    found = standing_object(np.concatenate([table, thing, cup]), rng.uniform(3, 6, (30, 3)), np.array([0.3, 0, -0.5]), 3.0)
    assert len(found) > 600 and np.abs(found.mean(0) - [0.5, 0, 0.06]).max() < 0.1
    assert standing_object(table, rng.uniform(3, 6, (30, 3)), np.zeros(3), 3.0) is None


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


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


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


def test_what_cannot_be_masked(tmp_path):
    with pytest.raises(UserError, match="has the layout dtu"):
        write_masks(DatasetConfig(root_dir=str(formats.write_dtu(tmp_path / "d", formats.make(n_views=4)))), LOG)
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
