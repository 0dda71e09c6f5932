import numpy as np
import pytest
import trimesh
from scipy.spatial import cKDTree

from systems import point_clouds
from systems.point_clouds import first_come, nearest, sample_triangles, thin, voxel_means
from utils.errors import UserError


def one_by_one(points, radius):
    """The rule of thinning, point by point."""
    kept = []
    for i, p in enumerate(points):
        if not kept or np.linalg.norm(points[kept] - p, axis=1).min() > radius:
            kept.append(i)
    return points[kept]


@pytest.mark.parametrize("kind", ["even", "clusters", "copies", "lattice"])
def test_thinning_in_blocks_is_the_sequential_rule(kind, monkeypatch):
    monkeypatch.setattr(point_clouds, "FIRST", 16)
    rng = np.random.default_rng(1)
    points = rng.random((3000, 3)) * [10, 10, 0.5]
    if kind == "clusters":
        points = np.concatenate([points[:500], rng.normal(size=(2500, 3)) * 0.05 + 3])
    if kind == "copies":
        points = np.repeat(points[:300], 10, 0)
    if kind == "lattice":  # neighbours at exactly the radius
        points = np.stack(np.meshgrid(*[np.arange(12.0)] * 3), -1).reshape(-1, 3) * 0.5
    got = thin(points, 0.5, seed=4)
    assert np.array_equal(got, one_by_one(points[np.random.default_rng(4).permutation(len(points))], 0.5))
    assert 1 < len(got) < len(points) and len(cKDTree(got).query_pairs(0.5)) == 0 and nearest(points, cKDTree(got)).max() <= 0.5


def test_first_come_by_hand():
    chain = np.array([[0, 1], [1, 2], [2, 3], [3, 4]])
    assert first_come(6, chain).tolist() == [True, False, True, False, True, True]
    assert first_come(3, np.zeros((0, 2), np.int64)).all()
    assert first_come(4, np.array([[0, 3], [1, 3], [1, 2]])).tolist() == [True, True, False, False]


def test_samples_of_a_triangle_by_hand():
    corners = np.array([[0, 0, 5], [3, 0, 5], [0, 2, 5.0]])  # sides 3 and 2 in a right angle: lattice of 1 x 1 cells
    got = sample_triangles(corners, np.array([[0, 1, 2]]), 1.0)
    assert np.allclose(got[:3], corners) and np.allclose(got[3:, 2], 5)
    assert sorted(got[3:, :2].round(6).tolist()) == [[0.5, 0.5], [0.5, 1.5], [1.5, 0.5]]
    assert len(sample_triangles(corners, np.array([[0, 1, 2]]), 10.0)) == 3  # too small for a sample of its own


def test_samples_lie_on_the_mesh_one_per_area():
    mesh = trimesh.creation.box((3, 4, 5))
    got = sample_triangles(mesh.vertices, mesh.faces, 0.05)
    assert np.abs(np.abs(got) / [1.5, 2, 2.5]).max() <= 1 + 1e-12
    assert np.isclose(np.abs(got / [1.5, 2, 2.5]).max(1), 1).all()
    assert len(got) == pytest.approx(mesh.area / 0.05**2, rel=0.02)
    many = sample_triangles(*(lambda m: (m.vertices, m.faces))(mesh.subdivide().subdivide()), 0.05)
    assert len(many) == pytest.approx(mesh.area / 0.05**2, rel=0.05)


def test_parts_give_the_same_samples(monkeypatch):
    mesh = trimesh.creation.icosphere(2)
    once = sample_triangles(mesh.vertices, mesh.faces, 0.03)
    monkeypatch.setattr(point_clouds, "FACES", 7)
    parts = sample_triangles(mesh.vertices, mesh.faces, 0.03)
    assert np.allclose(np.sort(once.ravel()), np.sort(parts.ravel()))


def test_a_mesh_in_another_unit_is_refused_before_it_fills_the_memory():
    mesh = trimesh.creation.box((3e4, 4e4, 5e4))
    with pytest.raises(UserError, match=r"would be .* points; is it in the unit of the truth"):
        sample_triangles(mesh.vertices, mesh.faces, 0.2)


def test_flat_triangles_give_no_samples():
    line = np.array([[0, 0, 0], [1, 0, 0], [2, 0, 0.0]])
    assert len(sample_triangles(line, np.array([[0, 1, 2], [0, 0, 0]]), 0.1)) == 3


def test_voxel_means_by_hand():
    points = np.array([[0, 0, 0], [0.4, 0, 0], [0.6, 0, 0], [2.0, 0, 0]])  # the grid begins at -0.5: voxels end at 0.5, 1.5, 2.5
    got = voxel_means(points, 1.0)
    assert sorted(got[:, 0].tolist()) == pytest.approx([0.2, 0.6, 2.0])
    with pytest.raises(UserError, match="too many"):
        voxel_means(points, 1e-9 * 1e-12)
