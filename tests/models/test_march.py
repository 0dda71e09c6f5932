"""Marching: the twin against a slow loop, the Warp kernels against the twin, properties, and nerfacc on a GPU."""

import itertools

import numpy as np
import pytest
import torch

from models.march import march
from tests.conftest import needs_warp, require
from utils.rays import Rays, Samples

RADIUS = 1.3


def make_rays(n: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Rays:
    """Rays from around the grid towards it, a quarter from inside; spans of all kinds."""
    g = torch.Generator().manual_seed(seed)
    origins = torch.nn.functional.normalize(torch.randn(n, 3, generator=g), dim=-1) * 3
    origins[: n // 4] *= torch.rand(n // 4, 1, generator=g) * 0.3
    target = (torch.rand(n, 3, generator=g) - 0.5) * 2.4
    dirs = torch.nn.functional.normalize(target - origins, dim=-1)
    near = torch.rand(n, generator=g) * 2
    return Rays(origins.to(dtype), dirs.to(dtype), near.to(dtype), (near + torch.rand(n, generator=g) * 5).to(dtype))


def make_grid(levels: int, res: int, share: float, seed: int = 0) -> torch.Tensor:
    """Occupied blobs: neighbouring cells often agree, as in a real grid."""
    noise = torch.randn(levels, 1, res, res, res, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.avg_pool3d(noise, 3, 1, 1)[:, 0]
    return smooth > smooth.flatten().sort().values[int((1 - share) * (smooth.numel() - 1))]


def slow_march(
    rays: Rays, binaries: torch.Tensor, radius: float, step: float, jitter: torch.Tensor | None, cone: float
) -> list[tuple[int, float, float]]:
    """One ray, one step, one level at a time."""
    found, (levels, res) = [], binaries.shape[:2]
    for r in range(len(rays)):
        o, d = rays.origins[r].numpy(), rays.dirs[r].numpy()
        t0, far = float(rays.near[r]) + (float(jitter[r]) * step if jitter is not None else 0.0), float(rays.far[r])
        t = t0
        for k in itertools.count():
            t_next = t + min(max(t * cone, step), 1e10) if cone else t0 + (k + 1) * step
            mid = (t + t_next) / 2
            if not mid < min(far, 100.0):
                break
            p = o + mid * d
            for level in range(levels):
                half = radius * 2**level
                cell = np.floor((p / (2 * half) + 0.5) * res).astype(int)
                if (cell >= 0).all() and (cell < res).all():
                    if binaries[(level, *cell)]:
                        found.append((r, t, t_next))
                    break
            t = t_next
    return found


def equal(a: Samples, b: Samples) -> bool:
    return all(torch.equal(getattr(a, f), getattr(b, f)) for f in ("t_starts", "t_ends", "ray_indices", "offsets"))


def both(*args, **kwargs) -> Samples:
    """The twin's samples, after comparing Warp's with them bit for bit."""
    twin = march(*args, **kwargs)
    assert equal(twin, march(*args, **kwargs, backend="warp"))
    assert torch.equal(twin.offsets.diff(), torch.bincount(twin.ray_indices, minlength=twin.n_rays))
    return twin


@pytest.mark.parametrize("levels, res, cone", [(1, 16, 0.0), (1, 7, 0.0), (2, 12, 0.0), (3, 10, 0.0), (1, 16, 0.05), (3, 16, 0.02)])
@pytest.mark.parametrize("jittered", [False, True])
def test_twin_is_the_slow_loop(levels, res, cone, jittered):
    rays = make_rays(24, seed=res, dtype=torch.float64)
    jitter = torch.rand(24, generator=torch.Generator().manual_seed(1), dtype=torch.float64) if jittered else None
    grid = make_grid(levels, res, 0.3)
    got = march(rays, grid, RADIUS, 0.03, jitter, cone)
    want = slow_march(rays, grid, RADIUS, 0.03, jitter, cone)
    assert len(want) > 20
    assert got.ray_indices.tolist() == [w[0] for w in want]
    torch.testing.assert_close(
        torch.stack([got.t_starts, got.t_ends], -1), torch.tensor([w[1:] for w in want], dtype=torch.float64), atol=1e-9, rtol=0
    )


@pytest.mark.parametrize("levels, res", [(1, 64), (1, 20), (1, 15), (2, 32), (3, 10), (3, 12), (2, 9)])
@pytest.mark.parametrize("share", [0.02, 0.5])
@pytest.mark.slow
def test_warp_is_the_twin_to_the_last_bit(levels, res, share):
    rays, grid = make_rays(400, seed=res), make_grid(levels, res, share, seed=levels)
    jitter = torch.rand(400, generator=torch.Generator().manual_seed(2))
    for step in (0.006, 0.05, 0.7):
        both(rays, grid, RADIUS, step)
        both(rays, grid, RADIUS, step, jitter)
    assert len(both(rays, grid, RADIUS, 0.01, jitter, 0.03))


def test_warp_on_cell_faces():
    """Rays that run along faces and edges of cells, through the corners, with zeros of both signs as directions."""
    axis = torch.cat([torch.eye(3), -torch.eye(3)])
    starts = torch.cartesian_prod(*[torch.tensor([-1.0, -0.75, 0.0, 0.125, 1.0])] * 3)
    dirs = torch.cat(
        [axis, torch.tensor([[1.0, 1, 0], [1, -1, 0], [1, 1, 1], [-1, -1, -1], [1, 1e-7, 0], [1, 1e-20, -1e-7], [0.6, -0.0, 0.8]])]
    )
    pairs = [(s - 2 * d / d.norm(), d / d.norm()) for s in starts for d in dirs]
    origins, dirs = (torch.stack(p) for p in zip(*pairs))
    rays = Rays(origins, dirs, torch.zeros(len(dirs)), torch.full((len(dirs),), 6.0))
    for levels, res in [(1, 16), (2, 16), (1, 5)]:
        assert len(both(rays, make_grid(levels, res, 0.4), 1.0, 1 / 32))


def test_hand_numbers():
    grid = torch.zeros(1, 4, 4, 4, dtype=torch.bool)
    grid[0, 1, 2, 2] = grid[0, 3, 2, 2] = True  # x in [-0.5, 0] and [0.5, 1], y and z in [0, 0.5]
    ray = Rays(torch.tensor([[-2.0, 0.1, 0.1]]), torch.tensor([[1.0, 0, 0]]), torch.tensor([0.0]), torch.tensor([2.75]))
    s = both(ray, grid, 1.0, 0.25)
    assert s.t_starts.tolist() == [1.5, 1.75, 2.5] and s.t_ends.tolist() == [1.75, 2.0, 2.75]  # the next midpoint, 2.875, lies beyond far
    s = both(ray, grid, 1.0, 0.25, torch.tensor([0.5]))
    assert s.t_starts.tolist() == [1.375, 1.625, 2.375]  # midpoints 1.5, 1.75, 2.5: the cell's low face is its own, the high one is not


def test_finest_level_decides():
    grid = torch.zeros(2, 8, 8, 8, dtype=torch.bool)
    grid[1] = True
    ray = Rays(torch.tensor([[-3.0, 0.1, 0.1]]), torch.tensor([[1.0, 0, 0]]), torch.tensor([0.0]), torch.tensor([9.0]))
    x = both(ray, grid, 1.0, 0.1).t_mid - 3
    assert ((x.abs() > 1) & (x.abs() < 2)).all() and len(x) == 20
    grid[0], grid[1] = True, False
    x = both(ray, grid, 1.0, 0.1).t_mid - 3
    assert (x.abs() < 1).all() and len(x) == 20


def test_lattice_does_not_depend_on_what_is_skipped():
    rays, jitter = make_rays(300), torch.rand(300, generator=torch.Generator().manual_seed(3))
    some, full = (
        both(rays, make_grid(1, 32, 0.05), RADIUS, 0.02, jitter),
        both(rays, torch.ones(1, 32, 32, 32, dtype=torch.bool), RADIUS, 0.02, jitter),
    )
    everything = set(zip(full.ray_indices.tolist(), full.t_starts.tolist(), full.t_ends.tolist()))
    assert 0 < len(some) < len(full) and set(zip(some.ray_indices.tolist(), some.t_starts.tolist(), some.t_ends.tolist())) <= everything
    k = (some.t_starts.double() - (rays.near.double() + jitter.double() * 0.02)[some.ray_indices]) / 0.02
    assert (k - k.round()).abs().max() < 1e-3


@pytest.mark.parametrize("cone", [0.0, 0.05])
def test_nothing_to_find(cone):
    rays, grid = make_rays(50), make_grid(1, 16, 0.5)
    assert len(both(rays[:0], grid, RADIUS, 0.01, None, cone)) == 0
    empty = both(rays, torch.zeros_like(grid), RADIUS, 0.01, None, cone)
    assert len(empty) == 0 and empty.offsets.tolist() == [0] * 51
    assert len(both(Rays(rays.origins, rays.dirs, rays.far + 1, rays.far), grid, RADIUS, 0.01, None, cone)) == 0
    away = Rays(rays.origins + 100, rays.dirs, rays.near, torch.full_like(rays.far, torch.inf))
    assert len(both(away, grid, RADIUS, 0.01, None, cone)) == 0


def test_infinite_far_ends_at_the_grid():
    rays = make_rays(50)
    s = both(Rays(rays.origins, rays.dirs, torch.zeros(50), torch.full((50,), torch.inf)), make_grid(1, 16, 0.5), RADIUS, 0.05)
    points = rays.origins[s.ray_indices] + s.t_mid[:, None] * rays.dirs[s.ray_indices]
    assert len(s) and points.abs().max() <= RADIUS + 1e-5


@needs_warp
def test_blocks_hold_any_cell():
    from models import march_warp

    grid = make_grid(2, 32, 0.01)
    for side in (4, 8):
        n = 32 // side
        want = grid.view(2, n, side, n, side, n, side).any(6).any(4).any(2)
        assert torch.equal(march_warp.any_in_blocks(grid, side).bool(), want)
    assert [march_warp.block_shift(*a) for a in [(1, 128), (1, 12), (1, 10), (2, 96), (2, 48), (2, 24)]] == [3, 2, 0, 3, 2, 0]


def test_refuses_what_it_cannot_do():
    rays = make_rays(2)
    with pytest.raises(ValueError, match="binaries"):
        march(rays, torch.ones(1, 4, 4, 5, dtype=torch.bool), 1.0, 0.1)
    with pytest.raises(ValueError, match="binaries"):
        march(rays, torch.ones(1, 4, 4, 4), 1.0, 0.1)
    with pytest.raises(ValueError, match="step"):
        march(rays, make_grid(1, 4, 0.5), 1.0, 0.0)


@pytest.mark.gpu
@needs_warp
@pytest.mark.parametrize("levels, res", [(1, 64), (2, 32), (3, 12)])
def test_gpu_is_the_twin(levels, res):
    rays, grid = make_rays(2000), make_grid(levels, res, 0.1)
    jitter = torch.rand(2000, generator=torch.Generator().manual_seed(4))
    want = march(rays, grid, RADIUS, 0.01, jitter)
    got = march(rays.to("cuda"), grid.cuda(), RADIUS, 0.01, jitter.cuda(), backend="warp")
    # the course is worked out on the device: its last bits may differ, and with them a sample on a cell's face
    assert abs(len(got) - len(want)) <= 1e-3 * len(want)
    assert torch.allclose(got.offsets.cpu().diff().float(), want.offsets.diff().float(), atol=3)


@pytest.mark.gpu
@pytest.mark.timeout(600)
@pytest.mark.parametrize("levels, res", [(1, 64), (2, 32), (3, 12)])
def test_gpu_is_nerfacc(levels, res):
    require("nerfacc")
    import nerfacc

    rays, grid = make_rays(2000), make_grid(levels, res, 0.1)
    jitter = torch.rand(2000, generator=torch.Generator().manual_seed(4))
    want = march(rays, grid, RADIUS, 0.01, jitter)
    estimator = nerfacc.OccGridEstimator([-RADIUS] * 3 + [RADIUS] * 3, resolution=res, levels=levels).cuda()
    estimator.binaries = grid.cuda()
    near = rays.near + jitter * 0.01
    index, t_starts, _ = estimator.sampling(
        rays.origins.cuda(), rays.dirs.cuda(), t_min=near.cuda(), t_max=rays.far.cuda(), render_step_size=0.01
    )
    theirs = torch.bincount(index, minlength=2000).cpu()
    same = theirs == want.offsets.diff()
    assert abs(len(index) - len(want)) <= 5e-3 * len(want) and same.float().mean() > 0.9
    ours = torch.cat([want.t_starts[a:b] for a, b, s in zip(want.offsets[:-1], want.offsets[1:], same) if s])
    assert (ours - t_starts.cpu()[same[index.cpu()]]).abs().median() < 1e-4
