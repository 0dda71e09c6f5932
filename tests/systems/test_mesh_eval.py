import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from systems import mesh_eval
from systems.mesh_eval import distances, evaluate_mesh, nearest_numpy, nearest_triangles, nearest_warp, report
from tests.conftest import needs_warp
from utils.mesh import load_mesh

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
TOOL, BUNNY = SHARED / "tools" / "eval_mesh.py", SHARED / "data" / "bunny" / "gt_mesh.ply"


def ball(radius):
    return trimesh.creation.icosphere(5, radius)


def soup(kind, rng):
    """Triangles [F, 3, 3] of one kind."""
    if kind == "ball":
        return np.asarray(trimesh.creation.icosphere(3).triangles) * 40 + [300, -100, 7]
    corners = rng.normal(size=(300, 1, 3)) + rng.normal(size=(300, 3, 3)) * {"small": 0.02, "large": 3.0, "mixed": 1.0}[kind]
    if kind == "mixed":  # slivers, and sizes over four orders of magnitude
        corners[:, 1:] = corners[:, :1] + (corners[:, 1:] - corners[:, :1]) * 10 ** rng.uniform(-4, 0, (300, 1, 1))
        corners[:50, 2] = corners[:50, 1] + 1e-5 * rng.normal(size=(50, 3))
    return corners


@pytest.mark.parametrize("kind", ["ball", "small", "large", "mixed"])
@pytest.mark.parametrize(
    "method", ["numpy", pytest.param("warp", marks=needs_warp), pytest.param("cuda", marks=[needs_warp, pytest.mark.gpu])]
)
def test_nearest_triangle_against_exhaustive_search(kind, method):
    rng = np.random.default_rng(0)
    triangles = soup(kind, rng)
    extent = np.ptp(triangles.reshape(-1, 3), axis=0).max()
    middle = triangles.reshape(-1, 3).mean(0)
    points = [middle + extent * rng.normal(size=(300, 3)) * scale for scale in (0.1, 0.5, 20)]
    points = np.concatenate([*points, triangles.mean(1)[:50], triangles[:50, 0]])  # the last lie on the triangles
    every = np.stack([distances(points, np.broadcast_to(t, (len(points), 3, 3))) for t in triangles], 1)
    if method == "numpy":
        face = nearest_numpy(triangles, points)
        assert np.array_equal(distances(points, triangles[face]), every.min(1))
    else:
        face = nearest_warp(triangles, points, torch.device("cuda" if method == "cuda" else "cpu"))
        assert face.min() >= 0
        rounding = 1e-6 * np.maximum(np.abs(points - middle).max(1), extent)
        assert (distances(points, triangles[face]) - every.min(1) <= rounding).all()


def test_many_candidates_are_searched_in_parts(monkeypatch):
    triangles = np.asarray(trimesh.creation.icosphere(4).triangles)
    points = np.random.default_rng(0).normal(size=(200, 3)) * 0.01  # all triangles are at nearly the same distance
    once = nearest_numpy(triangles, points)
    monkeypatch.setattr(mesh_eval, "PAIRS", 3000)
    assert np.array_equal(nearest_numpy(triangles, points), once)


@needs_warp
def test_warp_and_its_twin_give_the_same_numbers(monkeypatch):
    a, b = ball(1.0), trimesh.creation.box((1.5, 1.5, 1.5))
    one = evaluate_mesh(a, b, n=3000)
    monkeypatch.setattr(mesh_eval, "missing", lambda *_: "not here")
    monkeypatch.setattr(mesh_eval, "nearest_warp", lambda *_: pytest.fail("Warp was used"))
    two = evaluate_mesh(a, b, n=3000)
    for key in ("accuracy", "completeness"):
        assert one[key] == pytest.approx(two[key], rel=1e-6)
    assert one["normal_consistency"] == pytest.approx(two["normal_consistency"], abs=1e-4)  # at an edge either face is nearest


def test_faces_without_area_are_left_out():
    mesh = ball(1.0)
    flat = np.tile(np.arange(100)[:, None], (1, 3))
    more = trimesh.Trimesh(mesh.vertices, np.concatenate([flat, mesh.faces]), process=False)
    got = evaluate_mesh(more, ball(1.01), n=5000)
    assert got["chamfer"] == pytest.approx(0.01, abs=3e-4) and got["normal_consistency"] > 0.999
    with pytest.raises(ValueError, match="no area"):
        evaluate_mesh(trimesh.Trimesh(mesh.vertices, flat, process=False), mesh)
    assert (nearest_triangles(np.asarray(mesh.triangles), np.asarray(mesh.triangles_center)) == np.arange(len(mesh.faces))).all()


def test_offset_of_spheres_and_units():
    got = evaluate_mesh(ball(1.01), ball(1.0), n=20000, thresholds=(0.005, 0.02))
    for key in ("accuracy", "completeness", "chamfer"):
        assert got[key] == pytest.approx(0.01, abs=3e-4)
    assert got["fscore"] == {0.005: 0.0, 0.02: pytest.approx(1.0)} and got["normal_consistency"] > 0.999
    halved = evaluate_mesh(ball(1.01), ball(1.0), n=20000, unit=2.0)
    assert halved["chamfer"] == pytest.approx(got["chamfer"] / 2) and halved["unit"] == 2


def test_identical_and_symmetric():
    same = evaluate_mesh(ball(0.5), ball(0.5), n=20000)
    assert same["chamfer"] < 1e-7 and same["normal_consistency"] > 0.9999 and min(same["fscore"].values()) == pytest.approx(1)
    a, b = ball(1.0), trimesh.creation.box((1.5, 1.5, 1.5))
    one, two = evaluate_mesh(a, b, n=20000), evaluate_mesh(b, a, n=20000)
    assert one["accuracy"] == pytest.approx(two["completeness"], rel=0.02) and one["chamfer"] == pytest.approx(two["chamfer"], rel=0.02)


def test_half_a_sphere_is_accurate_but_not_complete():
    half = ball(1.0)
    half.update_faces(half.triangles_center[:, 2] > 0)
    got = evaluate_mesh(half, ball(1.0), n=20000)
    far = (4 * np.sqrt(2) - 4) / 6  # mean of 2 sin(e / 2) over the missing half, e the angle below the rim; halved by the other half
    assert got["accuracy"] < 1e-7 and got["completeness"] == pytest.approx(far, abs=0.01)


def test_large_triangles_are_exact():
    a, b = trimesh.creation.box((1, 1, 1)), trimesh.creation.box((1, 1, 1))
    b.apply_scale(1.02)
    got = evaluate_mesh(a, b, n=2000)
    assert got["accuracy"] == pytest.approx(0.01, abs=1e-5)


def test_point_cloud_as_truth():
    cloud = trimesh.Trimesh(trimesh.sample.sample_surface(ball(1.0), 100_000, seed=3)[0], process=False)
    got = evaluate_mesh(ball(1.02), cloud, n=10000)
    assert got["completeness"] == pytest.approx(0.02, abs=5e-4) and got["accuracy"] == pytest.approx(0.021, abs=1e-3)
    assert got["normal_consistency"] is None and "no faces" in report(got) and "point of the cloud" in report(got)


def test_report_states_the_protocol():
    text = report(evaluate_mesh(ball(1.01), ball(1.0), n=1000, thresholds=(0.02,), unit=3.0, seed=7))
    for words in ("not squared", "not clipped", "divided by 3", "1000 samples", "seed 7", "nothing culled", "0.02", "mean of the two"):
        assert words in text


def test_refusals():
    with pytest.raises(ValueError, match="no faces"):
        evaluate_mesh(trimesh.Trimesh(), ball(1.0))
    with pytest.raises(ValueError, match="empty"):
        evaluate_mesh(ball(1.0), trimesh.Trimesh(), n=100)
    with pytest.raises(ValueError, match="positive"):
        evaluate_mesh(ball(1.0), ball(1.0), unit=0.0)


@pytest.mark.slow
@pytest.mark.skipif(not (TOOL.exists() and BUNNY.exists()), reason="../shared with the judge and the bunny is not here")
def test_agrees_with_the_independent_judge(tmp_path):
    gt = load_mesh(BUNNY)
    pred = gt.copy()
    rng = np.random.default_rng(0)
    pred.vertices = pred.vertices + 0.004 * gt.extents.max() * rng.normal(size=pred.vertices.shape)
    pred.export(tmp_path / "pred.ply")
    done = subprocess.run([sys.executable, TOOL, tmp_path / "pred.ply", BUNNY, "-n", "100000"], capture_output=True, text=True, check=True)
    judge, ours = json.loads(done.stdout), evaluate_mesh(load_mesh(tmp_path / "pred.ply"), gt, n=100000)
    assert ours["chamfer"] == pytest.approx(judge["chamfer"], rel=0.02)
    assert ours["normal_consistency"] == pytest.approx(judge["normal"], abs=0.01)
