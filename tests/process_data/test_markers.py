"""Sheets of markers at exact size, and the scale that photographs of them tell."""

import logging
import re

import cv2
import numpy as np
import pytest
from PIL import Image

from confs.load import load_config
from confs.schema import DatasetConfig
from process_data import dlt, markers
from process_data.lens import Lens
from process_data.load import load_scene
from process_data.marker_sheet import PAPERS, PER_MM, draw_sheet
from process_data.markers import Shot, measure
from process_data.path import look_at
from tests import formats
from utils.errors import UserError
from utils.image import write_png

LOG = logging.getLogger("neus")
HW = (600, 800)
K = np.array([[900.0, 0, 402.3], [0, 905, 297.1], [0, 0, 1]])
UNIT = 0.37  # metres in a unit of the synthetic world
TURN = np.linalg.qr(np.random.default_rng(3).standard_normal((3, 3)))[0]
TURN *= np.sign(np.linalg.det(TURN))
SHIFT = np.array([3.0, -2.0, 5.0])
DICTIONARY = cv2.aruco.getPredefinedDictionary(cv2.aruco.DICT_APRILTAG_36h11)


@pytest.fixture(scope="module")
def sheet():
    """The A4 sheet with 5 pixels a millimetre."""
    return cv2.resize(draw_sheet(DICTIONARY).picture, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)


def cameras(n=5, distance=0.6):
    """c2w [n, 3, 4] in metres around the middle of the sheet, which lies on z = 0 with its print upwards."""
    turn = 2 * np.pi * np.arange(n) / n + 0.3
    centres = distance * np.stack([0.6 * np.cos(turn), 0.6 * np.sin(turn), np.full(n, 0.8)], 1)
    return look_at(centres, np.zeros(3), np.array([0, 0, 1.0]))


def photograph(sheet, c2w, stretch=1.0):
    """The sheet [H, W] (stretched along its rows) through a pinhole camera in metres -> uint8 [600, 800, 3]."""
    mm = 4 / PER_MM
    height, width = sheet.shape
    # pixel (u, v) -> metres: x right, y up, the middle at 0
    to_plane = np.array([[stretch * mm, 0, stretch * (mm / 2 - width * mm / 2)], [0, -mm, height * mm / 2 - mm / 2], [0, 0, 1000]]) / 1000
    R, c = c2w[:, :3].T, c2w[:, 3]
    big = np.diag([2, 2, 1.0]) @ K + [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]
    H = big @ np.stack([R[:, 0], R[:, 1], -R @ c], 1) @ to_plane
    large = cv2.warpPerspective(sheet, H, (2 * HW[1], 2 * HW[0]), flags=cv2.INTER_LINEAR, borderValue=90)
    return cv2.cvtColor(cv2.resize(large, HW[::-1], interpolation=cv2.INTER_AREA), cv2.COLOR_GRAY2RGB)


def in_world(c2w):
    """Cameras in metres -> in the synthetic world, turned, moved and in other units."""
    return np.concatenate([TURN @ c2w[:, :, :3], (c2w[:, :, 3] / UNIT @ TURN.T + SHIFT)[:, :, None]], 2)


def shots(folder, pictures, poses):
    for i, picture in enumerate(pictures):
        write_png(folder / f"images/{i:03d}.png", picture)
    return [Shot(folder / f"images/{i:03d}.png", K, Lens(), pose) for i, pose in enumerate(in_world(poses))]


@pytest.fixture(scope="module")
def pictures(sheet):
    return [photograph(sheet, c2w) for c2w in cameras()]


# ---- the sheet ----


@pytest.mark.parametrize("paper", sorted(PAPERS))
def test_the_pdf_has_the_size_of_the_paper(paper, tmp_path):
    assert markers.main(["--out", str(tmp_path / "s.pdf"), "--paper", paper]) == 0
    box = re.search(rb"/MediaBox \[ 0 0 ([\d.]+) ([\d.]+) \]", (tmp_path / "s.pdf").read_bytes())
    assert box is not None
    np.testing.assert_allclose([float(v) / 72 * 25.4 for v in box.groups()], PAPERS[paper], atol=1e-6)
    assert markers.main(["--out", str(tmp_path / "s.png"), "--paper", paper]) == 0
    with Image.open(tmp_path / "s.png") as picture:
        np.testing.assert_allclose([side / dpi * 25.4 for side, dpi in zip(picture.size, picture.info["dpi"])], PAPERS[paper], atol=1e-6)


@pytest.mark.parametrize(("paper", "size"), [("a4", 50.0), ("letter", 50.0), ("a4", 30.0), ("letter", 100.0)])
def test_markers_lie_where_the_sheet_says(paper, size):
    made = draw_sheet(DICTIONARY, paper, size, first=7)
    found = markers.detect(made.picture, "AprilTag 36h11")
    assert found.keys() == made.corners.keys() and min(found) == 7
    for number, corners in made.corners.items():
        np.testing.assert_allclose((found[number] + 0.5) / PER_MM, corners, atol=0.06)  # mm
        assert np.linalg.norm(corners[0] - corners[1]) == pytest.approx(size)


def test_the_bar_is_100_mm():
    picture = draw_sheet(DICTIONARY).picture
    longest = max(np.diff(np.flatnonzero(np.diff(np.pad(row < 128, 1).astype(int)))).max(initial=0) for row in picture[-30 * PER_MM :])
    assert longest == 100 * PER_MM


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--out", "sheet.doc"], r"ends in \.pdf or \.png"),
        (["--out", "s.pdf", "--size", "400"], "--size 400: expected"),
        (["--out", "s.pdf", "--size", "-1"], "--size -1: expected"),
        (["--out", "s.pdf", "--first", "580"], "--first 580: expected 0 to 575"),
    ],
)
def test_bad_sheets(words, text, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    assert markers.main(words) == 2 and re.search(text, caplog.text) and not list(tmp_path.iterdir())


# ---- triangulation ----


def test_points_are_triangulated_and_wrong_views_left_out():
    rng = np.random.default_rng(0)
    poses, x = in_world(cameras(7)), SHIFT + rng.uniform(-0.2, 0.2, (4, 3))
    local = (x[None] - poses[:, None, :, 3]) @ poses[:, :, :3]
    xy = local[..., :2] / local[..., 2:]
    np.testing.assert_allclose(dlt.triangulate(xy, poses), x, atol=1e-9)
    xy[2] += 0.05
    found, agree = dlt.robust(xy, poses, np.full(7, 0.002))
    assert agree.tolist() == [True, True, False, True, True, True, True]
    np.testing.assert_allclose(found, x, atol=1e-9)
    assert np.abs(dlt.triangulate(xy, poses) - x).max() > 1e-3


# ---- the scale ----


def test_the_scale_is_found_and_up(pictures, tmp_path):
    board = measure(shots(tmp_path, pictures, cameras()), 0.05, "here")
    assert board.metres_per_unit == pytest.approx(UNIT, rel=0.002) and board.error < 0.002, board.line
    assert "12 of AprilTag 36h11 in 5 of 5 photographs" in board.line and "standard error" in board.line
    assert np.degrees(np.arccos(board.up @ TURN[:, 2])) < 0.3


def test_a_lens_is_undone(pictures, tmp_path):
    """The photographs as a lens with barrel distortion shows them."""
    lens = Lens("brown", (-0.12, 0.02))
    v, u = np.mgrid[: HW[0], : HW[1]].astype(np.float64)
    ideal = cv2.undistortPoints(
        np.stack([u, v], -1).reshape(-1, 1, 2), K, np.array([*lens.params, 0, 0]), R=np.eye(3), P=K, criteria=(3, 100, 1e-12)
    )
    at = ideal.reshape(*HW, 2).astype(np.float32)
    bent = [cv2.remap(p, at, None, cv2.INTER_LINEAR, borderValue=(90, 90, 90)) for p in pictures]
    taken = [Shot(s.image, s.K, lens, s.c2w) for s in shots(tmp_path, bent, cameras())]
    assert measure(taken, 0.05, "here").metres_per_unit == pytest.approx(UNIT, rel=0.001)
    straight = [Shot(s.image, s.K, Lens(), s.c2w) for s in taken]
    assert measure(straight, 0.05, "here").metres_per_unit != pytest.approx(UNIT, rel=0.002)


def test_blurred_photographs(pictures, tmp_path):
    """A corner detector is 0.4 % off on these, and more when they are blurred."""
    soft = [cv2.GaussianBlur(p, (0, 0), 1.5) for p in pictures]
    assert measure(shots(tmp_path, soft, cameras()), 0.05, "here").metres_per_unit == pytest.approx(UNIT, rel=0.002)


def test_a_wrong_camera_is_left_out(pictures, tmp_path):
    taken = shots(tmp_path, pictures, cameras())
    moved = taken[1].c2w.copy()
    moved[:, 3] += 0.2
    taken[1] = Shot(taken[1].image, K, Lens(), moved)
    board = measure(taken, 0.05, "here")
    assert board.metres_per_unit == pytest.approx(UNIT, rel=0.005) and "48 of 60 sightings agree" in board.line, board.line


def test_what_cannot_be_measured_is_said(pictures, tmp_path):
    blank, poses = np.full((*HW, 3), 90, np.uint8), cameras()
    other = [photograph(draw_small(first), c2w) for first, c2w in zip((0, 20, 40), poses)]
    wide = draw_two_sizes()
    cases = {
        "no markers are found in 5 photographs": [blank] * 5,
        "markers are found in 2 of 5 photographs, expected 3 or more": [*pictures[:2], blank, blank, blank],
        "no marker is seen in more than one photograph": [*other, blank, blank],
        "sizes of the markers disagree by": [photograph(wide, c2w) for c2w in poses],
        "photographs disagree on where the markers lie": [*(pictures[i] for i in (0, 2, 1)), blank, blank],
    }
    for k, (text, made) in enumerate(cases.items()):
        with pytest.raises(UserError, match=text):
            measure(shots(tmp_path / str(k), made, poses), 0.05, "here")


def draw_small(first):
    return cv2.resize(draw_sheet(DICTIONARY, first=first).picture, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)


def draw_two_sizes():
    """The sheet with its last marker 8 % smaller."""
    made = draw_sheet(DICTIONARY)
    picture, (corner, side) = made.picture.copy(), (np.round(made.corners[11][0] * PER_MM).astype(int), 50 * PER_MM)
    x, y = corner
    marker = cv2.resize(picture[y : y + side, x : x + side], None, fx=0.92, fy=0.92)
    picture[y : y + side, x : x + side] = 255
    picture[y : y + len(marker), x : x + len(marker)] = marker
    return cv2.resize(picture, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)


def test_the_scene_carries_scale_and_up(pictures, tmp_path, caplog):
    """Through the reader of COLMAP, whose world is arbitrary: the unit sphere stands as the board says."""
    poses = in_world(cameras())
    written = formats.Written(K, (), poses, [p / 255 for p in pictures])
    points = SHIFT + 0.3 * np.random.default_rng(0).standard_normal((60, 3))
    root = str(formats.write_colmap(tmp_path, written, points=points))
    with caplog.at_level(logging.INFO):
        scene = load_scene(DatasetConfig(root_dir=root, marker_size=0.05, masks=False, img_downscale=4), log=LOG)
    assert "up from the markers" in caplog.text and "1 world unit = 0.3" in caplog.text
    assert scene.metres_per_unit == pytest.approx(UNIT, rel=0.002) and scene.arbitrary_world
    assert np.degrees(np.arccos(scene.up.numpy() @ TURN[:, 2])) < 0.3
    by_hand = load_scene(DatasetConfig(root_dir=root, marker_size=0.05, masks=False, img_downscale=4, up=[1, 0, 0]), log=LOG)
    np.testing.assert_allclose(by_hand.up.numpy(), [1, 0, 0], atol=1e-12)


def test_the_size_is_checked():
    with pytest.raises(UserError, match=r"dataset\.marker_size: must be the side of a marker in metres"):
        load_config(None, ["dataset.marker_size=50"])
