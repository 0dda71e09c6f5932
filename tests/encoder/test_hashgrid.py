"""The hash grid: layout, derivatives of the twin, and kernel against twin (contract: 1e-5 values, 1e-4 derivatives)."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from encoder.hashgrid import HashGrid, HashGridSpec, encode_torch, level_rows
from tests.conftest import needs_warp

SPEC = dict(n_levels=6, log2_size=12, base=4, top=64)


def close(a, b, tolerance):
    assert a.shape == b.shape
    assert (a - b).abs().max() <= tolerance * b.abs().max() + 1e-12


def test_layout_follows_tiny_cuda_nn():
    spec = HashGridSpec(16, 2, 19, 16, 2048)
    growth = (2048 / 16) ** (1 / 15)
    assert spec.scales[3] == pytest.approx(16 * growth**3 - 1)
    assert spec.resolutions[0] == 16 and spec.resolutions[-1] == 2048
    assert spec.rows[0] == 16**3 and spec.rows[-1] == 2**19
    assert all(rows % 8 == 0 for rows in spec.rows)
    assert spec.dense[0] and not spec.dense[-1]


def test_dense_rows_are_row_major_and_hashed_rows_use_the_primes():
    spec = HashGridSpec(**SPEC)
    assert int(level_rows(spec, 0, torch.tensor([[1, 2, 3]]))) == 1 + 2 * 4 + 3 * 16
    want = (5 ^ (7 * 2654435761) ^ (9 * 805459861)) % 2**12
    assert int(level_rows(spec, 5, torch.tensor([[5, 7, 9]]))) == want


def test_a_lattice_point_gives_its_row():
    """At the lattice points of a level the encoding is the table row itself."""
    spec = HashGridSpec(n_levels=1, n_features=2, log2_size=12, base=9, top=9)
    table = torch.randn(spec.offsets[-1], 2)
    corner = torch.tensor([[3, 1, 4]])
    x = (corner - 0.5) / spec.scales[0]
    assert torch.allclose(encode_torch(x, table, spec), table[level_rows(spec, 0, corner)], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("smoothstep", [False, True])
def test_twin_derivatives_in_double(smoothstep):
    spec = HashGridSpec(n_levels=3, n_features=2, log2_size=8, base=3, top=9, smoothstep=smoothstep)
    table = torch.randn(spec.offsets[-1], 2, dtype=torch.float64, requires_grad=True)
    x = (torch.rand(4, 3, dtype=torch.float64) * 0.9 + 0.05).requires_grad_(True)
    assert gradcheck(lambda x, t: encode_torch(x, t, spec), (x, table))
    assert gradgradcheck(lambda x, t: encode_torch(x, t, spec), (x, table))


def away_from_faces(n, spec, margin=1e-4):
    """Points that keep `margin` from every cell face: a trilinear grid's derivative jumps there."""
    x = torch.rand(4 * n, 3)
    for scale in spec.scales:
        frac = (x * scale + 0.5) % 1
        x = x[((frac > margin * scale) & (frac < 1 - margin * scale)).all(1)]
    assert len(x) >= n // 4
    return x[:n]


@needs_warp
@pytest.mark.parametrize("features", [1, 2, 4, 8])
@pytest.mark.parametrize("smoothstep", [False, True])
@pytest.mark.parametrize("n_levels", [6, 3, 0])
@pytest.mark.parametrize("half", [False, True])
def test_kernel_against_twin(features, smoothstep, n_levels, half):
    from encoder.hashgrid_warp import encode_warp

    spec = HashGridSpec(n_features=features, smoothstep=smoothstep, half=half, **SPEC)
    table = torch.randn(spec.offsets[-1], features)
    table = (table.half().float() if half else table).requires_grad_(True)  # of values that float16 holds
    x = away_from_faces(500, spec).requires_grad_(True)
    results = []
    for encode in (encode_warp, encode_torch):
        y = encode(x, table, spec, n_levels)
        v = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
        if n_levels == 0:
            assert not y.any()
            return
        (slope,) = torch.autograd.grad((y * v).sum(), x, create_graph=True)
        (d_table,) = torch.autograd.grad(y.sin().sum(), table, retain_graph=True)
        second = torch.autograd.grad(((slope.norm(dim=1) - 1) ** 2).sum(), [table, v, x])
        results.append((y, slope, d_table, *second))
    kernel, twin = results
    close(kernel[0], twin[0], 1e-5)
    for a, b in zip(kernel[1:], twin[1:]):
        close(a, b, 1e-4)
    assert not twin[0][:, n_levels * features :].any() and not kernel[0][:, n_levels * features :].any()


@needs_warp
@pytest.mark.gpu
@pytest.mark.parametrize("smoothstep", [False, True])
@pytest.mark.parametrize("half", [False, True])
def test_gpu_is_the_twin(smoothstep, half):
    """Values, first and second derivatives of the kernels on CUDA against the twin on the CPU."""
    from encoder.hashgrid_warp import encode_warp

    spec = HashGridSpec(smoothstep=smoothstep, half=half, **SPEC)
    table, x = torch.randn(spec.offsets[-1], 2), away_from_faces(3000, spec)
    table = table.half().float() if half else table
    results = []
    for encode, device in ((encode_warp, "cuda"), (encode_torch, "cpu")):
        t, p = (leaf.detach().to(device).requires_grad_(True) for leaf in (table, x))
        y = encode(p, t, spec, 5)
        v = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(device).requires_grad_(True)
        (slope,) = torch.autograd.grad((y * v).sum(), p, create_graph=True)
        (d_table,) = torch.autograd.grad(y.sin().sum(), t, retain_graph=True)
        second = torch.autograd.grad(((slope.norm(dim=1) - 1) ** 2).sum(), [t, v, p])
        results.append([r.detach().cpu() for r in (y, slope, d_table, *second)])
    close(results[0][0], results[1][0], 1e-5)
    for a, b in zip(results[0][1:], results[1][1:]):
        close(a, b, 1e-4)


@needs_warp
def test_kernel_values_on_faces_and_corners():
    from encoder.hashgrid_warp import encode_warp

    spec = HashGridSpec(**SPEC)
    table = torch.randn(spec.offsets[-1], 2)
    ends = torch.tensor([0.0, 1.0, -0.5, 1.5, 0.5])
    x = torch.cartesian_prod(ends, ends, ends)
    lattice = torch.cat([(torch.arange(1, 4)[:, None].expand(-1, 3) - 0.5) / scale for scale in spec.scales]).clamp(0, 1)
    x = torch.cat([x, lattice])
    close(encode_warp(x, table, spec), encode_torch(x, table, spec), 1e-5)


@needs_warp
def test_kernel_without_points():
    from encoder.hashgrid_warp import encode_warp

    spec = HashGridSpec(**SPEC)
    table = torch.randn(spec.offsets[-1], 2, requires_grad=True)
    x = torch.empty(0, 3, requires_grad=True)
    y = encode_warp(x, table, spec)
    assert y.shape == (0, spec.width)
    (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    (slope.sum() + y.sum()).backward()
    assert not table.grad.any()


@needs_warp
def test_kernel_is_the_same_on_any_number_of_threads():
    """Threads own levels in the backward pass: the order of additions, and so every bit, is fixed."""
    from encoder.hashgrid_warp import scatter

    spec = HashGridSpec(**SPEC)
    x, g, h = torch.rand(5000, 3), torch.randn(spec.width, 5000), torch.randn(5000, 3)
    before = torch.get_num_threads()
    try:
        outs = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            outs.append(scatter(x, spec, 6, g, h, g, torch.zeros(spec.offsets[-1], 2)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(outs[0], outs[1]) and torch.equal(outs[0], outs[2])


def test_module_starts_near_zero_and_skips_levels():
    grid = HashGrid(HashGridSpec(**SPEC))
    x = torch.rand(10, 3)
    assert grid(x).abs().max() <= 1e-4
    assert not grid(x, 2)[:, 4:].any() and grid(x, 2)[:, :4].any()


@needs_warp
def test_gradients_in_place_are_those_of_autograd():
    """Within `gradients_in_place` the uses of a table add to one gradient, none of them makes its own; the sum is that of autograd."""
    from encoder.hashgrid_warp import encode_warp
    from utils.in_place import gradients_in_place

    spec = HashGridSpec(smoothstep=True, **SPEC)
    table = torch.randn(spec.offsets[-1], 2).requires_grad_(True)
    x = torch.rand(300, 3).requires_grad_(True)

    def loss():
        y = encode_warp(x, table, spec)
        (normal,) = torch.autograd.grad(y.sum(), x, create_graph=True)  # the table's gradient also comes through the derivative
        return y.square().sum() + normal.square().sum() * 1e-3 + encode_warp(x.detach(), table, spec).sum()

    loss().backward()
    want, wanted_x = table.grad, x.grad
    table.grad, x.grad = torch.zeros_like(table), None
    kept = table.grad
    with gradients_in_place():
        loss().backward()
    assert table.grad is kept
    close(kept, want, 1e-5)
    close(x.grad, wanted_x, 1e-6)
    table.grad = None
    made = []
    table.register_hook(made.append)  # of the gradients that autograd is given
    with gradients_in_place():
        loss().backward()
    assert not [grad for grad in made if grad is not None]
    close(table.grad, want, 1e-5)
    loss().backward()
    close(table.grad, 2 * want, 1e-5)
    assert made


@needs_warp
def test_a_part_of_a_parameter_has_its_gradient_from_autograd():
    from encoder.hashgrid_warp import encode_warp
    from utils.in_place import gradients_in_place

    spec = HashGridSpec(**SPEC)
    rows, x = spec.offsets[-1], torch.rand(50, 3)
    both = torch.randn(2 * rows, 2).requires_grad_(True)
    with gradients_in_place():
        encode_warp(x, both[rows:], spec).square().sum().backward()
    table = both[rows:].detach().requires_grad_(True)
    encode_warp(x, table, spec).square().sum().backward()
    close(both.grad[rows:], table.grad, 1e-6)
    assert not both.grad[:rows].any()
