"""Compositing: the twins against a slow loop and gradcheck, the Warp kernels against the twins, and nerfacc on a GPU."""

import pytest
import torch

from models.volrend import accumulate, composite, distortion, weights_from_alpha, weights_from_density
from tests.conftest import needs_warp, require

OPS = ["alpha", "density", "accumulate", "ones", "composite", "distortion"]
COUNTS = {
    "mixed": [3, 0, 0, 7, 1, 0, 40, 2, 0],
    "long": [2000, 0, 1500, 1],
    "many": [i * 7919 % 61 for i in range(3000)],
    "one": [1],
    "none": [0, 0, 0],
    "no rays": [],
}


class Case:
    """Packed inputs of one kind."""

    def __init__(self, counts: list[int], seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu", extremes: bool = True):
        g = torch.Generator().manual_seed(seed)
        self.counts = torch.tensor(counts, dtype=torch.long)
        self.offsets = torch.cat([torch.zeros(1, dtype=torch.long), self.counts.cumsum(0)]).to(device)
        size = int(self.counts.sum())
        rand = lambda *shape: torch.rand(*shape, generator=g, dtype=torch.float64)  # noqa: E731
        self.rays = torch.repeat_interleave(self.counts).to(device)
        alpha = rand(size) ** 4 * 0.9
        if extremes:
            alpha[rand(size) < 0.1] = 0.0
            alpha[rand(size) < 0.02] = 1.0
        t = (
            rand(size, 2).sort(-1).values * 0.01
            + torch.arange(size)[:, None] * 0.01
            - self.offsets.cpu()[:-1].repeat_interleave(self.counts)[:, None] * 0.01
        )
        self.alpha, self.sigma = alpha.to(device, dtype), (rand(size) ** 4 * 400).to(device, dtype)
        self.t_starts, self.t_ends = (t + 2).to(device, dtype).unbind(-1)
        self.weights, self.values = (rand(size) * 0.1).to(device, dtype), (rand(size, 3) - 0.3).to(device, dtype)

    def run(self, op: str, backend: str = "torch", early_stop: float = 0.0) -> tuple[tuple, tuple]:
        """(inputs that want gradients, outputs)."""
        leaf = lambda x: x.clone().requires_grad_(True)  # noqa: E731
        if op == "alpha":
            x = (leaf(self.alpha),)
            return x, weights_from_alpha(*x, self.offsets, early_stop, backend)
        if op == "density":
            x = (leaf(self.sigma), leaf(self.t_starts), leaf(self.t_ends))
            return x, weights_from_density(*x, self.offsets, early_stop, backend)
        if op == "accumulate":
            x = (leaf(self.weights), leaf(self.values))
            return x, (accumulate(*x, self.offsets, self.rays, backend),)
        if op == "composite":
            x = (leaf(self.alpha), leaf(self.values))
            return x, composite(*x, self.offsets, self.rays, early_stop, backend)
        if op == "ones":
            x = (leaf(self.weights),)
            return x, (accumulate(*x, None, self.offsets, self.rays, backend),)
        x = (leaf(self.weights), leaf(self.t_starts), leaf(self.t_ends))
        return x, (distortion(*x, self.offsets, backend),)


def gradients(x: tuple, outputs: tuple) -> tuple:
    g = torch.Generator().manual_seed(5)
    loss = sum((o * torch.rand(o.shape, generator=g, dtype=torch.float64).to(o)).sum() for o in outputs)
    return torch.autograd.grad(loss, x)


def close(got: torch.Tensor, want: torch.Tensor, tolerance: float) -> None:
    assert got.shape == want.shape and got.isfinite().all()
    if want.numel():
        assert (got.double() - want.double()).abs().max() <= tolerance * max(float(want.double().abs().max()), 1e-30)


def slow(op: str, c: Case) -> list[torch.Tensor]:
    """Sample after sample, in double."""
    edges = c.offsets.tolist()
    if op in ("accumulate", "ones"):
        values = c.values.double() if op == "accumulate" else torch.ones(len(c.weights), 1, dtype=torch.float64)
        rows = [(c.weights.double()[a:b, None] * values[a:b]).sum(0) for a, b in zip(edges, edges[1:])]
        return [torch.stack(rows)]
    if op == "distortion":
        w, m, dt = c.weights.double(), (c.t_starts.double() + c.t_ends.double()) / 2, c.t_ends.double() - c.t_starts.double()
        pairs = lambda a, b: (w[a:b, None] * w[a:b] * (m[a:b, None] - m[a:b]).abs()).sum() + (w[a:b] ** 2 * dt[a:b]).sum() / 3  # noqa: E731
        return [torch.stack([pairs(a, b) for a, b in zip(edges, edges[1:])])]
    if op == "composite":
        weights = slow("alpha", c)[0]
        return [torch.stack([(weights[a:b, None] * c.values.double()[a:b]).sum(0) for a, b in zip(edges, edges[1:])]), weights]
    alpha = c.alpha.double() if op == "alpha" else -torch.expm1(-c.sigma.double() * (c.t_ends.double() - c.t_starts.double()))
    weights, trans = torch.zeros_like(alpha), torch.zeros_like(alpha)
    for a, b in zip(edges, edges[1:]):
        t = 1.0
        for i in range(a, b):
            trans[i], weights[i] = t, t * alpha[i]
            t *= 1 - float(alpha[i])
    return [weights, trans]


@pytest.mark.parametrize("backend", ["torch", "warp"])
@pytest.mark.parametrize("kind", ["mixed", "long", "one"])
@pytest.mark.parametrize("op", OPS)
def test_against_the_slow_loop(op, kind, backend):
    c = Case(COUNTS[kind])
    for got, want in zip(c.run(op, backend)[1], slow(op, c)):
        close(got.detach(), want, 1e-5)


@pytest.mark.parametrize("kind", COUNTS)
@pytest.mark.parametrize("op", OPS)
def test_warp_is_the_twin(op, kind, monkeypatch):
    from models import volrend_warp

    monkeypatch.setattr(volrend_warp, "WORTH_A_THREAD", 100)  # rays are shared out even when there are few
    c = Case(COUNTS[kind], seed=1)
    (x, twin), (y, kernel) = c.run(op), c.run(op, "warp")
    for got, want in zip(kernel, twin):
        close(got.detach(), want.detach(), 1e-5)
    for got, want in zip(gradients(y, kernel), gradients(x, twin)):
        close(got, want, 1e-4)


@pytest.mark.parametrize("op", OPS)
def test_gradcheck(op):
    c = Case([3, 0, 5, 1, 0], dtype=torch.float64, extremes=False)
    x, _ = c.run(op)

    def f(*inputs):
        if op == "alpha":
            return weights_from_alpha(*inputs, c.offsets)
        if op == "density":
            return weights_from_density(*inputs, c.offsets)
        if op == "distortion":
            return distortion(*inputs, c.offsets)
        if op == "composite":
            return composite(*inputs, c.offsets, c.rays)
        return accumulate(inputs[0], inputs[1] if op == "accumulate" else None, c.offsets, c.rays)

    assert torch.autograd.gradcheck(f, x)


@pytest.mark.parametrize("backend", ["torch", "warp"])
def test_opaque_and_clear_samples(backend):
    alpha = torch.tensor([0.5, 1.0, 0.25, 1.0, 0.0, 0.5, 0.0], requires_grad=True)
    weights, trans = weights_from_alpha(alpha, torch.tensor([0, 0, 5, 7]), backend=backend)
    assert weights.tolist() == [0.5, 0.5, 0, 0, 0, 0.5, 0] and trans.tolist() == [1, 0.5, 0, 0, 0, 1, 0.5]
    (grad,) = torch.autograd.grad((weights * torch.tensor([1.0, 2, 3, 4, 5, 6, 7])).sum(), alpha)
    # w_0 = a_0, w_1 = (1 - a_0) a_1, w_2 = (1 - a_0)(1 - a_1) a_2, ...: behind an opaque sample lies 3 * .25 + .75 * 4
    torch.testing.assert_close(grad, torch.tensor([1 - 2.0, 0.5 * (2 - 3 * 0.25 - 0.75 * 4), 0, 0, 0, 6, 3.5]))


@pytest.mark.parametrize("backend", ["torch", "warp"])
@pytest.mark.parametrize("op", ["alpha", "density"])
def test_weights_and_what_is_left_make_one(op, backend):
    c = Case(COUNTS["many"])
    _, (weights, trans) = c.run(op, backend)
    total = accumulate(weights, None, c.offsets, c.rays, backend)[:, 0]
    last = c.offsets[1:][c.counts > 0] - 1
    through = 1 - c.alpha[last] if op == "alpha" else torch.exp(-c.sigma[last] * (c.t_ends - c.t_starts)[last])
    assert total.max() <= 1 + 1e-5 and (total[c.counts == 0] == 0).all()
    torch.testing.assert_close(total[c.counts > 0] + trans[last] * through, torch.ones(len(last)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("backend", ["torch", "warp"])
@pytest.mark.parametrize("op", ["alpha", "density"])
def test_early_stop(op, backend):
    c = Case(COUNTS["many"], extremes=False)
    x, (weights, trans) = c.run(op, backend, 0.03)
    _, (full, same) = c.run(op, backend)
    stopped = trans < 0.03
    assert torch.equal(trans, same) and stopped.any() and (weights[stopped] == 0).all() and torch.equal(weights[~stopped], full[~stopped])
    assert (torch.autograd.grad((weights * stopped).sum(), x[0])[0] == 0).all()
    x, outputs = c.run(op, backend, 0.03)
    y, twin = c.run(op, "torch", 0.03)
    for got, want in zip(gradients(x, outputs), gradients(y, twin)):
        close(got, want, 1e-4)


@pytest.mark.parametrize("stop", [0.0, 0.03])
def test_composite_is_weights_and_accumulate(stop):
    """Either output alone, and values that want no gradient."""
    c = Case(COUNTS["many"], extremes=False)
    for wanted in (slice(0, 1), slice(1, 2), slice(0, 2)):
        (x, both), (y, twin) = c.run("composite", "warp", stop), c.run("composite", "torch", stop)
        for got, want in zip(gradients(x[:1], both[wanted]), gradients(y[:1], twin[wanted])):
            close(got, want, 1e-4)
    alpha = c.alpha.clone().requires_grad_(True)
    sums, _ = composite(alpha, c.values, c.offsets, c.rays, stop, "warp")
    assert torch.autograd.grad(sums.sum(), alpha)[0].isfinite().all()


@pytest.mark.parametrize("backend", ["torch", "warp"])
@pytest.mark.parametrize("channels", [1, 3, 8])
def test_one_output_alone(channels, backend):
    """Gradients when only weights, only transmittance, or only the accumulated weights are wanted."""
    c = Case(COUNTS["mixed"])
    for op in ("alpha", "density"):
        for i in (0, 1):
            (x, out), (y, twin) = c.run(op, backend), c.run(op)
            close(gradients(x[:1], out[i : i + 1])[0], gradients(y[:1], twin[i : i + 1])[0], 1e-4)
    w, values = c.weights.clone().requires_grad_(True), torch.randn(len(c.weights), channels, generator=torch.Generator().manual_seed(6))
    out = accumulate(w, values, c.offsets, c.rays, backend)
    close(out.detach(), torch.zeros(len(c.counts), channels).index_add(0, c.rays, c.weights[:, None] * values), 1e-5)
    close(
        gradients((w,), (out,))[0],
        gradients((w,), ((w[:, None] * values).new_zeros(len(c.counts), channels).index_add(0, c.rays, w[:, None] * values),))[0],
        1e-4,
    )


@pytest.mark.parametrize("backend", ["torch", "warp"])
def test_density_over_many_orders(backend):
    sigma = torch.logspace(-20, 20, 41, requires_grad=True)
    zeros, ones, each = torch.zeros(41), torch.ones(41), torch.arange(42)
    weights, _ = weights_from_density(sigma, zeros, ones, each, backend=backend)  # 41 rays of one sample
    torch.testing.assert_close(weights.double(), -torch.expm1(-sigma.double()), rtol=1e-5, atol=0)
    for offsets in (each, torch.tensor([0, 41])):
        out = weights_from_density(sigma, zeros, ones, offsets, backend=backend)
        assert all(g.isfinite().all() for g in gradients((sigma,), out))


@pytest.mark.parametrize("backend", ["torch", "warp"])
def test_gradients_reach_an_empty_batch(backend):
    c = Case([0, 0])
    for op in OPS:
        x, outputs = c.run(op, backend)
        assert all(g.shape == i.shape for g, i in zip(gradients(x, outputs), x))


def test_refuses_offsets_that_do_not_fit():
    with pytest.raises(ValueError, match="offsets end at 3"):
        weights_from_alpha(torch.rand(4), torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="differ in length"):
        distortion(torch.rand(4), torch.rand(4), torch.rand(3), torch.tensor([0, 4]))


class StandIns:
    """nerfacc's kernels for packed samples, ray after ray in torch, as `nerfacc.scan` calls them."""

    @staticmethod
    def rays(starts, counts, one, *packed):
        out = torch.zeros_like(packed[0])
        for a, n in zip(starts.tolist(), counts.tolist()):
            out[a : a + n] = one(*(p[a : a + n] for p in packed))
        return out

    def exclusive_sum(self, starts, counts, inputs, normalize, backward):
        before = lambda x: x.cumsum(0) - x  # noqa: E731
        return self.rays(starts, counts, (lambda x: before(x.flip(0)).flip(0)) if backward else before, inputs)

    def exclusive_prod_forward(self, starts, counts, inputs):
        return self.rays(starts, counts, lambda x: torch.cat([torch.ones_like(x[:1]), x.cumprod(0)[:-1]]) if len(x) else x, inputs)

    def exclusive_prod_backward(self, starts, counts, inputs, outputs, grads):
        behind = self.exclusive_sum(starts, counts, grads * outputs, False, True)
        return behind / inputs.clamp_min(1e-10)


@pytest.mark.parametrize("kind", ["mixed", "none"])
@pytest.mark.parametrize("op", OPS)
def test_nerfacc_is_called_as_its_functions_want(op, kind, monkeypatch):
    """backend "nerfacc" reaches nerfacc's public functions in each operation but the distortion, and is the twin."""
    import nerfacc
    from nerfacc import scan

    calls = []
    for name in ("render_weight_from_alpha", "render_transmittance_from_density", "accumulate_along_rays"):
        real = getattr(nerfacc, name)
        monkeypatch.setattr(nerfacc, name, lambda *a, real=real, name=name, **k: calls.append(name) or real(*a, **k))
    monkeypatch.setattr(scan, "_C", StandIns())
    c = Case(COUNTS[kind], extremes=False)
    (x, twin), (y, theirs) = c.run(op, "torch", 0.3), c.run(op, "nerfacc", 0.3)
    for got, want in zip(theirs, twin):
        close(got.detach(), want.detach(), 1e-5)
    for got, want in zip(gradients(y, theirs), gradients(x, twin)):
        close(got, want, 1e-4)
    want_calls = {"alpha": 1, "density": 1, "accumulate": 1, "ones": 1, "composite": 2, "distortion": 0}[op]
    assert len(calls) == (want_calls if kind == "mixed" else 0)


@pytest.mark.gpu
@needs_warp
@pytest.mark.parametrize("op", OPS)
def test_gpu_is_the_twin(op):
    c, d = Case(COUNTS["many"]), Case(COUNTS["many"], device="cuda")
    (x, twin), (y, kernel) = c.run(op), d.run(op, "warp")
    for got, want in zip(kernel, twin):
        close(got.detach().cpu(), want.detach(), 1e-5)
    for got, want in zip(gradients(y, kernel), gradients(x, twin)):
        close(got.cpu(), want, 1e-4)
    close(d.run(op)[1][0].detach().cpu(), twin[0].detach(), 1e-5)


@pytest.mark.gpu
@pytest.mark.timeout(600)
@pytest.mark.parametrize("op", OPS)
def test_gpu_is_nerfacc(op):
    require("nerfacc")
    c, d = Case(COUNTS["many"], extremes=False), Case(COUNTS["many"], device="cuda", extremes=False)
    (x, twin), (y, theirs) = c.run(op), d.run(op, "nerfacc")
    for got, want in zip(theirs, twin):
        close(got.detach().cpu(), want.detach(), 1e-5)
    for got, want in zip(gradients(y, theirs), gradients(x, twin)):
        close(got.cpu(), want, 1e-4)
