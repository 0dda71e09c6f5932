"""Importance sampling follows the weights; the interlevel loss is a bound; the background is a mixture of colours."""

import pytest
import torch

from confs.model import BackgroundFieldConfig
from encoder.hashgrid import HashGrid, HashGridSpec
from models.background import Background
from models.field import DensityNetwork, contract
from models.method import RenderContext
from models.proposal import PropNetEstimator, dense_weights, importance, interlevel, outer_sum, to_distance
from models.radiance import RadianceNetwork
from tests.conftest import require
from utils.rays import Rays


def edges(n, rays=2):
    return torch.linspace(0, 1, n + 1).expand(rays, -1).contiguous()


def test_distances_run_from_near_to_far():
    near, far = torch.tensor([1.0, 2.0]), torch.tensor([1000.0, 4.0])
    for spacing in ("uniform", "lindisp"):
        t = to_distance(edges(4), near, far, spacing)
        assert torch.allclose(t[:, 0], near) and torch.allclose(t[:, -1], far) and (t.diff(dim=1) > 0).all()
    assert 1 / to_distance(edges(2), near, far, "lindisp")[0, 1] == pytest.approx((1 + 0.001) / 2)


def test_importance_goes_where_the_weight_is():
    weights = torch.tensor([[0.0, 0, 1, 0], [1, 1, 1, 1]])
    s = importance(edges(4), weights, 100, floor=0.0)
    inner = s[0, 1:-1]
    assert s.shape == (2, 101) and ((inner >= 0.5 - 1e-4) & (inner <= 0.75 + 1e-4)).all()
    assert torch.allclose(s[1], torch.linspace(0, 1, 101), atol=1e-5)
    kept = importance(edges(4), weights, 400, floor=0.1)
    assert (kept[0] < 0.25).sum() >= 9  # 2.5 % of the samples stay in each empty cell


@pytest.mark.parametrize("stratified", [False, True])
def test_edges_ascend_whatever_the_weights(stratified):
    for weights in (torch.zeros(3, 7), torch.rand(3, 7) ** 20, torch.full((3, 7), 1e30)):
        s = importance(edges(7, 3), weights, 33, stratified)
        assert torch.isfinite(s).all() and (s.diff(dim=1) >= 0).all() and s.min() >= 0 and s.max() <= 1


def test_dense_weights_are_the_packed_ones_and_the_horizon_closes_them():
    from models.volrend import weights_from_density

    sigma, t = torch.rand(5, 8) * 4, (torch.rand(5, 9).cumsum(1))
    packed, _ = weights_from_density(sigma.flatten(), t[:, :-1].flatten(), t[:, 1:].flatten(), torch.arange(6) * 8)
    assert torch.allclose(dense_weights(sigma, t[:, :-1], t[:, 1:]).flatten(), packed, atol=1e-6)
    assert torch.allclose(dense_weights(sigma, t[:, :-1], t[:, 1:], opaque_end=True).sum(1), torch.ones(5), atol=1e-6)


def test_interlevel_is_zero_under_the_bound_and_teaches_the_proposal_alone():
    outer = torch.tensor([[0.25, 0.25, 0.25, 0.25]], requires_grad=True)
    fine = torch.tensor([[0.2, 0.2]])
    assert torch.allclose(outer_sum(edges(2, 1), edges(4, 1), outer), torch.tensor([[0.5, 0.5]]))
    assert interlevel(edges(2, 1), fine, edges(4, 1), outer).item() == 0
    tall = torch.tensor([[0.0, 0.9]], requires_grad=True)
    loss = interlevel(edges(2, 1), tall, edges(4, 1), outer)
    loss.backward()
    assert float(loss.detach()) > 0 and tall.grad is None and (outer.grad[0, 2:] < 0).all() and (outer.grad[0, :2] == 0).all()


def test_a_proposal_learns_where_the_field_is():
    """An untrained density is drawn to a wall at t = 3, and samples follow it there."""
    logits = torch.zeros(32, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.2)
    near, far = torch.full((16,), 1.0), torch.full((16,), 5.0)
    estimator = PropNetEstimator(grad_share=1.0)

    def proposal(a, b):
        return logits.exp()[(((a + b) / 2 - 1) / 4 * 32).long().clamp(0, 31)]

    def wall(a, b):
        return 200.0 * (((a + b) / 2 - 3).abs() < 0.1)

    for _ in range(150):
        found = estimator.sampling([proposal], [32], 16, near, far, "uniform", True, True)
        loss = estimator.compute_loss(found, dense_weights(wall(found.t_starts, found.t_ends), found.t_starts, found.t_ends))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        found = estimator.sampling([proposal], [32], 16, near, far, "uniform")
    assert not found.levels and (((found.t - 3).abs() < 0.3).float().mean(1) > 0.4).all()


def test_contraction():
    x = torch.tensor([[0.3, 0, 0], [1.0, 0, 0], [0, 4.0, 0], [0, 0, -1e9]])
    want = torch.tensor([[0.3, 0, 0], [1.0, 0, 0], [0, 1.75, 0], [0, 0, -2.0]])
    assert torch.allclose(contract(x), want)
    assert torch.isfinite(contract(torch.zeros(1, 3))).all()


def background():
    spec = HashGridSpec(4, 2, 10, 4, 32)
    nets = [DensityNetwork(HashGrid(spec, init=0.1), 1.0, hidden=16, layers=1, n_features=f, bounded=False) for f in (0, 7)]
    cfg = BackgroundFieldConfig(n_proposal=16, n_samples=8, far=1e3, levels=[1, 4, 0.2, 0.6])
    return Background(cfg, *nets, RadianceNetwork(7, None, hidden=16, layers=1, use_normal=False))


def at(progress, stratified=False, full_background=False):
    return RenderContext(progress, stratified, 1.0, 0.01, 1e4, torch.zeros(3), full_background=full_background)


def rays(n=20):
    dirs = torch.nn.functional.normalize(torch.randn(n, 3), dim=1)
    return Rays(-3 * dirs, dirs, torch.full((n,), 2.0), torch.full((n,), 4.0))


def test_the_background_begins_behind_the_sphere_and_is_seen_where_something_is_left():
    net, r = background(), rays()
    opacity = torch.linspace(0, 1, 20)
    out = net(r, opacity, at(1.0))
    assert torch.equal(out.rays, torch.nonzero(opacity < 0.999)[:, 0]) and (out.rgb[19] == 0).all()
    assert torch.allclose(out.proposals.t[:, 0], torch.tensor(4.0)) and torch.allclose(out.proposals.t[:, -1], torch.tensor(1000.0))
    assert len(net(r, opacity, at(1.0, full_background=True)).rays) == 20
    missed = Rays(r.origins, r.dirs, torch.ones(20), torch.zeros(20))
    assert torch.allclose(net(missed, opacity, at(1.0)).proposals.t[:, 0], torch.tensor(0.8 * 3))
    away = Rays(r.origins, -r.dirs, torch.ones(20), torch.zeros(20))
    assert torch.allclose(net(away, opacity, at(1.0)).proposals.t[:, 0], torch.tensor(1.0))


def test_background_colours_are_colours_and_every_part_learns():
    net = background()
    for scale in (0.0, 1.0, 1e4):
        with torch.no_grad():
            for p in net.parameters():
                p.copy_(torch.randn_like(p) * scale)
        out = net(rays(), torch.zeros(20), at(1.0, stratified=True))
        assert torch.isfinite(out.rgb).all() and out.rgb.min() >= 0 and out.rgb.max() <= 1 + 1e-5
    net = background()
    out = net(rays(), torch.zeros(20), at(1.0, stratified=True))
    (out.rgb.square().sum() + PropNetEstimator.compute_loss(out.proposals, out.weights)).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())
    assert sum(float(p.grad.abs().sum()) > 0 for p in net.proposal.parameters()) > 0


def test_nothing_seen_is_no_error():
    out = background()(rays(), torch.ones(20), at(1.0, stratified=True))
    assert (out.rgb == 0).all() and len(out.rays) == 0
    assert torch.isfinite(PropNetEstimator.compute_loss(out.proposals, out.weights))


def test_a_picture_looks_at_more_places_than_a_training_step(monkeypatch):
    """Which brings it nearer to what very many would give."""
    from models import background as module

    torch.manual_seed(0)
    net, r = background(), rays(400)
    with torch.no_grad():
        net.field.encoding.table.mul_(30)
        assert net(r, torch.zeros(400), at(1.0, stratified=True)).weights.shape == (400, 8)
        found = {}
        for finer in (1, module.FINER, 32):
            monkeypatch.setattr(module, "FINER", finer)
            out = net(r, torch.zeros(400), at(1.0))
            assert out.weights.shape == (400, 8 * finer)
            found[finer] = out.rgb
    few, more = ((found[k] - found[32]).abs().mean() for k in (1, 2))
    assert more < 0.8 * few


def test_few_levels_of_the_background_are_open_at_first():
    net, r = background(), rays()
    net(r, torch.zeros(20), at(0.0)).rgb.sum().backward()
    touched = (net.field.encoding.table.grad != 0).any(1)
    assert touched.any() and not touched[net.field.encoding.spec.offsets[1] :].any()


def test_density_of_the_background_counts_by_contracted_length():
    net, r = background(), rays()
    edges = 1 / torch.linspace(1 / 4.0, 1 / 1000.0, 9).expand(20, 9)
    length = net.contracted_share(r, edges[:, :-1], edges[:, 1:]) * edges.diff(dim=1)
    assert torch.allclose(length.sum(1), torch.tensor(1 - 1 / 997.0), atol=1e-4)  # straight out from radius 1 to 997
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    assert (net(r, torch.zeros(20), at(1.0)).weights[:, -1] > 0.5).all()  # at the start the horizon has the weight


def test_most_samples_follow_the_proposal_and_some_go_anywhere():
    """Where all weight lies on the horizon, nearer space still has samples, or nothing could ever form there."""
    near, far = torch.full((3,), 2.0), torch.full((3,), 1e3)
    found = background().estimator.sampling([lambda a, b: torch.zeros_like(a)], [24], 20, near, far, opaque_end=True)
    last = 1 / (1 / 2 - 23 / 24 * (1 / 2 - 1e-3))
    nearer = (found.t_starts < 0.99 * last).float().mean(1)
    assert ((nearer > 0.2) & (nearer < 0.4)).all()


@pytest.mark.gpu
@pytest.mark.timeout(600)
@pytest.mark.parametrize("spacing", ["uniform", "lindisp"])
def test_gpu_samples_lie_where_nerfacc_puts_them(spacing):
    """nerfacc cuts the histogram at the middles of our shares, so the share of the edges near a surface is what agrees."""
    require("nerfacc")
    import nerfacc

    def sigma(t_starts, t_ends):
        return 30 * torch.exp(-((((t_starts + t_ends) / 2 - 2) / 0.1) ** 2) / 2)

    near, far = torch.full((16,), 1.0, device="cuda"), torch.full((16,), 4.0, device="cuda")
    ours = PropNetEstimator(floor=0.0).sampling([sigma], [64], 64, near, far, spacing, opaque_end=True).t[:, :-1]
    theirs, _ = nerfacc.PropNetEstimator().cuda().sampling([sigma], [64], 64, 16, 1.0, 4.0, spacing)
    near_surface = [float(((t > 1.7) & (t < 2.3)).float().mean()) for t in (ours, theirs)]
    assert min(near_surface) > 0.5 and abs(near_surface[0] - near_surface[1]) < 0.1
