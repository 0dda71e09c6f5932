"""Runs of stages: what each is told, how the minutes are divided, one command that does it all, and that goes on wherever it was killed."""

import json
import math
import os
import shutil
import signal

import numpy as np
import pytest
import torch
import trimesh

import run as program
from confs.load import load_config
from confs.stages import read_stages
from models.lights import TextureLight, map_directions
from systems import budget, stages, turntable
from systems.stages import Facts, Whole
from systems.sweep_plan import read_benchmark
from systems.trainer import Trainer
from tests.chaos import Server
from tests.chaos_files import ASIDE, differences, steps_that_differ
from tests.material_scenes import true_model, write_material_scene
from tests.systems.test_train import ROOT
from utils import checkpoint
from utils.errors import UserError
from utils.log import RunFolder
from utils.stop import Stopped

pytestmark = pytest.mark.timeout(1800)
CONFIG = str(ROOT / "confs/nero.yaml")
TINY = [
    "name=n", "seed=5", "trainer.trial_name=t", "trainer.device=cpu", "trainer.threads=1", "trainer.val_minutes=0", "trainer.log_every=5",
    "shape.model.grid.n_levels=4", "shape.model.grid.levels=4", "shape.model.grid.log2_size=10", "shape.model.grid.base=4",
    "shape.model.grid.top=32", "model.samples_per_ray=128", "model.samples_per_ray_test=128", "model.occupancy.resolution=24",
    "shape.trainer.target_samples=2048", "shape.trainer.n_rays=64", "shape.trainer.max_rays=256", "loss.eikonal_points=128",
    "dataset.hold_every=4", "export.resolution=40", "export.coarse=24", "export.faces=1000", "export.confidence=false",
    "model.material.n_diffuse=8", "model.material.n_specular=8", "model.material.n_light=4", "model.material.n_diffuse_test=8",
    "model.material.n_specular_test=8", "model.material.n_light_test=8", "model.material.light_height=8", "model.material.hidden=16",
    "material.model.grid.n_levels=4", "material.model.grid.log2_size=10", "material.model.grid.top=32", "material.model.grid.levels=4",
    "material.trainer.n_rays=256", "material.trainer.max_rays=256", "material.trainer.target_samples=4096", "relight.texture=64",
    "relight.width=16", "relight.height=16", "relight.frames=2", "relight.samples=8", "shape.trainer.max_steps=40",
    "material.trainer.max_steps=20", "trainer.save_every=8",
]  # fmt: skip


# ------------------------------------------------------------------ the config


def planned(*words):
    plan = read_stages(CONFIG, words)
    assert plan is not None
    return plan


def test_an_option_goes_to_the_stages_that_have_it_and_a_prefix_to_one():
    plan = planned(
        "trainer.max_minutes=25", "optim.lr=0.5", "model.shading.hidden=8", "model.material.smooth=0.2", "shape.trainer.n_rays=7", "export.frame=world"
    )  # fmt: skip
    shape, material = (plan.words[name][-4:] for name in ("shape", "material"))
    assert shape == ["optim.lr=0.5", "model.shading.hidden=8", "trainer.n_rays=7", "export.frame=world"]
    assert material[-2:] == ["optim.lr=0.5", "model.material.smooth=0.2"]  # nor export.frame, which has no effect on a given mesh
    assert plan.minutes == 25 and not any("max_minutes" in word for words in plan.words.values() for word in words)
    cfg = load_config(plan.paths["material"], plan.words["material"])
    assert cfg.model.name == "material" and cfg.optim.lr == 0.5 and cfg.name == "nero-auto-spot_glossy" and cfg.trainer.test_share == 0.05


def test_a_file_above_it_names_its_own_configs(tmp_path):
    (tmp_path / "mine.yaml").write_text("base: ours.yaml\nstages: {shape: plain.yaml, shape_share: 0.3}\nmaterial: {optim: {lr: 0.25}}\n")
    (tmp_path / "ours.yaml").write_text(f"base: {CONFIG}\nseed: 3\n")
    (tmp_path / "plain.yaml").write_text(f"base: {ROOT}/confs/neus-blender.yaml\n")
    plan = read_stages(tmp_path / "mine.yaml", ["stages.finish_share=0.2"])
    assert plan.paths["shape"] == tmp_path / "plain.yaml" and plan.paths["material"] == ROOT / "confs/nero-material.yaml"
    assert (plan.options.shape_share, plan.options.finish_share) == (0.3, 0.2)
    assert "seed=3" in plan.words["shape"] and "optim.lr=0.25" in plan.words["material"] and "optim.lr=0.25" not in plan.words["shape"]
    assert load_config(tmp_path / "mine.yaml").model.name == "neus"  # the config of its shape
    assert read_stages(ROOT / "confs/dtu.yaml") is None


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("trainer.max_step=3", "unknown key 'trainer.max_step'; did you mean 'trainer.max_steps'"),
        ("model.material.n_difuse=3", "did you mean 'model.material.n_diffuse'"),
        ("model.shading.hiden=3", "did you mean 'model.shading.hidden'"),
        ("shape.trainer.max_step=3", "did you mean 'trainer.max_steps'"),
        ("model.radiance.dirs=ide", "is an option of model.name=neus or nerf"),
        ("stages.shap_share=0.1", "unknown key 'stages.shap_share'; did you mean 'stages.shape_share'"),
        ("stages.shape_share=half", r"stages.shape_share: must lie in \(0, 0.8\], got half"),
        ("stages.shape_share=0.85", r"stages.shape_share: must lie in \(0, 0.8\], got 0.85"),
        ("stages.finish_share=0.6", "leave the material less than a tenth"),
        ("stages.shape=[1]", "stages.shape: expected the name of a YAML file"),
        ("stages.material=confs/nero-shape.yaml", "stages.material: .* expected one of model.name=material"),
        ("stages=3", "stages: is a section"),
        ("model.name=neus", "model.name: each stage has its own"),
        ("model.mesh=a.ply", "the material takes the mesh of the shape"),
        ("shape.trainer.max_minutes=3", "trainer.max_minutes is the time of the whole run"),
        ("trainer.max_minutes=-1", "trainer.max_minutes: must be positive"),
        ("nonsense", "'nonsense' is no override"),
    ],
)
def test_a_wrong_option_is_one_sentence_before_anything_is_run(word, message):
    with pytest.raises(UserError, match=message):
        read_stages(CONFIG, [word])


def test_words_of_a_run_are_kept_with_the_values_of_the_environment(monkeypatch):
    monkeypatch.setenv("SCENES", "/there")
    kept = stages._expanded("dataset.root_dir=${oc.env:SCENES}/a-${oc.env:ABSENT,b}-${name}")
    assert kept == "dataset.root_dir=/there/a-b-${name}" and stages._expanded("seed=3") == "seed=3"
    with pytest.raises(UserError, match="tag: .*'ABSENT' not found"):
        stages._expanded("tag=${oc.env:ABSENT}")


def test_what_does_not_go_with_stages(tmp_path):
    (tmp_path / "stages.json").write_text('{"config": "a", "words": 3}')
    with pytest.raises(UserError, match="without --config"):
        stages.staged(CONFIG, str(tmp_path))
    with pytest.raises(UserError, match="without --config"):
        stages.staged("confs/dtu.yaml", str(tmp_path))
    assert stages.staged(CONFIG, None) and stages.staged(None, str(tmp_path)) and not stages.staged("confs/dtu.yaml", None)
    with pytest.raises(UserError, match="stages.json is damaged"):
        Facts.read(tmp_path / "stages.json")
    (tmp_path / "stages.json").write_text('{"config": "a", "words": ["tag=${oc.env:HOME}"], "seconds": {}}')
    with pytest.raises(UserError, match="stages.json is damaged"):
        Facts.read(tmp_path / "stages.json")
    (tmp_path / "half.yaml").write_text(f"stages: {{material: {ROOT / 'confs/nero-material.yaml'}}}\n")
    shape = [f"stages.shape={ROOT / 'confs/nero-shape.yaml'}"]
    assert stages.staged(str(tmp_path / "half.yaml"), None, ["seed=3", *shape])  # the other half is on the command line
    with pytest.raises(UserError, match="trains in stages, which a sweep does not"):
        read_benchmark(ROOT / "confs/nero.yaml")


# ------------------------------------------------------------------ the time


def whole(tmp_path, spent, *words):
    return Whole(RunFolder(tmp_path / "run"), Facts(CONFIG, [], {"shape": spent}), planned(*words), set(), True, None)


def test_the_material_has_what_the_shape_leaves(tmp_path, caplog):
    """25 minutes, of which 2.5 are kept for the end; of 5 minutes, 1.5; pictures take a tenth of the training."""
    assert whole(tmp_path, 660, "trainer.max_minutes=25").left_for_material() == pytest.approx((1500 - 660 - 150) / 1.1)
    assert whole(tmp_path, 140, "trainer.max_minutes=5").left_for_material() == pytest.approx((300 - 140 - 90) / 1.1)
    assert whole(tmp_path, 140, "trainer.max_minutes=5", "stages.finish_share=0.4").left_for_material() == pytest.approx(40 / 1.1)
    assert math.isinf(whole(tmp_path, 660).left_for_material()) and not caplog.records
    assert whole(tmp_path, 900, "trainer.max_minutes=5").left_for_material() == 30  # never negative
    assert "the shape took 15.0 of 5 minutes" in caplog.text


def test_a_turntable_takes_the_time_that_it_may(monkeypatch):
    model, cfg = true_model(trimesh.creation.icosphere(2, 0.6)), load_config(overrides=["model.name=material"])
    model.outer = TextureLight(4, 8.0)
    monkeypatch.setattr(turntable, "seconds_per_pixel", lambda size, picture: picture(0.1) or 1e-5)
    assert turntable.fitted(model, cfg, math.inf).relight.frames == 60
    plenty, less, few = (turntable.fitted(model, cfg, s).relight for s in (200.0, 32.0, 4.8))  # a frame takes 1.6 s, or half
    assert (plenty.frames, plenty.width, plenty.fps, plenty.engine) == (60, 400, 24, "embedded")
    assert (less.frames, less.width, less.fps) == (40, 400, 16) and (plenty.samples, less.samples) == (128, 64)
    assert (few.frames, few.width, few.height) == (24, 200, 200)
    asked = load_config(overrides=["model.name=material", "relight.frames=50", "relight.width=300", "relight.engine=blender"])
    r = turntable.fitted(model, asked, 1.0, ["relight.frames", "relight.width"]).relight
    assert (r.frames, r.width, r.engine) == (50, 300, "blender")


def test_the_evening_has_a_sun_in_the_sky_and_a_dark_ground():
    dirs = map_directions(64)
    image = turntable.evening(dirs)
    sun = torch.nn.functional.normalize(torch.tensor(turntable.SUN), dim=0)
    assert image.min() > 0 and (dirs.view(-1, 3)[image.sum(-1).argmax()] @ sun) > 0.998
    assert image[0, 0, 2] > image[0, 0, 0] and image[0].mean() > 3 * image[-1].mean()  # blue above
    assert turntable.mean_radiance(np.full((8, 16, 3), 2.0)) == pytest.approx(2.0)
    poles = np.zeros((64, 128, 3))
    poles[0] = 1  # a small part of the sphere
    assert turntable.mean_radiance(poles) < 0.002


# ------------------------------------------------------------------ one command


def words(scene, out, *more):
    return ["--config", CONFIG, "--train", *TINY, f"dataset.root_dir={scene}", f"trainer.outputs_dir={out}", *more]


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return write_material_scene(tmp_path_factory.mktemp("stages") / "scene", n_views=8, size=32)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def done(scene, server, tmp_path_factory):
    """(run folder, what was printed) of an undisturbed run."""
    out = tmp_path_factory.mktemp("done")
    ended = server.run(words(scene, out))
    assert ended.code == 0, ended.output
    return out / "n/t", ended.output


@pytest.mark.slow
def test_one_command_leaves_shape_material_light_and_turntables(done):
    root, output = done
    for name in ("shape/mesh/mesh.ply", "shape/test/metrics.json", "material/ckpt/last.pt", "material/material/mesh.glb",
                 "material/material/light.hdr", "material/test/metrics.json", "material/relight/evening/001.png", "log.txt"):  # fmt: skip
        assert (root / name).stat().st_size > 0, name
    assert not list(root.glob("*/video.*"))
    assert [line[:3] for line in output.splitlines() if line[1:3] == "/3"] == ["1/3", "2/3", "3/3"]
    last = (root / "log.txt").read_text().splitlines()[-1]
    films = [path for path in (root / "material/relight").iterdir() if path.suffix in (".mp4", ".gif")]
    assert {path.stem for path in films} == {"recovered", "evening"} and "all stages done" in last
    assert all(str(path) in last for path in (root / "shape/mesh/mesh.ply", *films))
    facts = Facts.read(root / "stages.json")
    assert list(facts.seconds) == ["shape", "material", "turntable"] and min(facts.seconds.values()) > 0
    assert checkpoint.load_checkpoint(root)["step"] == 20 and checkpoint.load_checkpoint(root / "shape")["step"] == 40


def at(model, step, number):
    """The signal comes after this step of the stage of this method."""
    real = Trainer._after_step

    def after(self, *args):
        real(self, *args)
        if (self.cfg.model.name, self.clock.step) == (model, step):
            os.kill(os.getpid(), number)

    Trainer._after_step = after


def kill_shape():
    at("nero-shape", 21, signal.SIGKILL)


def stop_material():
    at("material", 13, signal.SIGTERM)


def stop_turntable():
    def stop(*_, **__):
        raise Stopped(signal.SIGTERM)

    stages.relit = stop


@pytest.mark.slow
def test_a_run_that_is_stopped_in_each_stage_ends_in_the_same_bits(done, scene, server, tmp_path):
    whole, root = done[0], tmp_path / "n/t"
    again = ["--train", "--resume", str(root)]
    ends = [server.run(words(scene, tmp_path), before=f"{__name__}:kill_shape")]
    assert checkpoint.load_checkpoint(root)["step"] == 16
    ends += [server.run(again, before=f"{__name__}:{name}") for name in ("stop_material", "stop_turntable")]
    assert [end.code for end in ends] == [-9, 143, 143], [end.output for end in ends]
    for end in ends[1:]:
        assert f"go on with: python run.py --train --resume {root}\n" in end.output
    assert "1/3 shape: done before" in ends[2].output and "resuming at step 13" in ends[2].output
    last = server.run(again)
    assert last.code == 0 and "2/3 material and light: done before" in last.output and "all stages done" in last.output
    for name in ("shape", "material"):
        a, b = checkpoint.load_checkpoint(whole / name), checkpoint.load_checkpoint(root / name)
        assert not [d for d in differences(a, b) if d.partition(".")[0] not in ASIDE]
        rows = [[json.loads(line) for line in (r / name / "metrics.jsonl").read_text().splitlines()] for r in (whole, root)]
        assert not steps_that_differ(*rows)
    for name in ("shape/mesh/mesh.ply", "material/material/albedo.npy", "material/test/metrics.json", "material/relight/evening/001.png"):
        assert (root / name).read_bytes() == (whole / name).read_bytes(), name
    done_again = server.run(again)
    assert done_again.code == 0 and done_again.output.count("done before") == 3 and "model material" not in done_again.output


@pytest.mark.slow
def test_test_mesh_and_relight_mean_the_material_else_the_shape(done, tmp_path, capsys):
    root = tmp_path / "moved"
    shutil.copytree(done[0], root)
    moved = done[0].rename(done[0].with_name("gone"))
    try:
        for name in ("test/metrics.json", "mesh/mesh.ply"):
            (root / "material" / name).unlink()
        shutil.rmtree(root / "material/relight")
        assert program.main(["--test", "--mesh", "--no-video", "--resume", str(root)]) == 0, capsys.readouterr()
        assert (root / "material/test/metrics.json").is_file() and (root / "material/mesh/mesh.ply").is_file()
        assert program.main(["--relight", "--resume", str(root)]) == 0
        assert (
            program.main(["--relight", "--resume", str(root), "--hdr", str(root / "material/material/light.hdr"), "relight.frames=1"]) == 0
        )
        assert {path.name for path in (root / "material/relight").iterdir() if path.is_dir()} == {"recovered", "evening", "light"}
        shutil.rmtree(root / "material")
        capsys.readouterr()
        assert program.main(["--relight", "--resume", str(root)]) == 2
        assert f"train a material first: --train --resume {root}" in capsys.readouterr().out
        assert checkpoint.resolve(root) == root / "shape/ckpt/last.pt"
    finally:
        moved.rename(done[0])


@pytest.mark.slow
def test_minutes_hold_for_the_whole(scene, server, tmp_path):
    """Clocks of this machine aside: the shape trains for its share and the material for what is left of the rest."""
    quick = ["trainer.max_minutes=0.2", "shape.trainer.max_steps=100000", "material.trainer.max_steps=100000", "trainer.finish=false"]
    ended = server.run(words(scene, tmp_path, *quick))
    assert ended.code == 0 and "3/3 relit turntable: none (trainer.finish=false)" in ended.output, ended.output
    root = tmp_path / "n/t"
    clocks = [checkpoint.load_checkpoint(root / name)["trained_seconds"] for name in ("shape", "material")]
    facts = Facts.read(root / "stages.json")
    assert clocks[0] == pytest.approx(0.5 * 12, abs=1)
    expected = max((12 - facts.seconds["shape"] - 4) / (1 + budget.VALIDATION), 1.2)
    assert clocks[1] == pytest.approx(expected, abs=1)
