"""Under CUDA autocast every custom autograd function, and what rests on small differences, computes as without."""

import importlib
import pkgutil
from contextlib import nullcontext

import pytest
import torch
from torch.nn import functional as F

import encoder
import models
import systems
import utils
from confs.model import SDFConfig
from encoder.directional import IntegratedDirectional
from encoder.get_encoding import HashGridSpec, get_encoding
from models import volrend
from models.method import RenderOutput
from models.network import scale_gradient, trunc_exp
from models.pose import CameraRefinement
from models.sdf import SDFNetwork
from models.volrend_warp import Accumulate, Composite, Distortion, TransmittanceWeights
from process_data.rays import RayDataset, make_rays
from systems.patches import Patches, _Bilinear
from tests.pretend.device import pretended_cuda
from tests.systems.test_patches import BALL, ball_scene
from utils.colour import clip
from utils.rays import FieldOutput, Rays, Render

OFFSETS = torch.tensor([0, 3, 3, 8])
SPEC = HashGridSpec(n_levels=3, n_features=2, log2_size=8, base=4, top=16, smoothstep=True)


def unit(n):
    return F.normalize(torch.randn(n, 3), dim=1)


def grid(x, table):
    from encoder.hashgrid_warp import encode_warp

    return encode_warp(x.sigmoid(), table, SPEC)


def sdf(x, **options):
    """The fused function with its normals; the network is the same at every call."""
    torch.manual_seed(1)
    net = SDFNetwork(SDFConfig(**options), get_encoding("hashgrid", spec=SPEC, backend="warp"), 1.0).to(x.device)
    found = net(x, 3)
    return torch.cat([found.sdf[:, None], found.grad, found.feature], 1)


def sdf_by_autograd(x):
    torch.manual_seed(1)
    net = SDFNetwork(SDFConfig(), get_encoding("hashgrid", spec=SPEC, backend="warp"), 1.0).to(x.device)
    found = net.forward_torch(x, 3)
    return torch.cat([found.sdf[:, None], found.grad], 1)


def turned(dirs):
    """Cameras turned by about a tenth of a degree."""
    torch.manual_seed(1)
    pose = CameraRefinement(torch.randn(6, 3), range(6))
    with torch.no_grad():
        pose.delta.normal_(0, 2e-3)
    pose = pose.to(dirs.device)
    rays = Rays(-3 * dirs, dirs, torch.ones_like(dirs[:, 0]), torch.ones_like(dirs[:, 0]))
    return (pose.refine(rays, torch.arange(len(dirs), device=dirs.device) % 6, 1.0).dirs - dirs) * 100


def grey():
    """Two pictures of 8x5 pixels, and room behind them."""
    return torch.randint(256, (2 * 40 + 9,), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


class Ball:
    """The distance to a ball."""

    pose, radius = None, 1.0

    def __init__(self, size):
        self.size = size

    def field_at(self, points, context):
        away = points.norm(dim=1)
        return FieldOutput(away - self.size, points / away[:, None], points[:, :0])


def patches(off):
    """The term of a ball that is too large by `off`."""
    torch.manual_seed(1)
    scene = ball_scene(8)
    batch = RayDataset(scene, 1.0, seed=0, device=off.device)[(0, 500)]
    span = make_rays(scene.cameras.to(off.device), batch.view, batch.uv, BALL)
    hit = span.near < span.far
    render = Render(batch.rgb, hit.float(), torch.where(hit, span.near, 0.0), torch.zeros_like(batch.rgb))
    return Patches(scene, off.device)(batch, RenderOutput(render), Ball(BALL + off), None)[None]


# name -> (function of float tensors, its inputs, whether it is differentiable twice)
CASES = {
    "_Encode, _EncodeBackward": (grid, lambda: (torch.randn(9, 3), torch.randn(SPEC.offsets[-1], 2)), True),
    "FusedSDF": (sdf, lambda: (unit(9) * 0.5,), False),
    "SDF by autograd": (sdf_by_autograd, lambda: (unit(9) * 0.5,), False),
    "SDF by differences": (lambda x: sdf(x, normals="finite", eps=0.002)[:, 1:4], lambda: (unit(9) * 0.5,), False),
    "_Harmonics": (lambda d, r: IntegratedDirectional(3).to(d.device)(d, r), lambda: (unit(9), torch.rand(9)), False),
    "TransmittanceWeights": (lambda a, o: TransmittanceWeights.apply(a, o, 0.0, False)[0], lambda: (torch.rand(8), OFFSETS), False),
    "Accumulate": (lambda w, v, o: Accumulate.apply(w, v, o), lambda: (torch.rand(8), torch.rand(8, 3), OFFSETS), False),
    "Composite": (lambda a, v, o: Composite.apply(a, v, o, 0.0)[0], lambda: (torch.rand(8), torch.rand(8, 3), OFFSETS), False),
    "Distortion": (lambda w, m, t, o: Distortion.apply(w, m, t, o), lambda: (*torch.rand(3, 8).sort(1).values, OFFSETS), False),
    "_TruncExp": (trunc_exp, lambda: (torch.randn(9),), True),
    "_ScaleGradient": (lambda t, a, b: torch.cat(scale_gradient(t, a * a, b * b)), lambda: (torch.rand(9), torch.rand(9), torch.rand(9)), True),
    "_Clip": (lambda x: clip(x * x), lambda: (torch.randn(9),), True),
    "_Bilinear": (lambda uv: _Bilinear.apply(grey().to(uv.device), torch.full((9,), 40).to(uv.device), uv, 8), lambda: (torch.rand(9, 2) * 3,), False),
    "patches": (patches, lambda: (torch.tensor(0.02),), False),
    "turned cameras": (turned, lambda: (unit(9),), False),
}  # fmt: skip


def derivatives(name, autocast, dtype=torch.float32):
    """The value, its gradients, and those of a gradient's square where the function is differentiable twice."""
    torch.manual_seed(0)
    function, make, twice = CASES[name]
    inputs = [t.to("cuda") for t in make()]
    given = [t.to(dtype).requires_grad_() if t.is_floating_point() else t for t in inputs]
    floats = [t for t in given if t.is_floating_point()]
    with torch.autocast("cuda") if autocast else nullcontext():
        out = function(*given)
        weight = torch.linspace(0.5, 1.5, out.numel(), device="cuda").view(out.shape)
        total = (out * weight).sum()
    with torch.autocast("cuda") if autocast and twice else nullcontext():  # a normal is taken inside, the loss's gradient outside
        first = torch.autograd.grad(total, floats, create_graph=twice, allow_unused=True)
        found = [out, *first]
        if twice:
            square = sum((g * g).sum() for g in first if g is not None)
            found += torch.autograd.grad(square, floats, allow_unused=True)
    return [None if t is None else t.detach().cpu().float() for t in found]


@pytest.mark.parametrize("name", CASES)
def test_autocast_changes_nothing(name):
    with pretended_cuda():
        for a, b in zip(derivatives(name, True), derivatives(name, False), strict=True):
            assert (a is None) == (b is None)
            assert a is None or torch.allclose(a, b, rtol=1e-5, atol=1e-6 * float(b.abs().max() + 1))


@pytest.mark.parametrize("name", ["TransmittanceWeights", "Accumulate", "Composite", "Distortion", "_TruncExp", "_Harmonics"])
def test_half_inputs_are_taken(name):
    """As a network under autocast gives them."""
    with pretended_cuda():
        for a, b in zip(derivatives(name, True, torch.float16), derivatives(name, False), strict=True):
            assert a is None or torch.allclose(a, b, rtol=0.02, atol=0.02)


def test_every_function_of_the_project_is_among_the_cases():
    found = set()
    for room in (encoder, models, systems, utils):
        for module in pkgutil.iter_modules(room.__path__):
            if module.name.endswith("_cpu"):  # of the CPU alone
                continue
            try:
                inside = importlib.import_module(f"{room.__name__}.{module.name}")
            except ImportError:  # an optional package
                continue
            functions = (c for c in vars(inside).values() if isinstance(c, type) and issubclass(c, torch.autograd.Function))
            found |= {c.__name__ for c in functions if c.__module__ == inside.__name__}
    found -= {"_Contiguous"}  # computes nothing
    assert len(found) > 8 and found <= {name for names in CASES for name in names.split(", ")}


def test_composite_of_half_colours_is_that_of_float():
    with pretended_cuda():
        alpha, colour = torch.rand(8).to("cuda"), torch.rand(8, 3).to("cuda")
        index = torch.tensor([0, 0, 0, 2, 2, 2, 2, 2]).to("cuda")
        with torch.autocast("cuda"):
            sums, _ = volrend.composite(alpha, colour.half(), OFFSETS.to("cuda"), index, backend="warp")
        expected, _ = volrend.composite(alpha, colour, OFFSETS.to("cuda"), index, backend="torch")
        assert sums.dtype == torch.float32 and torch.allclose(sums.held, expected.held, atol=1e-2)
