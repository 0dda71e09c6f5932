"""Parts of photographs that the scene cannot explain lose their say."""

import torch

from models.distractors import CELL, LEAST, Distractors
from process_data.load import load_scene
from process_data.rays import RayDataset
from systems.build import build_system
from systems.losses import rgb_charbonnier, rgb_l1, rgb_mse
from tests.systems.test_family import tiny


def pixels(n: int, width: int, height: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(view [P], uv [P, 2]) of every second pixel of n photographs."""
    view, v, u = torch.meshgrid(torch.arange(n), torch.arange(0, height, 2), torch.arange(0, width, 2), indexing="ij")
    return view.flatten(), torch.stack([u, v], -1).reshape(-1, 2).float()


def test_a_patch_with_large_errors_is_not_trusted():
    d = Distractors(3, 8 * CELL, 6 * CELL)
    view, uv = pixels(3, 8 * CELL, 6 * CELL)
    bad = (view == 1) & (uv >= 2 * CELL).all(1) & (uv < 5 * CELL).all(1)  # 3 x 3 cells of photograph 1
    texture = 0.06 * torch.rand(len(uv), generator=torch.Generator().manual_seed(0)) + 0.02
    for _ in range(30):
        d.note(d.cells(view, uv), torch.where(bad, 0.4, texture))
    d.refresh()
    trust = d.trust.view(d.shape)
    assert trust[1, 3, 3] < 0.1 and (trust[[0, 2]] > 0.9).all()
    assert trust[1, 0, 7] > 0.9 and trust.min() >= LEAST


def test_a_single_wrong_pixel_and_a_fine_texture_are_trusted():
    """All of a photograph is twice as wrong as the others, and one pixel far off: nothing is left out."""
    d = Distractors(2, 4 * CELL, 4 * CELL)
    view, uv = pixels(2, 4 * CELL, 4 * CELL)
    error = torch.where(view == 0, 0.1, 0.05)
    error[7] = 1.0
    for _ in range(30):
        d.note(d.cells(view, uv), error)
    d.refresh()
    assert d.trust.min() > 0.6


def test_a_running_mean_does_not_depend_on_how_rays_are_batched():
    """Nor on whether one process saw all rays, or two a part each."""
    one, two, a, b = (Distractors(1, 2 * CELL, CELL) for _ in range(4))
    for k in range(3):
        cell, error = torch.tensor([0, 0, 1]), torch.tensor([0.2, 0.4, 0.4]) + 0.1 * k
        one.note(cell, error)
        one.refresh()
        two.note(cell[:1], error[:1])
        two.note(cell[1:], error[1:])
        two.refresh()
        a.note(cell[:1], error[:1])
        b.note(cell[1:], error[1:])
        whole = a.pending + b.pending
        for part in (a, b):
            part.refresh(lambda tensors, whole=whole: tensors[0].copy_(whole))
        for other in (two, a, b):
            assert torch.allclose(one.error, other.error) and torch.allclose(one.trust, other.trust)
        assert k or torch.allclose(one.error, torch.tensor([0.3, 0.4]))


def test_an_error_that_is_not_finite_is_left_out():
    """A step that is skipped must not leave anything behind that makes the next ones so."""
    d = Distractors(1, 2 * CELL, CELL)
    d.note(torch.tensor([0, 0, 1]), torch.tensor([0.2, torch.nan, torch.inf]))
    d.refresh()
    assert torch.allclose(d.error, torch.tensor([0.2, 0.0])) and torch.isfinite(d.trust).all() and d.seen.tolist() == [1, 0]


def test_gradients_are_scaled_by_the_trust():
    d = Distractors(1, 2 * CELL, CELL)
    d.trust.copy_(torch.tensor([1.0, 0.25]))
    uv, view = torch.tensor([[3.0, 3.0], [CELL + 3.0, 3.0]]), torch.zeros(2, dtype=torch.long)
    rgb, truth = torch.full((2, 3), 0.5, requires_grad=True), torch.ones(2, 3)
    assert d.trusted(view, uv, truth, rgb, 0.0) is rgb
    for term in (rgb_l1, rgb_mse, rgb_charbonnier):
        grad = torch.autograd.grad(term(d.trusted(view, uv, truth, rgb, 0.5), truth), rgb)[0]
        assert torch.allclose(grad[1] / grad[0], torch.full((3,), 0.25)) and float(grad[0].sum()) < 0
    assert torch.equal(d.trusted(view, uv, truth, rgb, 0.5), rgb)


def test_a_run_remembers_what_it_trusts(tiny_scene, tmp_path):
    """The errors are part of the checkpoint, and a part of a photograph that is not trusted teaches nothing."""
    scene = load_scene(tiny("dtu-wmask", tiny_scene, tmp_path).dataset, 1.0)
    cfg = tiny("dtu-wmask", tiny_scene, tmp_path, "model.distractors=true", "optim.lr_variance=0", "loss.eikonal=0", "loss.mask=0")
    system = build_system(cfg, torch.device("cpu"), scene)
    batch = RayDataset(scene, 1.0, 0)[0, 64]
    distractors = system.model.distractors
    system.losses(batch, 0.0)
    distractors.refresh()
    assert 0 < float(distractors.seen.mean()) < 1 and float(distractors.error.max()) > 0.01
    assert "distractors.error" in system.model.state_dict()

    def gradient() -> float:
        torch.manual_seed(0)
        system.model.zero_grad()
        system.losses(batch, 0.5)["rgb"].backward()
        return float(sum(p.grad.abs().sum() for p in system.model.parameters() if p.grad is not None))

    whole = gradient()
    distractors.trust.fill_(0.0)
    assert whole > 0 and gradient() == 0
