import json

import numpy as np
import pytest
import trimesh

import run
from systems import eval_command
from systems.error_cloud import APART, BEYOND, ErrorCloud, colour_map, legend, round_top, vertex_errors, write_comparison
from systems.mesh_eval import evaluate_mesh
from utils.image import read_rgb


def plane(z, side=10.0):
    corners = np.array([[0, 0, z], [side, 0, z], [side, side, z], [0, side, z]], float)
    return trimesh.Trimesh(corners, [[0, 1, 2], [0, 2, 3]], process=False)


@pytest.fixture(autouse=True)
def _few_samples(monkeypatch):
    monkeypatch.setattr(eval_command, "SAMPLES", 5000)


def test_planes_a_distance_apart_by_hand():
    got = evaluate_mesh(plane(0.25), plane(0), n=5000, thresholds=(0.24, 0.26))
    assert got["accuracy"] == pytest.approx(0.25, abs=1e-12) and got["completeness"] == pytest.approx(0.25, abs=1e-12)
    assert got["fscore"] == {0.24: 0.0, 0.26: 1.0} and got["normal_consistency"] == pytest.approx(1)


def test_what_does_not_count_is_left_out_both_ways_by_hand():
    """The half x > 5 of the truth is 1 away, the other 0.25; only the latter counts."""
    pred = trimesh.util.concatenate([plane(0.25, 4.0), plane(1).apply_translation([100, 0, 0])])
    truth = trimesh.util.concatenate([plane(0, 4.0), plane(0).apply_translation([100, 0, 0])])
    every = evaluate_mesh(pred, truth, n=5000)
    near = evaluate_mesh(pred, truth, n=5000, counted=lambda points, normals: points[:, 0] < 50, pixel=0.5)
    assert every["accuracy"] > 0.7 and near["accuracy"] == pytest.approx(0.25) and near["completeness"] == pytest.approx(0.25)
    assert near["seen"] == pytest.approx(16 / 116, abs=0.02)
    assert near["half_px"] == pytest.approx(1) and near["fscore_px"] == 1
    with pytest.raises(ValueError, match="no part"):
        evaluate_mesh(pred, truth, n=500, counted=lambda points, normals: points[:, 0] < -50)


def test_colours_by_hand():
    cloud = ErrorCloud(np.zeros((5, 3)), np.array([0, 1, 9, 30, np.nan]), np.array([True, True, True, False, False]))
    viridis = colour_map()
    assert cloud.colours(2.0).tolist() == [viridis[0].tolist(), viridis[128].tolist(), viridis[255].tolist(), list(BEYOND), list(APART)]
    assert viridis[0].tolist() == [68, 1, 84] and viridis[255].tolist() == [253, 231, 37]
    assert np.diff(viridis.astype(float) @ [0.2126, 0.7152, 0.0722]).min() > -0.5  # brightness tells the order


def test_the_scale_ends_at_a_round_number():
    top = lambda *d: round_top(ErrorCloud(np.zeros((len(d), 3)), np.array(d, float), np.array(d, float) < 100))  # noqa: E731
    assert (top(0.3), top(0.5), top(0.51), top(0.0012, 500, 500), top(0)) == (0.5, 0.5, 1.0, 0.002, 1e-6)


def test_vertex_errors_show_what_lies_inside_large_triangles():
    bumpy = trimesh.util.concatenate([plane(0), trimesh.creation.icosphere(2, 1.0).apply_translation([5, 5, 0])])
    pred, truth = vertex_errors(bumpy, plane(0), unit=2.0, counted=lambda points, normals: points[:, 0] < 9)
    assert len(truth.points) > 10_000 and np.nanmax(truth.distance) < 1e-9  # the truth lies in the prediction
    assert np.nanmax(pred.distance) == pytest.approx(0.5, abs=1e-6)  # the top of the ball: 1 away, in units of 2
    assert np.isnan(pred.distance[pred.points[:, 0] > 9.2]).all() and np.isnan(truth.distance[truth.points[:, 0] > 9.2]).all()
    assert (np.asarray(pred.faces).max(), pred.faces is not None) == (len(pred.points) - 1, True)


def test_files_and_the_legend(tmp_path, capsys):
    plane(0.5).export(tmp_path / "a.ply")
    plane(0).export(tmp_path / "b.ply")
    assert run.main(["--eval", str(tmp_path / "a.ply"), "--gt", str(tmp_path / "b.ply"), "--eval-out", str(tmp_path / "out")]) == 0
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["chamfer"] == pytest.approx(0.5) and metrics["colours_end_at"] == 0.5 and metrics["culled"] is None
    for name in ("prediction_error.ply", "truth_error.ply"):
        mesh = trimesh.load(tmp_path / "out" / name, process=False)
        assert len(mesh.faces) > 10_000 and (np.asarray(mesh.visual.vertex_colors)[:, :3] == colour_map()[255]).all()
    picture = read_rgb(tmp_path / "out/legend.png")
    row = picture[56, 40:-40]
    assert (row[0] == colour_map()[0]).all() and (row[-1] == colour_map()[255]).all() and len(np.unique(row, axis=0)) > 250
    assert legend(1.0, "mm", "far", "unseen").shape[0] == len(picture) + 60
    assert "written:" in "".join(capsys.readouterr())


def test_a_point_cloud_as_truth_is_coloured_too(tmp_path):
    cloud = trimesh.Trimesh(plane(0).sample(500), process=False)
    found = vertex_errors(plane(1), cloud)
    assert found[1].faces is None and found[1].distance == pytest.approx(np.ones(500))
    from systems.error_cloud import Compared

    write_comparison(tmp_path, Compared({}, *found), "mm")
    assert len(trimesh.load(tmp_path / "truth_error.ply").vertices) == 500
