"""Charts and packing: whatever is painted on the surface is found again through the texture coordinates."""

import numpy as np
import pytest
import trimesh

from utils import atlas as atlases
from utils.atlas import chart_atlas, spread, texels, unwrap
from utils.charts import flatten
from utils.packing import GAP


def painted_and_read(vertices, faces, atlas, n=3000):
    """(points [n, 3] drawn on the mesh, what a bilinear look-up finds there where each texel holds its own point)."""
    index, face, weights = texels(atlas, 2.0)
    corner = vertices[atlas.vertex[atlas.faces]]
    image = spread((corner[face] * weights[..., None]).sum(1), index, atlas.size)
    rng = np.random.default_rng(0)
    area = trimesh.triangles.area(vertices[faces])
    drawn = rng.choice(len(faces), n, p=area / area.sum())
    w = rng.dirichlet([1, 1, 1], n)[..., None]
    uv = (atlas.uv[atlas.faces[drawn]] * w).sum(1)
    x, y = uv[:, 0] * atlas.size - 0.5, (1 - uv[:, 1]) * atlas.size - 0.5
    i, j = np.floor(y).astype(int), np.floor(x).astype(int)
    a, b = (y - i)[:, None], (x - j)[:, None]
    rows, columns = np.clip([i, i + 1], 0, atlas.size - 1), np.clip([j, j + 1], 0, atlas.size - 1)
    found = sum(
        (a if k else 1 - a) * (b if m else 1 - b) * image[rows[k], columns[m]] for k in (0, 1) for m in (0, 1)
    )  # fmt: skip
    return (corner[drawn] * w).sum(1), found


def stairs(turns=2.5, steps=400):
    """A spiral ramp: one surface, seen from above several times over itself."""
    angle = np.linspace(0, 2 * np.pi * turns, steps)
    ring = [np.stack([r * np.cos(angle), r * np.sin(angle), 0.08 * angle], 1) for r in (0.5, 1.0)]
    vertices, i = np.concatenate(ring), np.arange(steps - 1)
    faces = np.concatenate([np.stack([i, i + steps, i + 1], 1), np.stack([i + 1, i + steps, i + steps + 1], 1)])
    return vertices, faces


def shapes():
    box, ball = trimesh.creation.box((1.0, 2, 3)), trimesh.creation.icosphere(4, 0.7)
    return {"box": (box.vertices, box.faces), "ball": (ball.vertices, ball.faces), "stairs": stairs()}


@pytest.mark.parametrize("name", ["box", "ball", "stairs"])
def test_a_point_is_found_through_its_texture_coordinates(name):
    vertices, faces = (np.asarray(part) for part in shapes()[name])
    atlas = chart_atlas(vertices, faces, 256)
    assert (atlas.vertex[atlas.faces] == faces).all() and atlas.uv.min() >= 0 and atlas.uv.max() <= 1
    point, found = painted_and_read(vertices, faces, atlas)
    side = np.sqrt(trimesh.triangles.area(vertices[faces]).sum() / len(texels(atlas)[0]))
    assert np.linalg.norm(point - found, axis=1).max() < side, "something else is painted there"


def test_a_box_has_six_charts_and_stairs_are_cut_into_layers():
    box = trimesh.creation.box((1.0, 2, 3))
    assert flatten(np.asarray(box.vertices), np.asarray(box.faces)).n == 6
    assert 3 <= flatten(*stairs()).n <= 12


def test_charts_keep_apart_and_fill_the_square():
    ball = trimesh.creation.icosphere(4, 0.7)
    vertices, faces = np.asarray(ball.vertices), np.asarray(ball.faces)
    atlas = chart_atlas(vertices, faces, 256)
    index, face, _ = texels(atlas)
    assert len(index) > 0.4 * 256**2
    chart = np.full(256**2, -1)
    chart[index] = flatten(vertices, faces).chart[face]
    chart = chart.reshape(256, 256)
    for shift in range(1, GAP + 1):
        for a, b in ((chart[:, :-shift], chart[:, shift:]), (chart[:-shift], chart[shift:])):
            assert ((a == b) | (a < 0) | (b < 0)).all()


def test_faces_are_turned_to_the_front_and_alike_in_scale():
    ball = trimesh.creation.icosphere(4, 0.7)
    faces = np.asarray(ball.faces)
    atlas = chart_atlas(np.asarray(ball.vertices), faces, 512)
    a, b, c = (atlas.uv[atlas.faces[:, k]] for k in range(3))
    flat = (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]
    assert (flat > 0).all()  # counter-clockwise, v upwards: not mirrored
    ratio = flat / trimesh.triangles.area(np.asarray(ball.vertices)[faces])
    assert ratio.min() > 0.5 * ratio.max()


def test_a_chart_that_deserves_more_has_more_texels():
    box = trimesh.creation.box((1.0, 1, 1))
    vertices, faces = np.asarray(box.vertices), np.asarray(box.faces)
    top = np.asarray(box.face_normals)[:, 2] > 0.9
    atlas = chart_atlas(vertices, faces, 256, np.where(top, 3.0, 1.0))
    count = np.bincount(texels(atlas)[1], minlength=len(faces))
    assert count[top].mean() / count[~top].mean() == pytest.approx(9, rel=0.1)


def test_large_meshes_are_unwrapped_by_charts(monkeypatch):
    monkeypatch.setattr(atlases, "MOST_FACES", 10)
    ball = trimesh.creation.icosphere(2, 0.7)
    vertices, faces = np.asarray(ball.vertices), np.asarray(ball.faces)
    assert (unwrap(vertices, faces, 128).uv == chart_atlas(vertices, faces, 128).uv).all()


def test_texels_beside_a_face_continue_its_plane():
    """One triangle: beside it the weights are those of the points where the texels lie."""
    corner = np.array([[10.0, 10], [40, 12], [20, 44]])
    atlas = atlases.Atlas(np.arange(3), np.array([[0, 1, 2]]), corner / 64, 64)
    index, _, weights = texels(atlas, 2.0)
    inside = texels(atlas)[0]
    assert 1.1 * len(inside) < len(index) < 1.6 * len(inside) and weights.min() < -0.01
    at = np.stack([index % 64 + 0.5, 64 - (index // 64 + 0.5)], 1)
    assert np.abs(weights @ corner - at).max() < 1e-3
