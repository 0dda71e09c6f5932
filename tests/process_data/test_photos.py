"""Photographs alone: what is collected, what is left out and why; structure from motion on real ones where they are at hand."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import run
from process_data import sfm
from process_data.photos import collect, copy_masks, find_photos
from process_data.sfm import _pairs, reconstruct
from utils.errors import UserError
from utils.image import read_rgb, write_png

FOX = Path(__file__).parents[3] / "shared" / "data" / "fox" / "images"


def photo(path: Path, seed: int, orientation: int = 1, size=(40, 30), model: str = "phone", focal: float = 4.2) -> np.ndarray:
    """A JPEG with EXIF; returns its pixels upright."""
    rng = np.random.default_rng(seed)
    upright = np.kron(rng.integers(0, 255, (size[1] // 10, size[0] // 10, 3), np.uint8), np.ones((10, 10, 1), np.uint8))
    picture = Image.fromarray(upright)
    back = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    stored = picture.transpose(back[orientation]) if orientation in back else picture
    exif = Image.Exif()
    exif[274], exif[272] = orientation, model
    exif.get_ifd(34665)[37386] = focal
    path.parent.mkdir(parents=True, exist_ok=True)
    stored.save(path, quality=100, subsampling=0, exif=exif)
    return upright


def test_photographs_stand_upright(tmp_path):
    want = [photo(tmp_path / f"in/{i}.jpg", i, o) for i, o in enumerate((1, 3, 6, 8))]
    photos, left_out = collect(tmp_path / "in", tmp_path / "out")
    assert not left_out and [p.name for p in photos] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    for p, upright in zip(photos, want):
        got = read_rgb(tmp_path / "out" / p.name).astype(int)
        assert got.shape == upright.shape and np.abs(got - upright).mean() < 6
    assert len({p.camera for p in photos}) == 1
    with Image.open(tmp_path / "out/2.jpg") as image:
        assert image.getexif().get(274, 1) == 1 and image.getexif().get(272) == "phone"


def test_cameras_are_told_apart_by_exif(tmp_path):
    for i, kind in enumerate(({}, {}, {"model": "other"}, {"focal": 9.0}, {"size": (30, 40)})):
        photo(tmp_path / f"in/{i}.jpg", i, **kind)
    photos, _ = collect(tmp_path / "in", tmp_path / "out")
    assert len({p.camera for p in photos}) == 4


def test_unreadable_and_repeated_ones_are_left_out(tmp_path):
    for i in range(4):
        photo(tmp_path / f"in/sub/{i}.jpg", i)
    (tmp_path / "in/copy.jpg").write_bytes((tmp_path / "in/sub/1.jpg").read_bytes())
    (tmp_path / "in/bad.jpg").write_bytes(b"\xff\xd8nothing")
    (tmp_path / "in/cut.jpg").write_bytes((tmp_path / "in/sub/2.jpg").read_bytes()[:300])
    (tmp_path / "in/notes.txt").write_text("no photograph")
    photos, left_out = collect(tmp_path / "in", tmp_path / "out")
    assert len(photos) == 4 and set(left_out) == {"bad.jpg", "cut.jpg", "sub/1.jpg"}
    assert any("the same file as" in why for why in left_out.values())


def test_copies_have_plain_names(tmp_path):
    for i, name in enumerate(("my photo.jpg", "my_photo.jpeg", "my photo.png")):
        photo(tmp_path / "in" / name, i)
    names = [p.name for p in collect(tmp_path / "in", tmp_path / "out")[0]]
    assert sorted(names) == ["my_photo-2.jpg", "my_photo.jpg", "my_photo.png"]


def test_scene_and_photographs_lie_apart(tmp_path):
    for i in range(3):
        photo(tmp_path / f"in/{i}.jpg", i)
    for scene in (tmp_path / "in", tmp_path / "in/scene", tmp_path):
        with pytest.raises(UserError, match="lie in each other"):
            reconstruct(tmp_path / "in", scene)


def test_too_few_or_none(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        find_photos(tmp_path / "none")
    photo(tmp_path / "in/0.jpg", 0)
    with pytest.raises(UserError, match=r"1 photographs .*expected at least 3; take 20 to 60"):
        find_photos(tmp_path / "in")
    for name in "abc":
        (tmp_path / f"in/{name}.jpg").write_bytes(b"x" + name.encode())
    with pytest.raises(UserError, match="1 usable photographs"):
        collect(tmp_path / "in", tmp_path / "out")


def test_masks_turn_with_their_photographs(tmp_path):
    for i, orientation in enumerate((1, 6, 8)):
        photo(tmp_path / f"in/{i}.jpg", i, orientation)
    mask = np.zeros((30, 40))
    mask[:10, :20] = 1
    write_png(tmp_path / "masks/0.png", mask)
    write_png(tmp_path / "masks/1.png", np.rot90(mask))  # as the sensor saw it
    write_png(tmp_path / "masks/2.png", mask)  # upright already
    photos, _ = collect(tmp_path / "in", tmp_path / "out")
    copy_masks(photos, tmp_path / "masks", tmp_path / "in", tmp_path / "got")
    for i in range(3):
        np.testing.assert_array_equal(read_rgb(tmp_path / f"got/{i}.png")[..., 0] > 127, mask > 0)
    (tmp_path / "masks/1.png").unlink()
    with pytest.raises(UserError, match=r"no mask for 1.jpg \(1 of 3 are missing\)"):
        copy_masks(photos, tmp_path / "masks", tmp_path / "in", tmp_path / "got")


def test_pairs():
    names = [str(i) for i in range(100)]
    assert len(_pairs(names, "exhaustive")) == 4950
    few = _pairs(names, "sequential")
    assert ("0", "20") in few and ("0", "64") in few and ("0", "21") not in few and len(set(few)) == len(few)


def test_without_pycolmap_it_says_what_to_install(tmp_path, monkeypatch):
    import sys

    for i in range(3):
        photo(tmp_path / f"in/{i}.jpg", i)
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    with pytest.raises(UserError, match="pip install pycolmap"):
        reconstruct(tmp_path / "in", tmp_path / "scene")


def test_photographs_that_do_not_fit_together(tmp_path):
    pytest.importorskip("pycolmap", reason="pycolmap is not installed")
    for i in range(4):
        photo(tmp_path / f"in/{i}.jpg", i, size=(160, 120))
    with pytest.raises(UserError, match=r"0 of 4 photographs fit together \(0.jpg: .*take 20 to 60"):
        reconstruct(tmp_path / "in", tmp_path / "scene", threads=1)
    assert not (tmp_path / "scene/sparse").exists() and not (tmp_path / "scene/sfm.part").exists()


def test_a_foreign_reconstruction_is_not_overwritten(tmp_path):
    for i in range(3):
        photo(tmp_path / f"in/{i}.jpg", i)
    (tmp_path / "scene/sparse/0").mkdir(parents=True)
    with pytest.raises(UserError, match="reconstruction of other origin"):
        reconstruct(tmp_path / "in", tmp_path / "scene")


def test_command_line(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(sfm, "reconstruct", lambda *words: asked.append(words))
    assert run.main(["--photos", str(tmp_path / "my photos"), "--masks", "m"]) == 0
    assert asked == [(tmp_path / "my photos", Path("inputs/my photos"), Path("m"))]
    assert run.main(["--photos", str(tmp_path), f"dataset.root_dir={tmp_path / 'scene'}"]) == 0
    assert asked[1][1] == tmp_path / "scene"
    capsys.readouterr()
    assert run.main(["--masks", "m", "--train"]) == 2
    assert "--masks goes with --photos" in "".join(capsys.readouterr())


@pytest.mark.slow
@pytest.mark.skipif(not FOX.is_dir(), reason="../shared/data/fox is absent")
def test_some_photographs_of_the_fox(tmp_path, caplog):
    pytest.importorskip("pycolmap", reason="pycolmap is not installed")
    (tmp_path / "in").mkdir()
    for path in sorted(FOX.iterdir())[:12]:
        (tmp_path / "in" / path.name).symlink_to(path)
    with caplog.at_level(logging.INFO):
        report = reconstruct(tmp_path / "in", tmp_path / "scene")
    assert report.registered == 12 and report.error < 0.8 and report.cameras == 1
    assert reconstruct(tmp_path / "in", tmp_path / "scene") == report and "are known" in caplog.text
    from confs.schema import DatasetConfig
    from process_data.load import load_scene

    scene = load_scene(DatasetConfig(root_dir=str(tmp_path / "scene"), img_downscale=8))
    assert len(scene.names) == 12 and len(scene.points) > 300
