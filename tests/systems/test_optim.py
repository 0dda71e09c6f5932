"""The optimiser: torch's AdamW for networks, a lazy Adam for tables (kernel against twin), rates over the run."""

import pytest
import torch

from confs.schema import OptimConfig
from systems.optim import AdamW, Average, lazy_adam_scaled_torch, lazy_adam_torch, make_optimizer, rate
from tests.conftest import needs_warp


def test_dense_groups_are_torchs_adamw():
    a, b = (torch.nn.Parameter(torch.linspace(-1, 1, 12).view(4, 3)) for _ in range(2))
    ours = AdamW([{"params": [a], "lr": 0.1, "weight_decay": 0.1}], (0.9, 0.99), 1e-8)
    theirs = torch.optim.AdamW([b], lr=0.1, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1)
    for i in range(5):
        a.grad, b.grad = (torch.sin(p.detach() * i) for p in (a, b))
        ours.step()
        theirs.step()
    assert torch.allclose(a, b, atol=1e-6)


def test_lazy_is_adam_on_touched_rows_and_leaves_the_others():
    p = torch.nn.Parameter(torch.randn(6, 2))
    q = torch.nn.Parameter(p.detach().clone())
    lazy, dense = (
        AdamW([{"params": [p], "lr": 0.1, "lazy": True}], (0.9, 0.99), 1e-12),
        torch.optim.Adam([q], lr=0.1, betas=(0.9, 0.99), eps=1e-12),
    )
    before = p.detach().clone()
    for _ in range(3):
        g = torch.randn(6, 2)
        g[1::2] = 0
        p.grad, q.grad = g, g.clone()
        lazy.step()
        dense.step()
    assert torch.equal(p[1::2], before[1::2]) and torch.allclose(p[::2], q[::2], atol=1e-6)


def test_a_group_without_weight_decay_has_none():
    p, q = (torch.nn.Parameter(torch.ones(3, 2)) for _ in range(2))
    optimizer = make_optimizer(
        [{"params": [p], "lr": 0.1}, {"params": [q], "lr": 0.1, "lazy": True}], OptimConfig(), torch.device("cpu"), "torch"
    )
    for parameter in (p, q):
        parameter.grad = torch.zeros(3, 2)
    optimizer.step()
    assert torch.equal(p, torch.ones(3, 2)) and torch.equal(q, torch.ones(3, 2))


def test_the_state_of_a_dense_optimiser_goes_on():
    """Regression: a checkpoint written on CUDA, where tables had been updated densely, ended in KeyError 'lazy'."""
    p, q = (torch.nn.Parameter(torch.randn(5, 2)) for _ in range(2))
    dense = torch.optim.AdamW([{"params": [p], "lr": 0.2}, {"params": [q], "lr": 0.3}], fused=True)
    for parameter in (p, q):
        parameter.grad = torch.randn(5, 2)
    dense.step()
    groups = [{"params": [p], "lr": 0.1, "lazy": True}, {"params": [q], "lr": 0.1}]
    ours = make_optimizer(groups, OptimConfig(), torch.device("cpu"), "torch")
    ours.load_state_dict(dense.state_dict())
    assert [g["lazy"] for g in ours.param_groups] == [True, False] and [g["lr"] for g in ours.param_groups] == [0.2, 0.3]
    assert not any(g["fused"] for g in ours.param_groups)
    before = p.detach().clone()
    p.grad[1:] = 0
    ours.step()
    assert float(ours.state[p]["step"]) == 2 and torch.equal(p[1:], before[1:]) and not torch.equal(p[0], before[0])
    with pytest.raises(ValueError, match="different number of parameter groups"):
        ours.load_state_dict(torch.optim.AdamW([p, q]).state_dict())


@needs_warp
@pytest.mark.parametrize("width", [1, 2, 4])
def test_the_kernel_of_scaled_gradients_against_its_twin(width):
    """With values on the device for the step, the scale and whether to skip; scale 1 is the plain step."""
    from systems.optim_warp import lazy_adam_scaled_warp

    states = []
    for update in (lazy_adam_torch, lazy_adam_scaled_torch, lazy_adam_scaled_warp):
        torch.manual_seed(1)
        p, m, v = torch.randn(500, width), torch.zeros(500, width), torch.zeros(500, width)
        for step in range(1, 5):
            g = torch.randn(500, width) * (torch.rand(500, 1) < 0.2)
            if update is lazy_adam_torch:
                update(p, g, m, v, 0.01, 0.9, 0.99, 1e-15, step)
                continue
            scale = torch.tensor(256.0)
            update(p, g * scale, m, v, 0.01, 0.9, 0.99, 1e-15, torch.tensor(float(step)), scale, torch.tensor(0.0))
            kept = [x.clone() for x in (p, m, v)]
            update(p, g * torch.inf, m, v, 0.01, 0.9, 0.99, 1e-15, torch.tensor(float(step)), scale, torch.tensor(1.0))
            assert all(torch.equal(a, b) for a, b in zip(kept, (p, m, v)))
        states.append((p, m, v))
    for a, b, c in zip(*states):
        assert (b - a).abs().max() <= 2e-5 * a.abs().max() and (c - a).abs().max() <= 2e-5 * a.abs().max()


@needs_warp
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("width", [1, 2, 4])
def test_kernel_against_twin(width, device):
    from systems.optim_warp import lazy_adam_warp

    states = []
    for update, place in ((lazy_adam_torch, "cpu"), (lazy_adam_warp, device)):
        torch.manual_seed(1)
        p, m, v = torch.randn(5000, width), torch.zeros(5000, width), torch.zeros(5000, width)
        p, m, v = p.to(place), m.to(place), v.to(place)
        for step in range(1, 4):
            g = torch.randn(5000, width) * (torch.rand(5000, 1) < 0.2)
            update(p, g.to(place), m, v, 0.01, 0.9, 0.99, 1e-15, step)
        states.append((p.cpu(), m.cpu(), v.cpu()))
    for a, b in zip(*states):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


def test_rate_rises_holds_and_falls():
    cfg = OptimConfig(warmup=0.1, decay=0.01, decay_begin=0.5)
    assert rate(cfg, 0) == pytest.approx(0.1) and rate(cfg, 0.1) == rate(cfg, 0.5) == 1
    assert rate(cfg, 0.75) == pytest.approx(0.1) and rate(cfg, 1) == pytest.approx(0.01)


def test_the_average_is_the_mean_of_the_weights_at_the_end():
    model = torch.nn.Linear(2, 1)
    average, taken = Average(model, begin=0.5), []
    for step in range(1, 41):
        with torch.no_grad():
            model.weight.fill_(step)
        average.after_step(step, step / 40)
        if step >= 20 and step % Average.EVERY == 0:
            taken.append(step)
        if step == 30:  # goes through a checkpoint
            state, average = average.state(), Average(model, begin=0.5)
            average.load(state)
    average.take()
    assert torch.allclose(model.weight, torch.full((1, 2), sum(taken) / len(taken)))
    before = model.weight.detach().clone()
    Average(model, begin=1.1).take()  # nothing was taken in
    assert torch.equal(model.weight, before)
    with pytest.raises(ValueError, match="another model"):
        average.load({"n": 1, "mean": [torch.zeros(3)]})


@pytest.mark.parametrize("name", ["step", "exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize(
    "change", [lambda t: t[None], lambda t: t * float("nan"), lambda t: t * 1j, lambda t: "x", lambda t: t.to_sparse()]
)
def test_damaged_moments_are_refused_when_they_are_loaded(name, change):
    """Regression: the first step after a resume ended in a RuntimeError."""
    p = torch.nn.Parameter(torch.ones(3, 2))
    p.grad = torch.ones(3, 2)
    optimizer = make_optimizer([{"params": [p], "lr": 0.1}], OptimConfig(), torch.device("cpu"), "torch")
    optimizer.step()
    state = optimizer.state_dict()
    optimizer.load_state_dict(state)
    state["state"][0] = {**state["state"][0], name: change(state["state"][0][name])}
    with pytest.raises(ValueError, match=r"moments of a parameter \[3, 2\] are damaged"):
        optimizer.load_state_dict(state)


def test_averaged_weights_that_are_not_finite_are_refused():
    model = torch.nn.Linear(2, 1)
    average = Average(model, 0.0)
    average.load({"n": 1, "mean": [torch.ones(1, 2), torch.ones(1)]})
    for mean in ([torch.full((1, 2), torch.nan), torch.ones(1)], [torch.ones(1, 2)], ["x", "y"]):
        with pytest.raises(ValueError, match="averaged weights are of another model, or not finite"):
            average.load({"n": 1, "mean": mean})
