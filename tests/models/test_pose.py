"""Refined cameras: the gauge, the rays, and a camera that finds back to its place."""

import torch

from models.pose import CameraRefinement, gauge_basis, rotation
from utils.rays import Rays, sphere_span


def centres(n: int = 12) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(n, 3, generator=torch.Generator().manual_seed(0)), dim=1) * 3


def test_rotation_is_rodrigues_and_has_a_gradient_at_zero():
    w = torch.tensor([[0.0, 0.0, 0.3]])
    assert torch.allclose(rotation(w)[0, :2, :2], torch.tensor([[0.95534, -0.29552], [0.29552, 0.95534]]), atol=1e-5)
    zero = torch.zeros(1, 3, requires_grad=True)
    (rotation(zero) * torch.arange(9.0).view(1, 3, 3)).sum().backward()
    assert torch.allclose(zero.grad, torch.tensor([[7.0 - 5, 2 - 6, 3 - 1]]))


def test_a_common_motion_is_projected_out():
    """A rotation, a shift and a growth of all training cameras together change nothing."""
    x, train = centres(), range(1, 12)
    pose = CameraRefinement(x, train)
    turn, shift = torch.tensor([0.01, -0.02, 0.005]), torch.tensor([0.03, 0.0, -0.01])
    with torch.no_grad():
        pose.delta[:, :3] = turn
        pose.delta[:, 3:] = torch.linalg.cross(turn.expand_as(x), x) + shift + 0.02 * x
    w, t = pose.corrections()
    assert w[1:].abs().max() < 1e-6 and t[1:].abs().max() < 1e-6
    assert torch.equal(w[0], turn)  # a held-out camera is not part of it
    basis = gauge_basis(x, pose.held)
    assert torch.allclose(basis.T @ basis, torch.eye(7), atol=1e-5)


def test_one_camera_keeps_its_own_motion():
    x = centres(40)
    pose = CameraRefinement(x, range(40))
    with torch.no_grad():
        pose.delta[3] = torch.tensor([0.01, 0, 0, 0, 0.02, 0])
    w, t = pose.corrections()
    assert (w[3] - torch.tensor([0.01, 0, 0])).norm() < 0.003 and (t[3] - torch.tensor([0, 0.02, 0])).norm() < 0.006


def test_rays_and_cameras_move_alike():
    x = centres()
    pose = CameraRefinement(x, range(12))
    with torch.no_grad():
        pose.delta.normal_(0, 0.05, generator=torch.Generator().manual_seed(1))
    c2w = torch.cat([torch.linalg.qr(torch.randn(12, 3, 3, generator=torch.Generator().manual_seed(2)))[0], x[:, :, None]], 2)
    local = torch.nn.functional.normalize(torch.tensor([0.1, -0.2, 1.0]), dim=0)
    view = torch.arange(12)
    dirs = c2w[:, :, :3] @ local
    refined = pose.refine(Rays(x, dirs, *sphere_span(x, dirs, 1.0)), view, 1.0)
    moved = pose.cameras(c2w)
    assert torch.allclose(refined.dirs, (moved[:, :, :3] @ local.double()).float(), atol=1e-6)
    assert torch.allclose(refined.origins, moved[:, :, 3].float(), atol=1e-6)
    near, far = sphere_span(refined.origins, refined.dirs, 1.0)
    assert torch.equal(refined.near, near) and torch.equal(refined.far, far)


def test_a_turned_camera_finds_back():
    """Colour is a smooth function of where a ray hits the plane z = 0; one of five cameras is turned and shifted."""
    generator = torch.Generator().manual_seed(0)
    x = torch.tensor([[0.5, 0, 2], [-0.5, 0, 2], [0, 0.5, 2], [0, -0.5, 2], [0, 0, 2.5]])
    pose, wrong = CameraRefinement(x, range(5)), torch.tensor([0.01, -0.02, 0.03])
    optimizer = torch.optim.Adam(pose.parameters(), lr=1e-3)

    def colour(o, d):
        p = o - d * (o[:, 2:] / d[:, 2:])
        return torch.stack([torch.sin(3 * p[:, 0]), torch.sin(2 * p[:, 1] + 1), torch.cos(p[:, 0] * p[:, 1])], 1)

    errors = []
    for _ in range(300):
        view = torch.randint(5, (256,), generator=generator)
        dirs = torch.nn.functional.normalize(torch.cat([torch.randn(256, 2, generator=generator) * 0.2, -torch.ones(256, 1)], 1), dim=1)
        truth = colour(x[view], dirs)
        given = torch.where((view == 2)[:, None], dirs @ rotation(wrong[None])[0].T, dirs)
        rays = pose.refine(Rays(x[view], given, *sphere_span(x[view], given, 1.0)), view, 1.0)
        loss = (colour(rays.origins, rays.dirs) - truth).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(float(loss.detach()))
    assert sum(errors[-10:]) < 0.05 * sum(errors[:10])


def test_a_rotation_is_the_exponential_at_every_angle():
    """Also where the series takes over, with its gradient."""
    for dtype, within in ((torch.float32, 2e-6), (torch.float64, 1e-12)):
        axis = torch.nn.functional.normalize(torch.randn(40, 3, dtype=dtype), dim=-1)
        w = (axis * torch.logspace(-6, 0.49, 40, dtype=dtype)[:, None]).requires_grad_()
        x, y, z = w.unbind(-1)
        zero = torch.zeros_like(x)
        expected = torch.linalg.matrix_exp(torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).view(-1, 3, 3))
        assert torch.allclose(rotation(w), expected, atol=within)
        g = torch.randn(40, 3, 3, dtype=dtype)
        grads = [torch.autograd.grad((r * g).sum(), w, retain_graph=True)[0] for r in (rotation(w), expected)]
        assert torch.allclose(*grads, atol=100 * within)
