"""tiny-cuda-nn's grid: its layout computed as it does, a stand-in with its demands on the CPU, and the library itself on a GPU."""

import math
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from encoder.hashgrid import HashGrid, HashGridSpec, encode_torch
from encoder.hashgrid_tcnn import _encoding, encode_tcnn, growths
from tests.conftest import require
from tests.encoder.test_hashgrid import SPEC, away_from_faces, close
from utils.errors import UserError


def rows_of(n_levels: int, base: int, growth: float, log2_size: int) -> list[int]:
    """Rows of each level by grid.h: scales in float32, levels padded to 8 rows, cut off at the size of the hash table."""
    rows = []
    for level in range(n_levels):
        scale = np.exp2(np.float32(level) * np.log2(np.float32(growth))) * np.float32(base) - np.float32(1)
        side = math.ceil(scale) + 1
        rows.append(min((side**3 + 7) // 8 * 8, 2**log2_size))
    return rows


GRIDS = [
    (16, 19, 16, 2048),
    (14, 18, 16, 1024),
    (5, 17, 16, 128),
    (5, 17, 16, 256),
    (6, 12, 4, 64),
    (8, 19, 16, 2048),
    (4, 10, 4, 32),
    (6, 19, 16, 64),
]


@pytest.mark.parametrize(("n_levels", "log2_size", "base", "top"), GRIDS)
def test_rows_are_those_of_tiny_cuda_nn(n_levels, log2_size, base, top):
    spec = HashGridSpec(n_levels, 2, log2_size, base, top)
    assert any(rows_of(n_levels, base, growth, log2_size) == list(spec.rows) for growth in growths(spec))
    assert growths(spec)[0] == pytest.approx(growths(spec)[-1], rel=1e-6)


class Forward(torch.autograd.Function):
    """modules.py: _module_function."""

    @staticmethod
    def forward(ctx, native, x, params, loss_scale):
        ctx.set_materialize_grads(False)
        ctx.native, ctx.loss_scale = native, loss_scale
        y = native.fwd(x, params)
        ctx.save_for_backward(x, params)
        return y

    @staticmethod
    def backward(ctx, d_y):
        x, params = ctx.saved_tensors
        return None, *Backward.apply(ctx.native, ctx.loss_scale, d_y, x, params), None


class Backward(torch.autograd.Function):
    """modules.py: _module_function_backward, which knows no derivative of the parameters' gradient."""

    @staticmethod
    def forward(ctx, native, loss_scale, d_y, x, params):
        ctx.native, ctx.loss_scale = native, loss_scale
        ctx.save_for_backward(x, params, d_y)
        return tuple(g / loss_scale for g in native.bwd(x, params, d_y * loss_scale))

    @staticmethod
    def backward(ctx, dd_x, dd_params):
        x, params, d_y = ctx.saved_tensors
        d_d_y, d_params, d_x = ctx.native.bwd_bwd_input(x, params, dd_x, d_y * ctx.loss_scale)
        return None, None, d_d_y, d_x / ctx.loss_scale, d_params / ctx.loss_scale


class Native:
    """The C++ module: what it demands of its arguments (bindings.cpp, object.h), computed by the twin."""

    def __init__(self, spec: HashGridSpec):
        self.spec = spec

    def demand(self, *tensors):
        assert all(t.is_contiguous() and t.dtype == torch.float32 for t in tensors)
        assert all(len(t) % 256 == 0 and len(t) for t in tensors if t.dim() == 2)

    def leaves(self, *tensors):
        return [t.detach().requires_grad_(True) for t in tensors]

    def encode(self, x, params):
        return encode_torch(x, params.view(-1, self.spec.n_features), self.spec)

    def fwd(self, x, params):
        self.demand(x, params)
        return self.encode(x, params).detach()

    def bwd(self, x, params, d_y):
        self.demand(x, params, d_y)
        with torch.enable_grad():
            x, params = self.leaves(x, params)
            return torch.autograd.grad(self.encode(x, params), (x, params), d_y)

    def bwd_bwd_input(self, x, params, dd_x, d_y):
        self.demand(x, params, dd_x, d_y)
        with torch.enable_grad():
            x, params, d_y = self.leaves(x, params, d_y)
            (d_x,) = torch.autograd.grad(self.encode(x, params), x, d_y, create_graph=True)
            d_d_y, d_params, d_x = torch.autograd.grad(d_x, (d_y, params, x), dd_x)
        return d_d_y, d_params, d_x


class Encoding(nn.Module):
    """modules.py: Encoding and Module.forward."""

    def __init__(self, n_input_dims, config, seed=1337, dtype=None):
        super().__init__()
        assert n_input_dims == 3 and config["otype"] == "HashGrid" and dtype == torch.float32
        self.loss_scale, c = 1.0, config
        rows = rows_of(c["n_levels"], c["base_resolution"], c["per_level_scale"], c["log2_hashmap_size"])
        self.params = nn.Parameter(torch.zeros(sum(rows) * c["n_features_per_level"]))
        top = round(c["base_resolution"] * c["per_level_scale"] ** (c["n_levels"] - 1))
        smooth = {"Smoothstep": True, "Linear": False}[c["interpolation"]]
        self.spec = HashGridSpec(c["n_levels"], c["n_features_per_level"], c["log2_hashmap_size"], c["base_resolution"], top, smooth)

    def forward(self, x):
        padded = (len(x) + 255) // 256 * 256
        full = x if len(x) == padded else nn.functional.pad(x, [0, 0, 0, padded - len(x)])
        out = Forward.apply(Native(self.spec), full.float().contiguous(), self.params.float().contiguous(), self.loss_scale)
        return out[: len(x), : self.spec.width]


@pytest.fixture
def stand_in(monkeypatch):
    library = types.ModuleType("tinycudann")
    library.Encoding = Encoding
    monkeypatch.setitem(sys.modules, "tinycudann", library)
    _encoding.cache_clear()
    yield library
    _encoding.cache_clear()


def derivatives(encode, x, table, spec, n_levels, device="cpu"):
    """Values, slope, and second derivatives, of gradients that are not contiguous: expanded and feature-major."""
    x, table = (t.detach().to(device).requires_grad_(True) for t in (x, table))
    y = encode(x, table, spec, n_levels)
    v = torch.randn(spec.width, len(x), generator=torch.Generator().manual_seed(1)).to(device).T.requires_grad_(True)
    (slope,) = torch.autograd.grad(y, x, v, create_graph=True)
    (flat,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    (d_table,) = torch.autograd.grad(y, table, v.detach(), retain_graph=True)
    u = torch.randn(3, len(x), generator=torch.Generator().manual_seed(2)).to(device).T
    second = torch.autograd.grad((slope, flat.sum()), (table, v, x), (u, torch.tensor(1.0, device=device)))
    return [t.detach().cpu() for t in (y, slope, d_table, *second)]


@pytest.mark.parametrize("n", [256, 300])
@pytest.mark.parametrize(("smoothstep", "n_levels"), [(False, 6), (True, 3)])
def test_the_library_gets_what_it_demands(n, smoothstep, n_levels, stand_in):
    spec = HashGridSpec(smoothstep=smoothstep, **SPEC)
    table, x = torch.randn(spec.offsets[-1], 2), away_from_faces(n, spec)
    assert len(x) == n
    for ours, want in zip(*(derivatives(f, x, table, spec, n_levels) for f in (encode_tcnn, encode_torch))):
        close(ours, want, 1e-5)
    assert not encode_tcnn(x, table, spec, n_levels)[:, n_levels * 2 :].any()
    assert not _encoding(spec).params.numel()  # the table is the only copy


def test_without_points(stand_in):
    spec = HashGridSpec(**SPEC)
    table = torch.randn(spec.offsets[-1], 2, requires_grad=True)
    y = encode_tcnn(torch.empty(0, 3), table, spec)
    assert y.shape == (0, spec.width)
    y.sum().backward()


def test_another_layout_is_refused_in_words(stand_in, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "rows_of", lambda *a: [8] * 6)
    with pytest.raises(UserError, match="tiny-cuda-nn lays this grid out in 48 rows, ours has"):
        encode_tcnn(torch.rand(4, 3), torch.randn(1, 2), HashGridSpec(**SPEC))


def test_a_model_is_made_on_the_cpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "tinycudann", None)
    assert HashGrid(HashGridSpec(**SPEC), "tinycudann")(torch.rand(3, 3)).shape == (3, 12)


@pytest.mark.gpu
@pytest.mark.parametrize("features", [1, 2, 4, 8])
@pytest.mark.parametrize("smoothstep", [False, True])
@pytest.mark.parametrize("n_levels", [6, 3])
def test_gpu_is_the_twin(features, smoothstep, n_levels):
    """Values, first and second derivatives; its scales are float32, so a position may be off by 1e-6 of the lattice."""
    require("tinycudann")
    spec = HashGridSpec(n_features=features, smoothstep=smoothstep, **SPEC)
    table, x = torch.randn(spec.offsets[-1], features), away_from_faces(500, spec)
    ours, twin = derivatives(encode_tcnn, x, table, spec, n_levels, "cuda"), derivatives(encode_torch, x, table, spec, n_levels)
    close(ours[0], twin[0], 1e-3)
    for got, want in zip(ours[1:], twin[1:]):
        close(got, want, 5e-3)


@pytest.mark.gpu
@pytest.mark.parametrize(("n_levels", "log2_size", "base", "top"), GRIDS)
def test_gpu_lays_real_grids_out_as_we_do(n_levels, log2_size, base, top):
    require("tinycudann")
    spec = HashGridSpec(n_levels, 2, log2_size, base, top)
    table, x = torch.rand(spec.offsets[-1], 2) - 0.5, torch.rand(4096, 3)
    # 1e-6 of a lattice of 2048 are 2e-3 cells; a wrong row would be off by the whole of a value
    close(encode_tcnn(x.cuda(), table.cuda(), spec).cpu(), encode_torch(x, table, spec), 2e-2)
