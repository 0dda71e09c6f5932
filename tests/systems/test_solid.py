"""Exports that are simplified, closed, cut at the ground, and in the formats and sizes that were asked."""

import json
import logging

import numpy as np
import pytest
import torch
import trimesh

from confs.load import load_config
from confs.schema import MESH_FORMATS
from process_data.load import load_scene
from systems import surface as surface_module
from systems.export import export_mesh
from systems.ground_cut import Plane, Seen, lowest_seen
from systems.run import record_scene
from systems.solid import Cached, ViewCut, checked, mask_distance, repaired
from tests.scenes import AXES
from utils.errors import UserError
from utils.log import RunFolder
from utils.mesh import cull_by_masks, cull_unseen, load_mesh
from utils.mesh_files import WRITERS
from utils.rays import Cameras

manifold3d = pytest.mark.skipif(not __import__("importlib").util.find_spec("manifold3d"), reason="manifold3d is not installed")
MIDDLE, SCALE = np.array([10.0, -20.0, 30.0]), 3.0  # of the tiny scene


class Shape:
    """A system whose surface is a function; its colour is the position."""

    view_dependent = False

    def __init__(self, sdf):
        self.sdf = sdf

    def surface(self, progress=1.0):
        return self.sdf

    def colours(self, x, progress):
        return x / 2 + 0.5

    def diagnosis(self):
        return ""


def ellipsoid(x):
    return (x / x.new_tensor(AXES)).norm(dim=1).sub(1) * min(AXES)


def on_table(x):
    """The ellipsoid, sunk a little into a table at z = -0.35, in whose unseen underside there is nothing."""
    return torch.minimum(ellipsoid(x), x[:, 2] + 0.35)


def column(x):
    """A cylinder whose lower end, below -0.3, is a ragged balloon."""
    shaft = torch.maximum(x[:, :2].norm(dim=1) - 0.3, x[:, 2].abs() - 0.3)
    balloon = (x - x.new_tensor([0, 0, -0.4])).norm(dim=1) - 0.29 + 0.02 * torch.sin(25 * x[:, 0])
    return torch.minimum(shaft, balloon)


def exported(sdf, scene_folder, out, *more):
    """(the mesh returned, in the unit sphere's frame; scene.json; the folder of its files)."""
    words = [f"dataset.root_dir={scene_folder}", "export.resolution=64", "export.coarse=32", "export.faces=4000"]
    words += ["export.texture=false", "export.confidence=false", *more]
    cfg = load_config(None, words)
    scene, run = load_scene(cfg.dataset), RunFolder(out)
    record_scene(scene, cfg, run)
    mesh = export_mesh(Shape(sdf), scene, cfg, run, torch.device("cpu"))
    run.close()
    mesh = trimesh.Trimesh((np.asarray(mesh.vertices) - MIDDLE) / SCALE, mesh.faces, vertex_colors=mesh.visual.vertex_colors, process=False)
    return mesh, json.loads((out / "scene.json").read_text()), out / "mesh"


def flat_bottom(mesh):
    """(height of the lowest vertices, area of the faces that lie there)."""
    low = mesh.vertices[:, 2].min()
    return low, mesh.area_faces[(mesh.vertices[:, 2] < low + 2e-3)[mesh.faces].all(1)].sum()


def test_an_export_has_the_faces_that_were_asked_and_their_colours(tiny_scene, tmp_path):
    pytest.importorskip("fast_simplification")
    mesh, _, folder = exported(ellipsoid, tiny_scene, tmp_path / "a")
    assert 3500 < len(mesh.faces) <= 4000 and np.abs(ellipsoid(torch.tensor(mesh.vertices))).max() < 0.01
    assert np.abs(mesh.visual.vertex_colors[:, :3] - (mesh.vertices / 2 + 0.5) * 255).max() < 2  # of the final vertices
    assert {p.name for p in folder.iterdir()} == {"mesh.ply", "mesh.obj", "mesh.png"}
    assert len(load_mesh(folder / "mesh.obj").faces) == len(load_mesh(folder / "mesh.ply").faces) == len(mesh.faces)
    whole, _, _ = exported(ellipsoid, tiny_scene, tmp_path / "b", "export.faces=0")
    assert len(whole.faces) > 10_000


@manifold3d
@pytest.mark.parametrize("masks", [True, False])
def test_an_unseen_underside_is_capped_flat(masks, tiny_scene, tmp_path, caplog):
    caplog.set_level(logging.INFO, "neus")
    more = [] if masks else ["dataset.masks=false", "export.min_views=0"]
    mesh, _, _ = exported(column, tiny_scene, tmp_path, "export.closed=true", "export.mask_dilation=1", *more)
    assert mesh.is_watertight and mesh.is_volume and "manifold3d: NoError" in caplog.text and "not a solid" not in caplog.text.lower()
    level, area = flat_bottom(mesh)
    assert -0.63 < level < -0.45  # the lowest of the balloon is at -0.7
    assert area > 0.7 * np.pi * (0.27**2 - (level + 0.4) ** 2)
    assert mesh.bounds[1, 2] == pytest.approx(0.3, abs=0.02)


def test_what_the_masks_cut_is_capped(tiny_scene, tmp_path):
    """A bar through the ellipsoid, outside the masks: culled, it leaves holes; as a solid, caps."""

    def bar(x):
        return torch.minimum(ellipsoid(x), x[:, 1:].norm(dim=1) - 0.15)

    sheet, _, _ = exported(bar, tiny_scene, tmp_path / "a", "export.mask_dilation=0.03")
    solid, _, _ = exported(bar, tiny_scene, tmp_path / "b", "export.mask_dilation=0.03", "export.closed=true")
    assert not sheet.is_watertight and solid.is_watertight and solid.is_volume
    assert sheet.bounds[1, 0] == pytest.approx(solid.bounds[1, 0], abs=0.05) and solid.bounds[1, 0] < 0.85  # the bar reaches 1


@pytest.mark.parametrize("closed", [False, True])
def test_the_ground_is_cut(closed, tiny_scene, tmp_path):
    few = ["dataset.masks=false", "export.min_views=0"]
    mesh, _, _ = exported(on_table, tiny_scene, tmp_path, *few, f"export.closed={closed}", "export.cut_ground=auto")
    low, area = flat_bottom(mesh)
    assert -0.35 < low < -0.32 and np.abs(mesh.bounds[:, 0]).max() < 0.62 and mesh.is_watertight == closed
    disc = np.pi * AXES[0] * AXES[1] * (1 - (low / AXES[2]) ** 2)
    assert area == pytest.approx(disc, rel=0.15) if closed else area < 0.02
    if not closed:
        edges, count = np.unique(mesh.edges_sorted, axis=0, return_counts=True)
        assert np.abs(mesh.vertices[edges[count == 1]][..., 2] - low).max() < 2e-3  # open there alone


def test_without_a_ground_nothing_is_cut(tiny_scene, tmp_path, caplog):
    few = ["dataset.masks=false", "export.min_views=0"]
    mesh, _, _ = exported(ellipsoid, tiny_scene, tmp_path / "a", *few, "export.cut_ground=true")
    assert mesh.is_watertight and mesh.bounds[0, 2] < -0.39 and "nothing is cut" in caplog.text
    table, _, _ = exported(on_table, tiny_scene, tmp_path / "b", *few)
    assert np.abs(table.bounds[:, 0]).max() > 0.9


def test_files_for_printing_have_the_size_asked(tiny_scene, tmp_path, caplog):
    caplog.set_level(logging.INFO, "neus")
    formats = ["export.formats=[stl,3mf,glb]", "export.faces=0"]
    mesh, facts, folder = exported(ellipsoid, tiny_scene, tmp_path / "a", *formats, "export.size_mm=80")
    solid = trimesh.load(folder / "mesh.stl")
    assert solid.extents.max() == pytest.approx(80, rel=1e-4) and solid.is_volume
    record = facts["mesh"]["print"]
    assert record["units"] == "millimetres" and facts["mesh"]["units"] == "world"
    matrix = np.array(record["world_to_mesh"])
    placed = (mesh.vertices * SCALE + MIDDLE) @ matrix[:3, :3].T + matrix[:3, 3]
    np.testing.assert_allclose([placed.min(0), placed.max(0)], solid.bounds, rtol=1e-4)
    assert {p.name for p in folder.iterdir()} == {"mesh.ply", "mesh.stl", "mesh.3mf", "mesh.glb", "mesh.png"}
    assert load_mesh(folder / "mesh.ply").extents.max() == pytest.approx(1.2 * SCALE, rel=0.01)
    # metres are known: 2 cm to a unit of the world, 3.6 units long
    exported(ellipsoid, tiny_scene, tmp_path / "b", *formats, "export.metres_per_unit=0.02")
    assert trimesh.load(tmp_path / "b/mesh/mesh.stl").extents.max() == pytest.approx(72, rel=0.01) and "UNKNOWN" not in caplog.text
    _, facts, _ = exported(ellipsoid, tiny_scene, tmp_path / "c", *formats)
    assert trimesh.load(tmp_path / "c/mesh/mesh.stl").extents.max() == pytest.approx(3.6, rel=0.01)
    assert "the unit is UNKNOWN" in caplog.text and facts["mesh"]["print"]["units"] == "world"


def test_a_cut_has_the_sign_of_the_culling():
    """Random points, three cameras of two sizes, ragged masks: the cut is positive where the culling removes."""
    g = np.random.default_rng(0)
    K = torch.tensor([[60.0, 0, 31], [0, 60, 23], [0, 0, 1]]).repeat(3, 1, 1)
    turns = [np.linalg.qr(g.standard_normal((3, 3)))[0] for _ in range(3)]
    turns = [t * np.sign(np.linalg.det(t)) for t in turns]
    c2w = torch.tensor(np.stack([np.concatenate([t, -2 * t[:, 2:]], 1) for t in turns]), dtype=torch.float32)
    cameras = Cameras(K, c2w, 48, 64, torch.tensor([[64, 48], [50, 40], [64, 48]]))
    masks = torch.zeros(3, 48, 64, dtype=torch.uint8)
    masks[:, 12:36, 10:45], masks[:, 20:30, 25:64] = 255, 255
    x = g.uniform(-1.2, 1.2, (4000, 3))
    soup = trimesh.Trimesh(x, np.arange(4000)[:, None].repeat(3, 1), process=False)  # a face for each vertex
    for dilation, min_views in ((0, 0), (3, 0), (2, 2)):
        kept = cull_by_masks(cull_unseen(soup, cameras, min_views), cameras, masks, dilation / 64)
        keep = (x[:, None, 0] == np.asarray(kept.vertices)[None, :, 0]).any(1)
        cut = ViewCut(cameras, masks, dilation, min_views, range(3), torch.device("cpu"))
        value = cut(torch.tensor(x, dtype=torch.float32))
        clear = value.abs() > 0.02  # a pixel is 0.03 wide
        assert clear.float().mean() > 0.8 and 0.05 < keep.mean() < 0.95
        np.testing.assert_array_equal(keep[clear], (value < 0)[clear])
        cached = Cached(cut, 1.0, 24, torch.device("cpu"))(torch.tensor(x, dtype=torch.float32))
        assert ((cached > 0) == (value > 0)).all()
        near = value.abs() < 0.05
        np.testing.assert_allclose(cached[near], value[near], atol=1e-5)


def test_mask_distance_by_hand():
    mask = np.zeros((9, 9), bool)
    mask[:, :4] = True
    np.testing.assert_allclose(mask_distance(mask, 0)[4], np.arange(9) - 3.5)
    np.testing.assert_allclose(mask_distance(mask, 2)[4], np.arange(9) - 5.5)
    assert (mask_distance(np.ones((4, 4), bool), 0) < 0).all() and (mask_distance(np.zeros((4, 4), bool), 0) > 0).all()


def test_the_lowest_level_that_was_seen():
    height = np.linspace(0, 1, 1001)
    points, up = np.stack([0 * height, 0 * height, height], 1), np.array([0, 0, 1.0])
    plane = lowest_seen(Seen(points, points, np.where(height > 0.3, 3, 0)), up)
    assert plane is not None and plane.offset == pytest.approx(0.3, abs=0.005)
    assert plane.outside(torch.tensor([[0.0, 0, 0], [0, 0, 1]])).sign().tolist() == [1, -1]
    assert lowest_seen(Seen(points, points, np.full(1001, 3)), up) is None  # all of it was seen
    assert lowest_seen(Seen(points, points, np.where(height < 0.9, 3, 0)), up) is None  # the top was not
    assert lowest_seen(Seen(points, points, np.zeros(1001, int)), up) is None


def test_a_plane_cuts_a_mesh_open():
    part = Plane(np.array([0, 0, 1.0]), 0.1, "").cut(trimesh.creation.box())
    assert part.bounds[0, 2] == pytest.approx(0.1) and part.volume != 0 and not part.is_watertight and part.body_count == 1


@manifold3d
def test_parts_that_touch_are_separated():
    """Two boxes that share an edge: four faces at it."""
    other = trimesh.creation.box()
    other.apply_translation([1, 1, 0])
    both = trimesh.util.concatenate([trimesh.creation.box(), other])
    both.merge_vertices()
    assert checked(both) == (False, "0 open edges, 1 edges with more than two faces")
    good, words = checked(repaired(both))
    assert good and "manifold3d: NoError" in words
    good, words = checked(trimesh.Trimesh(both.vertices[:8], trimesh.creation.box().faces[:, ::-1], process=False))
    assert not good and "volume" in words


def test_a_closure_that_fails_is_said(tiny_scene, tmp_path, monkeypatch, caplog):
    holed = trimesh.creation.icosphere(3, 0.5)
    holed = trimesh.Trimesh(holed.vertices, holed.faces[4:], process=False)
    monkeypatch.setattr(surface_module, "extract", lambda *a, **k: holed)
    exported(ellipsoid, tiny_scene, tmp_path, "export.closed=true")
    assert "NOT a solid" in caplog.text and "open edges" in caplog.text


def test_the_options_are_checked():
    assert {f".{name}" for name in MESH_FORMATS} == set(WRITERS)
    for words, message in (
        ("export.formats=[stp]", "export.formats: must be a list of ply, obj, stl, 3mf, glb"),
        ("export.cut_ground=maybe", "export.cut_ground: must be auto, true or false"),
        ("export.faces=-1", "export.faces: must not be negative"),
        ("export.size_mm=0", "export.size_mm: must lie in"),
    ):
        with pytest.raises(UserError, match=message):
            load_config(None, [words])
