"""The contract of a method: one from outside trains, resumes, is tested and meshed; a render depends on its context alone."""

import json

import pytest
import torch

import tests.fog as fog
from confs.load import load_config
from process_data.rays import view_rays
from systems.run import execute, prepare
from tests.systems.test_family import distance_to_ellipsoid, tiny
from tests.systems.test_train import tiny_words, trainer
from utils.errors import UserError


def words(scene, out, *more):
    given = [f"dataset.root_dir={scene}", "dataset.name=dtu", f"trainer.outputs_dir={out}", "name=n", "trainer.trial_name=t"]
    shared = [word for word in tiny_words("fog") if not word.startswith(("model.grid", "loss.eikonal"))]
    return ["model.name=fog", *shared, *given, "trainer.max_steps=150", "model.hidden=32", *more]


def test_the_file_is_short():
    with open(fog.__file__) as file:
        assert sum(1 for line in file if line.strip()) <= 60


def test_a_method_from_outside_trains_and_is_meshed(tiny_scene, tmp_path):
    job = prepare(None, None, words(tiny_scene, tmp_path))
    assert job.cfg.name == "n" and isinstance(job.cfg.model, fog.FogConfig) and job.cfg.model.hidden == 32
    assert execute(job, True, False, False) == 0
    rows = [json.loads(line) for line in (tmp_path / "n/t/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["psnr"] > rows[0]["psnr"] + 5 and {"loss/rgb", "loss/mask"} <= rows[-1].keys() and "loss/eikonal" not in rows[-1]
    assert json.loads((tmp_path / "n/t/test/metrics.json").read_text())["psnr"] > 16
    assert distance_to_ellipsoid(tmp_path / "n/t/mesh/mesh.ply") < 0.2
    resumed = prepare(None, str(tmp_path / "n/t"), [])
    assert resumed.cfg.model == job.cfg.model and execute(resumed, False, True, False) == 0


def test_its_options_are_its_own(tiny_scene, tmp_path):
    with pytest.raises(UserError, match="'model.sdf.hidden' is an option of model.name=neus or nero-shape, not of model.name=fog"):
        load_config(None, words(tiny_scene, tmp_path, "model.sdf.hidden=32"))
    with pytest.raises(UserError, match="unknown method 'fogg'; did you mean 'fog'"):
        load_config(None, ["model.name=fogg"])


@pytest.mark.parametrize("name", ["dtu-wmask", "dtu", "nerf-blender", "nero-shape"])
def test_a_render_depends_on_rays_weights_and_context_alone(name, tiny_scene, tmp_path):
    """Whatever step came before: nothing that `render` needs is left behind by another call."""
    t = trainer(tiny(name, tiny_scene, tmp_path, "trainer.max_steps=8"), tmp_path / "run")
    t.train()
    model, rays = t.system.model, view_rays(t.scene.cameras, 1, 1.0)[slice(200, 400)]
    context = model.context(0.3)
    first = model.render(rays, context).render
    for progress in (0.0, 1.0):
        other = model.context(progress, training=True, jitter=torch.rand(len(rays)))
        model.render(rays, other)
        model.before_step(1, other)  # no refresh is due at step 1
    again = model.render(rays, context).render
    assert torch.equal(first.rgb, again.rgb) and torch.equal(first.depth, again.depth)
    assert {k for k, v in vars(model).items() if isinstance(v, torch.Tensor)} == set()
