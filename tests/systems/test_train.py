"""Training end to end on a tiny scene: it learns, resumes bitwise, stops on signals, skips what is not finite."""

import json
import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from confs.load import known_keys, load_config
from process_data.load import load_scene
from systems.base import picture_background
from systems.build import build_system
from systems.neus import InvSWatch
from systems.optim import rate
from systems.trainer import Clock, Trainer
from systems.validate import truth_of
from tests.scenes import AXES
from utils.checkpoint import load_checkpoint
from utils.errors import UserError
from utils.log import RunFolder

ROOT = Path(__file__).parents[2]
MEAN_DISTANCE = 0.02  # largest mean distance of the tiny scene's mesh after 120 or 150 steps, radii; 0.034 after one
TINY = [
    "seed=5", "model.grid.n_levels=4", "model.grid.levels=4", "model.grid.log2_size=10", "model.grid.base=4", "model.grid.top=32", "model.samples_per_ray=128", "model.samples_per_ray_test=128",
    "model.occupancy.resolution=24", "trainer.target_samples=2048", "trainer.n_rays=64", "trainer.max_rays=256", "trainer.val_minutes=0",
    "trainer.device=cpu", "trainer.log_every=5", "loss.eikonal_points=128", "dataset.hold_every=4", "export.resolution=40", "export.coarse=24",
    "dataset.test_steps=3",
]  # fmt: skip


def tiny_words(method="neus"):
    """TINY without the options that the method does not have."""
    known = known_keys(method=method)
    return [word for word in TINY if word.partition("=")[0] in known]


def config(scene, out, *more):
    return load_config(ROOT / "confs/dtu-wmask.yaml", [*TINY, f"dataset.root_dir={scene}", f"trainer.outputs_dir={out}", *more])


def trainer(cfg, folder):
    scene = load_scene(cfg.dataset, cfg.model.radius)
    device = torch.device("cpu")
    return Trainer(build_system(cfg, device), scene, cfg, RunFolder(folder), device)


def stop_at(t, step):
    """Let a signal end the training after this step."""
    real = t._after_step

    def after(*args):
        real(*args)
        t.stop_signal = signal.SIGTERM if t.clock.step == step else 0

    t._after_step = after


def weights(path):
    return load_checkpoint(path)["model"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_the_loss_falls_and_the_mesh_is_the_ellipsoid(tiny_scene, tmp_path):
    """The levels are half a decibel and a tenth of the distance short of what five seeds reached."""
    t = trainer(config(tiny_scene, tmp_path, "trainer.max_steps=150"), tmp_path / "run")
    assert t.train()
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["psnr"] > rows[0]["psnr"] + 3
    assert rows[-1]["inv_s"] > rows[0]["inv_s"]
    assert {"loss/rgb", "loss/mask", "loss/eikonal", "rays_per_s", "occupied", "levels", "samples_per_ray"} <= rows[-1].keys()
    mesh = t.system.export(t.scene, t.run)
    to_world = t.scene.to_world.numpy()
    x = (np.asarray(mesh.vertices) - to_world[:3, 3]) / to_world[0, 0]
    off = (np.linalg.norm(x / AXES, axis=1) - 1) * min(AXES)  # about the distance to the ellipsoid
    assert np.abs(off).mean() < MEAN_DISTANCE and len(mesh.faces) > 500


def test_the_rate_is_warmed_up_from_the_first_step(tiny_scene, tmp_path):
    t = trainer(config(tiny_scene, tmp_path, "optim.warmup=0.5", "optim.decay_begin=0.9", "trainer.max_steps=10"), tmp_path / "run")
    rates, real = [], t.optimizer.step

    def step(*args):
        rates.append(t.optimizer.param_groups[0]["lr"])
        return real(*args)

    t.optimizer.step = step
    t.train()
    assert rates[0] == pytest.approx(0.001) and rates[:5] == sorted(rates[:5]) and rates[5] == pytest.approx(0.01)


@pytest.mark.slow
def test_a_run_with_a_time_budget_resumes_on_its_clock(tiny_scene, tmp_path):
    """Progress, rate and schedules go on where they were, whatever the number of steps."""
    cfg = config(tiny_scene, tmp_path, "trainer.max_minutes=0.05", "trainer.max_steps=100000")
    first = trainer(cfg, tmp_path / "run")
    real = first._after_step

    def stop_half_way(*args):
        real(*args)
        first.stop_signal = signal.SIGTERM if first.progress > 0.5 else 0

    first._after_step = stop_half_way
    assert not first.train() and 0.5 < first.progress < 0.9
    second = trainer(cfg, tmp_path / "run")
    second.load(load_checkpoint(tmp_path / "run"), tmp_path / "run/ckpt/last.pt")
    assert second.progress == pytest.approx(first.progress)
    assert second.optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * rate(cfg.optim, first.progress))
    assert second.train() and second.clock.seconds == pytest.approx(3, abs=0.5)


@pytest.mark.parametrize(
    ("seconds", "before", "progress"), [(45, 0, 0.75), (30, 30, 0), (45, 30, 0.5), (75, 75, 0), (90, 75, 0.5), (105, 75, 1)]
)
def test_progress_begins_when_a_first_surface_is_found_and_leaves_half_of_the_time(seconds, before, progress, tiny_scene, tmp_path):
    cfg = config(tiny_scene, tmp_path, "trainer.max_minutes=1")
    assert Clock(0, seconds, before=before).progress(cfg) == pytest.approx(progress)


def test_a_sweep_longer_than_the_run_leaves_time_for_steps(tiny_scene, tmp_path):
    """Regression: the run ended with 0 steps and a mesh of the first weights."""
    cfg = config(tiny_scene, tmp_path, "trainer.max_minutes=0.02", "trainer.max_steps=100000")
    t = trainer(cfg, tmp_path / "run")
    t.spent, seen, real = 5.0, [], t.system.before_step
    t.system.before_step = lambda step, progress: seen.append(progress) or real(step, progress)
    assert t.train() and seen[0] == 0 and len(seen) > 2
    again = trainer(cfg, tmp_path / "run")
    again.load(load_checkpoint(tmp_path / "run"), tmp_path / "run/ckpt/last.pt")
    assert again.clock.before == t.clock.before >= 5 and again.progress == 1


@pytest.mark.parametrize(("colour", "value"), [("white", 1.0), ("black", 0.0)])
def test_photographs_as_they_are_are_tested_over_the_background_they_were_trained_on(colour, value, tiny_scene, tmp_path):
    """Regression: model.background=white without masks was trained over white, tested and filmed over black."""
    t = trainer(config(tiny_scene, tmp_path, "dataset.apply_mask=false", f"model.background={colour}"), tmp_path / "run")
    trained = t.system._train_background(4)
    truth, _, tested = truth_of(t.scene, 0, t.cfg)
    assert (trained == value).all() and (tested == value).all() and (picture_background(t.cfg, t.scene) == value).all()
    assert torch.equal(truth, t.scene.images[0].float() / 255)


@pytest.mark.parametrize("average", [0.1, 0.8])
def test_resuming_is_bitwise_equal(tiny_scene, tmp_path, average):
    cfg = config(tiny_scene, tmp_path, "trainer.max_steps=41", f"trainer.average={average}")
    trainer(cfg, tmp_path / "whole").train()
    first = trainer(cfg, tmp_path / "parts")
    stop_at(first, 17)
    assert not first.train()
    second = trainer(cfg, tmp_path / "parts")
    path = tmp_path / "parts/ckpt/last.pt"
    assert load_checkpoint(path)["step"] == 17
    second.load(load_checkpoint(path), path)
    assert second.train()
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_a_run_ends_in_the_mean_of_its_last_weights(tiny_scene, tmp_path):
    t = trainer(config(tiny_scene, tmp_path, "trainer.max_steps=24", "trainer.average=0.5"), tmp_path / "run")
    parameter, values, real = t.system.model.variance.v, [], t.average.after_step

    def watch(step, progress):
        real(step, progress)
        if progress >= 0.5 and step % t.average.EVERY == 0:
            values.append(float(parameter.detach()))

    t.average.after_step = watch
    assert t.train() and len(values) == 4
    assert float(parameter.detach()) == pytest.approx(sum(values) / 4, abs=1e-6) and abs(values[-1] - sum(values) / 4) > 1e-5


def command(scene, out, *more, resume=None):
    words = [
        "--config",
        "confs/dtu-wmask.yaml",
        "--train",
        *TINY,
        f"dataset.root_dir={scene}",
        f"trainer.outputs_dir={out}",
        "name=n",
        "trainer.trial_name=t",
        *more,
    ]
    if resume:
        words = ["--train", "--resume", str(resume)]
    return subprocess.Popen(
        [sys.executable, "run.py", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "CI": "1"},
    )


@pytest.mark.slow
def test_sigterm_and_resume_through_the_command_line(tiny_scene, tmp_path):
    """A run stopped by SIGTERM wherever it happens to be, and resumed, ends in the same bits."""
    more = ("trainer.max_steps=300", "trainer.finish=false", "trainer.log_every=1")
    whole = command(tiny_scene, tmp_path / "whole", *more)
    out, _ = whole.communicate(timeout=200)
    assert whole.returncode == 0, out
    run = tmp_path / "parts/n/t"
    stopped = command(tiny_scene, tmp_path / "parts", *more)
    deadline = time.time() + 120
    while time.time() < deadline and not (run / "metrics.jsonl").exists():
        time.sleep(0.02)
    time.sleep(0.5)
    stopped.send_signal(signal.SIGTERM)
    out, _ = stopped.communicate(timeout=60)
    assert stopped.returncode == 128 + signal.SIGTERM and "go on with" in out, out
    assert 0 < load_checkpoint(run)["step"] < 300
    resumed = command(tiny_scene, tmp_path / "parts", resume=run)
    out, _ = resumed.communicate(timeout=200)
    assert resumed.returncode == 0 and "resuming at step" in out, out
    assert same(weights(tmp_path / "whole/n/t"), weights(run))


def test_a_non_finite_step_changes_nothing(tiny_scene, tmp_path, monkeypatch):
    t = trainer(config(tiny_scene, tmp_path, "trainer.max_steps=3", "trainer.max_skipped=2"), tmp_path / "run")
    before = {k: v.clone() for k, v in t.system.model.state_dict().items() if "sampler" not in k}
    real = t.system.losses
    monkeypatch.setattr(t.system, "losses", lambda *a: {**(terms := real(*a)), "rgb": terms["rgb"] * float("nan")})
    with pytest.raises(UserError, match="2 steps in a row were not finite .*rgb"):
        t.train()
    after = t.system.model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before) and t.skipped == 2


def test_one_bad_step_is_skipped_and_counted(tiny_scene, tmp_path, monkeypatch):
    t = trainer(config(tiny_scene, tmp_path, "trainer.max_steps=6"), tmp_path / "run")
    real, calls = t.system.losses, []

    def sometimes(*a):
        calls.append(1)
        terms = real(*a)
        return {k: v * (float("inf") if len(calls) == 3 else 1) for k, v in terms.items()}

    monkeypatch.setattr(t.system, "losses", sometimes)
    assert t.train() and t.skipped == 1 and t.skipped_in_row == 0
    assert all(torch.isfinite(p).all() for p in t.system.model.parameters())


class Freed(torch.Tensor):
    """A tensor that can be watched."""


def out_of_memory_once(owner, method, monkeypatch):
    """Let the first call of a method run out of memory while it holds a tensor; returns what emptying the cache finds of that."""
    real, held, found = getattr(owner, method), [], []

    def first_fails(*args, **kwargs):
        if not held:
            large = torch.zeros(1).as_subclass(Freed)
            held.append(weakref.ref(large))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, method, first_fails)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: found.append(held[0]()))
    return found


def test_the_cache_is_emptied_when_nothing_holds_the_step_any_more(tiny_scene, tmp_path, monkeypatch, caplog):
    """Regression: inside `except` the traceback still held all tensors of the step, so nothing could be given back."""
    t = trainer(config(tiny_scene, tmp_path, "trainer.max_steps=3"), tmp_path / "run")
    found = out_of_memory_once(t.system, "losses", monkeypatch)
    assert t.train() and found == [None] and t.clock.step == 3
    assert "going on with 32 rays a step" in caplog.text


def test_a_view_that_runs_out_of_memory_is_rendered_in_smaller_parts(tiny_scene, tmp_path, monkeypatch):
    from process_data.rays import view_rays

    t = trainer(config(tiny_scene, tmp_path), tmp_path / "run")
    rays = view_rays(t.scene.cameras, 0, 1.0)
    expected = t.system.render_view(rays, torch.zeros(3), chunk=1024).rgb
    found = out_of_memory_once(t.system.model, "render", monkeypatch)
    assert torch.allclose(t.system.render_view(rays, torch.zeros(3), chunk=1024).rgb, expected, atol=1e-6) and found == [None]
    found = out_of_memory_once(t.system.model, "render", monkeypatch)
    with pytest.raises(UserError, match="out of memory rendering 64 rays"):
        t.system.render_view(rays, torch.zeros(3), chunk=64)
    assert found == [None]


@pytest.mark.slow
def test_a_checkpoint_renders_the_same_on_the_other_backend(tiny_scene, tmp_path):
    from process_data.rays import view_rays
    from systems.build import restore_system

    cfg = config(tiny_scene, tmp_path, "trainer.max_steps=60")
    t = trainer(cfg, tmp_path / "run")
    t.train()
    path = tmp_path / "run/ckpt/last.pt"
    rays = view_rays(t.scene.cameras, 0, 1.0)
    renders = []
    for backend in ("torch", "warp"):
        cfg = config(tiny_scene, tmp_path, *(f"backend.{op}={backend}" for op in ("hashgrid", "march", "composite")))
        system = restore_system(cfg, torch.device("cpu"), load_checkpoint(path), path)
        renders.append(system.render_view(rays, torch.zeros(3)))
    assert (renders[0].rgb - renders[1].rgb).abs().max() < 1e-3
    assert renders[0].opacity.max() > 0.5


def test_another_architecture_is_refused(tiny_scene, tmp_path):
    t = trainer(config(tiny_scene, tmp_path, "trainer.max_steps=2"), tmp_path / "run")
    t.train()
    other = trainer(config(tiny_scene, tmp_path, "trainer.max_steps=2", "model.sdf.hidden=32"), tmp_path / "other")
    with pytest.raises(UserError, match="another architecture"):
        other.load(load_checkpoint(tmp_path / "run"), tmp_path / "run")


def test_full_disk_while_training_keeps_the_previous_checkpoint(tiny_scene, tmp_path, monkeypatch):
    t = trainer(config(tiny_scene, tmp_path, "trainer.max_steps=4", "trainer.save_every=2"), tmp_path / "run")
    real, writes = os.fsync, []

    def fills_up(fd):
        writes.append(fd)
        if len(writes) > 1:
            raise OSError(28, "No space left on device")
        return real(fd)

    monkeypatch.setattr(os, "fsync", fills_up)
    with pytest.raises(UserError, match="No space left on device"):
        t.train()
    assert load_checkpoint(tmp_path / "run")["step"] == 2


def test_the_watch_on_inv_s(caplog):
    watch = InvSWatch(20)
    watch(25, 0.3)
    assert not caplog.records
    watch(15, 0.4)
    assert "fell to 15, below its start 20" in caplog.text
    InvSWatch(20)(25, 0.6)
    assert "stalls at 25" in caplog.text


def test_the_watch_is_silent_on_a_late_resume(tiny_scene, tmp_path, caplog):
    """Regression: the first value after the resume was taken for the start of the run."""
    cfg = config(tiny_scene, tmp_path, "trainer.max_steps=40", "trainer.log_every=1")
    system = trainer(cfg, tmp_path / "run").system
    with torch.no_grad():
        system.model.variance.v.fill_(0.6)  # inv_s 403 where it began with 20
    resumed = system.watch
    resumed(403.0, 0.7)
    resumed(410.0, 0.9)
    assert "inv_s" not in caplog.text and resumed.first == pytest.approx(20.0855, rel=1e-3)
