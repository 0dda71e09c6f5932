"""NeRO's first stage on the tiny scene: what is shown, which samples are shaded, what is learned of occlusion, bad configurations."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh

from confs.load import load_config
from process_data.rays import view_rays
from systems.run import execute
from systems.validate import rows_of
from tests.conftest import needs_warp
from tests.systems.test_family import tiny, tiny_job
from tests.systems.test_train import ROOT, trainer
from utils.errors import UserError
from utils.image import read_rgb, write_png
from utils.mesh import load_mesh

pytestmark = pytest.mark.slow

MAPS = ["albedo", "roughness", "metallic", "diffuse light", "specular light", "occlusion"]


def change_shading(model, **changes):
    model.cfg = replace(model.cfg, shading=replace(model.cfg.shading, **changes))


def trained(scene, folder, *more, steps=40):
    t = trainer(tiny("nero-shape", scene, folder, f"trainer.max_steps={steps}", *more), folder / "run")
    t.train()
    return t


def test_the_maps_of_a_view_and_the_sheet(tiny_scene, tmp_path):
    t = trained(tiny_scene, tmp_path, "model.shading.photographer=true")
    cameras = t.scene.cameras
    rays = view_rays(cameras, 0, 1.0)
    render = t.system.render_view(rays, torch.zeros(3))
    maps = t.system.maps(rays, render, chunk=100)
    assert list(maps) == [*MAPS, "photographer"]
    whole = t.system.maps(rays, render)
    for name, picture in maps.items():
        assert picture.shape == (len(rays), 3) and picture.min() >= 0 and picture.max() <= 1
        assert torch.allclose(picture, whole[name], atol=1e-5) and (picture[render.opacity < 0.4] == 0).all()
    h, w = cameras.height, cameras.width
    picture = render.rgb.view(h, w, 3)
    assert rows_of([picture] * 4, maps, h, w).shape == (2 * h, 7 * w, 3) and rows_of([picture] * 4, {}, h, w).shape == (h, 4 * w, 3)
    t.validator(1, 1.0)
    assert read_rgb(tmp_path / "run/images/val_000001.png").shape == (2 * h, 7 * w, 3)


def test_test_and_mesh_from_the_checkpoint_alone(tiny_scene, tmp_path):
    from systems.run import prepare

    assert execute(tiny_job("nero-shape", tiny_scene, tmp_path, "trainer.max_steps=60", "trainer.finish=false"), True, False, False) == 0
    job = prepare(None, str(tmp_path / "n/t"), [])
    assert job.cfg.model.name == "nero-shape" and execute(job, False, True, True) == 0
    assert json.loads((tmp_path / "n/t/test/metrics.json").read_text())["psnr"] > 15
    assert np.asarray(load_mesh(tmp_path / "n/t/mesh/mesh.ply").visual.vertex_colors)[:, :3].std() > 0


def test_what_is_not_shaded_changes_nothing_that_can_be_seen(tiny_scene, tmp_path):
    """Samples of little weight are left out: colour and gradients stay, whatever the ray's background."""
    t = trained(tiny_scene, tmp_path)
    model, rays = t.system.model, view_rays(t.scene.cameras, 1, 1.0)[slice(200, 500)]
    results = []
    for least in (0.0, 1e-3):
        change_shading(model, deferred=False, min_weight=least)
        model.zero_grad()
        out = model.render(rays, model.context(background=torch.rand(3, generator=torch.Generator().manual_seed(1))))
        ((out.render.rgb - 0.3) ** 2).sum().backward()
        results.append((out.render.rgb.detach(), model.sdf.encoding.table.grad.clone(), model.radiance.outer[0].weight.grad.clone()))
    (rgb, grid, light), (rgb2, grid2, light2) = results
    assert (rgb - rgb2).abs().max() < 0.01
    for a, b in ((grid, grid2), (light, light2)):
        assert torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.99


def test_a_ray_is_shaded_once_at_the_mean_of_its_samples(tiny_scene, tmp_path):
    """The same as sample by sample where one sample holds a ray; elsewhere the mean's colour, which teaches the opacities."""
    t = trained(tiny_scene, tmp_path)
    model, rays = t.system.model, view_rays(t.scene.cameras, 1, 1.0)[slice(200, 500)]
    calls = []
    model.radiance.register_forward_hook(lambda *a: calls.append(len(a[1][0])))

    def colour(deferred: bool, output, alpha):
        change_shading(model, deferred=deferred)
        s, field = output.samples, output.field
        points = rays.origins[s.ray_indices] + rays.dirs[s.ray_indices] * s.t[:, None]
        return model.colour(rays, s, points, field, torch.nn.functional.normalize(field.grad, dim=-1), alpha, model.context())

    output = model.render(rays, model.context())
    s = output.samples
    alone = torch.zeros(len(s))
    alone[s.offsets[:-1][s.offsets.diff() > 0] + s.offsets.diff()[s.offsets.diff() > 0] // 2] = 0.8
    held = alone > 0
    assert torch.allclose(colour(True, output, alone)[held], colour(False, output, alone)[held], atol=1e-5)
    alpha = torch.full((len(s),), 0.3, requires_grad=True)
    calls.clear()
    out = colour(True, output, alpha)
    assert calls == [int((s.offsets.diff() > 0).sum())]
    first, last = s.offsets[:-1][s.offsets.diff() > 1], s.offsets[1:][s.offsets.diff() > 1] - 1
    assert torch.equal(out[first], out[last])
    out.sum().backward()
    assert torch.isfinite(alpha.grad).all() and float(alpha.grad.abs().sum()) > 0
    empty = model.colour(rays, s, torch.zeros(len(s), 3), output.field, torch.zeros(len(s), 3), torch.zeros(len(s)), model.context())
    assert (empty == 0).all()


def test_the_occlusion_term_trains_its_network_and_nothing_else(tiny_scene, tmp_path):
    from confs.schema import loss_weights

    t = trained(tiny_scene, tmp_path, *(f"loss.{n}={float(n == 'occlusion')}" for n in loss_weights()), steps=1)
    batch = next(t.batches)
    term = t.system.losses(batch, 0.5)["occlusion"]
    t.system.model.zero_grad()
    term.backward()
    touched = {n for n, p in t.system.model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert touched and all(n.startswith("radiance.occluder") for n in touched)


def test_a_step_before_the_terms_share_of_the_run_does_not_march(tiny_scene, tmp_path):
    t = trainer(tiny("nero-shape", tiny_scene, tmp_path), tmp_path / "run")
    t.batches = t._batches()
    batch = next(t.batches)
    assert "occlusion" not in t.system.losses(batch, 0.05) and "occlusion" in t.system.losses(batch, 0.5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        ["model.shading.photographer=true"],
        ["model.shading.separate=true", "model.shading.weight_norm=true"],
        ["model.sampler=hierarchical"],
        ["model.sdf.normals=finite"],
        ["dataset.apply_mask=false", "model.background=learned", "loss.mask=0"],
        ["model.shading.deferred=false", "model.shading.min_weight=0", "model.shading.occlusion_samples=[16,0]"],
    ],
)
def test_each_option_trains(more, tiny_scene, tmp_path):
    t = trained(tiny_scene, tmp_path, *more, steps=12)
    assert t.skipped == 0 and t.clock.step == 12


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("model.shading.ide_degree=6", r"model\.shading\.ide_degree: must lie in 1\.\.5, got 6"),
        ("model.shading.light_max=0", r"model\.shading\.light_max: must be positive"),
        ("model.shading.min_weight=0.5", r"model\.shading\.min_weight: must lie in"),
        ("model.shading.occlusion_samples=[2,1]", r"model\.shading\.occlusion_samples"),
        ("model.shading.hiden=3", r"did you mean 'model\.shading\.hidden'"),
        ("model.sampler=proposal", "proposal is not for model.name=nero-shape"),
        ("model.encoding=ipe", "ipe is for model.name=nerf"),
    ],
)
def test_bad_configurations_are_named(word, message):
    with pytest.raises(UserError, match=message):
        load_config(ROOT / "confs/nero-shape.yaml", [word])


@needs_warp
def test_normals_on_metal(tmp_path):
    """A sphere against one whose normals lean by a known angle: an ellipsoid, seen from the front."""
    from tests.benchmarks.copper import normals_on_metal

    truth = trimesh.creation.icosphere(5)
    stretched = trimesh.Trimesh(truth.vertices * [1, 1, 1.2], truth.faces, process=False)
    metal = np.zeros((64, 64, 4), np.uint8)
    metal[20:44, 20:32, :3] = 255
    metal[16:48, 16:48, 3] = 255
    write_png(tmp_path / "truth_metallic/000.png", metal)
    pose = np.eye(4)
    pose[2, 3] = 4  # looks down z
    frames = [{"file_path": "./relight/000", "transform_matrix": pose.tolist()}]
    (tmp_path / "transforms_relight.json").write_text(json.dumps({"camera_angle_x": 0.7, "frames": frames}))
    same = normals_on_metal(truth, truth, tmp_path)
    assert same["metal_deg"] < 0.1 and same["missed"] == 0 and same["metal_pixels"] == 22 * 10
    assert 1 < normals_on_metal(stretched, truth, tmp_path)["metal_deg"] < 8
    with pytest.raises(UserError, match="truth_metallic"):
        normals_on_metal(truth, truth, tmp_path / "nothing")
