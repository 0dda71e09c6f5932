import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trimesh

import run
from systems import eval_command
from systems.eval_scene import LEAST_COSINE, load_judge
from tests.conftest import needs_warp
from tests.scenes import AXES, write_tiny_scene
from utils.errors import UserError
from utils.projection import project

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
TOOL = SHARED / "tools" / "eval_mesh.py"
SCALE, CENTER = 3.0, np.array([10.0, -20.0, 30.0])  # of the tiny scene's world


def ellipsoid(grow=1.0, detail=4):
    mesh = trimesh.creation.icosphere(detail)
    mesh.vertices = mesh.vertices * AXES * grow * SCALE + CENTER
    return mesh


@pytest.fixture(scope="module")
def judge(tiny_scene):
    return load_judge(str(tiny_scene))


def test_the_unit_and_a_pixel_by_hand(judge):
    assert judge.unit == pytest.approx(SCALE)
    assert judge.pixel(CENTER) == pytest.approx(3 / (1.3 * 24), rel=1e-5)  # cameras at 3 radii, focal length 31.2


def test_culling_by_the_masks(judge):
    floater = trimesh.creation.icosphere(2, 0.3).apply_translation(CENTER + [0, 0, 2.7])
    both = trimesh.util.concatenate([ellipsoid(), floater])
    assert len(judge.cull(both).faces) == len(ellipsoid().faces)
    wide = load_judge(judge.folder, dilation=8)
    assert len(wide.cull(ellipsoid(1.4)).faces) == len(ellipsoid().faces)
    with pytest.raises(UserError, match="every face"):  # each of its vertices stands out in some view
        judge.cull(ellipsoid(1.4))
    assert "dilated by 1 px" in judge.words and "dilated by 8 px" in wide.words
    with pytest.raises(UserError, match="every face of the mesh falls outside the masks"):
        judge.cull(floater)


@needs_warp
def test_seen_by_two_views_of_a_convex_body_is_facing_them(judge):
    mesh = ellipsoid()
    x, face = trimesh.sample.sample_surface(mesh, 4000, seed=1)
    n = mesh.face_normals[face]
    cameras = judge.scene.cameras.c2w[list(judge.scene.train), :, 3].double().numpy() * SCALE + CENTER
    away = cameras[:, None] - x
    cosine = (away * n).sum(-1) / np.linalg.norm(away, axis=-1)
    got = judge.seen(mesh, np.asarray(x), np.asarray(n))
    least, surely = ((cosine > limit).sum(0) >= 2 for limit in (LEAST_COSINE, 0.6))  # pixels are wide here, 0.1 of the radius
    assert not got[~least].any() and got[surely].all() and 0.15 < surely.mean() < got.mean() <= least.mean() < 0.95
    assert not got[np.asarray(n)[:, 2] < -0.9].any()  # all cameras stand above


@needs_warp
def test_what_is_hidden_is_not_seen(judge):
    mesh = ellipsoid()
    box = trimesh.creation.box(np.array([2.2, 2.2, 2.2]) * SCALE).apply_translation(CENTER)
    points, normals = np.asarray(mesh.vertices), np.asarray(mesh.vertex_normals)
    assert judge.seen(mesh, points, normals).any()
    assert not judge.seen(trimesh.util.concatenate([mesh, box]), points, normals).any()


@needs_warp
def test_a_bead_smaller_than_a_pixel_hides_what_lies_behind_it(judge):
    mesh = ellipsoid()
    top = np.argmax(np.asarray(mesh.vertices)[:, 2])
    point, normal = np.asarray(mesh.vertices)[[top]], np.asarray(mesh.vertex_normals)[[top]]
    cameras = judge.scene.cameras.c2w[:, :, 3].double().numpy() * SCALE + CENTER
    beads = [trimesh.creation.icosphere(1, 0.03).apply_translation(0.8 * point[0] + 0.2 * camera) for camera in cameras]
    assert judge.seen(mesh, point, normal).all()
    assert not judge.seen(trimesh.util.concatenate([mesh, *beads]), point, normal).any()
    beads = []  # now at the corner of its pixel that lies furthest from the line of sight
    for i, camera in enumerate(cameras):
        K, c2w = (x[i].double().numpy() for x in (judge.scene.cameras.K, judge.scene.cameras.c2w))
        uv = project((point - CENTER) / SCALE, K, c2w)[0][0]
        corner = np.round(uv) + np.where(uv > np.round(uv), -0.5, 0.5)
        sight = c2w[:, :3] @ np.linalg.inv(K) @ [*corner, 1]
        beads.append(
            trimesh.creation.icosphere(1, 0.03).apply_translation(
                camera + 0.8 * np.linalg.norm(point - camera) * sight / np.linalg.norm(sight)
            )
        )
    assert not judge.seen(trimesh.util.concatenate([mesh, *beads]), point, normal).any()


@needs_warp
def test_the_command_line_judges_what_was_seen(tiny_scene, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(eval_command, "SAMPLES", 5000)
    truth, pred = ellipsoid(), ellipsoid(1.02)
    pred.update_faces(pred.triangles_center[:, 2] > CENTER[2] - 0.3 * AXES[2] * SCALE)  # its underside is missing
    pred = trimesh.util.concatenate([pred, trimesh.creation.icosphere(2, 0.3).apply_translation(CENTER + [0, 0, 2.7])])
    pred.export(tmp_path / "pred.ply")
    truth.export(tmp_path / "gt.ply")
    words = ["--eval", str(tmp_path / "pred.ply"), "--gt", str(tmp_path / "gt.ply"), "--eval-out", str(tmp_path / "out")]
    whole, judged = [], []
    for more, into in (([], whole), (["--scene", str(tiny_scene)], judged)):
        assert run.main([*words, *more]) == 0
        into.append(json.loads((tmp_path / "out/metrics.json").read_text()))
    whole, judged, text = whole[0], judged[0], "".join(capsys.readouterr())
    assert whole["accuracy"] > 0.05 and whole["completeness"] > 0.1
    assert judged["accuracy"] == pytest.approx(0.01, abs=0.002) and judged["unit"] == pytest.approx(SCALE)
    assert judged["half_px"] == pytest.approx(judged["chamfer"] / (judged["pixel"] / 2)) and 0.3 < judged["seen"] < 0.95
    assert "half_px" in text and "8 masks" in text and "two training views" in text


def test_wrong_scenes(tiny_scene, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        load_judge(str(tmp_path / "none"))
    with pytest.raises(UserError, match="no masks"):
        load_judge(str(tiny_scene), ["dataset.masks=false"], dilation=3)
    assert load_judge(str(tiny_scene), ["dataset.masks=false"]).cull(ellipsoid(2)).faces.shape == ellipsoid(2).faces.shape


@pytest.mark.slow
@needs_warp
@pytest.mark.skipif(not TOOL.exists(), reason="../shared with the judge is not here")
def test_agrees_with_the_independent_judge(tmp_path):
    scene = str(write_tiny_scene(tmp_path / "scene", hw=(180, 240)))
    truth, pred = ellipsoid(detail=5), ellipsoid(1.03, detail=5)
    pred.vertices += 0.02 * np.random.default_rng(0).normal(size=pred.vertices.shape)
    pred = trimesh.util.concatenate([pred, trimesh.creation.icosphere(2, 0.3).apply_translation(CENTER + [0, 0, 2.7])])
    pred.export(tmp_path / "pred.ply")
    truth.export(tmp_path / "gt.ply")
    files = [str(tmp_path / "pred.ply"), str(tmp_path / "gt.ply")]
    done = subprocess.run([sys.executable, TOOL, *files, "--scene", scene, "-n", "60000"], capture_output=True, text=True, check=True)
    judge = json.loads(done.stdout)
    assert run.main(["--eval", files[0], "--gt", files[1], "--scene", scene, "--eval-out", str(tmp_path)]) == 0
    ours = json.loads((tmp_path / "metrics.json").read_text())
    for key, name in (("accuracy", "accuracy"), ("completeness", "completeness"), ("half_px", "half_px"), ("px", "pixel")):
        assert ours[name] == pytest.approx(judge[key], rel=0.02), key
    assert ours["normal_consistency"] == pytest.approx(judge["normal"], abs=0.01)
