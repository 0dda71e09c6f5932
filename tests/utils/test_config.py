"""Config: merging, checks, and errors that name the key."""

import pytest

from confs.load import known_keys, load_config, to_yaml
from utils.errors import UserError
from utils.schedule import Ramp, ramp


def test_defaults_files_and_overrides(tmp_path):
    (tmp_path / "a.yaml").write_text("trainer: {max_steps: 7, n_rays: 32}\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\ntrainer: {n_rays: 64}\n")
    cfg = load_config(tmp_path / "b.yaml", ["optim.lr=0.5", "dataset.img_wh=[4,3]"])
    assert (cfg.trainer.max_steps, cfg.trainer.n_rays, cfg.optim.lr, list(cfg.dataset.img_wh)) == (7, 64, 0.5, [4, 3])


def test_every_shipped_config_loads():
    from pathlib import Path

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
