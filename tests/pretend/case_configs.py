"""Every config on the pretended device: it trains, resumes, tests, meshes and films; its values are the CPU's; checkpoints change devices."""

import json
from contextlib import nullcontext

import pytest
import torch

from process_data.load import load_scene
from systems import run as commands
from systems.build import build_system
from systems.trainer import Trainer
from tests.pretend.device import pretended_cuda
from tests.scenes import write_tiny_scene
from tests.systems.test_family import CONFIGS, METHOD, tiny, tiny_job
from utils.checkpoint import load_checkpoint
from utils.log import RunFolder

FAST = [
    "trainer.threads=1", "trainer.target_samples=512", "trainer.n_rays=32", "trainer.max_rays=32", "loss.eikonal_points=32", "export.resolution=16",
    "export.coarse=16", "export.min_faces=0", "dataset.test_steps=1", "dataset.hold_every=8", "trainer.average=0.6", "trainer.log_every=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return write_tiny_scene(tmp_path_factory.mktemp("scenes") / "tiny", hw=(12, 16))


def weights(cfg, folder, device):
    """(weights after the steps of the config, the rows of its log)."""
    world = load_scene(cfg.dataset, cfg.model.radius)
    trainer = Trainer(build_system(cfg, device, world), world, cfg, RunFolder(folder), device)
    assert trainer.train() and trainer.skipped == 0
    trainer.run.close()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return load_checkpoint(folder)["model"], rows


@pytest.mark.parametrize("name", CONFIGS)
def test_values_are_the_cpus(name, scene, tmp_path):
    every = ["model.min_weight=0"] if METHOD[name] in ("neus", "nero-shape") else []  # samples: the CPU leaves some out
    cfg = tiny(name, scene, tmp_path, *FAST, *every, "trainer.max_steps=3", "trainer.amp=false", "trainer.average=0", "trainer.graph=false")
    expected, rows = weights(cfg, tmp_path / "cpu", torch.device("cpu"))
    with pretended_cuda():
        found, again = weights(cfg, tmp_path / "cuda", torch.device("cuda"))
    losses = [[{k: v for k, v in row.items() if k.startswith("loss")} for row in both] for both in (rows, again)]
    for a, b in zip(*losses):
        assert b == pytest.approx(a, rel=1e-3, abs=2e-6)
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        off = (found[key].float() - value.float()).abs() > 1e-5 + 1e-3 * value.float().abs()
        assert off.float().mean() < 1e-3, key  # Adam makes a whole step of a gradient that is 0 but for rounding


@pytest.mark.parametrize("name", CONFIGS)
def test_it_trains_tests_meshes_films_and_changes_devices(name, scene, tmp_path):
    """Two steps on the card, a third on the CPU, a fourth on the card again."""
    run = tmp_path / "n/t"
    with pretended_cuda():
        job = tiny_job(name, scene, tmp_path, *FAST, "trainer.device=cuda", "trainer.max_steps=2", "trainer.val_minutes=0.00001")
        assert commands.execute(job, True, False, False) == 0
    assert (run / "mesh/mesh.ply").stat().st_size > 100 and list(run.glob("video.*")) and list((run / "images").glob("val_*.png"))
    assert json.loads((run / "test/metrics.json").read_text())["psnr"] > 0
    for step, device in ((3, "cpu"), (4, "cuda")):
        with pretended_cuda() if device == "cuda" else nullcontext():
            words = [f"trainer.device={device}", f"trainer.max_steps={step}", "trainer.finish=false"]
            assert commands.execute(commands.prepare(None, str(run), words), True, False, False) == 0
        state = load_checkpoint(run)
        assert state["step"] == step and state["skipped"] == 0
        assert all(torch.isfinite(v).all() for v in state["model"].values() if v.is_floating_point())
        assert max(float(s["step"]) for s in state["optimizer"]["state"].values()) == step


def test_resuming_on_the_card_is_as_if_it_had_not_stopped(scene, tmp_path):
    words = [*FAST, "trainer.max_steps=6", "trainer.save_every=3", "trainer.average=0"]
    cfg = tiny("dtu-wmask", scene, tmp_path, *words)
    with pretended_cuda():
        device, world = torch.device("cuda"), load_scene(cfg.dataset, cfg.model.radius)
        first = Trainer(build_system(cfg, device, world), world, cfg, RunFolder(tmp_path / "whole"), device)
        real, kept = first.save, []
        first.save = lambda: kept.append(load_checkpoint(real())) or first.run.root
        first.train()
        second = Trainer(build_system(cfg, device, world), world, cfg, RunFolder(tmp_path / "parts"), device)
        second.load(kept[0], tmp_path)
        assert second.clock.step == 3
        second.train()
    a, b = kept[-1], load_checkpoint(tmp_path / "parts")
    assert a["step"] == b["step"] == 6 and a["scaler"] == b["scaler"] and a["scaler"]["_growth_tracker"] == 6
    assert all(torch.equal(a["model"][k], b["model"][k]) for k in a["model"])
