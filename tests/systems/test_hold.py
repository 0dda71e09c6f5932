"""Steps of fixed shapes (`RaySystem.hold`): the same losses and gradients, and a full room takes rays away rather than bend them."""

from dataclasses import replace

import pytest
import torch

from process_data.rays import ray_loader
from tests.conftest import needs_warp
from tests.systems.test_train import config, trainer

pytestmark = needs_warp


@pytest.fixture
def run(tiny_scene, tmp_path):
    cfg = config(tiny_scene, tmp_path, "model.refine=0.5", "model.min_weight=0", "loss.sparsity=0.01")
    t = trainer(cfg, tmp_path / "run")
    t.system.before_step(0, 0.0)
    return t.system, next(iter(ray_loader(t.scene, 1, 0, lambda: 200, cfg.model.radius)))


def step(system, batch, progress):
    """(loss terms, gradients) of one step, with the same random numbers at every call."""
    torch.manual_seed(7)
    system.model.zero_grad()
    terms = system.losses(batch, progress)
    torch.stack(list(terms.values())).sum().backward()
    return {k: float(v.detach()) for k, v in terms.items()}, {n: p.grad.clone() for n, p in system.model.named_parameters()}


@pytest.mark.parametrize("progress", [0.2, 0.9])
def test_the_same_losses_and_gradients(run, progress):
    system, batch = run
    (terms, grads), n = step(system, batch, progress), None
    n = system.stats["samples"]
    assert system.hold(int(n) + 500)
    held_terms, held_grads = step(system, batch, progress)
    assert int(system.stats["samples"]) == n and isinstance(system.stats["psnr"], torch.Tensor)
    assert held_terms == pytest.approx(terms, rel=1e-4, abs=1e-7)
    for name, grad in grads.items():
        assert (held_grads[name] - grad).norm() <= 1e-3 * grad.norm() + 1e-9, name


def test_a_ray_that_lost_samples_teaches_nothing(run):
    """With room for half the samples: other colours and masks of the rays that do not fit, one of them in part, change no gradient."""
    system, batch = run
    step(system, batch, 0.2)
    room = int(system.stats["samples"]) // 2
    assert system.hold(room)
    torch.manual_seed(7)
    jitter = torch.rand(len(batch.rays))
    samples = system.model.render(batch.rays, system.model.context(0.2, True, jitter=jitter)).samples
    partly = samples.cut & (samples.offsets[:-1] < room)
    assert partly.sum() == 1 and 20 < samples.cut.sum() < 180
    _, grads = step(system, batch, 0.2)
    rgb = torch.where(samples.cut[:, None], 1 - batch.rgb, batch.rgb)
    mask = torch.where(samples.cut, 1 - batch.mask, batch.mask)
    _, other = step(system, replace(batch, rgb=rgb, mask=mask), 0.2)
    for name, grad in grads.items():
        assert torch.isfinite(grad).all() and torch.equal(grad, other[name]), name
    _, seen = step(system, replace(batch, rgb=1 - batch.rgb), 0.2)
    assert not torch.equal(grads["sdf.encoding.table"], seen["sdf.encoding.table"])


def test_shapes_do_not_depend_on_the_data(run):
    """Every tensor that enters autograd has the room's length, whichever rays come."""
    system, batch = run
    assert system.hold(4000)
    sizes = []
    for part in (batch.rays[slice(0, 100)], batch.rays[slice(100, 200)]):
        output = system.model.render(part, system.model.context(0.9, True, jitter=torch.rand(100)))
        sizes.append((len(output.samples), len(output.field.sdf), len(output.weights)))
    assert sizes == [(4000, 4000, 4000)] * 2


def test_a_method_that_cannot_says_so(tiny_scene, tmp_path):
    cfg = config(tiny_scene, tmp_path, "backend.march=torch")
    assert not trainer(cfg, tmp_path / "run").system.hold(1000)
