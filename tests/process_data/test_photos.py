"""Photographs alone: what is collected, what is left out and why; structure from motion on real ones where they are at hand."""

import json
import logging
import os
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import run
from process_data import sfm
from process_data.photos import collect, copy_masks, find_photos
from process_data.sfm import reconstruct, scene_folder
from process_data.solve import lens_model, pairs
from utils.errors import UserError
from utils.image import read_rgb, write_png

FOX = Path(__file__).parents[3] / "shared" / "data" / "fox" / "images"


def photo(
    path: Path, seed: int, orientation: int = 1, size=(40, 30), model: str = "phone", focal: float = 4.2, zoom: float = 1.0
) -> np.ndarray:
    """A JPEG with EXIF; returns its pixels upright."""
    rng = np.random.default_rng(seed)
    upright = np.kron(rng.integers(0, 255, (size[1] // 10, size[0] // 10, 3), np.uint8), np.ones((10, 10, 1), np.uint8))
    picture = Image.fromarray(upright)
    back = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    stored = picture.transpose(back[orientation]) if orientation in back else picture
    exif = Image.Exif()
    exif[274], exif[272] = orientation, model
    exif.get_ifd(34665)[37386] = focal
    exif.get_ifd(34665)[41988] = zoom
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
        with pytest.raises(UserError, match="contains the other"):
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
        np.testing.assert_array_equal(read_rgb(tmp_path / f"got/{i}.jpg.png")[..., 0] > 127, mask > 0)
    (tmp_path / "masks/1.png").unlink()
    with pytest.raises(UserError, match=r"no mask for 1.jpg \(1 of 3 are missing\)"):
        copy_masks(photos, tmp_path / "masks", tmp_path / "in", tmp_path / "got")


def test_pairs():
    names = [str(i) for i in range(100)]
    assert len(pairs(names, "exhaustive")) == 4950
    few = pairs(names, "sequential")
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


@pytest.fixture
def fake_sfm(monkeypatch):
    """`reconstruct` without pycolmap: copies of the photographs and an empty reconstruction."""

    def fake(_, source, work, masks, *more):
        photos, left_out = collect(source, work / "images")
        if masks is not None:
            copy_masks(photos, masks, source, work / "masks")
        (work / "sparse/0").mkdir(parents=True)
        (work / "sparse/0/images.bin").write_bytes(b"cameras")
        return sfm.Report(len(photos), len(photos), 0.5, 0, 1, left_out)

    monkeypatch.setattr(sfm, "_pycolmap", lambda: None)
    monkeypatch.setattr(sfm, "_reconstruct", fake)


def photos_in(folder: Path, n: int = 4, first: int = 0) -> Path:
    for i in range(first, first + n):
        photo(folder / f"{i}.jpg", i)
    return folder


def test_special_files_of_the_scene_folder_stay(tmp_path, fake_sfm):
    (tmp_path / "scene/images").mkdir(parents=True)
    os.mkfifo(tmp_path / "scene/images/pipe")
    with pytest.raises(UserError, match="first: images/pipe"):
        reconstruct(photos_in(tmp_path / "in"), tmp_path / "scene")
    assert (tmp_path / "scene/images/pipe").is_fifo()


def test_a_forged_or_damaged_record_deletes_nothing(tmp_path, fake_sfm):
    mine = tmp_path / "scene/images/mine.jpg"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    for written in (
        {"images/mine.jpg": "0" * 64},
        {"images": 1},
        ["images/mine.jpg"],
        None,
        {"../in/0.jpg": "x", "images/../images/mine.jpg": "x"},
    ):
        (tmp_path / "scene/sfm.json").write_text(json.dumps({"signature": [], "written": written}))
        with pytest.raises(UserError, match="first: images/mine.jpg"):
            reconstruct(photos_in(tmp_path / "in"), tmp_path / "scene")
        assert mine.read_bytes() == b"mine"


def test_files_added_while_it_runs_stay(tmp_path, fake_sfm, monkeypatch):
    photos, scene, solve = photos_in(tmp_path / "in"), tmp_path / "scene", sfm._reconstruct

    def slow(*words):
        report = solve(*words)
        (scene / "images").mkdir(exist_ok=True)
        (scene / "images/mine.jpg").write_bytes(b"mine")
        return report

    monkeypatch.setattr(sfm, "_reconstruct", slow)
    with pytest.raises(UserError, match="first: images/mine.jpg"):
        reconstruct(photos, scene)
    assert (scene / "images/mine.jpg").read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["images/mine.jpg", "images/sub/mine.jpg", "sparse/0/mine.bin", "sfm.json"])
def test_foreign_files_of_the_scene_folder_stay(tmp_path, fake_sfm, name):
    mine = tmp_path / "scene" / name
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    with pytest.raises(UserError, match=rf"first: {name}|sfm.json: not a record of --photos"):
        reconstruct(photos_in(tmp_path / "in"), tmp_path / "scene")
    assert mine.read_bytes() == b"mine"
    assert [p for p in (tmp_path / "scene").rglob("*") if p.is_file()] == [mine]


def test_own_results_are_replaced_and_changed_ones_stay(tmp_path, fake_sfm):
    photos, scene = photos_in(tmp_path / "in"), tmp_path / "scene"
    reconstruct(photos, scene)
    assert sorted(p.name for p in (scene / "images").iterdir()) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    photos_in(photos, 1, first=4)
    assert reconstruct(photos, scene).given == 5 and len(list((scene / "images").iterdir())) == 5
    assert sorted(p.name for p in scene.iterdir()) == ["images", "sfm.json", "sparse"]
    (scene / "images/2.jpg").write_bytes(b"retouched")
    photos_in(photos, 1, first=5)
    with pytest.raises(UserError, match=r"1 file\(s\) not written by --photos, or changed since \(first: images/2.jpg\)"):
        reconstruct(photos, scene)
    assert (scene / "images/2.jpg").read_bytes() == b"retouched"


def test_masks_of_the_user_are_never_deleted(tmp_path, fake_sfm):
    photos, scene = photos_in(tmp_path / "in"), tmp_path / "scene"
    for turn in range(3):
        photos_in(photos, 1, first=4 + turn)
        (scene / "masks").mkdir(parents=True)
        (scene / "masks/0.png").write_bytes(b"mine %d" % turn)
        reconstruct(photos, scene)
    kept = [(scene / name / "0.png").read_bytes() for name in ("masks.old", "masks-2.old", "masks-3.old")]
    assert kept == [b"mine 0", b"mine 1", b"mine 2"] and not (scene / "masks").exists()


def test_a_link_to_the_users_folder_is_not_followed(tmp_path, fake_sfm):
    (tmp_path / "album").mkdir()
    (tmp_path / "album/a.jpg").write_bytes(b"mine")
    (tmp_path / "scene").mkdir()
    (tmp_path / "scene/images").symlink_to(tmp_path / "album")
    with pytest.raises(UserError, match="first: images"):
        reconstruct(photos_in(tmp_path / "in"), tmp_path / "scene")
    assert (tmp_path / "album/a.jpg").read_bytes() == b"mine"


def test_a_failed_run_leaves_the_scene_as_it_was(tmp_path, fake_sfm, monkeypatch):
    photos, scene = photos_in(tmp_path / "in"), tmp_path / "scene"
    reconstruct(photos, scene)
    before = {p: p.read_bytes() for p in scene.rglob("*") if p.is_file()}
    photos_in(photos, 1, first=9)

    def broken(*_):
        raise UserError("broken")

    monkeypatch.setattr(sfm, "_reconstruct", broken)
    with pytest.raises(UserError, match="broken"):
        reconstruct(photos, scene)
    assert {p: p.read_bytes() for p in scene.rglob("*") if p.is_file()} == before


def test_scene_names(tmp_path, fake_sfm, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for photos, want in (
        ("cat/images", "inputs/cat"), ("dog/images", "inputs/dog"), ("cow/DCIM/100CANON", "inputs/cow"), ("owl", "inputs/owl"),
        ("inputs/pig", "inputs/pig-scene"), ("inputs/hen/images", "inputs/hen-scene"),
    ):  # fmt: skip
        Path(photos).mkdir(parents=True)
        assert scene_folder(Path(photos)) == Path(want)
    Path("yard.mp4").write_bytes(b"")
    assert scene_folder(Path("yard.mp4")) == Path("inputs/yard")
    # the scene of other photographs is not overwritten
    reconstruct(photos_in(Path("cat/images")), scene_folder(Path("cat/images")))
    assert scene_folder(Path("cat/images")) == Path("inputs/cat")
    photos_in(Path("b/cat"))
    assert scene_folder(Path("b/cat")) == Path("inputs/cat-2")
    photos_in(Path("C/cat/images"), first=20)
    assert scene_folder(Path("C/cat/images")) == Path("inputs/cat-2")  # neither is made yet
    reconstruct(Path("b/cat"), scene_folder(Path("b/cat")))
    assert scene_folder(Path("C/cat/images")) == Path("inputs/cat-3") and scene_folder(Path("b/cat")) == Path("inputs/cat-2")
    for i, (name, content) in enumerate((("images/0.jpg", b"x"), ("transforms.json", b"{}"), ("sfm.json", b"[]"))):  # scenes of others
        (Path(f"inputs/s{i}") / name).parent.mkdir(parents=True)
        (Path(f"inputs/s{i}") / name).write_bytes(content)
        Path(f"D/s{i}").mkdir(parents=True)
        assert scene_folder(Path(f"D/s{i}")) == Path(f"inputs/s{i}-2")
    photos_in(Path("b/cat"), 1, first=7)
    with pytest.raises(UserError, match="the scene of other photographs"):
        reconstruct(Path("b/cat"), Path("inputs/cat"))


def test_masks_thumbnails_and_hidden_folders_are_ignored(tmp_path, caplog):
    photos_in(tmp_path / "in")
    for i, name in enumerate(("masks/0.jpg", "sub/Thumbs/0.jpg", ".cache/0.jpg", "@eaDir/x/0.jpg", "._0.jpg")):
        photo(tmp_path / "in" / name, 20 + i)
    photo(tmp_path / "in/sub/8.jpg", 30)
    assert [p.name for p in find_photos(tmp_path / "in")] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "8.jpg"]
    with caplog.at_level(logging.INFO):
        sfm._log_skipped(tmp_path / "in")
    assert "1 image files in masks/ are ignored; --masks makes use of them" in caplog.text
    for where in ("Thumbs/", ".cache/", "@eaDir/", "hidden files"):
        assert f"1 image files in {where} are ignored" in caplog.text


@pytest.mark.filterwarnings("ignore")
def test_damaged_exif_counts_as_none(tmp_path):
    """300 EXIF blocks with wrong bytes, types, counts, offsets and lengths: every photograph is used."""
    for i in range(3):
        photo(tmp_path / f"in/{i}.jpg", i, orientation=(1, 6, 8)[i])
    rng = np.random.default_rng(0)
    for k in range(300):
        photo(tmp_path / "whole.jpg", 1000 + k, orientation=(1, 6)[k % 2])
        data = bytearray((tmp_path / "whole.jpg").read_bytes())
        at = data.index(b"Exif\0\0") + 6
        length = int.from_bytes(data[at - 8 : at - 6], "big") - 8
        for _ in range(int(rng.integers(1, 6))):
            j = at + int(rng.integers(0, length))
            data[j] = int(rng.choice([0, 1, 4, 127, 255, int(rng.integers(256))]))
            if rng.random() < 0.3:
                data[j : min(j + 4, at + length)] = b"\xff\xff\xff\xff"[: at + length - j]
        (tmp_path / "in" / f"m{k}.jpg").write_bytes(data)
    photos, left_out = collect(tmp_path / "in", tmp_path / "out")
    assert not left_out and len(photos) == 303


def test_large_application_segments(tmp_path):
    """More than 1 MiB of APP segments before the picture, with end markers inside."""
    photos_in(tmp_path / "in", 3)
    segment = b"\xff\xeb\xff\xff" + b"\xff\xd9\xff\xda" * 16383 + b"\0"
    for i in range(3):
        data = (tmp_path / f"in/{i}.jpg").read_bytes()
        (tmp_path / f"in/{i}.jpg").write_bytes(data[:2] + segment * 20 + data[2:])
    photos, left_out = collect(tmp_path / "in", tmp_path / "out")
    assert not left_out and len({p.camera for p in photos}) == 1 and photos[0].camera[1] == "phone"
    data = (tmp_path / "in/0.jpg").read_bytes()
    (tmp_path / "in/3.jpg").write_bytes(data[: 19 * len(segment)])  # truncated within the segments
    assert set(collect(tmp_path / "in", tmp_path / "out2")[1]) == {"3.jpg"}


@pytest.mark.parametrize(
    "kind, suffix", [("WEBP", ".jpg"), ("TIFF", ".png"), ("BMP", ".jpeg"), ("PNG", ".jpg"), ("JPEG", ".png"), ("JPEG", ".bmp")]
)
def test_a_wrong_suffix_is_corrected(tmp_path, kind, suffix):
    """The copy is what its name says: COLMAP and other programs choose their decoder by it."""
    (tmp_path / "in").mkdir()
    for i in range(3):
        picture = np.kron(np.random.default_rng(i).integers(0, 255, (6, 8, 3), np.uint8), np.ones((10, 10, 1), np.uint8))
        Image.fromarray(picture).save(tmp_path / f"in/{i}{suffix}", format=kind)
    photos, left_out = collect(tmp_path / "in", tmp_path / "out")
    assert len(photos) == 3 and not left_out
    with Image.open(tmp_path / "out" / photos[2].name) as image:
        assert image.format == {".png": "PNG", ".jpg": "JPEG"}[Path(photos[2].name).suffix]
    assert np.abs(read_rgb(tmp_path / "out" / photos[2].name).astype(int) - picture).mean() < 12


def test_other_formats_of_pillow_are_not_opened(tmp_path):
    photos_in(tmp_path / "in", 3)
    (tmp_path / "in/a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    Image.fromarray(np.zeros((30, 40), np.uint8)).save(tmp_path / "in/b.jpg", format="GIF")
    assert set(collect(tmp_path / "in", tmp_path / "out")[1]) == {"a.jpg", "b.jpg"}


def test_cmyk_and_16_bits(tmp_path):
    photos_in(tmp_path / "in", 3)
    Image.new("CMYK", (40, 30), (0, 200, 200, 0)).save(tmp_path / "in/c.jpg")
    cv2.imwrite(str(tmp_path / "in/d.jpg.png"), np.full((30, 40, 3), 40000, np.uint16))
    photos, left_out = collect(tmp_path / "in", tmp_path / "out")
    assert len(photos) == 5 and not left_out
    with Image.open(tmp_path / "out/c.jpg") as image:
        assert image.mode == "RGB" and image.getpixel((5, 5))[0] > 200 > 120 > image.getpixel((5, 5))[1]


def test_very_large_photographs_are_halved_with_their_masks(tmp_path, monkeypatch, caplog):
    from process_data import photos as P

    monkeypatch.setattr(P, "COPY_PIXELS", 40 * 30)
    for i, orientation in enumerate((1, 6, 1)):
        upright = photo(tmp_path / f"in/{i}.jpg", i, orientation, size=(160, 120))
        write_png(tmp_path / f"masks/{i}.png", np.pad(np.ones((60, 160)), ((0, 60), (0, 0))))
    Image.fromarray(upright[::-1].copy()).save(tmp_path / "in/3.png")
    write_png(tmp_path / "masks/3.png", np.ones((120, 160)))
    with caplog.at_level(logging.INFO):
        photos, left_out = collect(tmp_path / "in", tmp_path / "out")
    assert not left_out and {p.size for p in photos} == {(40, 30)} and "160x120 pixels, reduced to 40x30" in caplog.text
    got = read_rgb(tmp_path / "out/2.jpg").astype(int)
    assert np.abs(got - cv2.resize(upright, (40, 30), interpolation=cv2.INTER_AREA)).mean() < 12
    copy_masks(photos, tmp_path / "masks", tmp_path / "in", tmp_path / "got")
    mask = read_rgb(tmp_path / "got/1.jpg.png")[..., 0]
    assert mask.shape == (30, 40) and (mask[:15] > 127).all() and not mask[15:].any()


def test_too_many_pixels_are_refused_by_the_header(tmp_path):
    photos_in(tmp_path / "in", 3)
    for name, side in (("big.png", 30000), ("bigger.png", 60000)):
        header = b"IHDR" + side.to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
        chunk = (13).to_bytes(4, "big") + header + zlib.crc32(header).to_bytes(4, "big")
        (tmp_path / "in" / name).write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)
    left_out = collect(tmp_path / "in", tmp_path / "out")[1]
    assert set(left_out) == {"big.png", "bigger.png"}
    assert all("pixels" in why for why in left_out.values())


def test_hostile_names(tmp_path, caplog):
    names = [
        b"1\xc2\xb22.jpg",
        b"-rf.jpg",
        b"--help.jpg",
        b"new\nline.jpg",
        b"#comment.jpg",
        b"\xff\xfe.jpg",
        b"a\\b.jpg",
        b"tab\t\x1b[31m.jpg",
        b"A.jpg",
        b"a.JPG",
    ]
    for i, name in enumerate(names):
        photo(tmp_path / "plain.jpg", i)
        (tmp_path / "in").mkdir(exist_ok=True)
        os.rename(tmp_path / "plain.jpg", os.path.join(os.fsencode(tmp_path / "in"), name))
    photos, left_out = collect(tmp_path / "in", tmp_path / "out")
    copies = [p.name for p in photos]
    assert not left_out and len({name.lower() for name in copies}) == len(names)
    assert {"-rf.jpg", "--help.jpg", "new_line.jpg", "_comment.jpg", "a_b.jpg", "1²2.jpg"} <= set(copies)
    assert all(name.isprintable() and not set(name) & set(" #\\") for name in copies)
    (tmp_path / "in/bad\nname.jpg").write_bytes(b"x")
    left_out = collect(tmp_path / "in", tmp_path / "out2")[1]
    assert list(left_out) == ["bad?name.jpg"]
    "\n".join(copies).encode()  # no lone surrogates, which could not be printed


@pytest.mark.parametrize("suffix", [".webp", ".tif", ".bmp"])
def test_other_formats_become_jpeg(tmp_path, suffix):
    for i in range(3):
        picture = np.kron(np.random.default_rng(i).integers(0, 255, (6, 8, 3), np.uint8), np.ones((10, 10, 1), np.uint8))
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(picture).save(tmp_path / f"in/{i}{suffix}")
    photos, left_out = collect(tmp_path / "in", tmp_path / "out")
    assert [p.name for p in photos] == ["0.jpg", "1.jpg", "2.jpg"] and not left_out
    assert np.abs(read_rgb(tmp_path / "out/2.jpg").astype(int) - picture).mean() < 12


def test_odd_digits_in_names(tmp_path):
    for i, name in enumerate(("1²2.jpg", "1٣.jpg", "10.jpg", "9.jpg")):
        photo(tmp_path / "in" / name, i)
    assert [p.name for p in find_photos(tmp_path / "in")][-3:] == ["1٣.jpg", "9.jpg", "10.jpg"]


def test_digital_zoom_separates_cameras(tmp_path):
    for i, zoom in enumerate((1.0, 1.0, 2.0)):
        photo(tmp_path / f"in/{i}.jpg", i, zoom=zoom)
    photos, _ = collect(tmp_path / "in", tmp_path / "out")
    assert photos[0].camera == photos[1].camera != photos[2].camera
    assert lens_model(9) == "SIMPLE_RADIAL" and lens_model(10) == "OPENCV"


def test_blurred_photographs_are_left_out(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(8):
        detail = rng.normal(0, 1, (300, 400))
        spectrum = np.fft.rfft2(detail) / np.maximum(np.hypot(np.fft.fftfreq(300)[:, None], np.fft.rfftfreq(400)), 1e-3)
        grey = np.fft.irfft2(spectrum, (300, 400))
        picture = np.clip(128 + 40 * grey / grey.std(), 0, 255).astype(np.uint8)
        if i in (2, 5):
            picture = cv2.blur(picture, (9, 1) if i == 2 else (1, 9))
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(np.dstack([picture] * 3)).save(tmp_path / f"in/{i}.jpg", quality=95)
    photos, left_out = collect(tmp_path / "in", tmp_path / "out")
    assert set(left_out) == {"2.jpg", "5.jpg"} and "blurred: its sharpness is 0." in left_out["2.jpg"]
    assert len(photos) == 6 and len(list((tmp_path / "out").iterdir())) == 6


def test_command_line(tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(sfm, "reconstruct", lambda *words: calls.append(words))
    assert run.main(["--photos", str(tmp_path / "my photos"), "--masks", "m"]) == 0
    assert calls == [(tmp_path / "my photos", Path("inputs/my photos"), Path("m"))]
    assert run.main(["--photos", str(tmp_path), f"dataset.root_dir={tmp_path / 'scene'}"]) == 0
    assert calls[1][1] == tmp_path / "scene"
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
    assert reconstruct(tmp_path / "in", tmp_path / "scene") == report and "reconstructed before" in caplog.text
    from confs.schema import DatasetConfig
    from process_data.load import load_scene

    scene = load_scene(DatasetConfig(root_dir=str(tmp_path / "scene"), img_downscale=8))
    assert len(scene.names) == 12 and len(scene.points) > 300
