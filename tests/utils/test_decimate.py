"""Fewer faces, the same surface."""

import sys
import types

import numpy as np
import pytest
import torch
import trimesh

from utils import decimate as D
from utils.marching_cubes import extract

needs = pytest.mark.skipif(not __import__("importlib").util.find_spec("fast_simplification"), reason="fast-simplification is not installed")


@pytest.fixture(scope="module")
def ball():
    return extract(lambda x: x.norm(dim=1) - 0.6, 1.0, 64, coarse=32)


@needs
def test_a_ball_stays_one(ball):
    small = D.decimate(ball, 2000)
    assert len(ball.faces) > 15_000 and 1900 < len(small.faces) <= 2000
    assert small.is_watertight and small.is_winding_consistent and small.euler_number == 2
    assert small.volume == pytest.approx(ball.volume, rel=5e-3)  # positive: the normals point outwards
    assert np.abs(np.linalg.norm(small.vertices, axis=1) - 0.6).max() < 0.002
    assert small.area_faces.min() > 0 and len(np.unique(np.sort(small.faces, 1), axis=0)) == len(small.faces)
    assert len(small.vertices) == len(np.unique(small.faces))
    assert D.decimate(ball, 0) is ball and D.decimate(ball, 10**6) is ball


@needs
def test_thin_parts_hold():
    """A plate 2.5 cells thick and a rod of 2 cells on it keep their shape with a tenth of the faces."""

    def thin(x):
        plate = torch.maximum((x[:, :2].abs() - 0.6).amax(1), x[:, 2].abs() - 0.015)
        rod = torch.maximum(x[:, :2].norm(dim=1) - 0.012, (x[:, 2] - 0.3).abs() - 0.3)
        return torch.minimum(plate, rod)

    mesh = extract(thin, 1.0, 100, coarse=64)
    small = D.decimate(mesh, len(mesh.faces) // 10)
    assert mesh.euler_number == small.euler_number == 2 and small.is_watertight and len(small.faces) <= len(mesh.faces) // 10
    assert np.abs(small.bounds - mesh.bounds).max() < 0.006 and small.volume == pytest.approx(mesh.volume, rel=0.01)


def test_sheets_that_touch_along_an_edge_are_parted():
    """Two tetrahedra with a common edge, and two with a common vertex: the first get an edge each, the others stay as they are."""
    tetrahedron = np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [2, 0, 3]])
    x = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, -1, 0], [0, 0, -1.0]])
    other = np.array([0, 1, 4, 5])[tetrahedron][:, ::-1]
    faces = np.concatenate([tetrahedron, other])
    assert D.crowded_edges(faces) == 1 and not D.is_closed(faces)
    y, found = D.parted(x, faces)
    assert D.is_closed(found) and len(y) == 8 and np.array_equal(y[found], x[faces])
    parts = trimesh.Trimesh(y, found, process=False).split()
    assert len(parts) == 2 and all(part.is_watertight and part.is_winding_consistent for part in parts)
    apart = np.concatenate([tetrahedron, np.array([0, 6, 4, 5])[tetrahedron]])
    y, found = D.parted(np.concatenate([x, [[-1.0, 0, 0]]]), apart)
    assert found is apart and len(y) == 7


@needs
def test_the_unit_of_length_does_not_matter(ball):
    """The same faces for a ball in metres and in kilometres, far off: thresholds of the library are lengths."""
    far = trimesh.Trimesh(ball.vertices * 1000 + [5e5, 0, 0], ball.faces, process=False)
    a, b = D.decimate(ball, 1000), D.decimate(far, 1000)
    assert abs(len(a.faces) - len(b.faces)) <= 4
    assert np.abs(np.linalg.norm(b.vertices - [5e5, 0, 0], axis=1) - 600).max() < 5


def test_without_the_package_the_mesh_stays(ball, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "fast_simplification", None)
    assert D.decimate(ball, 1000) is ball
    assert "pip install fast-simplification" in caplog.text and len(caplog.records) == 1


def test_a_result_that_is_no_manifold_is_refused(ball, monkeypatch, caplog):
    """A library that leaves a hole, then one that puts a fin on an edge."""
    holed, finned = ball.faces[5:], np.concatenate([ball.faces[: len(ball.faces) // 2], [[*ball.faces[0][:2], 9]]])
    for faces in (holed, finned):
        fake = types.SimpleNamespace(simplify=lambda x, f, faces=faces, **_: (x, faces))
        monkeypatch.setitem(sys.modules, "fast_simplification", fake)
        assert D.decimate(ball, 1000) is ball and "manifold" in caplog.text
        caplog.clear()


def test_clean_faces():
    faces = np.array([[0, 1, 2], [1, 2, 0], [3, 4, 5], [3, 5, 4], [6, 6, 7], [7, 8, 9]])
    assert D.clean_faces(faces).tolist() == [[0, 1, 2], [7, 8, 9]]  # twice the same: one; back to back: none
    assert D.clean_faces(faces[[0, 2, 5]]).tolist() == faces[[0, 2, 5]].tolist()
