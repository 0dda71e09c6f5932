"""A run on the CPU is a function of its config: the same seed gives the same bits, and config.yaml holds all of it."""

import pytest
import torch

from confs.load import load_config
from systems.run import execute, prepare
from tests.chaos_files import differences
from tests.scenes import write_tiny_scene
from tests.systems.test_train import TINY, config, trainer
from utils.checkpoint import VERSION, load_checkpoint
from utils.errors import UserError
from utils.log import commit

ASIDE = ("trained_seconds", "seconds_before", "config")  # how long it took; where it was written


def compared(a, b):
    a, b = load_checkpoint(a), load_checkpoint(b)
    return [d for d in differences(a, b) if d.partition(".")[0] not in ASIDE]


def test_the_same_seed_gives_the_same_checkpoint(tiny_scene, tmp_path):
    """Weights, moments, occupancy, averages and generators, whatever was drawn in the process before."""
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        torch.rand(len(name) + seed)
        assert trainer(config(tiny_scene, tmp_path, "trainer.max_steps=20", "trainer.average=0.5", f"seed={seed}"), tmp_path / name).train()
    assert compared(tmp_path / "a", tmp_path / "b") == []
    other = compared(tmp_path / "a", tmp_path / "c")
    assert any(key.startswith("model.") for key in other) and any(key.startswith("optimizer.") for key in other)
    state = load_checkpoint(tmp_path / "a")
    assert (state["version"], state["commit"], state["step"]) == (VERSION, commit(), 20)
    assert load_config(saved=state["config"]).seed == 5


def test_config_yaml_of_a_run_reproduces_it(tmp_path):
    """The seed that was drawn, the layout that was recognised and the recipe of a scene without masks are written there."""
    scene = write_tiny_scene(tmp_path / "scene", masks=False)
    words = [w for w in TINY if not w.startswith(("seed=", "export."))]
    words += [
        f"dataset.root_dir={scene}",
        "trainer.finish=false",
        "trainer.max_steps=4",
        "trainer.threads=1",
        "trainer.trial_name=t",
        "name=n",
    ]
    assert execute(prepare(None, None, [*words, f"trainer.outputs_dir={tmp_path}/first"]), True, False, False) == 0
    first = tmp_path / "first/n/t"
    again = prepare(str(first / "config.yaml"), None, [f"trainer.outputs_dir={tmp_path}/second"])
    assert execute(again, True, False, False) == 0
    assert compared(first, tmp_path / "second/n/t") == []
    cfg = load_config(first / "config.yaml")
    assert cfg.seed is not None and cfg.dataset.name == "dtu" and cfg.model.background == "learned"
    written = (first / "config.yaml").read_text()
    assert written.replace("/first", "/second") == (tmp_path / "second/n/t/config.yaml").read_text()
    assert (first / "commit.txt").read_text().strip() == commit()


def test_what_tells_two_checkpoints_apart():
    a = {"model": {"w": torch.zeros(2)}, "n": [1, 2.0]}
    assert differences(a, {"model": {"w": torch.zeros(2)}, "n": [1, 2.0]}) == []
    assert differences(a, {"model": {"w": torch.tensor([0.0, -0.0])}, "n": [1, 2.0]}) == ["model.w"]
    assert differences(a, {"model": {"w": torch.zeros(2)}, "n": [1, 2.0], "x": 1}) == ["x"]
    assert differences(a, {"model": {"w": torch.zeros(2)}, "n": [1, 2]}) == ["n.1"]


def test_an_option_of_another_version_is_named_as_the_checkpoints():
    with pytest.raises(UserError, match="the checkpoint's config: unknown key 'trainer.max_step'; did you mean 'trainer.max_steps'"):
        load_config(saved="trainer: {max_step: 3}\n")
    with pytest.raises(UserError, match="the checkpoint's config: 'model.backdrop' is now 'model.background_field'"):
        load_config(saved="model: {backdrop: {far: 3.0}}\n")
