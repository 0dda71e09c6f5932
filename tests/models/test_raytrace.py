"""Rays against a mesh: the analytic sphere, and Warp's kernel against the torch twin."""

from dataclasses import fields

import pytest
import torch
import trimesh
from torch.nn import functional as F

from models.raytrace import MeshTracer, interpolate, vertex_normals
from tests.conftest import needs_warp


def ball(subdivisions: int) -> tuple[torch.Tensor, torch.Tensor]:
    mesh = trimesh.creation.icosphere(subdivisions)
    return torch.tensor(mesh.vertices).float(), torch.tensor(mesh.faces)


def rays(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    origins = 3 * F.normalize(torch.randn(n, 3), dim=-1)
    return origins, F.normalize(0.9 * torch.randn(n, 3) - origins, dim=-1)


@needs_warp
def test_a_fine_ball_is_the_sphere():
    tracer = MeshTracer(*ball(6), backend="warp")
    origins, dirs = rays(4000)
    middle = -(origins * dirs).sum(-1)
    closest = (origins + middle[:, None] * dirs).norm(dim=1)
    hits = tracer(origins, dirs)
    clear = (closest - 1).abs() > 0.01
    assert torch.equal(hits.found[clear], (closest < 1)[clear])
    at = hits.found & (closest < 0.95)
    assert torch.allclose(hits.t[at], (middle - (1 - closest**2).clamp(min=0).sqrt())[at], atol=2e-3)
    index = torch.nonzero(at)[:, 0]
    points = interpolate(tracer.vertices, tracer.faces, hits, index)
    assert torch.allclose(points, origins[index] + hits.t[index, None] * dirs[index], atol=1e-5)
    normal = F.normalize(interpolate(vertex_normals(tracer.vertices, tracer.faces), tracer.faces, hits, index), dim=-1)
    assert float((normal - points).norm(dim=1).max()) < 5e-3


@needs_warp
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("n", [0, 1, 3000])
def test_the_kernel_agrees_with_its_twin(n, device):
    vertices, faces = ball(2)
    origins, dirs = rays(n)
    a = MeshTracer(vertices.to(device), faces.to(device), "warp")(origins.to(device), dirs.to(device))
    a = type(a)(*(getattr(a, f.name).cpu() for f in fields(a)))
    b = MeshTracer(vertices, faces, "torch")(origins, dirs)
    assert torch.equal(a.found, b.found)
    at = a.found
    assert torch.allclose(a.t[at], b.t[at], atol=1e-5) and torch.equal(a.face[at], b.face[at])
    assert torch.allclose(a.weights[at], b.weights[at], atol=1e-4)


def test_averaged_normals_are_smoother_and_still_unit():
    vertices, faces = ball(3)
    noisy = vertices + 0.02 * torch.randn_like(vertices)
    rough, smooth = (vertex_normals(noisy, faces, rounds) for rounds in (0, 5))
    assert float((smooth - vertices).norm(dim=1).mean()) < 0.5 * float((rough - vertices).norm(dim=1).mean())
    assert torch.allclose(smooth.norm(dim=1), torch.ones(1), atol=1e-5)
