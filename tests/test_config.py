"""Config: merging, checks, and errors that name the key."""

import os
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch

import confs.load as load_module
from confs.effects import EFFECTS
from confs.load import known_keys, load_config, to_yaml
from confs.model import METHOD_CONFIGS
from confs.recipes import PRESETS
from systems import run as commands
from tests.benchmarks.recipes import RECIPES
from utils.errors import UserError
from utils.schedule import Ramp, ramp


def test_defaults_files_and_overrides(tmp_path):
    (tmp_path / "a.yaml").write_text("trainer: {max_steps: 7, n_rays: 32}\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\ntrainer: {n_rays: 64}\n")
    cfg = load_config(tmp_path / "b.yaml", ["optim.lr=0.5", "dataset.img_wh=[4,3]"])
    assert (cfg.trainer.max_steps, cfg.trainer.n_rays, cfg.optim.lr, list(cfg.dataset.img_wh)) == (7, 64, 0.5, [4, 3])


def test_every_shipped_config_loads():
    found = sorted(Path("confs").glob("*.yaml"))
    assert found
    for path in found:
        load_config(path)


def test_name_is_made_of_model_data_and_folder():
    assert load_config(None, ["dataset.root_dir=/data/scan24", "dataset.name=dtu"]).name == "neus-dtu-scan24"


def test_resolvers():
    cfg = load_config(
        None, ["trainer.max_steps=${mul:${trainer.n_rays},2}", "optim.lr=${div:1,4}", "optim.decay=${calc_exp_lr_decay_rate:0.25,2}"]
    )
    assert (cfg.trainer.max_steps, cfg.optim.lr, cfg.optim.decay) == (512, 0.25, 0.5)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", "unknown key 'optim.lrr'; did you mean 'optim.lr'"),
        ("max_steps=1", "did you mean 'trainer.max_steps'"),
        ("trainer.max_steps=-1", "trainer.max_steps: must be at least 1, got -1"),
        ("trainer.max_steps=many", "trainer.max_steps: .*many"),
        ("trainer.max_steps=1.5", "trainer.max_steps"),
        ("trainer=3", "trainer"),
        ("dataset.hold_every=1", "dataset.hold_every"),
        ("loss.rgb=fast", "loss.rgb: a schedule is a number"),
        ("loss.mask=[1,0,0.5,0.2]", "loss.mask: .*begin before end"),
        ("model.background=green", "model.background"),
        ("optim.lr=nan", "optim.lr"),
        ("trainer.max_minutes=inf", "trainer.max_minutes"),
        ("seed", "no override"),
    ],
)
def test_bad_overrides_name_the_key(override, message):
    with pytest.raises(UserError, match=message):
        load_config(None, [override])


def test_bad_files(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_config(tmp_path / "no.yaml")
    (tmp_path / "x.yaml").write_text("a: [")
    with pytest.raises(UserError, match="cannot be read"):
        load_config(tmp_path / "x.yaml")
    (tmp_path / "y.yaml").write_text("optim:\n  lrr: 1\n")
    with pytest.raises(UserError, match="did you mean 'optim.lr'"):
        load_config(tmp_path / "y.yaml")
    (tmp_path / "z.yaml").write_text("base: z.yaml\n")
    with pytest.raises(UserError, match="leads back"):
        load_config(tmp_path / "z.yaml")


def test_saved_text_reads_back_equal():
    cfg = load_config(None, ["seed=3", "loss.mask=[1,0,0.1,0.2]"])
    assert load_config(saved=to_yaml(cfg)) == cfg


def test_known_keys_hold_sections_and_leaves():
    keys = known_keys()
    assert "trainer" in keys and "model.grid.n_levels" in keys and len(keys) == len(set(keys))


def test_ramp():
    r = ramp([1, 3, 0.25, 0.75])
    assert (r(0), r(0.5), r(1)) == (1, 2, 3)
    assert ramp(5)(0.3) == 5
    assert Ramp(1, 100, log=True)(0.5) == pytest.approx(10)


# ------------------------------------------------------------------ options without effect


@pytest.mark.parametrize(
    ("config", "word", "need"),
    [
        ("dtu-wmask", "model.sampling.n_importance=8", "model.sampler=hierarchical"),
        ("dtu-wmask", "model.sdf.taps=4", "model.sdf.normals=finite"),
        ("dtu-wmask", "model.background_field.far=100", "model.background=learned"),
        ("dtu-wmask", "loss.distortion_bg=0.1", "a method that computes background"),
        ("dtu-wmask", "loss.occlusion=0.1", "a method that computes occlusion"),
        ("neus-mlp", "model.sdf.activation=relu", "model.sdf.network=small"),
        ("neus-mlp", "model.sdf.pass_encoding=true", "model.sdf.network=small"),
        ("neus-mlp", "model.grid.top=64", "model.encoding=hashgrid"),
        ("nerf-blender", "loss.eikonal=0.1", "a method that computes sdf"),
        ("nero-material", "loss.mask=0.1", "a method that computes opacity"),
        ("nero-material", "model.material.light_hidden=8", "model.material.light=mlp"),
        ("dtu", "dataset.clean_edges=false", "dataset.apply_mask=true"),
    ],
)
def test_an_option_without_effect_is_warned_of_once(config, word, need, caplog):
    load_module._say.cache_clear()
    for _ in range(2):
        load_config(f"confs/{config}.yaml", [word])
    lines = [r.message for r in caplog.records if "has no effect" in r.message]
    assert len(lines) == 1 and lines[0].startswith(word.partition("=")[0]) and need in lines[0]


@pytest.mark.parametrize(
    ("config", "word", "message"),
    [
        (
            "nero-shape",
            "model.radiance.dirs=none",
            "'model.radiance.dirs' is an option of model.name=neus or nerf, not of model.name=nero-shape",
        ),
        ("nerf-blender", "model.sdf.hidden=32", "'model.sdf.hidden' is an option of model.name=neus or nero-shape"),
        ("dtu-wmask", "model.radiance.see_grid=true", "'model.radiance.see_grid' is now 'model.sdf.pass_encoding'"),
        ("dtu-wmask", "model.backdrop.see_dirs=true", "'model.backdrop.see_dirs' is now 'model.background_field.see_dirs'"),
        ("dtu-wmask", "optim.lr_backdrop=1", "'optim.lr_backdrop' is now 'optim.lr_background'"),
        ("nero-material", "model.material.human=true", "'model.material.human' is now 'model.material.photographer'"),
        ("dtu-wmask", "model.occupancy.warmup=3", "'model.occupancy.warmup' is gone: it never had an effect"),
    ],
)
def test_options_of_other_methods_and_of_earlier_versions_are_named(config, word, message):
    with pytest.raises(UserError, match=message):
        load_config(f"confs/{config}.yaml", [word])


def test_shipped_configs_set_nothing_in_vain(caplog):
    load_module._say.cache_clear()
    for path in Path("confs").glob("*.yaml"):
        load_config(path)
    assert "has no effect" not in caplog.text


def test_every_pattern_of_the_effects_names_an_option():
    keys = {key for method in METHOD_CONFIGS for key in known_keys(method=method)}
    for pattern, _, _ in EFFECTS:
        assert any(fnmatch(key, pattern) for key in keys), pattern


# ------------------------------------------------------------------ configs of strangers


def test_the_config_of_a_checkpoint_reads_no_environment_and_expands_no_aliases(tmp_path):
    good = to_yaml(load_config(None, ["seed=1"]))
    for bad in (good.replace("tag: ''", "tag: ${oc.env:HOME}"), good + "\nx: &a [1]\ny: [*a, *a]\n"):
        assert bad != good
        with pytest.raises(UserError, match="checkpoint's config"):
            load_config(saved=bad)
    (tmp_path / "a.yaml").write_text("a: &a [1, 1]\nb: [*a, *a]\n")
    with pytest.raises(UserError, match="aliases"):
        load_config(tmp_path / "a.yaml")


def test_a_preset_is_not_stopped_by_the_minutes_of_a_config():
    cfg = load_config("confs/demo.yaml", PRESETS["fast"]["cuda"])
    assert cfg.trainer.max_minutes is None and cfg.trainer.max_steps == 10000


def test_a_preset_is_that_of_the_device_the_run_is_on(tmp_path, monkeypatch):
    """Regression: with trainer.device=cpu in the file, a machine with a card trained its 10,000 steps on the CPU."""
    monkeypatch.setattr(commands, "pick_device", lambda name: torch.device("cpu" if name == "cpu" else "cuda"))
    (tmp_path / "mine.yaml").write_text(f"base: {Path('confs/demo.yaml').resolve()}\ntrainer: {{device: cpu}}\n")
    on_cpu = commands.prepare(str(tmp_path / "mine.yaml"), None, ["dataset.name=dtu"], "fast").cfg.trainer
    assert (on_cpu.max_minutes, on_cpu.target_samples) == (3, 16384)
    on_card = commands.prepare("confs/demo.yaml", None, ["dataset.name=dtu"], "fast").cfg.trainer
    assert (on_card.max_minutes, on_card.max_steps, on_card.target_samples) == (None, 10000, 262144)


@pytest.mark.parametrize("name", ["cup #2", "out: a/b", "cup:", "a b", "#1", "7", "[1] cup #3"])
def test_names_of_folders_are_not_read_as_comments_or_keys(name):
    """Regression: `inputs/cup #2` was read as `inputs/cup`."""
    assert load_config(None, [f"dataset.root_dir=inputs/{name}"]).dataset.root_dir == f"inputs/{name}"
    assert load_config(None, ["loss.points=[1, 2, 0, 1]"]).loss.points == [1, 2, 0, 1]


def test_a_card_takes_larger_steps_unless_something_says_otherwise(tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "pick_device", lambda name: torch.device("cpu" if name == "cpu" else "cuda"))
    (tmp_path / "mine.yaml").write_text(f"base: {Path('confs/demo.yaml').resolve()}\ntrainer: {{target_samples: 5000}}\n")

    def samples(config, *words):
        return commands.prepare(str(config), None, ["dataset.name=dtu", *words]).cfg.trainer.target_samples

    assert samples("confs/demo.yaml") == 262144 and samples("confs/demo.yaml", "trainer.device=cpu") == 16384
    assert samples(tmp_path / "mine.yaml") == 5000 and samples("confs/demo.yaml", "trainer.target_samples=7000") == 7000
    assert samples("confs/nerf-dtu.yaml") == 32768  # its own


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.slow
def test_the_recipes_of_the_benchmark_load(name):
    load_config("confs/dtu-wmask.yaml", RECIPES[name])


@pytest.mark.parametrize("layout", ["colmap", "transforms", "llff", "metashape", "sdfstudio", "middlebury", "dtu", "blender"])
def test_estimated_cameras_of_photographs_are_refined(layout):
    model = load_config("confs/dtu.yaml", [f"dataset.name={layout}"]).model
    estimated = layout in ("colmap", "transforms", "llff", "metashape")
    assert (model.pose, model.appearance) == ((True, "affine") if estimated else (False, "none"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: [a, b]", "base: expected the name of a YAML file"),
        ("[" * 5000, "cannot be read"),
        ("seed: " + "9" * 5000, "cannot be read"),
        ("model: {name: [neus]}", "model.name: unknown method"),
        ("dataset: [a]", "'dataset' is a section; expected its keys, for example dataset.name"),
        ("loss: {rgb: {a: 1}}\nbase: b.yaml", "(?i)merge"),
        ("name: ../../x", "config.name: must be a folder's name below outputs"),
        ("name: /x", "config.name: must be a folder's name below outputs"),
        ("tag: ../x", "config.tag: must be a folder's name below outputs"),
        ("trainer: {trial_name: a/../../b}", "trainer.trial_name: must be a folder's name below outputs"),
        ('name: "a\\0b"', "name: must not hold control characters"),
        ("trainer: {n_rays: 1, max_rays: 2147483648}", "trainer.max_rays: must be a whole number, at most 2147483647"),
    ],
)
def test_files_of_strangers(text, message, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    (tmp_path / "b.yaml").write_text("loss: {rgb: [1, 2]}")
    with pytest.raises(UserError, match=message):
        load_config(tmp_path / "a.yaml")


def test_words_that_cannot_be_written():
    for word in ("seed=" + "9" * 5000, "name=\ud800"):
        with pytest.raises(UserError):
            load_config(None, [word])


def test_a_config_is_not_read_from_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("base: a.yaml")
    with pytest.raises(UserError, match="a.yaml cannot be read: not a regular file"):
        load_config(tmp_path / "b.yaml")


def test_a_checkpoint_does_not_say_where_to_write():
    saved = to_yaml(load_config(None, ["trainer.outputs_dir=/somewhere/else", "trainer.n_rays=32"]))
    assert load_config(saved=saved).trainer.outputs_dir == "outputs" and load_config(saved=saved).trainer.n_rays == 32
    assert load_config(None, ["trainer.outputs_dir=mine"], saved).trainer.outputs_dir == "mine"
