"""The DTU and Tanks and Temples protocols on cases whose figures are known by hand, and their command line."""

import json

import numpy as np
import pytest
import trimesh
from scipy.io import savemat

import run
from systems import protocol_dtu
from systems.error_cloud import APART, BEYOND, ply
from systems.protocol_tnt import CropVolume, evaluate_tnt, load_crop
from utils.mesh import load_mesh


def plate(x, y, z, step=0.1):
    """Points of a level plate."""
    grid = np.stack(np.meshgrid(np.arange(x[0], x[1], step), np.arange(y[0], y[1], step)), -1).reshape(-1, 2)
    return np.concatenate([grid, np.full((len(grid), 1), float(z))], 1)


def sheet(x, y, z):
    """The same as a mesh of two triangles."""
    corners = np.array([[x[0], y[0], z], [x[1], y[0], z], [x[1], y[1], z], [x[0], y[1], z]], float)
    return trimesh.Trimesh(corners, [[1, 2, 0], [3, 0, 2]], process=False)  # from the right angles: samples on a square lattice


SHARE = 4.1**2 / (14.9 * 9.5)  # of the piece on high in the area of the plate that counts


def write_points(path, points):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(ply(points, np.zeros((len(points), 3), np.uint8))))


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """Scan 7 and a prediction (mesh.ply).

    Observed: x < 19.5. Above the plane: y > 10. The prediction lies 3 mm over plate A, which is observed, and 5 mm over plate B,
    which is not; a piece of it is observed, 36 mm away; another lies outside the box, 1 mm over a plate.
    """
    data = tmp_path_factory.mktemp("dtu")
    observed = np.zeros((41, 21, 61), np.uint8)
    observed[:20] = 1
    (data / "ObsMask").mkdir()
    savemat(data / "ObsMask/ObsMask7_10.mat", {"ObsMask": observed, "BB": np.array([[0, 0, -10], [40, 20, 50.0]]), "Res": 1.0})
    savemat(data / "ObsMask/Plane7.mat", {"P": np.array([[0], [2.0], [0], [-20]])})
    a, b = plate((0, 15), (10.5, 20), 0), plate((25, 40), (10.5, 20), 0)  # 150 x 95 points
    below, outside = plate((0, 15), (0, 9), -6), plate((300, 310), (11, 15), 0)
    write_points(data / "Points/stl/stl007_total.ply", np.concatenate([a, b, below, outside]))
    parts = [((0, 14.9), (10.4, 19.9), 3), ((25, 39.9), (10.4, 19.9), 5), ((2, 6.1), (12, 16.1), 36), ((300, 310), (11, 15), 1)]
    trimesh.util.concatenate([sheet(*part) for part in parts]).export(data / "mesh.ply")
    return data


def test_dtu_by_hand(scan):
    truth = protocol_dtu.load_truth(scan, 7)
    found = protocol_dtu.evaluate_dtu(load_mesh(scan / "mesh.ply"), truth)
    r = found.result
    assert r["d2s"] == pytest.approx(3, abs=3e-3)  # plate A alone: B is not observed, the piece on high is further than 20 mm
    assert r["s2d"] == pytest.approx(4, abs=0.01)  # A and B, 3 and 5 mm, in equal parts; not what lies below the plane
    assert r["overall"] == pytest.approx((r["d2s"] + r["s2d"]) / 2)
    high = r["n_beyond"][0]
    assert high == pytest.approx(SHARE * (r["n_observed"] - high), rel=0.1)  # by its area
    assert r["n_beyond"][1] == 100 * 40 and r["n_above_plane"] == 2 * 150 * 95 + 100 * 40  # the plate outside the box is 260 mm away
    assert r["n_thinned"] > r["n_in_box"] > r["n_observed"] > 1000 and r["n_sampled"] >= r["n_thinned"]
    text = protocol_dtu.report(r)
    for words in ("thinned at 0.2 mm", "ICP): no", "culled by masks: no", "seed 0", "-60 / +120", "ObsMask", "20 mm", "not one of the 15"):
        assert words in text, text


@pytest.mark.parametrize(
    ("change", "key", "value"),
    [
        ({"FAR": 60.0}, "d2s", (3 + 36 * SHARE) / (1 + SHARE)),
        ({"PATCH": 200}, "s2d", (4 * 2 * 150 * 95 + 1 * 100 * 40) / (2 * 150 * 95 + 100 * 40)),
    ],
)
def test_each_limit_of_dtu_matters(scan, monkeypatch, change, key, value):
    for name, number in change.items():
        monkeypatch.setattr(protocol_dtu, name, number)
    found = protocol_dtu.evaluate_dtu(load_mesh(scan / "mesh.ply"), protocol_dtu.load_truth(scan, 7)).result
    assert found[key] == pytest.approx(value, rel=0.05)  # the shares of the parts depend on the thinning along their edges


def test_dtu_of_the_scan_itself_is_its_density(scan):
    truth = protocol_dtu.load_truth(scan, 7)
    found = protocol_dtu.evaluate_dtu(trimesh.Trimesh(truth.points, process=False), truth).result
    assert found["d2s"] == 0 and 0 < found["s2d"] < 0.2 and not found["sampled_faces"]


def test_dtu_from_the_command_line(scan, tmp_path, capsys):
    words = ["--eval", str(scan / "mesh.ply"), "--protocol", "dtu", "--dtu-data", str(scan), "--scan", "7", "--eval-out", str(tmp_path)]
    assert run.main(words) == 0
    assert "overall             3.5" in "".join(capsys.readouterr())
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["overall"] == pytest.approx(3.5, abs=0.01) and metrics["icp"] is False
    cloud, legend = trimesh.load(tmp_path / "prediction_error.ply"), (tmp_path / "legend.png").stat().st_size
    x, rgb = np.asarray(cloud.vertices), np.asarray(cloud.colors)[:, :3]
    assert legend > 1000 and len(x) == metrics["n_in_box"]
    assert (
        (rgb[x[:, 2] > 30] == BEYOND).all()
        and (rgb[x[:, 0] > 20] == APART).all()
        and not (rgb[np.isclose(x[:, 2], 3)] == APART).all(1).any()
    )
    truth = trimesh.load(tmp_path / "truth_error.ply")
    below = np.asarray(truth.vertices)[:, 1] < 10
    assert (np.asarray(truth.colors)[below, :3] == APART).all() and not (np.asarray(truth.colors)[~below, :3] == APART).all(1).any()


def refused(capsys, pattern, *words):
    import re

    assert run.main(list(words)) == 2
    lines = [line for line in "".join(capsys.readouterr()).splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and re.search(pattern, lines[0]), lines


def test_wrong_dtu_data(scan, tmp_path, capsys):
    mesh = str(scan / "mesh.ply")
    words = ["--eval", mesh, "--protocol", "dtu", "--scan", "7", "--dtu-data"]
    refused(capsys, "no such folder", *words, str(tmp_path / "none"))
    refused(capsys, r"ObsMask7_10.mat.*Plane7.mat.*stl007_total.ply", *words, str(tmp_path))
    savemat(tmp_path / "ObsMask7_10.mat", {"ObsMask": np.ones((3, 3, 3)), "BB": np.zeros((2, 3))})
    savemat(tmp_path / "Plane7.mat", {"Q": np.zeros(4)})
    write_points(tmp_path / "stl007_total.ply", plate((0, 1), (0, 1), 0))
    refused(capsys, "ObsMask7_10.mat: no Res in it", *words, str(tmp_path))
    savemat(tmp_path / "ObsMask7_10.mat", {"ObsMask": np.ones((3, 3, 3)), "BB": np.zeros((2, 3)), "Res": 1.0})
    refused(capsys, "Plane7.mat: no P in it", *words, str(tmp_path))
    (tmp_path / "Plane7.mat").write_text("hello")
    refused(capsys, "Plane7.mat: not a readable .mat file", *words, str(tmp_path))
    sheet((500, 501), (0, 1), 0).export(tmp_path / "away.ply")
    refused(capsys, "outside the box of scan 7", *words[:1], str(tmp_path / "away.ply"), *words[2:], str(scan))
    sheet((0, 1), (0, 1), 45).export(tmp_path / "far.ply")
    refused(capsys, "no distance below 20 mm", *words[:1], str(tmp_path / "far.ply"), *words[2:], str(scan))
    trimesh.Trimesh(np.zeros((0, 3)), process=False).export(tmp_path / "empty.ply")
    refused(capsys, "empty.ply", *words[:1], str(tmp_path / "empty.ply"), *words[2:], str(scan))


# ---- Tanks and Temples


def crop_json(path, axis="Y", low=-1.0, high=1.0, corners=((0, 0, 0), (10, 0, 0), (10, 0, 10), (0, 0, 10))):
    data = {"class_name": "SelectionPolygonVolume", "orthogonal_axis": axis, "axis_min": low, "axis_max": high, "bounding_polygon": corners}
    path.write_text(json.dumps(data))
    return path


def test_crop_by_hand(tmp_path):
    ell = ((0, 0, 0), (4, 0, 0), (4, 0, 1), (1, 0, 1), (1, 0, 4), (0, 0, 4))  # an L in x and z
    crop = load_crop(crop_json(tmp_path / "c.json", corners=ell))
    points = np.array([[0.5, 0, 3], [3, 0, 0.5], [3, 0, 3], [0.5, 2, 3], [-1, 0, 0.5], [0.5, -1, 0.5]])
    assert crop(points).tolist() == [True, True, False, False, False, True]
    turned = CropVolume("Z", crop.polygon, -1, 1)
    assert turned(points[:, [0, 2, 1]]).tolist() == crop(points).tolist()


def test_tnt_by_hand(tmp_path):
    """A plate 0.5 over the truth over 6 of 10 units, and the rest missing; a piece in the crop is 3 away."""
    crop = load_crop(crop_json(tmp_path / "c.json", high=5.0))
    flat = lambda x, z, y: plate(x, z, y, 0.05)[:, [0, 2, 1]]  # noqa: E731 - in x and z, at the height y
    truth = trimesh.Trimesh(np.concatenate([flat((0, 10), (0, 10), 0), flat((20, 30), (0, 10), 0)]), process=False)
    pred = trimesh.Trimesh(
        np.concatenate([flat((0, 6), (0, 10), 0.5), flat((6, 8), (0, 10), 3), flat((20, 30), (0, 10), 3)]), process=False
    )
    r = evaluate_tnt(pred, truth, crop, 0.6).result
    assert r["precision"] == pytest.approx(6 / 8, abs=0.03) and r["recall"] == pytest.approx(0.6 + 0.03, abs=0.03)
    assert r["fscore_tau"] == pytest.approx(2 * r["precision"] * r["recall"] / (r["precision"] + r["recall"]))
    assert r["voxel"] == 0.3 and r["n_prediction"] == pytest.approx(8 * 10 / 0.3**2, rel=0.1)
    none = evaluate_tnt(pred, truth, crop, 0.4).result
    assert none["fscore_tau"] == 0


def test_tnt_from_the_command_line(tmp_path, capsys):
    crop = crop_json(tmp_path / "c.json")
    write_points(tmp_path / "gt.ply", plate((0, 10), (0, 10), 0)[:, [0, 2, 1]])
    shift = np.eye(4)
    shift[:3, 3] = 100, 0, 0
    mesh = sheet((0, 10), (0, 10), 0)
    mesh.vertices = mesh.vertices[:, [0, 2, 1]] - shift[:3, 3]
    mesh.export(tmp_path / "mesh.ply")
    np.savetxt(tmp_path / "align.txt", shift)
    words = ["--eval", str(tmp_path / "mesh.ply"), "--protocol", "tnt", "--gt", str(tmp_path / "gt.ply"), "--tnt-tau", "0.5", "--tnt-crop"]
    refused(capsys, "the prediction: no point inside the crop volume.*--tnt-align", *words, str(crop))
    assert run.main([*words, str(crop), "--tnt-align", str(tmp_path / "align.txt")]) == 0
    text = "".join(capsys.readouterr())
    assert "F-score    1.0000" in text and "by the matrix given" in text and "ICP: no" in text and "voxel means of 0.25" in text
    refused(capsys, "cannot be read", *words, str(tmp_path / "none.json"))
    (tmp_path / "bad.json").write_text("{}")
    refused(capsys, "not a crop volume", *words, str(tmp_path / "bad.json"))
    (tmp_path / "bad.txt").write_text("1 2 3")
    refused(capsys, "expected 4 x 4", *words, str(crop), "--tnt-align", str(tmp_path / "bad.txt"))
