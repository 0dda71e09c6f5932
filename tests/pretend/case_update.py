"""The update on the pretended device: what is not finite, the optimiser of both devices, other cards, half tables."""

import json

import pytest
import torch

from confs.schema import OptimConfig
from process_data.load import load_scene
from systems.build import build_system
from systems.optim import make_optimizer
from systems.trainer import LOOK, Trainer
from tests.pretend.case_configs import FAST, scene  # noqa: F401
from tests.pretend.device import Card, pretended_cuda
from tests.systems.test_family import tiny
from utils.errors import UserError
from utils.log import RunFolder


def trainer(cfg, folder, device="cuda"):
    world = load_scene(cfg.dataset, cfg.model.radius)
    return Trainer(build_system(cfg, torch.device(device), world), world, cfg, RunFolder(folder), torch.device(device))


def spoil(t, when, what, value=float("nan")):
    """Make the loss ("loss") or one gradient ("gradient") not finite at some calls."""
    real, calls = t.system.losses, []

    def losses(*args):
        calls.append(1)
        terms = real(*args)
        if len(calls) - 1 not in when:
            return terms
        if what == "loss":
            return {**terms, "rgb": terms["rgb"].detach() * value}  # no gradient of its own
        parameter = t.system.model.variance.v
        return {**terms, "mask": terms["mask"] + torch.where(torch.ones_like(parameter) > 0, 0 * parameter, (parameter * 0).sqrt()).sum()}

    t.system.losses = losses


def networks(t):
    return {k: v.cpu().clone() for k, v in t.system.model.state_dict().items() if "sampler" not in k}


@pytest.mark.parametrize("amp", [True, False])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_run_of_nan_stops_and_changes_nothing(what, amp, scene, tmp_path):  # noqa: F811
    """Regression: on CUDA it went on in silence."""
    with pretended_cuda():
        cfg = tiny("dtu-wmask", scene, tmp_path, *FAST, "trainer.max_steps=100", "trainer.max_skipped=3", f"trainer.amp={amp}")
        t = trainer(cfg, tmp_path / "run")
        before = networks(t)
        spoil(t, range(100), what)
        named = "rgb" if what == "loss" else "the gradient"
        with pytest.raises(UserError, match=rf"{LOOK} steps in a row were not finite \(term: {named}\)"):
            t.train()
        assert t.clock.step == t.skipped == LOOK
        after = networks(t)
        assert all(torch.equal(before[k], after[k]) for k in before)
        assert all(float(s["step"]) == 0 for s in t.optimizer.state.values())


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_bad_steps_are_left_out_counted_and_forgotten(what, scene, tmp_path):  # noqa: F811
    with pretended_cuda():
        cfg = tiny(
            "dtu-wmask", scene, tmp_path, *FAST, "trainer.max_steps=7", "trainer.max_skipped=3", "trainer.average=0", "trainer.graph=false"
        )
        t = trainer(cfg, tmp_path / "run")
        spoil(t, (2, 3, 5), what)
        assert t.train() and t.skipped == 3 and t.skipped_in_row == 0
        assert all(torch.isfinite(p).all() for p in t.system.model.parameters())
        assert all(float(s["step"]) == 4 for s in t.optimizer.state.values())
        assert t.scaler.get_scale() == 2.0**16 / 2**3
        assert json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])["step"] == 7


def groups():
    torch.manual_seed(0)
    shapes = {"grid": (64, 2), "networks": (7, 5), "pose": (4,)}
    made = {name: torch.randn(shape) for name, shape in shapes.items()}
    return made, {"grid": {"lazy": True, "lr": 0.02}, "networks": {"lr": 0.01, "weight_decay": 0.1}, "pose": {"lr": 0.03}}


@pytest.mark.parametrize("backend", ["torch", "warp"])
def test_one_optimiser_on_both_devices(backend):
    """Rows without a gradient rest; weight decay where it is asked for alone; a bad step and a scaled loss change nothing of it."""
    ends = []
    for device in ("cpu", "cuda"):
        with pretended_cuda():
            values, options = groups()
            parameters = {k: torch.nn.Parameter(v.to(device)) for k, v in values.items()}
            listed = [{"name": k, "params": [p], **options[k]} for k, p in parameters.items()]
            optimizer = make_optimizer(listed, OptimConfig(), torch.device(device), backend)
            scaler = torch.amp.GradScaler("cuda", init_scale=8.0, enabled=device == "cuda")
            torch.manual_seed(1)
            for step in range(6):
                gradients = {k: torch.randn(v.shape) for k, v in values.items()}
                gradients["grid"][::3] = 0
                if step == 3:
                    if device == "cpu":
                        continue
                    gradients["networks"][0, 0] = float("inf")
                scaler.scale(torch.zeros((), device=device))  # makes the scale
                for k, p in parameters.items():
                    p.grad = (gradients[k] * scaler.get_scale()).to(device)
                scaler.step(optimizer)
                scaler.update()
            assert {float(s["step"]) for s in optimizer.state.values()} == {5.0}
            assert all(s["step"].device.type == device for s in optimizer.state.values())
            assert optimizer.take_skipped() == ((1, 0, 1) if device == "cuda" else (0, 0, 0))
            ends.append({k: p.detach().cpu() for k, p in parameters.items()})
            assert torch.equal(ends[-1]["grid"][::3], values["grid"][::3])
    for k in ends[0]:
        assert torch.allclose(ends[0][k], ends[1][k], rtol=1e-5, atol=1e-6), k


def test_the_other_card(scene, tmp_path):  # noqa: F811
    """Everything lies on cuda:1: an operation that mixes cards is an error."""
    with pretended_cuda():
        t = trainer(tiny("dtu", scene, tmp_path, *FAST, "trainer.max_steps=2"), tmp_path / "run", "cuda:1")
        assert t.train()
        assert all(isinstance(p, Card) and p.device.index == 1 for p in t.system.model.parameters())


def test_a_half_table_trains_as_a_whole_one(scene, tmp_path):  # noqa: F811
    ends = []
    for half in (False, True):
        with pretended_cuda():
            cfg = tiny("dtu-wmask", scene, tmp_path, *FAST, "trainer.max_steps=3", f"backend.half_table={half}", "trainer.average=0")
            t = trainer(cfg, tmp_path / str(half))
            assert t.system.model.sdf.encoding.spec.half == half and t.train()
            ends.append((t.system.model.sdf.encoding.table.held, float(t.system.stats["psnr"])))
    assert not torch.equal(ends[0][0], ends[1][0]) and ends[0][1] == pytest.approx(ends[1][1], abs=0.05)
