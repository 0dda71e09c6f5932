"""Training steps as a CUDA graph, on the pretended device: what is recorded waits for nothing and has fixed shapes (else the device
refuses), the replays train as steps without a graph do, and where a graph cannot be recorded training goes on without."""

import logging

import pytest

from tests.pretend.device import pretended_cuda

import torch  # isort: skip

from confs.load import load_config
from process_data.load import load_scene
from systems import graph
from systems.build import build_system
from systems.optim import AdamW
from systems.trainer import Trainer
from tests.pretend.device import ROOT
from tests.scenes import write_tiny_scene
from utils.log import RunFolder

STEPS = 40
WORDS = [
    "seed=5", "dataset.name=dtu", f"trainer.max_steps={STEPS}", "trainer.n_rays=48", "trainer.max_rays=96", "trainer.target_samples=512", "trainer.val_minutes=0",
    "trainer.log_every=8", "trainer.average=0", "model.grid.log2_size=10", "model.occupancy.resolution=16", "model.samples_per_ray=64",
]  # fmt: skip
# a graph keeps the progress at which it was recorded until the next refresh: here nothing depends on it
CONSTANT = [
    "model.grid.levels=14", "model.cos_anneal_end=0", "model.variance.max_inv_s=1e4", "model.variance.min_inv_s=1e-6", "optim.warmup=0", "optim.decay=1",
    "loss.eikonal=0.1", "model.refine=1",
]  # fmt: skip


def train(scene, folder, *more):
    """The trainer after its last step, on the pretended device."""
    cfg = load_config(ROOT / "confs/dtu-wmask.yaml", [*WORDS, f"dataset.root_dir={scene}", f"trainer.outputs_dir={folder}", *more])
    with pretended_cuda() as tally:
        device = torch.device("cuda")
        trainer = Trainer(build_system(cfg, device), load_scene(cfg.dataset, 1.0), cfg, RunFolder(folder), device)
        assert trainer.train()
        weights = {name: p.detach().cpu() for name, p in trainer.system.model.state_dict().items()}
    return trainer, weights, tally


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return write_tiny_scene(tmp_path_factory.mktemp("graph") / "scene", hw=(24, 32))


def test_replays_train_as_single_steps_do(scene, tmp_path, monkeypatch, caplog):
    """Over three refreshes, at which the graph is recorded anew; the number of rays follows the samples."""
    one, replayed, tally = train(scene, tmp_path / "a", *CONSTANT)
    assert sum(n for (_, what, _), n in tally.launches.items() if what == "a CUDA graph") >= STEPS - 5
    assert one.n_rays != 48

    def refuse(step):
        raise RuntimeError("operation not permitted when stream is capturing")

    with caplog.at_level(logging.WARNING, "neus"), monkeypatch.context() as patch:
        patch.setattr("tests.pretend.device.capture", refuse)
        other, single, tally = train(scene, tmp_path / "b", *CONSTANT)
    assert not any(what == "a CUDA graph" for _, what, _ in tally.launches)
    assert caplog.text.count("cannot be captured as a CUDA graph (operation not permitted") == 1
    assert one.n_rays == other.n_rays
    for name, weight in replayed.items():
        assert torch.allclose(weight, single[name], rtol=1e-4, atol=1e-6), name


def test_the_default_recipe_trains(scene, tmp_path):
    """Levels open and lengths shrink from one graph to the next; within one, nothing changes its shape (else the device refuses)."""
    trainer, _, tally = train(scene, tmp_path)
    assert trainer.clock.step == STEPS and trainer.skipped == 0
    assert sum(n for (_, what, _), n in tally.launches.items() if what == "a CUDA graph") > STEPS / 2


def test_a_step_that_cannot_be_recorded_to_its_end_leaves_nothing_behind(scene, tmp_path, monkeypatch):
    """Neither the scaler nor the optimiser takes the next step for a part of it."""

    def broken(step):
        with monkeypatch.context() as patch:
            patch.setattr(torch.amp.GradScaler, "update", refuse)
            step()

    def refuse(*_):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr("tests.pretend.device.capture", broken)
    trainer, _, _ = train(scene, tmp_path, *CONSTANT, "trainer.max_steps=12")
    assert trainer.clock.step == 12 and trainer.skipped == 0
    assert trainer.graph.failed == graph.PATIENCE and not hasattr(trainer.optimizer, "grad_scale")


def test_the_state_of_a_parameter_is_there_before_its_first_gradient():
    """Made within a graph, every replay would set it to 0."""
    with pretended_cuda():
        now, later = (torch.nn.Parameter(torch.ones(4, device="cuda")) for _ in range(2))
        optimizer = AdamW([{"params": [now, later], "lr": 0.1, "weight_decay": 0.0}], (0.9, 0.99), 1e-8, on_card=True)
        now.grad = torch.ones(4, device="cuda")
        optimizer.step()
        assert float(optimizer.state[now]["step"]) == 1
        assert set(optimizer.state[later]) == {"step", "exp_avg", "exp_avg_sq"} and float(optimizer.state[later]["step"]) == 0


def test_a_step_without_a_graph_can_be_asked_for(scene, tmp_path):
    trainer, _, tally = train(scene, tmp_path, "trainer.graph=false", "trainer.max_steps=4")
    assert trainer.graph is None and not any(what == "a CUDA graph" for _, what, _ in tally.launches)


@pytest.mark.parametrize("graph", [True, False])
def test_photographs_on_disk_stay_on_the_host(scene, tmp_path, graph):
    """Their pixels are read there and sent with those drawn; the weights are the same."""
    ends = []
    for on_disk in (False, True):
        words = [*CONSTANT, f"dataset.on_disk={on_disk}", f"trainer.graph={graph}", "trainer.max_steps=12"]
        trainer, weights, tally = train(scene, tmp_path / str(on_disk), *words)
        data = trainer.loader.dataset
        assert data.pixels.device.type == data.masks.device.type == ("cpu" if on_disk else "cuda")
        assert any(what == "a CUDA graph" for _, what, _ in tally.launches) == graph
        ends.append(weights)
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_wait_within_a_graph_is_refused():
    with pretended_cuda():
        x = torch.ones(3, device="cuda")
        replay = graph.capture(lambda: float(x.sum()))
        with pytest.raises(RuntimeError, match="not permitted in a CUDA graph"):
            replay()


def test_shapes_that_depend_on_values_are_refused():
    with pretended_cuda():
        x, sizes = torch.ones(3, device="cuda"), iter([2, 3])
        replay = graph.capture(lambda: x[: next(sizes)] + 1)
        replay()
        with pytest.raises(RuntimeError, match="at its first replay"):
            replay()
