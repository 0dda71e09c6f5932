"""Exports that stand upright and are in metres, and the way back to the world of the cameras."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh

from confs.load import load_config
from process_data.load import load_scene
from process_data.normalize import similarity_parts
from run import main
from systems import eval_command
from systems.export import compare_with_truth, export_mesh
from systems.material import find_mesh
from systems.placement import scale_from_distance
from systems.run import measured, record_scene, trained_frame
from tests import formats
from tests.scenes import AXES
from utils.errors import UserError
from utils.log import RunFolder
from utils.mesh import in_world, load_mesh
from utils.projection import project

HALF = np.array(AXES) * formats.SCALE  # half axes of the ellipsoid in world units
TURN = np.linalg.qr(np.random.default_rng(5).standard_normal((3, 3)))[0]
TURN *= np.sign(np.linalg.det(TURN))


def turned_scene(folder, ground=True, layout="colmap"):
    """The ellipsoid on its ground in a world that is turned arbitrarily; up in it is TURN[:, 2]."""
    w = formats.make()
    w = replace(w, c2w=TURN @ w.c2w)
    floor = (
        np.random.default_rng(0).uniform(-1, 1, (900, 3)) * [2.5 * formats.SCALE, 2.5 * formats.SCALE, 0] + formats.CENTRE - [0, 0, HALF[2]]
    )
    points = np.concatenate([formats.surface_points(400), *([floor] if ground else [])]) @ TURN.T
    return formats.write_colmap(folder, w, points=points) if layout == "colmap" else formats.write_transforms(folder, w)


class Ellipsoid:
    """A system whose surface is the ellipsoid."""

    view_dependent = False

    def __init__(self, scene, turn):
        self.to_world, self.turn = scene.to_world, torch.from_numpy(turn.copy())

    def surface(self, progress=1.0):
        unit = torch.linalg.det(self.to_world[:3, :3]) ** (1 / 3)

        def sdf(x):
            world = x.double() @ self.to_world[:3, :3].T + self.to_world[:3, 3]
            local = (world @ self.turn - torch.from_numpy(formats.CENTRE)) / torch.from_numpy(HALF)
            return ((local.norm(dim=1) - 1) * HALF.min() / unit).float()

        return sdf

    def colours(self, x, progress):
        return torch.full_like(x, 0.5)

    def diagnosis(self):
        return ""


def config(folder, *more):
    return load_config(
        None, [f"dataset.root_dir={folder}", "export.resolution=48", "export.coarse=24", "export.min_views=0", "dataset.masks=false", *more]
    )


def exported(folder, out, *more, turn=TURN):
    """(the mesh that is returned, the file's vertices as they are, scene.json, the scene, the run folder)."""
    cfg = config(folder, *more)
    scene, run = load_scene(cfg.dataset), RunFolder(out)
    record_scene(scene, cfg, run)
    mesh = export_mesh(Ellipsoid(scene, turn), scene, cfg, run, torch.device("cpu"))
    run.close()
    raw = trimesh.load(out / "mesh/mesh.ply", process=False)
    return mesh, np.asarray(raw.vertices, np.float64), json.loads((out / "scene.json").read_text()), scene, cfg, run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return turned_scene(tmp_path_factory.mktemp("scenes") / "turned")


@pytest.fixture(scope="module")
def upright(folder, tmp_path_factory):
    return exported(folder, tmp_path_factory.mktemp("run"))


def degrees(a, b):
    return np.degrees(np.arccos(np.clip(a @ b / np.linalg.norm(a) / np.linalg.norm(b), -1, 1)))


def test_a_turned_scene_stands_upright_on_its_base(upright):
    _, raw, facts, scene, _, _ = upright
    matrix = np.array(facts["mesh"]["world_to_mesh"])
    assert degrees(matrix[:3, :3] @ TURN[:, 2], np.array([0, 0, 1.0])) < 1
    assert degrees(scene.up.numpy(), TURN[:, 2]) < 1
    low, high = raw.min(0), raw.max(0)
    assert low[2] == pytest.approx(0, abs=1e-5) and high[2] == pytest.approx(2 * HALF[2], rel=0.02)
    np.testing.assert_allclose((low + high)[:2], 0, atol=1e-5)
    assert facts["arbitrary_world"] and facts["mesh"]["upright"] and facts["mesh"]["units"] == "world" and facts["metres_per_unit"] is None


def test_the_record_brings_points_and_cameras_back(upright, folder):
    mesh, raw, facts, scene, _, run = upright
    matrix = np.array(facts["mesh"]["world_to_mesh"])
    back = (raw - matrix[:3, 3]) @ np.linalg.inv(matrix[:3, :3]).T
    np.testing.assert_allclose(back, mesh.vertices, atol=1e-5)
    assert np.abs(np.linalg.norm((back @ TURN - formats.CENTRE) / HALF, axis=1) - 1).max() < 0.03
    for suffix in ("ply", "obj"):
        loaded = load_mesh(run / f"mesh/mesh.{suffix}")
        np.testing.assert_array_equal(loaded.metadata["world_to_mesh"], matrix)
        np.testing.assert_allclose(in_world(loaded).vertices, mesh.vertices, atol=1e-5)
        assert loaded.metadata["units"] == "world"
    # a camera of the files, moved with the mesh, sees every vertex in the same pixel
    scale, turn, shift = similarity_parts(scene.to_world.numpy())
    local = scene.cameras.c2w[3].double().numpy()
    camera = np.concatenate([turn @ local[:, :3], (scale * turn @ local[:, 3] + shift)[:, None]], 1)
    moved = np.concatenate([matrix[:3, :3] @ camera[:, :3], (matrix[:3, :3] @ camera[:, 3] + matrix[:3, 3])[:, None]], 1)
    K = scene.cameras.K[3]
    np.testing.assert_allclose(project(raw, K, moved)[0], project(np.asarray(mesh.vertices), K, camera)[0], atol=1e-3)


def test_without_a_ground_the_cameras_say_what_is_up(tmp_path):
    scene = load_scene(config(turned_scene(tmp_path, ground=False)).dataset)
    assert degrees(scene.up.numpy(), TURN[:, 2]) < 1


@pytest.mark.parametrize(
    ("more", "up"), [([f"dataset.up={TURN[:, 0].tolist()}"], TURN[:, 0]), (["dataset.up=given"], np.array([0, 0, 1.0]))]
)
def test_dataset_up_overrides(more, up, folder, tmp_path):
    matrix = np.array(exported(folder, tmp_path, *more)[2]["mesh"]["world_to_mesh"])
    assert degrees(matrix[:3, :3] @ up, np.array([0, 0, 1.0])) < 1e-3


def test_a_given_world_is_kept_unless_told(tmp_path):
    """The axes of a transforms.json that was not moved from structure from motion mean something."""
    folder = turned_scene(tmp_path / "scene", layout="transforms")
    mesh, raw, facts, _, _, _ = exported(folder, tmp_path / "a")
    np.testing.assert_array_equal(facts["mesh"]["world_to_mesh"], np.eye(4))
    np.testing.assert_allclose(raw, mesh.vertices, atol=1e-5)
    matrix = np.array(exported(folder, tmp_path / "b", "export.frame=upright")[2]["mesh"]["world_to_mesh"])
    assert degrees(matrix[:3, :3] @ TURN[:, 2], np.array([0, 0, 1.0])) < 1
    np.testing.assert_array_equal(
        exported(turned_scene(tmp_path / "c"), tmp_path / "d", "export.frame=world")[2]["mesh"]["world_to_mesh"], np.eye(4)
    )


def test_metres_by_a_known_distance(folder, tmp_path):
    """Two points of a mesh are 0.12 m apart: they are so in the next one, and measuring there changes nothing."""
    out = tmp_path / "run"
    _, raw, _, _, _, _ = exported(folder, out)
    text = " ".join(",".join(map(str, raw[i])) for i in (0, -1)) + " 0.12"
    words = measured(text, str(out), [])
    assert words[0].startswith("export.metres_per_unit=")
    mesh, metric, facts, _, _, run = exported(folder, out, *words)
    assert np.linalg.norm(metric[0] - metric[-1]) == pytest.approx(0.12, rel=1e-5)
    assert facts["mesh"]["units"] == "metres" and facts["metres_per_unit"] == float(words[0].split("=")[1])
    loaded = load_mesh(run / "mesh/mesh.ply")
    assert loaded.metadata["units"] == "metres" and b"comment units metres" in (out / "mesh/mesh.ply").read_bytes()[:500]
    np.testing.assert_allclose(in_world(loaded).vertices, mesh.vertices, atol=1e-5)
    again = " ".join(",".join(map(str, metric[i])) for i in (0, -1)) + " 0.12"
    assert scale_from_distance(again, str(out)) == pytest.approx(facts["metres_per_unit"], rel=1e-5)
    assert scale_from_distance("0,0,0 0,0,2 1") == 0.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2,3 4,5,6", 'expected "x,y,z x,y,z METRES"'),
        ("1,2 4,5 1", 'expected "x,y,z'),
        ("a,b,c 4,5,6 1", 'expected "x,y,z'),
        ("1,2,nan 4,5,6 1", 'expected "x,y,z'),
        ("", 'expected "x,y,z'),
        ("1,2,3 1,2,3 1", "the two points are the same"),
        ("1,2,3 4,5,6 -1", "the distance is -1 m"),
    ],
)
def test_bad_distances(text, message):
    with pytest.raises(UserError, match=re.escape(message)):
        scale_from_distance(text)


def test_a_scale_is_set_once():
    with pytest.raises(UserError, match="both set the scale"):
        measured("0,0,0 1,0,0 1", None, ["export.metres_per_unit=2"])
    with pytest.raises(UserError, match=r"export\.metres_per_unit: must lie in"):
        load_config(None, ["export.metres_per_unit=0"])


def test_meshes_are_compared_in_the_world(folder, tmp_path, monkeypatch, caplog):
    """The truth lies in the world of the files: gt_mesh.ply, and --eval --gt."""
    truth = trimesh.creation.icosphere(4)
    truth.vertices = (np.asarray(truth.vertices) * HALF + formats.CENTRE) @ TURN.T
    truth.export(folder / "gt_mesh.ply")
    mesh, _, _, scene, cfg, run = exported(folder, tmp_path, "export.metres_per_unit=0.01")
    assert compare_with_truth(mesh, scene, cfg, run)["chamfer"] < 0.02
    seen = []

    def evaluated(a, b, *_, **__):
        seen.extend([a, b])
        raise UserError("seen")

    monkeypatch.setattr(eval_command, "evaluate_mesh", evaluated)
    assert main(["--eval", str(run / "mesh/mesh.ply"), "--gt", str(folder / "gt_mesh.ply")]) == 2
    np.testing.assert_allclose(seen[0].vertices, mesh.vertices, atol=1e-4)
    np.testing.assert_allclose(seen[1].vertices, truth.vertices, atol=1e-4)


def test_the_material_takes_the_mesh_of_an_upright_run(folder, tmp_path):
    """models/material.py moves a mesh of the world to the unit sphere."""
    mesh, raw, _, _, _, run = exported(folder, tmp_path, "export.metres_per_unit=0.01")
    for where in (run.root, run / "mesh/mesh.ply", run / "mesh/mesh.obj"):
        vertices, faces = find_mesh(str(where))
        np.testing.assert_allclose(vertices.numpy(), mesh.vertices, atol=1e-4)
        assert len(faces) == len(mesh.faces) and np.abs(vertices.numpy() - raw).max() > 1


def test_a_resumed_run_keeps_its_unit_sphere(folder, tmp_path, caplog):
    """Another up direction, as new markers or dataset.up give it, turns the export and not the trained field."""
    cfg = config(folder)
    before, run = load_scene(cfg.dataset), RunFolder(tmp_path)
    record_scene(before, cfg, run)
    assert trained_frame(load_scene(cfg.dataset), run).cameras.c2w.equal(before.cameras.c2w)
    other = load_scene(config(folder, f"dataset.up={TURN[:, 0].tolist()}", "dataset.radius=9", "dataset.center=[1,2,3]").dataset)
    kept = trained_frame(other, run)
    assert "the unit sphere of the checkpoint is kept" in caplog.text
    torch.testing.assert_close(kept.to_world, before.to_world, rtol=0, atol=0)
    torch.testing.assert_close(kept.cameras.c2w, before.cameras.c2w, rtol=0, atol=1e-5)
    torch.testing.assert_close(kept.points, before.points, rtol=0, atol=1e-4)
    np.testing.assert_allclose(kept.up.numpy(), TURN[:, 0], atol=1e-9)
    (run / "scene.json").write_text("{")
    assert trained_frame(other, run) is other and "damaged" in caplog.text
    (run / "scene.json").unlink()
    assert trained_frame(other, run) is other
    run.close()


def test_a_damaged_record_is_refused(upright, tmp_path):
    data = (upright[5] / "mesh/mesh.ply").read_bytes()
    at = data.index(b"world_to_mesh ") + len("world_to_mesh ")
    (tmp_path / "m.ply").write_bytes(data[:at] + b"nan " + data[at:])
    with pytest.raises(UserError, match="world_to_mesh is damaged"):
        load_mesh(tmp_path / "m.ply")
