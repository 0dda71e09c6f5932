"""The first day on a card: training, going on, moving checkpoints, pictures and meshes. The same tests run on the CPU."""

import json

import numpy as np
import pytest
import torch

from process_data.load import load_scene
from process_data.rays import view_rays
from systems.base import picture_background
from systems.build import build_system, restore_system
from systems.trainer import Trainer
from tests.scenes import AXES
from tests.systems.test_train import config, stop_at
from utils.checkpoint import load_checkpoint
from utils.log import RunFolder

CARD = pytest.param("cuda", marks=pytest.mark.gpu)
DEVICES = ["cpu", CARD]
STEPS = 60
SKIPPED = 5  # steps a card may skip until the scale of float16 gradients is found


def start(scene, folder, device, *more):
    """A trainer of the default method with the defaults of a card: amp where there is one."""
    cfg = config(scene, folder, f"trainer.device={device}", *more)
    loaded = load_scene(cfg.dataset, cfg.model.radius)
    place = torch.device(device)
    return Trainer(build_system(cfg, place, loaded), loaded, cfg, RunFolder(folder / "run"), place)


def field(system, n=2000):
    """Signed distances [n] at points that depend on nothing."""
    x = torch.rand(n, 3, generator=torch.Generator().manual_seed(3)) - 0.5
    with torch.no_grad():
        return system.surface()(x.to(system.device)).cpu()


@pytest.fixture(scope="module")
def trained(tiny_scene, tmp_path_factory):
    """device -> a trainer after STEPS steps, made once."""
    made = {}

    def get(device):
        if device not in made:
            torch.manual_seed(0)
            made[device] = start(tiny_scene, tmp_path_factory.mktemp(device), device, f"trainer.max_steps={STEPS}")
            assert made[device].train()
        return made[device]

    return get


@pytest.mark.parametrize("device", DEVICES)
def test_the_default_training_learns(device, trained):
    t = trained(device)
    rows = [json.loads(line) for line in (t.run / "metrics.jsonl").read_text().splitlines()]
    assert t.scaler.is_enabled() == (device == "cuda") and t.clock.step == STEPS and t.skipped <= SKIPPED
    assert all(np.isfinite(v) for row in rows for v in row.values())
    assert rows[-1]["psnr"] > rows[0]["psnr"] + 2 and rows[-1]["inv_s"] > rows[0]["inv_s"]
    assert all(p.isfinite().all() and p.device.type == device for p in t.system.model.parameters())


@pytest.mark.parametrize("device", DEVICES)
def test_a_stopped_training_goes_on_where_it_was(device, tiny_scene, tmp_path, trained):
    words = (tiny_scene, tmp_path, device, f"trainer.max_steps={STEPS}")
    first = start(*words)
    stop_at(first, STEPS // 2)
    assert not first.train()
    second = start(*words)
    second.load(load_checkpoint(tmp_path / "run"), tmp_path / "run/ckpt/last.pt")
    assert second.clock.step == STEPS // 2 and torch.equal(field(first.system), field(second.system))
    assert second.train() and second.clock.step == STEPS
    # a card adds up in any order, so that two runs part
    assert (field(second.system) - field(trained(device).system)).abs().mean() <= (0 if device == "cpu" else 0.01)


@pytest.mark.parametrize(
    ("here", "there"),
    [("cpu", "cpu"), pytest.param("cuda", "cpu", marks=pytest.mark.gpu), pytest.param("cpu", "cuda", marks=pytest.mark.gpu)],
)
def test_a_checkpoint_moves_between_devices(here, there, tiny_scene, tmp_path, trained):
    before = trained(here)
    path = before.run / "ckpt/last.pt"
    state = load_checkpoint(path)
    after = start(tiny_scene, tmp_path, there, f"trainer.max_steps={STEPS + 5}")
    after.load(state, path)
    assert (field(after.system) - field(before.system)).abs().max() < 1e-3
    assert after.train() and after.clock.step == STEPS + 5 and after.skipped <= 2 * SKIPPED


@pytest.mark.parametrize("device", DEVICES)
def test_pictures_are_those_of_the_cpu(device, trained):
    t = trained(device)
    elsewhere = restore_system(t.cfg, torch.device("cpu"), load_checkpoint(t.run / "ckpt/last.pt"), t.run.root, t.scene)
    rays, background = view_rays(t.scene.cameras, 0, t.cfg.model.radius), picture_background(t.cfg, t.scene)
    ours = t.system.render_view(rays.to(t.device), background.to(t.device), chunk=200)
    theirs = elsewhere.render_view(rays, background)
    assert theirs.opacity.max() > 0.5
    for name in ("rgb", "opacity", "depth", "normal"):
        assert (getattr(ours, name).cpu() - getattr(theirs, name)).abs().mean() < 2e-3, name


@pytest.mark.parametrize("device", DEVICES)
def test_the_mesh_is_the_ellipsoid(device, trained):
    t = trained(device)
    mesh = t.system.export(t.scene, t.run)
    to_world = t.scene.to_world.numpy()
    x = (np.asarray(mesh.vertices) - to_world[:3, 3]) / to_world[0, 0]
    off = np.abs(np.linalg.norm(x / AXES, axis=1) - 1) * min(AXES)
    assert len(mesh.faces) > 500 and off.mean() < 0.04
