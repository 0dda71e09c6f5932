"""Cameras and appearance end to end on a tiny scene: they are refined, resumed bitwise, fitted to held-out views, and written."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from confs.load import load_config
from process_data.load import load_scene
from systems.build import build_system, restore_system
from systems.cameras import align_held_out, cameras_of_shape, refined, with_cameras_of, write_cameras
from systems.run import execute, prepare
from systems.trainer import Trainer
from tests.material_scenes import write_ellipsoid
from tests.systems.test_family import ROOT, words
from tests.systems.test_train import TINY, config, same, stop_at, weights
from utils.checkpoint import load_checkpoint
from utils.errors import UserError
from utils.log import RunFolder

ON = ["model.pose=true", "model.appearance=affine", "optim.pose_begin=0", "trainer.average=0"]


def trainer(cfg, folder):
    scene = load_scene(cfg.dataset, cfg.model.radius)
    return Trainer(build_system(cfg, torch.device("cpu"), scene), scene, cfg, RunFolder(folder), torch.device("cpu"))


@pytest.mark.parametrize("kind", ["affine", "embedding"])
@pytest.mark.parametrize("method", ["neus", "nerf"])
def test_every_photograph_learns_its_camera_and_appearance(tiny_scene, tmp_path, kind, method):
    more = [f"model.name={method}", "loss.eikonal=0"] if method == "nerf" else []
    known = [w for w in TINY if method == "neus" or not w.startswith("loss.eikonal")]
    words = [*known, *ON, *more, f"model.appearance={kind}", "trainer.max_steps=6", f"dataset.root_dir={tiny_scene}"]
    t = trainer(load_config(None, words), tmp_path / "run")
    assert t.train()
    pose, appearance = t.system.model.pose, t.system.model.appearance
    assert pose.delta[list(t.scene.train)].abs().min(1).values.max() > 0 and not pose.delta[list(t.scene.test)].any()
    assert appearance.values[list(t.scene.train)].any(1).all() and not appearance.values[list(t.scene.test)].any()


def test_resuming_is_bitwise(tiny_scene, tmp_path):
    cfg = config(tiny_scene, tmp_path, *ON, "trainer.max_steps=21")
    assert trainer(cfg, tmp_path / "whole").train()
    first = trainer(cfg, tmp_path / "parts")
    stop_at(first, 9)
    assert not first.train()
    second, path = trainer(cfg, tmp_path / "parts"), tmp_path / "parts/ckpt/last.pt"
    second.load(load_checkpoint(path), path)
    assert second.train()
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert weights(tmp_path / "whole")["pose.delta"].any() and weights(tmp_path / "whole")["appearance.values"].any()


@pytest.mark.slow
def test_a_wrong_held_out_camera_is_fitted_to_its_photograph(tiny_scene, tmp_path):
    cfg = config(tiny_scene, tmp_path, *ON, "trainer.max_steps=200", "optim.lr_pose=0.000001")
    t = trainer(cfg, tmp_path / "run")
    assert t.train()
    scene, view = t.scene, t.scene.test[0]
    turned = scene.cameras.c2w.clone()
    turned[view, :, :3] = (
        torch.linalg.matrix_exp(torch.tensor([[0.0, -0.02, 0.03], [0.02, 0, -0.02], [-0.03, 0.02, 0]])) @ turned[view, :, :3]
    )
    wrong = replace(scene, cameras=replace(scene.cameras, c2w=turned))
    before, after = align_held_out(t.system, wrong, cfg)[view]
    assert after > before + 0.5
    found = refined(t.system, wrong).cameras.c2w[view]
    assert (found[:, :3] - scene.cameras.c2w[view, :, :3]).norm() < (turned[view, :, :3] - scene.cameras.c2w[view, :, :3]).norm()
    assert all(p.requires_grad for p in t.system.model.parameters())


def test_the_cameras_of_a_run_are_written_and_read_as_a_scene(tiny_scene, tmp_path):
    words = [*TINY, *ON, f"dataset.root_dir={tiny_scene}", f"trainer.outputs_dir={tmp_path}", "name=n", "trainer.trial_name=t"]
    words += ["trainer.max_steps=6", "trainer.test_share=0"]
    assert execute(prepare(None, None, words), True, False, False, film=False) == 0
    metrics = json.loads((tmp_path / "n/t/test/metrics.json").read_text())
    assert metrics["held_out_cameras"].startswith("fitted") and metrics["psnr_cc"] is not None
    given = load_scene(prepare(None, None, words).cfg.dataset)
    shutil.copytree(Path(tiny_scene) / "image", tmp_path / "again")
    shutil.copy(tmp_path / "n/t/cameras.json", tmp_path / "again/transforms.json")
    again = load_scene(load_config(None, [f"dataset.root_dir={tmp_path}/again", "dataset.name=transforms"]).dataset)
    assert again.names == given.names and torch.allclose(again.cameras.K, given.cameras.K, atol=1e-3)
    model = restore_system(*restored(tmp_path / "n/t"), given).model
    to_world = [s.to_world.numpy() for s in (given, again)]
    expected = model.pose.cameras(given.cameras.c2w)[list(given.train), :, 3].numpy() @ to_world[0][:3, :3].T + to_world[0][:3, 3]
    found = again.cameras.c2w[list(given.train), :, 3].double().numpy() @ to_world[1][:3, :3].T + to_world[1][:3, 3]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    moved = np.abs(expected - (given.cameras.c2w[list(given.train), :, 3].numpy() @ to_world[0][:3, :3].T + to_world[0][:3, 3]))
    assert moved.max() > 1e-4  # the cameras as refined, not as given


def nudged(scene):
    """The scene with each camera turned and moved a little, in its own way."""
    spin = torch.randn(len(scene.names), 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 0.02
    c2w = scene.cameras.c2w.double().clone()
    c2w[:, :, :3] = torch.linalg.matrix_exp(spin - spin.mT) @ c2w[:, :, :3]
    c2w[:, :, 3] += spin[:, 0]
    return replace(scene, cameras=replace(scene.cameras, c2w=c2w.float()))


def test_a_material_takes_the_cameras_of_its_shape_and_keeps_them(tiny_scene, tmp_path, monkeypatch):
    """Regression: the mesh was of the refined cameras, the material was seen from those as given."""
    from systems import run as commands

    mesh = write_ellipsoid(tmp_path / "shape/mesh")
    mesh.rename(mesh.with_name("mesh.ply"))
    known = words("nero-material", tiny_scene, tmp_path, "trainer.max_steps=2", "trainer.finish=false", f"model.mesh={tmp_path / 'shape'}")
    given = load_scene(prepare(str(ROOT / "confs/nero-material.yaml"), None, known).cfg.dataset)
    refined_by_shape, seen = nudged(given), []
    write_cameras(refined_by_shape, RunFolder(tmp_path / "shape"))
    other = load_config(None, ["model.name=material", f"model.mesh={tmp_path}/shape/parts/a.ply"])
    assert cameras_of_shape(given, other, RunFolder(tmp_path / "other"), True, True) is given  # a mesh of no run
    monkeypatch.setattr(commands, "finish", lambda system, scene, *rest: seen.append(scene.cameras.c2w))
    assert execute(prepare(str(ROOT / "confs/nero-material.yaml"), None, known), True, False, False, film=False) == 0
    (tmp_path / "shape/cameras.json").unlink()  # the run has its own
    assert execute(prepare(None, str(tmp_path / "n/t"), []), False, True, False, film=False) == 0
    for c2w in seen:
        assert torch.allclose(c2w, refined_by_shape.cameras.c2w, atol=1e-5) and not torch.allclose(c2w, given.cameras.c2w, atol=1e-3)
    assert len(seen) == 2


def test_cameras_of_other_photographs_and_damaged_ones(tiny_scene, tmp_path, caplog):
    scene = load_scene(prepare(None, None, [*TINY, f"dataset.root_dir={tiny_scene}"]).cfg.dataset)
    run = RunFolder(tmp_path / "run")
    assert with_cameras_of(scene, run.root) is scene
    write_cameras(replace(nudged(scene), names=tuple(f"other_{name}" for name in scene.names)), run)
    assert with_cameras_of(scene, run.root) is scene and "is of other photographs" in caplog.text
    for bad in (
        '{"frames": [{"file_path": 3}]}',
        "[",
        '{"frames": 7}',
        json.dumps({"frames": [{"file_path": n, "transform_matrix": [[1]]} for n in scene.names]}),
    ):
        (run / "cameras.json").write_text(bad)
        with pytest.raises(UserError, match="cameras.json is damaged"):
            with_cameras_of(scene, run.root)


def restored(run):
    job = prepare(None, str(run), [])
    return job.cfg, torch.device("cpu"), job.state, job.path
