"""The optimiser: torch's AdamW for networks, a lazy Adam for tables (kernel against twin), rates over the run."""

import pytest
import torch

from confs.schema import OptimConfig
from systems.optim import AdamW, Average, lazy_adam_torch, rate
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
