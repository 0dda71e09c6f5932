"""Options of the methods by what they do: finite differences, caps, gradient scaling, colours without a view."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

import models.neus
from confs.model import SDFConfig
from models.density import alpha_between, neus_alpha
from models.march import march
from models.network import scale_gradient, trunc_exp
from models.sdf import TAPS, eps_at
from models.visible import to_crossings, visible
from systems.build import build_system
from tests.systems.test_family import tiny
from tests.systems.test_train import trainer
from utils.rays import Rays


def test_a_colour_without_view_does_not_depend_on_it(tiny_scene, tmp_path):
    for dirs, same in (("none", True), ("spherical", False)):
        net = build_system(tiny("dtu-wmask", tiny_scene, tmp_path, f"model.radiance.dirs={dirs}"), torch.device("cpu")).model.radiance
        feature, normal = torch.randn(9, net.net[0].in_features - 3 - net.encode_dirs(torch.ones(1, 3)).shape[1]), torch.randn(9, 3)
        a, b = (net(feature, normal, net.encode_dirs(F.normalize(torch.randn(9, 3), dim=1))) for _ in range(2))
        assert torch.equal(a, b) == same


class Quadric(torch.nn.Module):
    """f(x) = x^T diag(a) x + b . x with known gradient and Laplacian."""

    radius = 1.0

    def __init__(self, taps):
        super().__init__()
        self.cfg = SDFConfig(eps=0.01, taps=taps)
        self.a, self.b = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.3, 0.1, -0.7])

    def values(self, x, n_levels):
        return ((x * x) @ self.a + x @ self.b)[:, None], x


@pytest.mark.parametrize("taps", list(TAPS))
def test_differences_of_a_quadric_are_exact(taps):
    from models.sdf import by_differences

    net, x = Quadric(taps).double(), torch.randn(20, 3, dtype=torch.float64)
    net.a, net.b = net.a.double(), net.b.double()
    real = torch.tensor
    try:
        torch.tensor = lambda *a, **k: real(*a, **{"dtype": torch.float64, **k})
        _, grad, _, laplacian = by_differences(net, x, 1)
    finally:
        torch.tensor = real
    assert torch.allclose(grad, 2 * x * net.a + net.b, atol=1e-9)
    assert torch.allclose(laplacian, torch.full((20,), float(2 * net.a.sum()), dtype=torch.float64), atol=1e-6)


def test_differences_follow_the_open_levels_and_agree_with_the_slope(tiny_scene, tmp_path):
    sdf = build_system(tiny("neuralangelo-dtu", tiny_scene, tmp_path), torch.device("cpu")).model.sdf
    steps = [eps_at(sdf, level) for level in (1, 2, 3, 4)]
    assert steps == sorted(steps, reverse=True) and steps[3] == pytest.approx(2 / 32)
    x = (torch.rand(50, 3) - 0.5) * 1.2
    finite = sdf(x, 4)
    sdf.cfg = replace(sdf.cfg, normals="analytic")
    analytic = sdf(x, 4)
    assert (F.normalize(finite.grad, dim=1) * F.normalize(analytic.grad, dim=1)).sum(1).min() > 0.95
    assert finite.laplacian.shape == (50,) and analytic.laplacian is None


def test_the_bound_on_the_sharpness_follows_its_schedule(tiny_scene, tmp_path):
    cfg = tiny("dtu-wmask", tiny_scene, tmp_path, "model.variance.init=1.0", "model.variance.max_inv_s=[20,2000,0,1]")
    model = build_system(cfg, torch.device("cpu")).model
    for progress, want in ((0.0, 20), (0.5, 200), (1.0, 2000)):
        context = model.context(progress)
        assert model.variance(context.max_inv_s).item() == pytest.approx(want) == model.stats(context)["inv_s"]


def test_gradients_near_the_camera_are_scaled():
    t, a, c = torch.tensor([0.1, 0.5, 2.0]), torch.ones(3, requires_grad=True), torch.ones(3, 3, requires_grad=True)
    b, d = scale_gradient(t, a, c)
    assert torch.equal(b, a) and torch.equal(d, c)
    (b.sum() + d.sum()).backward()
    assert torch.allclose(a.grad, torch.tensor([0.01, 0.25, 1.0])) and torch.allclose(c.grad[:, 0], a.grad)


def test_the_truncated_exponential_stays_finite():
    x = torch.tensor([-100.0, 0.0, 20.0, 1e6], requires_grad=True)
    y = trunc_exp(x)
    y.sum().backward()
    assert torch.isfinite(y).all() and torch.allclose(x.grad, torch.tensor([0.0, 1.0, math.exp(15), math.exp(15)]))


def test_intervals_that_cross_are_evaluated_on_the_surface():
    """A sphere seen through long intervals, some of them missing: crossings are found to second order, the rest stays."""
    origins = torch.tensor([[0.0, 0, -2], [0.2, 0.1, -2], [0.0, 0.9, -2]])
    rays = Rays(origins, torch.tensor([[0.0, 0, 1]]).repeat(3, 1), torch.full((3,), 1.0), torch.full((3,), 3.0))
    gap = torch.ones(1, 8, 8, 8, dtype=torch.bool)
    gap[0, :, :, 5] = False  # leaves two runs on each ray
    samples = march(rays, gap, 1.0, 0.09, torch.tensor([0.45, 0.25, 0.0]))
    found = to_crossings(rays, samples, lambda x: x.norm(dim=1) - 0.5)

    def sdf(t):
        return (rays.origins[samples.ray_indices] + rays.dirs[samples.ray_indices] * t[:, None]).norm(dim=1) - 0.5

    crossing = (sdf(samples.t_starts) > 0) & (sdf(samples.t_ends) < 0)
    assert samples.ray_indices[crossing].tolist() == [0, 1] and (sdf(found.t)[crossing].abs() < 2e-3).all()
    assert sdf(samples.t)[crossing].abs().max() > 0.01 and torch.equal(found.t[~crossing], samples.t[~crossing])


def test_what_a_surface_hides_is_not_evaluated():
    """Two balls behind each other: the samples on the front of the first are kept; a ray that passes between keeps none."""
    origins = torch.tensor([[0.0, 0, -2], [0.6, 0, -2], [0.0, 0.35, -2]])
    rays = Rays(origins, torch.tensor([[0.0, 0, 1]]).repeat(3, 1), torch.full((3,), 1.0), torch.full((3,), 3.0))
    samples = march(rays, torch.ones(1, 8, 8, 8, dtype=torch.bool), 1.0, 0.02)
    looked = []

    def sdf(x):
        looked.append(len(x))
        return torch.minimum((x - torch.tensor([0.0, 0, -0.5])).norm(dim=1), (x - torch.tensor([0.0, 0, 0.5])).norm(dim=1)) - 0.4

    found = visible(rays, samples, sdf, 200.0, True)
    assert found.offsets.diff()[1] == 0 and (found.offsets.diff()[[0, 2]] > 0).all() and found.n_rays == 3
    depth = 1.5 - torch.tensor([0.4, 0.0, (0.4**2 - 0.35**2) ** 0.5])[found.ray_indices]
    assert ((found.t - depth).abs() < 0.1).all() and sum(looked) < 0.8 * len(samples)
    order = found.ray_indices * 10 + found.t_starts
    assert (order.diff() > 0).all()
    alpha = alpha_between(sdf(torch.tensor([[0.0, 0, -0.91]])), sdf(torch.tensor([[0.0, 0, -0.89]])), 200.0)
    assert 0.8 < float(alpha) < 0.9  # (sigmoid(2) - sigmoid(-2)) / sigmoid(2)


def test_a_training_step_leaves_out_what_the_surface_hides():
    """A ball before a ball: a stopped ray keeps the front of the first, one through the rim what is near it, one beside both nothing."""
    origins = torch.tensor([[0.0, 0, -2], [0.6, 0, -2], [0.42, 0, -2], [5.0, 0, 0]])
    rays = Rays(origins, torch.tensor([[0.0, 0, 1]]).repeat(4, 1), torch.full((4,), 1.0), torch.full((4,), 3.0))
    samples = march(rays, torch.ones(1, 8, 8, 8, dtype=torch.bool), 1.0, 0.02)

    def sdf(x):
        return torch.minimum((x - torch.tensor([0.0, 0, -0.5])).norm(dim=1), (x - torch.tensor([0.0, 0, 0.5])).norm(dim=1)) - 0.4

    found, picture = visible(rays, samples, sdf, 200.0, True, passing=True), visible(rays, samples, sdf, 200.0, True)
    kept, seen = found.offsets.diff(), picture.offsets.diff()
    assert 1 <= kept[0] < 6 and ((found.t - 1.1).abs()[found.ray_indices == 0] < 0.05).all() and kept[1] == kept[3] == 0
    assert kept[0] == seen[0] and kept[2] > seen[2] > 0
    assert visible(rays, samples, sdf, 200.0, False, passing=True).at is None


def test_the_gradient_of_a_step_does_not_miss_what_is_left_out(tiny_scene, tmp_path):
    """The same rays through a sharp surface with all samples and with those that weigh something."""
    settings = [
        "model.variance.init=0.6",
        "model.refine=0",
        "trainer.n_rays=256",
        "loss.eikonal=0",
        "loss.mask=0.1",
        "trainer.max_steps=40",
    ]
    t = trainer(tiny("dtu-wmask", tiny_scene, tmp_path, *settings), tmp_path / "run")
    t.train()
    batch, found = next(t.batches), []
    for least in (0.0, 1e-3):
        t.system.model.cfg = replace(t.system.model.cfg, min_weight=least)
        torch.manual_seed(3)
        t.optimizer.zero_grad()
        sum(t.system.losses(batch, 0.5).values()).backward()
        gradient = torch.cat([p.grad.flatten() for p in t.system.model.parameters() if p.grad is not None])
        found.append((t.system.stats["samples"], gradient))
    (n, whole), (fewer, some) = found
    assert fewer < 0.8 * n and torch.cosine_similarity(whole, some, dim=0) > 0.999
    assert float(some.norm() / whole.norm()) == pytest.approx(1, abs=0.03)


def test_a_picture_of_what_can_be_seen_is_the_picture_of_all(tiny_scene, tmp_path, monkeypatch):
    t = trainer(
        tiny("dtu-wmask", tiny_scene, tmp_path, "trainer.max_steps=12", "model.refine=0.2", "model.variance.init=0.6"), tmp_path / "run"
    )
    t.train()
    rays, counts = next(t.batches).rays, []
    seen = models.neus.visible

    def counted(*given):
        found = seen(*given)
        counts.append((len(given[1]), len(found)))
        return found

    monkeypatch.setattr(models.neus, "visible", counted)
    some = t.system.render_view(rays, torch.ones(3))
    monkeypatch.setattr(
        models.neus, "visible", lambda rays, samples, sdf, inv_s, long, backend: to_crossings(rays, samples, sdf) if long else samples
    )
    whole = t.system.render_view(rays, torch.ones(3))
    assert counts and counts[0][1] < 0.7 * counts[0][0]
    assert (some.rgb - whole.rgb).abs().max() < 0.01 and float(whole.opacity.max()) > 0.5


@pytest.mark.parametrize("inv_s", [100.0, 1000.0])
@pytest.mark.parametrize("shift", [0.0, 0.3, 0.7, 1.0])
def test_where_in_an_interval_a_plane_is_evaluated_does_not_matter(inv_s, shift):
    start, dt = torch.arange(0.0, 1.0, 0.05), torch.full((20,), 0.05)
    alphas = []
    for within in (None, shift * dt):
        t = start + (dt / 2 if within is None else within)
        alphas.append(neus_alpha(0.513 - t, torch.full_like(t, -1.0), dt, torch.tensor(inv_s), 1.0, within))
    torch.testing.assert_close(*alphas, atol=1e-4, rtol=1e-4)


def test_a_run_with_refined_intervals_trains_and_renders(tiny_scene, tmp_path):
    t = trainer(
        tiny("dtu-wmask", tiny_scene, tmp_path, "trainer.max_steps=12", "model.refine=0.2", "model.variance.init=0.6"), tmp_path / "run"
    )
    assert t.train() and t.skipped == 0
    model, rays = t.system.model, next(t.batches).rays
    for refine, inv_s, progress, moved in ((0.2, 1e4, 0.2, True), (0.2, 1e4, 0.1, False), (0.2, 3.0, 0.9, False), (1.0, 1e4, 1.0, False)):
        model.refine = refine
        with torch.no_grad():
            model.variance.v.fill_(math.log(inv_s) / 10)
        assert (model.render(rays, model.context(progress, training=True)).samples.at is not None) == moved


def test_weights_are_unbiased_at_a_planar_crossing():
    """NeuS eq. 10: the largest weight lies on the plane, whatever the sharpness."""
    t = torch.linspace(0, 1, 2001)
    mid, dt = (t[1:] + t[:-1]) / 2, t.diff()
    for inv_s in (30.0, 100.0, 1000.0):
        alpha = neus_alpha(0.5 - mid, torch.full_like(mid, -1.0), dt, torch.tensor(inv_s))
        weights = alpha * torch.cat([torch.ones(1), (1 - alpha[:-1]).cumprod(0)])
        assert float(mid[weights.argmax()]) == pytest.approx(0.5, abs=2e-3) and float(weights.sum()) == pytest.approx(1, abs=2e-2)


def test_the_sum_is_foreground_and_background(tiny_scene, tmp_path):
    t = trainer(tiny("dtu", tiny_scene, tmp_path, "trainer.max_steps=10"), tmp_path / "run")
    t.train()
    batch = next(t.batches)
    rays = Rays(*(getattr(batch.rays, f) for f in ("origins", "dirs", "near", "far")))
    everywhere = t.system.render_view(rays, torch.zeros(3), full_background=True)
    cheap = t.system.render_view(rays, torch.zeros(3))
    assert torch.allclose(everywhere.rgb, everywhere.foreground + (1 - everywhere.opacity)[:, None] * everywhere.background, atol=1e-6)
    assert (everywhere.rgb - cheap.rgb).abs().max() < 2e-3 and everywhere.foreground.min() > -1e-6
