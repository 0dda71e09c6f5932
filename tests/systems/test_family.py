"""Each config trains, tests and meshes; each loss, encoding and option is switched on and does what it is for."""

import dataclasses
import json
import logging
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import confs.load as load_module
from confs.effects import NEEDS
from confs.load import load_config
from confs.schema import loss_weights
from confs.stages import read_stages
from encoder.get_encoding import ENCODINGS
from process_data.load import load_scene
from systems import losses
from systems.begin import fit_to_scene
from systems.run import Job, execute
from tests.material_scenes import write_ellipsoid
from tests.models import test_proposal
from tests.scenes import AXES
from tests.systems import test_patches
from tests.systems.test_train import ROOT, TINY, tiny_words, trainer
from utils.errors import UserError
from utils.mesh import load_mesh

CONFIGS = sorted(p.stem for p in (ROOT / "confs").glob("*.yaml") if read_stages(p) is None)  # those of stages are tested in test_stages.py
# the deep networks narrowed: what is tested is that they run
SMALL = {
    "neus-mlp": ["model.sdf.hidden=64", "model.sdf.feature=16", "model.radiance.hidden=32", "model.sampling.n_samples=16", "model.sampling.n_importance=16", "trainer.max_rays=64"],
    "nero-shape-paper": ["model.sdf.hidden=64", "model.sdf.feature=16", "model.shading.hidden=32", "model.shading.outer=32", "model.sampling.n_samples=16", "model.sampling.n_importance=16", "trainer.n_rays=64", "trainer.max_rays=64"],
    "nero-material": ["model.material.n_diffuse=8", "model.material.n_specular=8", "model.material.n_diffuse_test=8", "model.material.n_specular_test=8", "relight.texture=128"],
    "nerf-dtu": ["model.density.level=0.2"],
    "nerf-blender": ["model.density.level=0.2"],
}  # fmt: skip


METHOD = {name: load_config(ROOT / f"confs/{name}.yaml").model.name for name in CONFIGS}
# least PSNR (dB) and largest mean distance of the mesh (radii) on the tiny scene after 60 steps: four seeds' worst, less a margin.
# None: too little training for a mesh. After one step NeuS has 21.0 dB and 0.034, neus-mlp 16.4 and 0.06, dtu 6.4, NeRF 16.9, material 17.0.
REACHED = {
    "blendedmvs": (22, 0.028), "demo": (22, 0.028), "dtu-wmask": (22, 0.028), "neus-blender": (22, 0.028), "neus-colmap": (22, 0.028),
    "neuralangelo-dtu": (22, 0.028), "nero-shape": (21.5, 0.028), "nero-shape-paper": (20, 0.048), "neus-mlp": (20, 0.048),
    "nero-material": (22.5, 0.001), "nerf-blender": (18, None), "dtu": (16.5, None), "nerf-dtu": (16.5, None),
}  # fmt: skip


def words(name, scene, out, *more):
    found = [*tiny_words(METHOD[name]), f"dataset.root_dir={scene}", f"trainer.outputs_dir={out}", "trainer.trial_name=t", "name=n"]
    if name == "nero-material":
        found.append(f"model.mesh={write_ellipsoid(out)}")
    return [*found, "dataset.name=dtu", *SMALL.get(name, []), *more]


def tiny(name, scene, out, *more):
    return load_config(ROOT / f"confs/{name}.yaml", words(name, scene, out, *more))


def tiny_job(name, scene, out, *more):
    load = partial(load_config, ROOT / f"confs/{name}.yaml", words(name, scene, out, *more))
    return Job(load(), load)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_trains_tests_and_meshes(name, tiny_scene, tmp_path):
    job = tiny_job(name, tiny_scene, tmp_path, "trainer.max_steps=60", "trainer.val_minutes=0.003")
    assert execute(job, True, False, False) == 0
    run = tmp_path / "n/t"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(v) for row in rows for v in row.values()) and rows[-1].get("skipped", 0) == 0
    assert (run / "mesh/mesh.ply").stat().st_size > 600 and list((run / "images").glob("val_*.png"))
    psnr, distance = REACHED[name]
    assert json.loads((run / "test/metrics.json").read_text())["psnr"] > psnr
    assert distance is None or distance_to_ellipsoid(run / "mesh/mesh.ply") < distance


def distance_to_ellipsoid(path):
    """Mean distance of the mesh's vertices to the tiny scene's surface, radii."""
    x = (np.asarray(load_mesh(path).vertices) - [10.0, -20.0, 30.0]) / 3.0
    return float(np.abs((np.linalg.norm(x / AXES, axis=1) - 1) * min(AXES)).mean())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dtu", "nerf-dtu", "nerf-blender", "nero-shape"])
def test_a_method_learns_and_resumes_bitwise(name, tiny_scene, tmp_path):
    from utils.checkpoint import load_checkpoint

    cfg = tiny(name, tiny_scene, tmp_path, "trainer.max_steps=60", "trainer.save_every=30")
    whole = trainer(cfg, tmp_path / "whole")
    real, kept = whole.save, []
    whole.save = lambda: kept.append(torch_clone(whole.state())) or real()
    whole.train()
    rows = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["psnr"] > rows[0]["psnr"] + 1
    second = trainer(cfg, tmp_path / "parts")
    second.load(kept[0], tmp_path / "parts/ckpt/last.pt")
    assert second.clock.step == 30
    second.train()
    a, b = load_checkpoint(tmp_path / "whole")["model"], load_checkpoint(tmp_path / "parts")["model"]
    assert all(torch.equal(a[k], b[k]) for k in a)


def torch_clone(state):
    import io

    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


# ------------------------------------------------------------------ losses: the table, and what each is for


def merge_of_lumps(gap):
    """Distortion of a ray whose weight lies in two lumps `gap` cells apart."""
    weights = torch.zeros(1, 20)
    weights[0, 5] = weights[0, 5 + gap] = 0.5
    return losses.dense_distortion(weights, torch.linspace(0, 1, 21)[None])


def lower(a, b):
    return float(a) < float(b)


O = torch.tensor  # noqa: E741
ERROR = torch.tensor([[0.1, 0.0, 0.0], [0.0, 0.4, 0.0]])
PROPERTIES = {
    "rgb": lambda: math.isclose(losses.rgb_l1(ERROR, 0 * ERROR), 0.5 / 6, rel_tol=1e-6),
    "rgb_mse": lambda: math.isclose(losses.rgb_mse(ERROR, 0 * ERROR), 0.17 / 6, rel_tol=1e-6),
    "rgb_smooth_l1": lambda: (
        math.isclose(losses.rgb_smooth_l1(ERROR, 0 * ERROR), 0.17 / 12, rel_tol=1e-6)
        and math.isclose(losses.rgb_smooth_l1(100 * ERROR, 0 * ERROR), (10 + 40 - 1) / 6, rel_tol=1e-6)
    ),
    "rgb_charbonnier": lambda: (
        abs(losses.rgb_charbonnier(ERROR, ERROR)) < 1e-7
        and math.isclose(losses.rgb_charbonnier(1e3 * ERROR, 0 * ERROR) / 1e3, 0.25, rel_tol=1e-3)
    ),
    "mask": lambda: lower(losses.mask_bce(O([0.9]), O([1.0])), losses.mask_bce(O([0.1]), O([1.0]))),
    "eikonal": lambda: losses.eikonal(F.normalize(torch.randn(9, 3), dim=1)) < 1e-9,
    "curvature": lambda: losses.bending(torch.zeros(4), 0.1) == 0 and losses.bending(O([-2.0, 2.0]), 0.1) == pytest.approx(0.2),
    "opaque": lambda: (
        losses.opaque(O([0.0, 1.0])) == 0
        and lower(losses.opaque(O([0.1])), losses.opaque(O([0.5])))
        and math.isclose(losses.opaque(O([0.5])), math.log(2), rel_tol=0.02)
    ),
    "sparsity": lambda: losses.sparsity(O([0.0]), 10.0) == 1 and lower(losses.sparsity(O([0.5]), 10.0), losses.sparsity(O([0.1]), 10.0)),
    "distortion": lambda: lower(merge_of_lumps(1), merge_of_lumps(10)),
    "distortion_bg": lambda: math.isclose(merge_of_lumps(10), 2 * 0.25 * 0.5 + 2 * 0.25 * 0.05 / 3, rel_tol=1e-5),
    "occlusion": lambda: losses.occlusion(O([0.0, 0.5]), O([0.0, 1.0])) == 0.25 and losses.occlusion(O([]), O([])) == 0,
}


@pytest.mark.parametrize("name", list(PROPERTIES))
def test_the_property_of_a_loss(name):
    assert PROPERTIES[name]()


def test_every_term_has_a_property_here_or_a_test_of_its_own():
    elsewhere = {
        "free": test_patches.test_the_term_of_free_space_counts_what_is_enclosed,
        "patches": test_patches.test_the_term_moves_a_surface_to_the_true_one,
        "points": test_points_pull_the_surface_and_come_with_the_batch,
        "interlevel": test_proposal.test_interlevel_is_zero_under_the_bound_and_teaches_the_proposal_alone,
    }
    assert sorted([*PROPERTIES, *elsewhere]) == sorted(losses.TERMS) == sorted(NEEDS)


def test_every_weight_has_a_term_and_every_term_a_weight():
    assert sorted(loss_weights()) == sorted(losses.TERMS)
    documented = (ROOT / "confs/schema.py").read_text()
    for name in loss_weights():
        line = next(row for row in documented.splitlines() if row.startswith(f"    {name}: Any"))
        assert len(line.partition("# ")[2]) > 20, f"loss.{name} is not explained"


def test_dense_and_packed_distortion_agree():
    from models.volrend import distortion

    weights, t = torch.rand(4, 9) / 9, torch.rand(4, 10).cumsum(1)
    packed = distortion(weights.flatten(), t[:, :-1].flatten(), t[:, 1:].flatten(), torch.arange(5) * 9)
    assert torch.allclose(losses.dense_distortion(weights, t), packed, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in loss_weights() if n not in ("points", "free", "patches")])
@pytest.mark.parametrize("recipe", ["dtu", "nerf-dtu", "nero-shape"])
def test_each_loss_switched_on_is_logged_and_reaches_the_weights(name, recipe, tiny_scene, tmp_path):
    on = [f"loss.{n}={0.1 if n == name else 0}" for n in loss_weights()]
    t = trainer(tiny(recipe, tiny_scene, tmp_path, *on, "trainer.max_steps=3"), tmp_path / "run")
    t.batches = t._batches()
    t.system.before_step(0, 0.0)
    if t.system.model.background is not None:
        t.system.model.background.proposal.bias = -9.0  # an empty proposal, which bounds no field
    terms = t.system.losses(next(t.batches), 0.5)
    silent = {
        "dtu": {"occlusion"},  # no occlusion is estimated
        "nerf-dtu": {"occlusion", "eikonal", "curvature", "sparsity"},  # a density has no distance
        "nero-shape": {"distortion_bg", "interlevel"},  # cut out: no background field
    }
    if name in silent[recipe]:
        assert not terms
        return
    assert list(terms) == [name] and torch.isfinite(terms[name])
    terms[name].backward()
    grads = [p.grad for p in t.system.model.parameters() if p.grad is not None]
    assert grads and all(torch.isfinite(g).all() for g in grads) and any(float(g.abs().sum()) > 0 for g in grads)


@pytest.mark.parametrize(
    ("more", "used"),
    [
        ([], True),
        (["dataset.apply_mask=false"], False),
        (["dataset.apply_mask=false", "model.background=white"], False),
        (["dataset.apply_mask=false", "loss.mask=0.1"], True),
    ],
)
def test_masks_that_are_not_to_be_used_are_not(more, used, tiny_scene, tmp_path):
    t = trainer(tiny("dtu-wmask", tiny_scene, tmp_path, *more), tmp_path / "run")
    t.batches = t._batches()
    assert ("mask" in t.system.losses(next(t.batches), 0.0)) == used


def test_points_pull_the_surface_and_come_with_the_batch(tiny_scene, tmp_path):
    cfg = tiny("dtu-wmask", tiny_scene, tmp_path, "loss.points=1", "trainer.max_steps=40", "loss.rgb=0", "loss.mask=0", "optim.warmup=0")
    t = trainer(cfg, tmp_path / "run")
    t.scene = dataclasses.replace(t.scene, points=F.normalize(torch.randn(300, 3), dim=1) * 0.7)
    t.batches = t._batches()
    batch = next(t.batches)
    assert batch.points.shape == (512, 3) and torch.allclose(batch.points.norm(dim=1), torch.tensor(0.7))
    before = float(t.system.losses(batch, 0.0)["points"].detach())
    t.train()
    after = float(t.system.losses(batch, 0.0)["points"].detach())
    assert before == pytest.approx(0.2, abs=0.03) and after < 0.05


# ------------------------------------------------------------------ options


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        ["model.encoding=frequency", "model.frequency.levels=[1,6,0,0.5]"], ["model.encoding=identity+hashgrid"], ["model.radiance.dirs=none"], ["model.radiance.dirs=ide"],
        ["model.radiance.dirs=identity+spherical"], ["model.radiance.dirs=frequency"], ["model.sampler=hierarchical"], ["model.gradient_scaling=true"],
        ["model.sdf.normals=finite", "loss.curvature=0.01"], ["model.sdf.normals=finite", "model.sdf.taps=4", "model.sdf.eps=0.02"],
        ["model.variance.max_inv_s=[30,1000,0,0.5]"], ["model.background=black"], ["model.background=white"], ["loss.curvature=0.01"],
    ],
)  # fmt: skip
def test_each_option_of_neus_trains(more, tiny_scene, tmp_path):
    t = trainer(tiny("dtu-wmask", tiny_scene, tmp_path, "trainer.max_steps=12", *more), tmp_path / "run")
    assert t.train() and t.skipped == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        ["model.sampler=proposal", "model.sampling.n_samples=16", "model.sampling.n_proposal=[24,16]"], ["model.encoding=ipe"], ["model.encoding=identity+ipe"],
        ["model.encoding=frequency"], ["model.encoding=identity+hashgrid"], ["model.radiance.dirs=none"], ["model.gradient_scaling=true"],
    ],
)  # fmt: skip
@pytest.mark.parametrize("recipe", ["nerf-dtu", "nerf-blender"])
def test_each_option_of_nerf_trains(recipe, more, tiny_scene, tmp_path):
    t = trainer(tiny(recipe, tiny_scene, tmp_path, "trainer.max_steps=12", *more), tmp_path / "run")
    assert t.train() and t.skipped == 0


def test_every_encoding_is_named_somewhere_in_the_schema():
    text = (ROOT / "confs/model.py").read_text()
    assert all(f'"{name}"' in text for name in ENCODINGS)


# ------------------------------------------------------------------ which recipe


def test_the_mask_free_recipe_is_the_file_and_no_layer_above_what_the_user_gave():
    given = ["seed=1", "dataset.root_dir=here"]
    free = load_config(ROOT / "confs/dtu.yaml", given)
    assert load_config(ROOT / "confs/dtu-wmask.yaml", given, masks=False) == free
    assert free.model.background == "learned" and free.model.occupancy.resolution == 96 and free.loss.mask == 0
    mine = load_config(ROOT / "confs/dtu-wmask.yaml", [*given, "model.occupancy.resolution=256", "loss.mask=[0.2,0,0,1]"], masks=False)
    assert mine.model.occupancy.resolution == 256 and mine.loss.mask == [0.2, 0, 0, 1] and mine.model.occupancy.threshold == 0.005
    white = load_config(ROOT / "confs/dtu-wmask.yaml", [*given, "dataset.apply_mask=false", "model.background=white"])
    assert white.model.background == "white" and white.model.variance.init == 0.3


def test_masks_demanded_of_a_scene_without_are_an_error():
    with pytest.raises(UserError, match="dataset.apply_mask=true, but the scene has no masks"):
        load_config(ROOT / "confs/dtu-wmask.yaml", ["dataset.apply_mask=true"], masks=False)


def test_every_parameter_is_in_one_group_and_the_background_learns_at_its_own_rate(tiny_scene, tmp_path):
    system = trainer(tiny("dtu", tiny_scene, tmp_path, "optim.lr_background=0.07"), tmp_path / "run").system
    groups = {g["name"]: g for g in system.param_groups()}
    assert sorted(id(p) for g in groups.values() for p in g["params"]) == sorted(map(id, system.model.parameters()))
    tables = {id(system.model.background.field.encoding.table), id(system.model.background.proposal.encoding.table)}
    assert {id(p) for p in groups["background"]["params"]} == tables and groups["background"]["lr"] == 0.07
    assert groups["background"]["lazy"] and groups["grid"]["lr"] == 0.01


def test_a_scene_without_masks_is_trained_without_and_the_log_says_so(tmp_path, caplog):
    from tests.scenes import write_tiny_scene

    scene = write_tiny_scene(tmp_path / "scene", masks=False)
    job = tiny_job("dtu-wmask", scene, tmp_path, "trainer.max_steps=2", "trainer.finish=false", "model.occupancy.threshold=0.01")
    load_module._say.cache_clear()
    with caplog.at_level(logging.INFO, "neus"):
        cfg = fit_to_scene(job, load_scene(job.cfg.dataset))
    assert cfg.model.background == "learned" and not cfg.dataset.apply_mask and cfg.model.occupancy.threshold == 0.01
    assert "has no masks: training without them, with a learned background" in caplog.text
    assert "model.variance.init=0.2 (was 0.3)" in caplog.text and "threshold=0.005" not in caplog.text
    assert execute(job, True, False, False) == 0
    saved = load_config(saved=(tmp_path / "n/t/config.yaml").read_text())
    assert saved.model.background == "learned" and not saved.dataset.apply_mask


def test_masks_asked_of_the_mask_free_config_bring_the_masked_recipe():
    given = ["seed=1", "dataset.root_dir=here"]
    free = load_config(ROOT / "confs/dtu.yaml", [*given, "dataset.apply_mask=true"])
    assert free == load_config(ROOT / "confs/dtu-wmask.yaml", given)
    assert load_config(ROOT / "confs/dtu.yaml", [*given, "dataset.apply_mask=true", "loss.mask=0.3"]).loss.mask == 0.3


def test_a_learned_background_does_not_go_with_cut_out_photographs():
    with pytest.raises(UserError, match=r"model\.background: learned renders the photographs whole; set dataset\.apply_mask=false"):
        load_config(ROOT / "confs/dtu-wmask.yaml", ["model.background=learned"])
    for word, message in (("model.sampler=proposal", "not for model.name=neus"), ("model.encoding=ipe", "ipe is for model.name=nerf")):
        with pytest.raises(UserError, match=message):
            load_config(ROOT / "confs/dtu-wmask.yaml", [word])


def test_a_dead_occupancy_grid_comes_back(caplog):
    from confs.model import OccupancyConfig
    from models.estimators import OccupancyGrid

    grid = OccupancyGrid(OccupancyConfig(resolution=16), 1.0)
    for step in range(0, 16 * 40, 16):
        grid.refresh(step, lambda x: torch.zeros(len(x)))
    assert grid.share == 1 and caplog.text.count("no cell is occupied") == 1
    grid.refresh(16 * 40, lambda x: (x.norm(dim=1) < 0.5).float())
    assert 0 < grid.share < 1


# ------------------------------------------------------------------ the example of the README


@pytest.mark.slow
def test_the_readmes_example_of_a_new_loss_works(tiny_scene, tmp_path):
    """The two snippets, pasted as the README describes, give a loss that trains."""
    import re
    import shutil
    import subprocess
    import sys

    readme = (ROOT / "README.md").read_text()
    section = readme.partition("## A loss of your own")[2].partition("\n## ")[0]
    term, line = re.findall(r"```python\n(.*?)```", section, re.S)
    for room in ("confs", "encoder", "models", "process_data", "systems", "utils"):
        shutil.copytree(ROOT / room, tmp_path / "copy" / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "run.py", tmp_path / "copy/run.py")
    path = tmp_path / "copy/systems/losses.py"
    path.write_text(path.read_text() + "\n\n" + term)
    path = tmp_path / "copy/confs/schema.py"
    path.write_text(path.read_text().replace("    rgb_mse: Any", f"    {line.strip()}\n    rgb_mse: Any", 1))
    name = line.partition(":")[0].strip()
    words = [
        *TINY,
        f"dataset.root_dir={tiny_scene}",
        f"trainer.outputs_dir={tmp_path}",
        "name=n",
        "trainer.trial_name=t",
        f"loss.{name}=0.1",
    ]
    words += ["trainer.max_steps=5", "trainer.finish=false"]
    done = subprocess.run(
        [sys.executable, "run.py", "--config", "confs/dtu-wmask.yaml", "--train", *words],
        cwd=tmp_path / "copy",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert f"loss/{name}" in json.loads((tmp_path / "n/t/metrics.jsonl").read_text().splitlines()[-1])
