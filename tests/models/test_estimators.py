"""The occupancy grid keeps what may hold the surface, inside the sphere alone."""

import torch
from nerfacc import OccGridEstimator

from confs.model import OccupancyConfig
from models.estimators import OccupancyGrid, dilate
from utils.rays import Rays, sphere_span


def grid(resolution=16):
    return OccupancyGrid(OccupancyConfig(resolution=resolution), 1.0)


def centres(n):
    c = (torch.arange(n) + 0.5) / n * 2 - 1
    return torch.stack(torch.meshgrid(c, c, c, indexing="ij"), -1)


def test_nothing_outside_the_sphere():
    g = grid()
    outside = centres(16).norm(dim=-1) > 1 + 3**0.5 / 16
    assert not g.binaries[0][outside].any() and g.binaries[0][~outside].all()
    g.refresh(0, lambda x: torch.ones(len(x)))
    assert not g.binaries[0][outside].any()


def test_a_shell_is_found_kept_and_left_when_it_moves():
    g = grid(32)
    shell = lambda r: lambda x: torch.sigmoid(-(((x.norm(dim=1) - r).abs() - 0.06).clamp(min=0)) * 400) * 2  # noqa: E731
    g.refresh(0, shell(0.5))
    r = centres(32).norm(dim=-1)
    assert g.binaries[0][(r - 0.5).abs() < 0.02].all() and not g.binaries[0][(r - 0.5).abs() > 0.2].any()
    for step in range(16, 16 * 60, 16):
        g.refresh(step, shell(0.7))
    assert g.binaries[0][(r - 0.7).abs() < 0.02].float().mean() > 0.99
    assert not g.binaries[0][(r - 0.5).abs() < 0.02].any()


def test_refresh_only_every_so_many_steps_and_each_cell_once():
    g, evaluated = grid(), []

    def value(x):
        evaluated.append(x)
        return torch.zeros(len(x))

    for step in range(33):
        g.refresh(step, value)
    assert len(evaluated) == 3
    cells = ((evaluated[-1] + 1) * 8).long()
    assert len(torch.unique(cells, dim=0)) == len(cells)


def test_dilate_is_the_26_neighbourhood():
    cells = torch.zeros(7, 7, 7, dtype=torch.bool)
    cells[3, 3, 3] = cells[0, 0, 0] = True
    want = torch.nn.functional.max_pool3d(cells[None].float(), 3, 1, 1)[0] > 0
    assert torch.equal(dilate(cells), want)


def test_nothing_private_of_nerfacc_is_used_or_replaced():
    theirs = {name for cls in (OccGridEstimator, OccGridEstimator.__mro__[1]) for name in vars(cls) if name[0] == "_" and name[1] != "_"}
    assert {"_update", "_get_all_cells"} <= theirs
    assert not theirs & (vars(OccupancyGrid).keys() | vars(grid()).keys())


def test_checkpoints_keep_the_names_of_the_buffers():
    assert set(grid().state_dict()) == {"resolution", "aabbs", "occs", "binaries"}


def test_nerfaccs_own_refresh_still_works():
    g = grid()
    g.update_every_n_steps(0, lambda x: torch.ones(len(x), 1))
    assert torch.equal(g.binaries, (g.occs >= 0).view(g.binaries.shape))


def test_marching_by_nerfacc_comes_back_packed(monkeypatch):
    """Through `OccGridEstimator.sampling`, which must get jittered starts and may leave rays without samples."""
    origins = torch.tensor([[-3.0, 0, 0], [-3, 5, 0], [-3, 0, 0.1]])
    dirs = torch.tensor([[1.0, 0, 0]]).expand(3, 3)
    rays, jitter = Rays(origins, dirs, *sphere_span(origins, dirs, 1.0)), torch.tensor([0.0, 0.5, 0.5])
    g = OccupancyGrid(OccupancyConfig(resolution=16), 1.0, backend="nerfacc")

    def sampling(self, rays_o, rays_d, t_min, t_max, render_step_size):
        assert torch.equal(t_min, rays.near + jitter * 0.1) and t_max is rays.far and render_step_size == 0.1
        starts = torch.tensor([2.0, 2.1, 2.05])
        return torch.tensor([0, 0, 2]), starts, starts + 0.1

    monkeypatch.setattr(OccGridEstimator, "sampling", sampling)
    samples, proposals = g.sample(rays, 0.1, jitter)
    assert proposals is None and samples.offsets.tolist() == [0, 2, 2, 3] and samples.ray_indices.tolist() == [0, 0, 2]
