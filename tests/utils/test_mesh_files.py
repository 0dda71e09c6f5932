"""What stands in mesh files: normals, colours, units."""

import io
import re
import zipfile
from xml.etree import ElementTree

import numpy as np
import pytest
import trimesh

from utils import mesh_files as W
from utils.mesh import load_mesh, save_mesh

BOX = [2.0, 3.0, 5.0]
CORE, MATERIAL = "{" + W.CORE + "}", "{" + W.MATERIAL + "}"


def box():
    mesh = trimesh.creation.box(BOX)
    mesh.apply_translation([100.0, -40.0, 7.0])
    mesh.visual.vertex_colors = np.concatenate([np.arange(24).reshape(8, 3) * 11, np.full((8, 1), 255)], 1).astype(np.uint8)
    mesh.metadata["units"] = "millimetres"
    return mesh


def test_normals_are_weighted_by_area():
    """Two faces at the origin: area 0.5 facing z, area 1.5 facing -y."""
    mesh = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 3.0], [9, 9, 9]], [[0, 1, 2], [0, 1, 3]], process=False)
    normals = W.vertex_normals(mesh)
    np.testing.assert_allclose(normals[0], np.array([0, -3, 1]) / np.sqrt(10))
    np.testing.assert_allclose(normals[[2, 3, 4]], [[0, 0, 1], [0, -1, 0], [0, 0, 1]])  # the last is of no face


@pytest.mark.parametrize("suffix", ["ply", "obj"])
def test_normals_in_the_files_point_outwards(suffix, tmp_path):
    ball = trimesh.creation.icosphere(3)
    save_mesh(ball, tmp_path / f"a.{suffix}")
    data = (tmp_path / f"a.{suffix}").read_bytes()
    if suffix == "ply":
        assert b"property float nx\nproperty float ny\nproperty float nz\n" in data
        body = np.frombuffer(data[data.index(b"end_header\n") + 11 :], "<f4", 6 * len(ball.vertices)).reshape(-1, 6)
        x, normals = body[:, :3], body[:, 3:]
    else:
        x, normals = (np.array(re.findall(rf"^{key} (\S+) (\S+) (\S+)$", data.decode(), re.M), float) for key in ("v", "vn"))
        assert len(re.findall(r"^f (\d+)//\1 (\d+)//\2 (\d+)//\3$", data.decode(), re.M)) == len(ball.faces)
    assert (x * normals).sum(1).min() > 0.999 and len(x) == len(normals) == len(ball.vertices)
    loaded = load_mesh(tmp_path / f"a.{suffix}")
    np.testing.assert_allclose(loaded.vertices, ball.vertices, atol=1e-6)
    np.testing.assert_array_equal(loaded.faces, ball.faces)


def test_stl(tmp_path):
    save_mesh(box(), tmp_path / "a.stl")
    data = (tmp_path / "a.stl").read_bytes()
    assert len(data) == 84 + 50 * 12 and data.startswith(b"units: millimetres ")
    solid = trimesh.load(tmp_path / "a.stl")
    assert solid.is_volume and solid.volume == pytest.approx(30, rel=1e-5)
    np.testing.assert_allclose(np.frombuffer(data[84:96], "<f4"), box().face_normals[0], atol=1e-6)


def test_stl_leaves_out_faces_that_float32_makes_flat(tmp_path):
    """A tetrahedron with one vertex doubled at a distance that 32 bits do not resolve stays closed."""
    x = np.array([[1000, 0, 0], [1001, 0, 0], [1000, 1, 0], [1000, 0, 1], [1000 + 1e-9, 0, 0]])
    faces = [[0, 2, 4], [4, 2, 1], [0, 4, 3], [4, 1, 3], [0, 3, 2], [1, 2, 3]]
    mesh = trimesh.Trimesh(x, faces, process=False)
    assert mesh.is_watertight
    save_mesh(mesh, tmp_path / "a.stl")
    solid = trimesh.load(tmp_path / "a.stl")
    assert len(solid.faces) == 4 and solid.is_volume


def test_3mf_as_its_specification_says():
    mesh = box()
    archive = zipfile.ZipFile(io.BytesIO(W.threemf(mesh)))
    assert archive.testzip() is None and archive.namelist() == ["[Content_Types].xml", "_rels/.rels", "3D/3dmodel.model"]
    extensions = {e.get("Extension") for e in ElementTree.fromstring(archive.read("[Content_Types].xml"))}
    assert extensions == {"rels", "model"}
    (relation,) = ElementTree.fromstring(archive.read("_rels/.rels"))
    assert relation.get("Target") == "/3D/3dmodel.model" and relation.get("Type").endswith("/2013/01/3dmodel")
    model = ElementTree.fromstring(archive.read("3D/3dmodel.model"))
    assert model.tag == CORE + "model" and model.get("unit") == "millimeter"
    vertices = np.array([[float(v.get(k)) for k in "xyz"] for v in model.iter(CORE + "vertex")])
    faces = np.array([[int(t.get(k)) for k in ("v1", "v2", "v3")] for t in model.iter(CORE + "triangle")])
    np.testing.assert_allclose(vertices, mesh.vertices, rtol=1e-6)
    np.testing.assert_array_equal(faces, mesh.faces)
    (group,) = model.iter(MATERIAL + "colorgroup")
    colours = np.array([[int(c.get("color")[k : k + 2], 16) for k in (1, 3, 5)] for c in group])
    first = np.array([[int(t.get(k)) for k in ("p1", "p2", "p3")] for t in model.iter(CORE + "triangle")])
    assert np.abs(colours[first] - mesh.visual.vertex_colors[:, :3][faces].astype(int)).max() <= 4
    ids = [e.get("id") for e in model.find(CORE + "resources")]
    (item,) = model.find(CORE + "build")
    assert ids == ["2", "1"] and item.get("objectid") == "1"  # a resource is defined before it is used
    shift = np.array(item.get("transform").split(), float).reshape(4, 3)
    np.testing.assert_allclose((vertices @ shift[:3] + shift[3]).min(0), 0, atol=1e-4)  # the positive octant


def test_3mf_is_read_back(tmp_path):
    pytest.importorskip("lxml", reason="lxml, with which trimesh reads .3mf, is not installed")
    save_mesh(box(), tmp_path / "a.3mf")
    solid = trimesh.load(tmp_path / "a.3mf").to_mesh()
    assert solid.is_volume and solid.extents == pytest.approx(BOX) and solid.units in (None, "millimeter", "mm", "millimeters")


def test_glb_has_y_up_and_linear_colours(tmp_path):
    mesh = box()
    save_mesh(mesh, tmp_path / "a.glb")
    loaded = trimesh.load(tmp_path / "a.glb", process=False, maintain_order=True).to_mesh()
    np.testing.assert_allclose(loaded.extents, [2, 5, 3], rtol=1e-5)
    assert loaded.vertices[:, 1].max() == pytest.approx(mesh.vertices[:, 2].max()) and loaded.is_volume
    data = (tmp_path / "a.glb").read_bytes()
    assert int.from_bytes(data[8:12], "little") == len(data)
    start = 20 + int.from_bytes(data[12:16], "little") + 8 + 8 * 24
    stored = np.frombuffer(data[start : start + 64], "<u2").reshape(8, 4)[:, :3] / 65535
    srgb = mesh.visual.vertex_colors[:, :3] / 255
    np.testing.assert_allclose(stored, np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4), atol=1e-4)
    assert load_mesh(tmp_path / "a.glb").faces.shape == (12, 3)
